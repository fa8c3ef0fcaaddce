"""LLaRA (arXiv 2312.02445): a language model that reads a recommender's vector next to each title.

LoRA and the adapter of the vectors learn together, text first: step τ of T shows vectors with the chance p(τ) = τ/T,
one draw a batch. Apart from the paper and its code, on purpose:

- τ is the global step of training, kept in checkpoints; the code's counter starts again with every epoch, so that its
  chance never passes 1/epochs;
- a text-only batch shows nothing in the vectors' places, where the code shows an untrained token;
- the form is the project's: all titles of a history are learned (form `history`), and the vector follows the line of
  its title (`HybridPrompts`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from recalign.common.artifacts import file_digest
from recalign.common.errors import RecalignError
from recalign.data.records import Items, hashed_order
from recalign.evaluation.systems import llara_name
from recalign.hybrid.modality import ModalityAdapter, Origin, embedding_std, load_modality, save_modality
from recalign.hybrid.prompts import HybridPrompts
from recalign.hybrid.soft_tokens import Projected, attach, text_only
from recalign.hybrid.teachers import Teacher
from recalign.llm.adapters import MODALITY, WEIGHTS
from recalign.llm.base import LanguageModel
from recalign.llm.prompts import PromptBuilder
from recalign.params.prompt import PromptParams
from recalign.recommenders.recommender import own_seed
from recalign.training.examples import TextExample
from recalign.training.loop import Measured
from recalign.training.sft import LanguageModelling

DIGITS = 13  # of a hash, that a uniform number is read from: 52 bits


def hybrid_share(step: int, steps: int) -> float:
    """p(τ) = τ/T: the chance that step τ (1 … T) shows vectors."""
    return step / steps


class HybridModelling(LanguageModelling):
    """Language modelling on prompts with vectors, or without them in the steps that the curriculum says.

    Validation always shows them, as ranking will.
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        validation: Sequence[TextExample],
        micro_tokens: int,
        *,
        steps: int,
        seed: int,
        curriculum: bool = True,
    ) -> None:
        """steps: T, of the whole training; seed: draws which of them show vectors; curriculum: False where all do."""
        super().__init__(model, validation, micro_tokens)
        self.name = f"sft@{name}"
        self.step = 0  # τ
        self._steps, self._seed, self._curriculum = steps, seed, curriculum

    def shows_vectors(self, step: int) -> bool:
        """Whether step τ shows vectors: the same answer for all processes, and after a kill."""
        if not self._curriculum:
            return True
        drawn = int(hashed_order(self._seed, "curriculum", step)[:DIGITS], 16) / 16**DIGITS
        return drawn < hybrid_share(step, self._steps)

    def losses(self, parts: Sequence[Sequence[TextExample]]) -> Iterator[Measured]:
        """As language modelling's, on what the next step shows."""
        self.step += 1
        if not self.shows_vectors(self.step):
            parts = [[without_vectors(example) for example in part] for part in parts]
        yield from super().losses(parts)

    def state_dict(self) -> dict[str, float]:
        """The step that was taken last."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on after that step."""
        self.step = int(state["step"])


def without_vectors(example: TextExample) -> TextExample:
    """The same example as a model of text reads it."""
    return replace(example, prompt=text_only(example.prompt), continuation=text_only(example.continuation))


def new_vectors(lm: LanguageModel, teacher: Teacher, seed: int) -> Projected:
    """Attach a new adapter for a teacher's vectors to a language model that trains; it starts at the table's scale."""
    width = lm.model.get_input_embeddings().weight.shape[-1]
    std, drawn = embedding_std(lm.model), own_seed(seed, llara_name(teacher.name))
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
