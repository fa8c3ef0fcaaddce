"""LLaRA (arXiv 2312.02445): a language model that reads a recommender's vector next to each title.

LoRA and the adapter of the vectors learn together, text first: step τ of T shows vectors with the chance p(τ) = τ/T,
one draw a batch. Apart from the paper and its code, on purpose:

- τ is the global step of training, kept in checkpoints; the code's counter starts again with every epoch, so that its
  chance never passes 1/epochs;
- a text-only batch shows nothing in the vectors' places, where the code shows an untrained token;
- the form is the project's: all titles of a history are learned (form `history`), and the vector follows the line of
  its title (`HybridPrompts`).

The position probe of prompts that list candidates: two of them change places, and scores must follow the items. A model
that answers by where a title and its vector stand, and not by what they say, tells nothing. With a and b at two places
p and q of a list, and d the score of a less that of b, before (a at p, b at q) and after the exchange (a at q, b at p):

    by the item:  (d before + d after) / 2,    by the place:  (d before − d after) / 2 = what p adds over q.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from recalign.common.errors import RecalignError
from recalign.data.records import hashed_order, hashed_share
from recalign.evaluation.metrics import Floats
from recalign.hybrid.prompts import text_only
from recalign.training.examples import TextExample
from recalign.training.loop import Measured
from recalign.training.sft import LanguageModelling

Pair = tuple[int, int]


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


@dataclass(frozen=True)
class Probe:
    """What decides between two candidates, a value a case [B].

    follows: 1 where the better one is the same item before and after, 0 where it is the same place, ½ where two scores
    are equal. item, place: how far either moves the scores apart, in their unit, without a sign.
    """

    follows: Floats
    item: Floats
    place: Floats


def drawn_places(names: Sequence[str], listed: int) -> list[Pair]:
    """Two different places of a list of so many candidates for each case, by its name alone.

    Raises RecalignError for lists that are too short to exchange anything.
    """
    if listed < 2:
        raise RecalignError(f"lists of {listed} have no two places to exchange; set prepare.candidates to 2 or more")
    drawn = (sorted(range(listed), key=lambda place: hashed_order("places", name, place)) for name in names)
    return [(order[0], order[1]) for order in drawn]


def exchanged(lists: Sequence[Sequence[int]], places: Sequence[Pair]) -> list[list[int]]:
    """The lists with the items at each one's two places exchanged."""
    found = [list(items) for items in lists]
    for items, (one, other) in zip(found, places, strict=True):
        items[one], items[other] = items[other], items[one]
    return found


def position_probe(before: Floats, after: Floats, places: Sequence[Pair]) -> Probe:
    """What decides, by scores [B, C] of lists and of the same lists `exchanged`, both in the order of their places."""
    rows = np.arange(len(places))
    one, other = (np.array(columns) for columns in zip(*places, strict=True))
    first, second = before[rows, one] - before[rows, other], after[rows, other] - after[rows, one]
    follows = (1.0 + np.sign(first) * np.sign(second)) / 2.0
    return Probe(follows, np.abs(first + second) / 2.0, np.abs(first - second) / 2.0)
