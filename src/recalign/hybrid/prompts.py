"""Prompts that show a recommender's vector after the line of a title, and the folder that fixes them.

Vectors in prompts: a negative id stands for a vector, and the model's input embedding looks it up.

Id −1 − n is the vector of number n: a row of a table (static), or the state after a history (`States`). Prompts stay
lists of ids, so that the one scorer packs, shares and caches them as ever: the same vector after the same tokens has
one place in a row, another vector is another token. No tokenizer gives a negative id, whatever a title says. Responses
are scored without the places of vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recalign.common.artifacts import digest_of, file_digest
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.hybrid.modality import (
    PLACEHOLDER,
    ModalityAdapter,
    Origin,
    Teacher,
    embedding_std,
    load_modality,
    save_modality,
    splice,
)
from recalign.hybrid.states import States
from recalign.llm.model.adapters import MODALITY, WEIGHTS
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.ways import base_of
from recalign.params.load import Params
from recalign.params.prompt import PromptParams
from recalign.project import Project
from recalign.recommenders.recommender import own_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEMBERED = 2**19  # histories of states while ranking: some 300 MB; training remembers all, as it has all examples


def soft_id(number: int) -> int:
    """The id of the vector of number n."""
    return PLACEHOLDER - number


def text_only(ids: Sequence[int]) -> list[int]:
    """A prompt or response without its vectors: what a model of text reads."""
    return [token for token in ids if token > PLACEHOLDER]


class Projected(nn.Module):
    """The n-th vector of a table [N, in_dim], through the adapter that learns."""

    table: Tensor

    def __init__(self, table: Tensor, adapter: ModalityAdapter) -> None:
        """Raises RecalignError where the table has another width than the adapter reads, or is not finite."""
        super().__init__()
        if table.ndim != 2 or table.shape[1] != adapter.in_dim:
            raise RecalignError(
                f"the teacher's vectors have shape {list(table.shape)}, but the adapter reads vectors of width "
                f"{adapter.in_dim}; give it the teacher that it was trained with"
            )
        if not bool(table.isfinite().all()):
            raise RecalignError("the teacher has vectors that are not finite; fit it again with a lower learning rate")
        self.adapter = adapter
        self.register_buffer("table", table.detach().clone(), persistent=False)

    def rows(self, numbers: Tensor) -> Tensor:
        """[K, …] rows of the table. Raises RecalignError for a number beyond it."""
        if int(numbers.max()) >= len(self.table):
            raise RecalignError(
                f"a prompt asks for vector {int(numbers.max())} of a teacher that has {len(self.table)}; build "
                "prompts with the teacher that the model was opened with"
            )
        return self.table[numbers]

    def forward(self, numbers: Tensor) -> Tensor:
        """[K, llm_dim] of numbers [K]."""
        outputs: Tensor = self.adapter(self.rows(numbers))
        return outputs


class ProjectedStates(nn.Module):
    """As `Projected`, of a recommender's states. The recommender is no part of the module, so nothing trains it."""

    def __init__(self, states: States, adapter: ModalityAdapter) -> None:
        super().__init__()
        self.adapter, self.states = adapter, states

    def forward(self, numbers: Tensor) -> Tensor:
        """[K, llm_dim] of numbers [K]."""
        outputs: Tensor = self.adapter(self.states.of(numbers.tolist()).to(numbers.device))
        return outputs


