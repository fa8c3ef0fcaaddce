"""Content: what is written of an item says where it stands among the others, whether anybody liked it yet or not.

The trained items' factors are those of their co-occurrence: with X [users, items] of 0 and 1 and n the likes of an
item, the leading right singular vectors of X · diag(n)^−½, times their singular values, so that products of factors are
cosines of co-occurrence. A ridge regression in closed form leads from the description of an item (`item_text`) to its
factors, each trained item weighing √n, the constant free:
    W = (Fᵀ D F + λI)⁻¹ Fᵀ D (Y − ȳ),  D = diag(√n) over its mean, F centred by D.
An item with train events keeps its own factors, one without has those that its description gives. A history is the sum
of its items' factors over √n (an item without train events counts as one with the median of them); an empty one is the
mean user. The score is the product. Items are mapped from attributes to factors as by Gantner et al. (ICDM 2010); the
targets and weights are ours.

`content_prior` is the same regression to log(1 + n) alone: one list for everybody, which shows how much of `content` is
popularity that can be read off an item's description.

Settings of `content` and its prior, chosen on items that are new to them; then fitted on all train events.

The new items are those that the run hides for validation or, where it hides none, a hash-chosen fifth of the trained
ones. Test is never looked at.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import sparse

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Items, read_cases
from recalign.recommenders.item_text import (
    ATTRIBUTES,
    TFIDF,
    Matrix,
    TextMap,
    TextReader,
    fit_description,
    leading,
    text_of,
)
from recalign.recommenders.recommender import Fitting, Request, Tuning
from recalign.recommenders.store import (
    bags,
    columns_of,
    in_blocks,
    load_state,
    rows_by_title,
    same_for_all,
    save_state,
)
from recalign.recommenders.tuning import METRIC, HeldOut, held_out_items


@dataclass(frozen=True)
class Settings:
    """encoder: names of blocks joined by "+"; dimension of the factors; ridge λ, in items of mean weight."""

    encoder: str
    dimension: int
    ridge: float


@dataclass(frozen=True)
class PriorSettings:
    """As Settings; the target has one dimension."""

    encoder: str
    ridge: float


class Content:
    """Scores known items by their own factors and new ones by what is written of them."""

    name = "content"

    def __init__(
        self,
        catalogue: Items,
        factors: NDArray[np.float32],
        counts: NDArray[np.int64],
        mean_user: NDArray[np.float32],
        text_map: TextMap,
        settings: Settings,
    ) -> None:
        """factors [items, d]; counts [items] of train events; mean_user [d]: whom an empty history stands for."""
        self.catalogue = catalogue
        self.factors = factors
        self.counts = counts
        self.mean_user = mean_user
        self.text_map = text_map
        self.settings = settings
        self._spoken = factors * history_weights(counts)[:, None]

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] scores of the candidates, or [B, items] of the whole catalogue; float64.

        Raises RecalignError for an item, in a history or a list, that the catalogue does not hold.
        """
        return in_blocks(self.catalogue, requests, candidates, self._scores)

    def users(self, histories: list[tuple[int, ...]]) -> Matrix:
        """[B, d]: what stands for each history, as a set."""
        likes = bags(self.catalogue, [tuple(set(history)) for history in histories])
        users = np.asarray(likes @ self._spoken.astype(np.float64))
        users[[not history for history in histories]] = self.mean_user
        return users

    def _scores(self, histories: list[tuple[int, ...]]) -> Matrix:
        scores: Matrix = self.users(histories) @ self.factors.T.astype(np.float64)
        return scores

    def on(self, catalogue: Items) -> "Content":
        """The same on another catalogue: items of the same title keep their factors, all others are read.

        Raises RecalignError where the text encoder is not what it was.
        """
        rows, new = rows_by_title(self.catalogue, catalogue)
        factors = self.factors[rows]
        if new:
            factors[rows < 0] = self.text_map.of(catalogue, new)
        counts = np.where(rows < 0, 0, self.counts[rows])
        return Content(catalogue, factors, counts, self.mean_user, self.text_map, self.settings)

    def save(self, path: Path) -> None:
        """Write factors, counts and the map from text to factors into the folder `path`."""
        told, arrays = self.text_map.state()
        arrays |= {"factors": self.factors, "counts": self.counts, "mean_user": self.mean_user}
        save_state(path, self.name, self.catalogue, arrays, asdict(self.settings) | told)

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "Content":
        """Read what `save` wrote. Raises RecalignError for a model of another catalogue."""
        arrays, told = load_state(path, cls.name, catalogue)
        settings = Settings(told["encoder"], told["dimension"], told["ridge"])
        text_map = TextMap.of_state(told, arrays)
        return cls(catalogue, arrays["factors"], arrays["counts"], arrays["mean_user"], text_map, settings)


