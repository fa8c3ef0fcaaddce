"""Prompts that show a recommender's vector of an item after the line of its title, and the folder that fixes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.artifacts import digest_of, file_digest
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.hybrid.modality import ModalityAdapter, Origin, embedding_std, load_modality, save_modality
from recalign.hybrid.soft_tokens import Projected, attach, soft_id
from recalign.hybrid.teachers import Teacher
from recalign.llm.adapters import MODALITY, WEIGHTS
from recalign.llm.base import LanguageModel
from recalign.llm.prompts import PromptBuilder
from recalign.params.prompt import PromptParams
from recalign.recommenders.recommender import own_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HybridPrompts(PromptBuilder):
    """As `PromptBuilder`, with a vector after each line of the history (form `candidates`: of the candidates, too).

    The paper (arXiv 2312.02445) puts the token next to the title within its line. Here it follows the line's end: a
    response is then the same title and newline as in text, and the last vector of a history is what the model reads
    right before it answers. An item that has no vector, or a title that is in no catalogue, is shown as text alone.
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
    ) -> None:
        """numbers: item → number of its vector."""
        super().__init__(tokenizer, items, params, noun, clock=clock)
        self.numbers = numbers
        self.digest = digest_of([self.digest, sorted(numbers.items())])

    def _lines(self, items: Sequence[int | str]) -> list[int]:
        ids: list[int] = []
        for item in items:
            ids += super()._lines([item])
            if isinstance(item, int) and item in self.numbers:
                ids.append(soft_id(self.numbers[item]))
        return ids


def new_vectors(lm: LanguageModel, teacher: Teacher, seed: int) -> Projected:
    """Attach a new adapter for a teacher's vectors to a language model that trains; it starts at the table's scale."""
    width = lm.model.get_input_embeddings().weight.shape[-1]
    std, drawn = embedding_std(lm.model), own_seed(seed, f"vectors of {teacher.name}")
    projected = Projected(teacher.vectors, ModalityAdapter(teacher.vectors.shape[1], width, std=std, seed=drawn))
    attach(lm.model, projected)
    return projected


def write_hybrid(adapter: ModalityAdapter, teacher: Teacher, folder: Path) -> None:
    """Write the modality adapter and its teacher's vectors next to the LoRA adapter in `folder`."""
    teacher.write(folder)
    save_modality(adapter, _origin(teacher, folder), folder)


def prompt_builder(
    lm: LanguageModel, folder: Path | None, catalogue: Items, params: PromptParams, noun: str, *, clock: bool
) -> PromptBuilder:
    """The prompts that an adapter's folder was trained with: text, or text and the vectors that lie in it.

    In the second case the model is made to read them, so prompts and model belong together.
    Raises RecalignError where the vectors or the LoRA are of another run than the modality adapter, or where the
    teacher knows no item of the catalogue.
    """
    if folder is None or not (folder / MODALITY).is_file():
        return PromptBuilder(lm.tokenizer, catalogue, params, noun, clock=clock)
    teacher = Teacher.read(folder)
    adapter = load_modality(folder, _origin(teacher, folder))
    attach(lm.model, Projected(teacher.vectors, adapter.requires_grad_(False)))
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
    return HybridPrompts(lm.tokenizer, catalogue, params, noun, numbers=numbers, clock=clock)


def _origin(teacher: Teacher, folder: Path) -> Origin:
    return Origin(teacher.name, teacher.digest, teacher.order_digest, file_digest(folder / WEIGHTS))