class SoftEmbedding(nn.Module):
    """A model's own input embedding, and vectors where ids are negative. Without any it is the embedding as it was."""

    def __init__(self, plain: nn.Module, vectors: Projected | ProjectedStates) -> None:
        super().__init__()
        self.plain, self.vectors = plain, vectors

    @property
    def weight(self) -> Any:
        """The table, which a head may share."""
        return self.plain.weight

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L, D] of ids [B, L]. Raises RecalignError for a negative id that no vector has."""
        soft = ids < 0
        if not bool(soft.any()):
            embedded: Tensor = self.plain(ids)
            return embedded
        numbers, places = torch.unique(PLACEHOLDER - ids[soft], return_inverse=True)
        chosen = self.vectors(numbers)[places]
        return splice(self.plain(ids.clamp(min=0)), ids.masked_fill(soft, PLACEHOLDER), PLACEHOLDER, chosen)


def attach(model: nn.Module, vectors: Projected | ProjectedStates) -> None:
    """Let a model read vectors, in place of those that it read before; after LoRA, which would adapt the adapter too.

    Raises RecalignError where the adapter's outputs are not as wide as the model's embeddings.
    """
    base = base_of(model)
    plain: Any = base.get_input_embeddings()
    if isinstance(plain, SoftEmbedding):
        plain = plain.plain
    width, wanted = vectors.adapter.llm_dim, plain.weight.shape[-1]
    if width != wanted:
        raise RecalignError(
            f"the modality adapter gives vectors of width {width}, but the base's embeddings have {wanted}; set "
            "base.model to the one that it was trained with"
        )
    base.set_input_embeddings(SoftEmbedding(plain, vectors.to(plain.weight.device)))


class _ReadItem(int):
    """An item of a history, and the teacher's own items that it has read up to and including this one."""

    read: tuple[int, ...]


class HybridPrompts(PromptBuilder):
    """As `PromptBuilder`, with a vector after each line of the history (form `candidates`: of the candidates, too).

    The paper (arXiv 2312.02445) puts the token next to the title within its line. Here it follows the line's end: a
    response is then the same title and newline as in text, and the last vector of a history is what the model reads
    right before it answers. An item that has no vector, or a title that is in no catalogue, is shown as text alone.
    With states the vector is what the teacher knows after the whole history up to that item, shown or not.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        items: Items,
        params: PromptParams,
        noun: str,
        *,
        numbers: Mapping[int, int],
        clock: bool = True,
        states: States | None = None,
    ) -> None:
        """numbers: item → number of its vector, or of the item among those of the recommender whose states are shown.

        Raises RecalignError where states are to be shown of candidates.
        """
        super().__init__(tokenizer, items, params, noun, clock=clock)
        if states and params.form == "candidates":
            raise RecalignError(
                "prompt.form is 'candidates', but hybrid.vectors is 'states', and a candidate that was not liked yet "
                "has no state; 'history' is allowed: set prompt.form to it, or hybrid.vectors to 'static'"
            )
        self.numbers, self.states = numbers, states
        self.digest = digest_of([self.digest, sorted(numbers.items()), *(["states"] if states else [])])

    def prompt(
        self, history: Sequence[int | str], *, profile: str | None = None, candidates: Sequence[int] | None = None
    ) -> list[int]:
        """As `PromptBuilder.prompt`."""
        return super().prompt(self._as_read(history), profile=profile, candidates=candidates)

    def sequence(
        self, history: Sequence[int], target: int, *, profile: str | None = None,
        candidates: Sequence[int] | None = None,
    ) -> tuple[list[int], list[int]]:  # fmt: skip
        """As `PromptBuilder.sequence`."""
        return super().sequence(self._as_read(history), target, profile=profile, candidates=candidates)

    def _lines(self, items: Sequence[int | str]) -> list[int]:
        ids: list[int] = []
        for item in items:
            ids += super()._lines([item])
            number = self._number(item)
            if number is not None:
                ids.append(soft_id(number))
        return ids

    def _number(self, item: int | str) -> int | None:
        """Of the vector after an item's line; None where there is none."""
        if self.states is None:
            return self.numbers.get(item) if isinstance(item, int) else None
        return self.states.number(item.read) if isinstance(item, _ReadItem) else None

    def _as_read(self, history: Sequence[int | str]) -> list[Any]:
        """The history; where states are shown, with what the teacher has read up to each item that it knows."""
        if self.states is None:
            return list(history)
        ids, latest = self.states.recommender.catalogue.ids, self.states.recommender.settings.length
        read, shown = list[int](), list[int | str]()
        for item in history:
            number = self.numbers.get(item) if isinstance(item, int) else None
            if number is not None:
                read.append(ids[number])
                item = _ReadItem(item)
                item.read = tuple(read[-latest:])
            shown.append(item)
        return shown