class ContentPrior:
    """Scores an item by its log count in train, a new one by the log count that its description lets expect."""

    name = "content_prior"

    def __init__(self, catalogue: Items, values: Matrix, text_map: TextMap, settings: PriorSettings) -> None:
        """values [items]: log(1 + train events), or what was read for it."""
        self.catalogue = catalogue
        self.values = values
        self.text_map = text_map
        self.settings = settings

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] of the candidates, or [B, items] of the whole catalogue: the same for everybody."""
        return same_for_all(self.values, self.catalogue, requests, candidates)

    def on(self, catalogue: Items) -> "ContentPrior":
        """As `Content.on`."""
        rows, new = rows_by_title(self.catalogue, catalogue)
        values = self.values[rows]
        if new:
            values[rows < 0] = self.text_map.of(catalogue, new)[:, 0]
        return ContentPrior(catalogue, values, self.text_map, self.settings)

    def save(self, path: Path) -> None:
        """Write the values and the map from text to them into the folder `path`."""
        told, arrays = self.text_map.state()
        save_state(path, self.name, self.catalogue, arrays | {"values": self.values}, asdict(self.settings) | told)

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "ContentPrior":
        """Read what `save` wrote. Raises RecalignError for a model of another catalogue."""
        arrays, told = load_state(path, cls.name, catalogue)
        settings = PriorSettings(told["encoder"], told["ridge"])
        return cls(catalogue, arrays["values"], TextMap.of_state(told, arrays), settings)


def history_weights(counts: NDArray[np.int64]) -> Matrix:
    """[items]: 1/√n of what an item adds to a history; n is the median of the trained items for one without events."""
    median = float(np.median(counts[counts > 0])) if (counts > 0).any() else 1.0
    weights: Matrix = np.where(counts > 0, counts, median) ** -0.5
    return weights


class Fitter:
    """Fits any settings on train events (user_id, item_id); what they share is computed once."""

    def __init__(self, catalogue: Items, events: pa.Table, most: int, read: TextReader) -> None:
        """most: the largest dimension that will be asked for; read: texts by a text encoder's name."""
        self.catalogue = catalogue
        _, users = np.unique(events[c.USER].to_numpy(), return_inverse=True)
        items = columns_of(catalogue, events[c.ITEM].to_numpy())
        likes = sparse.csr_array((np.ones(len(items)), (users, items)), shape=(users.max() + 1, len(catalogue.ids)))
        likes.data[:] = 1.0  # a repetition is one like
        self.counts = np.asarray(likes.sum(axis=0)).astype(np.int64)
        self.trained = np.flatnonzero(self.counts)
        self.known = [catalogue.ids[column] for column in self.trained]
        self._likes = likes[:, self.trained]
        count = self.counts[self.trained].astype(np.float64)
        self._weights = np.sqrt(count) / np.sqrt(count).mean()
        self.described = cache(lambda encoder: fit_description(encoder, catalogue, self.known, read))
        self._new = [item for item, count in zip(catalogue.ids, self.counts, strict=True) if not count]
        self._new_features = cache(lambda encoder: self.described(encoder).vectors(catalogue, self._new))
        self._features = cache(lambda encoder: self.described(encoder).vectors(catalogue, self.known))
        scaled = sparse.csr_array(self._likes * count**-0.5)
        values, vectors = leading(scaled, most)
        self.factors: Matrix = vectors * values  # [trained, d]
        self.log_counts: Matrix = np.log1p(count)[:, None]

    def says_anything(self, encoder: str) -> bool:
        """False where the encoder describes all trained items alike; a single item has nothing to differ from."""
        return len(self.known) < 2 or bool(self.described(encoder).blocks)

    def text_map(self, encoder: str, ridge: float, targets: Matrix) -> TextMap:
        """The regression of the module's docstring, from descriptions to targets [trained, d]."""
        return TextMap(self.described(encoder), *ridge_map(self._features(encoder), targets, self._weights, ridge))

    def _made(self, encoder: str, text_map: TextMap) -> Matrix:
        """[items without train events, d], as `text_map.of` makes them."""
        made: Matrix = self._new_features(encoder) @ text_map.weights + text_map.constant
        return made

    def content(self, settings: Settings) -> Content:
        """The recommender by these settings; a dimension above what the log holds is cut to it."""
        own = self.factors[:, : settings.dimension]
        text_map = self.text_map(settings.encoder, settings.ridge, own)
        factors = np.zeros((len(self.catalogue.ids), own.shape[1]))
        factors[self.trained] = own
        factors[self.counts == 0] = self._made(settings.encoder, text_map)
        spoken = own * history_weights(self.counts)[self.trained, None]
        mean_user = np.asarray(self._likes @ spoken).mean(axis=0)
        return Content(
            self.catalogue, factors.astype(np.float32), self.counts, mean_user.astype(np.float32), text_map, settings
        )

    def prior(self, settings: PriorSettings) -> ContentPrior:
        """The history-blind prior by these settings."""
        text_map = self.text_map(settings.encoder, settings.ridge, self.log_counts)
        values = np.log1p(self.counts.astype(np.float64))
        values[self.counts == 0] = self._made(settings.encoder, text_map)[:, 0]
        return ContentPrior(self.catalogue, values, text_map, settings)


