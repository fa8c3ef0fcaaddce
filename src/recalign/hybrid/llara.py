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

The teachers are the recommenders whose item vectors a prompt shows: read off their fitted folders, kept beside the
adapter. As in LLaRA's code the vectors are the static item embeddings; the states after a history (`States`) are an
option, with sequence models. These are weak where histories are sets, so the factors of EASE are a teacher too, and
those of `content`. A teacher that reads text has vectors of items without train events, made of what is written of
them: `content`, and SASRec and GRU4Rec where recommenders.next_item.text says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recalign.common.artifacts import folder_digest
from recalign.common.errors import RecalignError, did_you_mean
from recalign.data.records import Items, hashed_order, hashed_share
from recalign.evaluation.metrics import Floats
from recalign.hybrid.modality import Teacher
from recalign.hybrid.prompts import text_only
from recalign.hybrid.states import States
from recalign.recommenders.roster import fitted_on, refusal
from recalign.training.examples import TextExample
from recalign.training.loop import Measured
from recalign.training.sft import LanguageModelling

SEQUENCES, EASE, CONTENT = ("sasrec", "gru4rec", "caser"), "ease", "content"
TEACHERS = (*SEQUENCES, EASE, CONTENT)
FACTORS = 64  # of EASE's weights that are kept: the width of the sequence models' embeddings


def read_teacher(name: str, baselines: Path, catalogue: Items, *, states: bool = False) -> Teacher:
    """The item vectors of a recommender fitted in `baselines`; with `states` the recommender itself, too.

    An item without train events has one where the recommender reads text, and says something of the item's.
    Raises RecalignError for a name that is no teacher, one without states where these are asked for, one that was not
    fitted, or one of another catalogue.
    """
    if name not in TEACHERS:
        allowed = ", ".join(TEACHERS)
        raise RecalignError(f"hybrid.teachers names '{name}'; allowed are {allowed}{did_you_mean(name, TEACHERS)}")
    if states and name not in SEQUENCES:
        raise RecalignError(
            f"hybrid.vectors is 'states', but hybrid.teachers names '{name}', which has no state of a history; allowed "
            f"are {', '.join(SEQUENCES)}: name one of them, or set hybrid.vectors to 'static'"
        )
    folder = baselines / name
    why = refusal(folder)
    if why is not None or not folder.is_dir():
        raise RecalignError(
            f"hybrid.teachers names '{name}', which was not fitted{f' ({why})' if why else ''}; put it into "
            f"recommenders.systems and run 'dvc repro baselines@{name}'"
        )
    own = fitted_on(name, folder, catalogue)
    table, titles = _vectors(name, folder, own), tuple(own.titles[item] for item in own.ids)
    if states:  # of all its items, as it was fitted on them
        return Teacher(name, own.ids, titles, table, folder_digest(folder), States.read(name, folder, own))
    known = set(catalogue.trained.ids)
    kept = [row for row, item in enumerate(own.ids) if item in known or bool(table[row].any())]
    ids = tuple(own.ids[row] for row in kept)
    return Teacher(name, ids, tuple(own.titles[item] for item in ids), table[kept], folder_digest(folder))


def _vectors(name: str, folder: Path, catalogue: Items) -> Tensor:
    """[items, d] of a catalogue that is the recommender's own; zeros for an item of which it can say nothing."""
    if name == EASE:
        return _factors(folder, catalogue)
    if name == CONTENT:
        from recalign.recommenders.content import Content

        return torch.from_numpy(Content.load(folder, catalogue).factors)
    return _embeddings(name, folder, catalogue)


def _embeddings(name: str, folder: Path, catalogue: Items) -> Tensor:
    from recalign.recommenders.neural.encoders import EncoderName
    from recalign.recommenders.neural.sequential import Sequential

    recommender = Sequential.load(cast(EncoderName, name), folder, catalogue)
    return recommender.item_embedding(list(catalogue.ids)).float().contiguous()


def _factors(folder: Path, catalogue: Items) -> Tensor:
    from recalign.recommenders.ease import EASE as Recommender

    return torch.from_numpy(item_factors(Recommender.load(folder, catalogue).weights, FACTORS))


def item_factors(weights: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """[items, width] U·√S of the largest singular values of EASE's weights: what an item adds as a part of a history.

    Fewer columns than `width` where the catalogue is smaller. The signs are fixed: the largest entry of a column is
    positive.
    """
    from scipy.sparse.linalg import svds

    size = len(weights)
    kept = min(width, size - 1)
    left, values, _ = svds(weights.astype(np.float64), k=kept, v0=np.ones(size) / np.sqrt(size))
    order = np.argsort(-values, kind="stable")
    factors = left[:, order] * np.sqrt(values[order])
    signs = np.sign(factors[np.abs(factors).argmax(axis=0), np.arange(kept)])
    found: NDArray[np.float32] = (factors * np.where(signs == 0, 1.0, signs)).astype(np.float32)
    return found


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