def new_vectors(lm: LanguageModel, teacher: Teacher, seed: int) -> Projected | ProjectedStates:
    """Attach a new adapter for a teacher's vectors to a language model that trains; it starts at the table's scale."""
    width = lm.model.get_input_embeddings().weight.shape[-1]
    std, drawn = embedding_std(lm.model), own_seed(seed, f"vectors of {teacher.name}")
    projected = _projected(teacher, ModalityAdapter(teacher.vectors.shape[1], width, std=std, seed=drawn))
    attach(lm.model, projected)
    return projected


def _projected(teacher: Teacher, adapter: ModalityAdapter) -> Projected | ProjectedStates:
    return ProjectedStates(teacher.states, adapter) if teacher.states else Projected(teacher.vectors, adapter)


def write_hybrid(adapter: ModalityAdapter, teacher: Teacher, folder: Path) -> None:
    """Write the modality adapter and its teacher's vectors, or the teacher itself, next to the LoRA in `folder`."""
    teacher.write(folder)
    save_modality(adapter, _origin(teacher, folder), folder)


def open_start(params: Params, project: Project, *, trainable: bool = False) -> tuple[LanguageModel, PromptBuilder]:
    """The model under the adapter of align.start, and the prompts that this adapter was trained with.

    trainable: its LoRA; the adapter of vectors stays as it was learned. Raises RecalignError where the start was not
    trained, and as `prompt_builder` does.
    """
    start, summary = project.start(params.align.start), Prepared(project.prepared)
    if not start.is_dir():
        stage = params.align.start.replace("hybrid/llara-", "llara@")
        raise RecalignError(
            f"align.start is '{params.align.start}', and {start} is missing; run 'dvc repro {stage}' (teachers are "
            "those of hybrid.teachers), or set it to sft"
        )
    lm = load_language_model(
        project.base, params.base, adapter=start, trainable=trainable, seed=params.seed, threads=params.threads
    )
    items = Items.read(project.prepared)
    return lm, prompt_builder(lm, start, items, params.prompt, summary.noun, clock=summary.clock, most=None)


def copy_vectors(start: Path) -> Callable[[Path], None] | None:
    """What writes the vectors of the folder `start`, and their adapter, beside a LoRA that was trained on from there.

    None where that folder holds none.
    """
    if not (start / MODALITY).is_file():
        return None
    teacher = Teacher.read(start)
    adapter = load_modality(start, _origin(teacher, start))
    return lambda folder: write_hybrid(adapter, teacher, folder)


def prompt_builder(
    lm: LanguageModel, folder: Path | None, catalogue: Items, params: PromptParams, noun: str, *, clock: bool,
    most: int | None = REMEMBERED,
) -> PromptBuilder:  # fmt: skip
    """The prompts that an adapter's folder was trained with: text, or text and the vectors that lie in it.

    In the second case the model is made to read them, so prompts and model belong together. most: as of `States`.
    Raises RecalignError where the vectors or the LoRA are of another run than the modality adapter, or where the
    teacher knows no item of the catalogue.
    """
    if folder is None or not (folder / MODALITY).is_file():
        return PromptBuilder(lm.tokenizer, catalogue, params, noun, clock=clock)
    teacher = Teacher.read(folder, most)
    adapter = load_modality(folder, _origin(teacher, folder))
    attach(lm.model, _projected(teacher, adapter.requires_grad_(False)))
    return hybrid_prompts(lm, teacher, catalogue, params, noun, clock=clock)


def hybrid_prompts(
    lm: LanguageModel, teacher: Teacher, catalogue: Items, params: PromptParams, noun: str, *, clock: bool
) -> HybridPrompts:
    """Prompts of a catalogue with a teacher's vectors. Raises RecalignError where the teacher knows no item of it."""
    numbers = teacher.numbers(catalogue)
    if not numbers:
        raise RecalignError(
            f"the teacher '{teacher.name}' has vectors of {len(teacher.ids)} items, and none of them is among the "
            f"{len(catalogue.ids)} of this catalogue; train it on this log, or rank by a model of text"
        )
    return HybridPrompts(lm.tokenizer, catalogue, params, noun, numbers=numbers, clock=clock, states=teacher.states)


def _origin(teacher: Teacher, folder: Path) -> Origin:
    return Origin(teacher.name, teacher.digest, teacher.order_digest, file_digest(folder / WEIGHTS))