def ridge_map(features: Matrix, targets: Matrix, weights: Matrix, ridge: float) -> tuple[Matrix, Matrix]:
    """Weights [f, d] and constant [d] that minimise Σ w ‖target − feature W − constant‖² + λ‖W‖² over rows.

    features [n, f], targets [n, d], weights w [n]; the constant is not penalised. Solved in whichever of n and f is
    smaller.
    """
    share = weights / weights.sum()
    centre, mean = share @ features, share @ targets
    root = np.sqrt(weights)[:, None]
    f, y = (features - centre) * root, (targets - mean) * root
    if f.shape[1] <= len(f):
        solved = np.linalg.solve(f.T @ f + ridge * np.eye(f.shape[1]), f.T @ y)
    else:
        solved = f.T @ np.linalg.solve(f @ f.T + ridge * np.eye(len(f)), y)
    return solved, mean - centre @ solved


def nothing_to_read(encoders: Sequence[str], items: int) -> RecalignError:
    """What is said where no encoder tells the trained items apart."""
    return RecalignError(
        f"recommenders.content.encoders {', '.join(encoders)}: none tells the {items} trained items apart (no "
        "attributes, and texts that are empty or all the same); give titles or attributes (table.attributes), or take "
        "content and content_prior out of recommenders.systems"
    )


logger = logging.getLogger(__name__)  # a log is what a recommender is fitted on, here
HIDDEN_ITEMS, TRAIN_ITEMS = "hidden validation items", "a fifth of the trained items"


def hidden_cases(prepared: Path, events: pa.Table, seed: int, most: int = 2000) -> HeldOut | None:
    """The validation cases whose targets the run hides, with the train events that know none of them; None where it
    hides no item, or too few for a case."""
    if not Prepared(prepared).counts["views"].get(c.HIDDEN, {}).get(c.VALIDATION):
        return None
    cases = read_cases(prepared, c.VALIDATION, "uniform", most, seed=seed, view=c.HIDDEN)
    requests = [Request(case.example.user_id, case.example.history, case.example.cutoff) for case in cases]
    lists = [list(case.candidates) for case in cases]
    return HeldOut(events, requests, lists, np.array([case.target_index for case in cases], dtype=np.int64))


def chosen_content(log: Fitting) -> tuple[Content, Tuning]:
    """`content` by the settings that rank the new items best; also what was tried.

    Raises RecalignError where no encoder tells the trained items apart.
    """
    choice, params = _Choice(log), log.params.content
    grid = [
        Settings(encoder, dimension, ridge)
        for encoder, dimension, ridge in itertools.product(choice.encoders, params.dimensions, params.ridges)
    ]
    return choice.full.content(choice.best(grid, choice.content_scores)), choice.report


