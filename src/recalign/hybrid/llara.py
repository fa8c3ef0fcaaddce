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
from dataclasses import dataclass, replace

import torch

from recalign.data.records import hashed_share
from recalign.hybrid.prompts import text_only
from recalign.training.examples import TextExample
from recalign.training.loop import Measured
from recalign.training.sft import LanguageModelling


def hybrid_share(step: int, steps: int) -> float:
    """p(τ) = τ/T: the chance that step τ (1 … T) shows vectors."""
    return step / steps


@dataclass(frozen=True)
class Curriculum:
    """Which steps show vectors: step τ of `steps` with the chance p(τ), drawn by `seed`; all where `rising` is False.

    The same answer for all processes, and after a kill.
    """

    steps: int
    seed: int
    rising: bool = True

    def shows_vectors(self, step: int) -> bool:
        """Whether step τ does."""
        return not self.rising or hashed_share(self.seed, "curriculum", step) < hybrid_share(step, self.steps)


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
        curriculum: Curriculum,
    ) -> None:
        super().__init__(model, validation, micro_tokens)
        self.name = f"sft@{name}"
        self.step = 0  # τ
        self.curriculum = curriculum

    def losses(self, parts: Sequence[Sequence[TextExample]]) -> Iterator[Measured]:
        """As language modelling's, on what the next step shows."""
        self.step += 1
        if not self.curriculum.shows_vectors(self.step):
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