def chosen_prior(log: Fitting) -> tuple[ContentPrior, Tuning]:
    """The history-blind prior, chosen and told as `chosen_content`."""
    choice = _Choice(log)
    ridges = log.params.content.ridges
    grid = [PriorSettings(encoder, ridge) for encoder, ridge in itertools.product(choice.encoders, ridges)]
    return choice.full.prior(choice.best(grid, choice.prior_scores)), choice.report


class _Choice:
    """What both searches share: the cases, and a fitter on the events that they leave."""

    def __init__(self, log: Fitting) -> None:
        params, catalogue, hidden = log.params.content, log.catalogue, log.hidden
        most = max(params.dimensions)
        read = TextReader(params.model, params.revision, log.threads)
        named = {block for encoder in params.encoders for block in encoder.split("+")}
        for block in sorted(named - {ATTRIBUTES, TFIDF}):
            read(block, [text_of(catalogue, item) for item in catalogue.ids])  # at once: one file, whatever is held out
        self.full = Fitter(catalogue, log.events, most, read)
        self.encoders = [encoder for encoder in params.encoders if self.full.says_anything(encoder)]
        if not self.encoders:
            raise nothing_to_read(params.encoders, len(self.full.known))
        for encoder in params.encoders:
            if encoder not in self.encoders:
                logger.info("content: '%s' describes all items alike here, and is left out", encoder)
        self.cases = hidden or held_out_items(catalogue, log.events, log.clock, log.seed, log.met)
        self.chosen_on = HIDDEN_ITEMS if hidden else TRAIN_ITEMS
        self.fitter = self.full
        self.report: dict[str, Any] = {}
        if self.cases.requests:
            self.fitter = self.full if hidden else Fitter(catalogue, self.cases.events, most, read)
            listed = np.array(self.cases.candidates)
            self._columns = columns_of(catalogue, listed.ravel()).reshape(listed.shape)
            self._histories = [request.history for request in self.cases.requests]

    def best(self, grid: list[Any], scores: Callable[[Any], NDArray[np.float64]]) -> Any:
        """The settings of the highest value, of equals the first; the first of all where there is no case."""
        self.report = {"chosen": asdict(grid[0]), "metric": METRIC, "tried": []}
        if not self.cases.requests:
            logger.info("content keeps the first of its settings: train is too small to choose on")
            return grid[0]
        tried = [(self.cases.value_of(scores(settings)), settings) for settings in grid]
        chosen = max(tried, key=lambda pair: pair[0])[1]
        shown = ", ".join(f"{name} {setting}" for name, setting in asdict(chosen).items())
        logger.info("content: %s; %d settings tried on %d cases", shown, len(tried), len(self.cases.requests))
        self.report |= {
            "chosen": asdict(chosen),
            "chosen_on": self.chosen_on,
            "cases": len(self.cases.requests),
            "tried": [asdict(settings) | {METRIC: value} for value, settings in tried],
        }
        return chosen

    def content_scores(self, settings: Settings) -> NDArray[np.float64]:
        """[B, C]: what `Content.scores` gives, without a row of the whole catalogue."""
        model = self.fitter.content(settings)
        users = model.users(self._histories)
        scores: NDArray[np.float64] = np.einsum("bd,bcd->bc", users, model.factors[self._columns])
        return scores

    def prior_scores(self, settings: PriorSettings) -> NDArray[np.float64]:
        """[B, C]: what `ContentPrior.scores` gives."""
        return self.fitter.prior(settings).values[self._columns]


def fit(log: Fitting) -> tuple[Content | ContentPrior, Tuning]:
    """Choose encoder, dimension and ridge on hidden items, then fit on all of train."""
    return chosen_content(log) if log.name == Content.name else chosen_prior(log)


def load(name: str, path: Path, catalogue: Items) -> Content | ContentPrior:
    """Read what `save` wrote."""
    return Content.load(path, catalogue) if name == Content.name else ContentPrior.load(path, catalogue)
