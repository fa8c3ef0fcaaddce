"""Fusion: one ranking from several systems' scores of the same candidates, with weights learned on validation cases.

Scores of different systems have different units, so each list of candidates is brought to mean 0 and deviation 1 a
system. What the fusion hears is chosen by NDCG@10 (forward selection, below): the best single part, and whatever
raises it by more than noise. The scale of the sum, which changes no list, minimises the negative log-likelihood of the
targets under a conditional logit (McFadden 1974), P(target) = softmax(w · z), plus ½ · RIDGE · w²: so a fused score is
in log-odds.
A weight is never below 0: on a few cases, turning a system round would be noise.

ID recommenders score thousands of validation cases in a second, a language model a few dozen: so theirs are chosen on
the many first, and the language model joins on its few with those weights held, by the same rule.

New items (those with fewer than `prepare.cold_events` train events) have weights of their own, fitted likewise on the
hidden validation cases: what co-occurrence is worth among known items says nothing of items that it cannot see. Each
kind is standardised among its own, so a list of one kind is ranked by one set of weights. Where both kinds meet, new
items stand below the known ones: how often new items are liked cannot be learned from hidden ones, whose share is a
parameter. An `offset` says otherwise: the log-odds of an average new item against an average known one.

Which parts it hears, and how loud: forward selection by NDCG@10 on validation cases.

It begins with the best single part. Another joins, at one of FACTORS of what weighs already, where that raises NDCG@10
by more than one standard error; then again, until none does. So a fusion that is not better than its best part by more
than noise is that part. What a part would add is measured on cases that did not choose its factor (FOLDS folds); the
factor itself is then chosen on all cases. Cases that are alike go into one fold and count as one draw of the error:
those of a user, and among new items, of which there are fewer than users, those that ask for one item. Sources: greedy
selection on the metric itself, Caruana et al. 2004, Ensemble selection from libraries of models; the bound of one
error, Breiman et al. 1984, Classification and Regression Trees, 3.4.3. The two together are ours.

Why not the likelihood: item-kNN scores most of a list 0 and a few items high, so that a logit that is linear in
standardised scores gives it no weight beside EASE, though NDCG@10 rises with it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_serializer
from scipy.optimize import minimize
from scipy.special import log_softmax

from recalign.common.artifacts import read_json, write_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items, hashed_order
from recalign.evaluation.metrics import Floats, Lots, metric_values, target_ranks
from recalign.evaluation.significance import cluster_spread, sums_by_user
from recalign.params.recommenders import RecommenderName

METRIC = "ndcg_at_10"
FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
FOLDS = 8


@dataclass(frozen=True)
class Judged:
    """What validation cases say of scores: target_index [B], the target's column; clusters [B], equal where cases are
    alike (a user's, or a new item's); lots [B, C] of equals."""

    target_index: Sequence[int]
    clusters: Sequence[int]
    lots: Lots

    def values(self, scores: Floats) -> Floats:
        """NDCG@10 of each case [B] under scores [B, C]."""
        values: Floats = metric_values(METRIC, target_ranks(scores, self.target_index, self.lots))
        return values


def selected(parts: Floats, judged: Judged) -> Floats:
    """[S] weights of parts [B, C, S], the best single one's 1 before others joined; 0 of those that add nothing."""
    weights = np.zeros(parts.shape[2])
    best = int(np.argmax([judged.values(part).mean() for part in np.moveaxis(parts, 2, 0)]))
    weights[best] = 1.0
    left = [place for place in range(len(weights)) if place != best]
    while left:
        now = parts @ weights
        steps = {place: step(now, parts[:, :, place], weights.sum(), judged) for place in left}
        place = max(steps, key=lambda each: steps[each].gain)
        if not steps[place].weight:
            break
        weights[place] = steps[place].weight
        left.remove(place)
    return weights


@dataclass(frozen=True)
class Step:
    """What a part adds: its weight, 0 where that is noise; gain: in NDCG@10, −inf with a weight of 0."""

    weight: float
    gain: float


def step(now: Floats, part: Floats, total: float, judged: Judged) -> Step:
    """Whether a part [B, C] joins the scores [B, C] of now, whose weights sum to `total`."""
    values = np.stack([judged.values(now + factor * total * part) for factor in (0.0, *FACTORS)])
    fold = _folds(judged.clusters)
    others = [number for number in range(FOLDS) if (fold == number).any() and (fold != number).any()]
    if not others:
        return Step(0.0, -np.inf)  # of one cluster nothing can be held out
    gains = np.zeros(len(fold))
    for number in others:
        held_out = fold == number
        factor = int(np.argmax(values[:, ~held_out].mean(axis=1)))
        gains[held_out] = values[factor, held_out] - values[0, held_out]
    (error,), _ = cluster_spread(*sums_by_user(gains[:, None], judged.clusters))
    factor = int(np.argmax(values.mean(axis=1)))
    if not factor or gains.mean() <= error + 1e-12:
        return Step(0.0, -np.inf)
    return Step(FACTORS[factor - 1] * total, float(gains.mean()))


def _folds(clusters: Sequence[int]) -> NDArray[np.int64]:
    """[B]: the fold of each case; all of a cluster's are in one."""
    ordered = sorted(set(clusters), key=lambda cluster: hashed_order("fold", cluster))
    fold = {cluster: place % FOLDS for place, cluster in enumerate(ordered)}
    return np.array([fold[cluster] for cluster in clusters], dtype=np.int64)


FITTED = "fusion.json"
RIDGE = 0.25  # in cases; a weight of 2 costs half a nat, so that a handful of cases cannot make it infinite
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Fusion:
    """The weight of each system, as fitted.

    new: the fusion that ranks new items, None: they are ranked as the others are; offset: what is added to their scores
    where both kinds meet, None: they stand below.
    """

    weights: Mapping[str, float]
    new: "Fusion | None" = None
    offset: float | None = None

    @classmethod
    def fit(cls, scores: Mapping[str, Floats], judged: Judged) -> "Fusion":
        """Fit on scores [B, C] a system of judged cases; names in order, the first of equally good parts is taken.

        Raises RecalignError when the systems scored lists of different shape.
        """
        parts = _stacked(scores)
        weights = selected(parts, judged)
        weights *= _scale(parts @ weights, judged.target_index)
        return cls(dict(zip(scores, weights.tolist(), strict=True)))

    def joined(self, name: str, scores: Mapping[str, Floats], judged: Judged) -> "Fusion":
        """This fusion and the system `name`, whose weight is fitted on scores [B, C] of all parts, the others' held.

        It is 0 where the system adds no more than noise.
        """
        (part,) = np.moveaxis(_stacked({name: scores[name]}), 2, 0)
        total = sum(self.weights.values()) or 1.0
        return Fusion({**self.weights, name: step(self.scores(scores), part, total, judged).weight})

    def scores(self, scores: Mapping[str, Floats], new: Bools | None = None) -> Floats:
        """[B, C]: the weighted sum of the standardised scores; `new` [B, C] says which candidates are new items.

        Raises RecalignError when a system's scores are missing.
        """
        if self.new is None or new is None or not new.any():
            return self._fused(scores)
        if new.all():
            return self.new._fused(scores)
        return self.together(self._fused(scores, ~new), self.new._fused(scores, new), new)

    def together(self, known: Floats, new_scores: Floats, new: Bools, over: Bools | None = None) -> Floats:
        """[B, C]: scores of known items and of new ones (`new` [B, C]) in one ranking.

        over: the columns [B, C] that are ranked, all by default.
        """
        if self.offset is not None:
            return np.where(new, new_scores + self.offset, known)
        ranked = np.ones_like(new) if over is None else over
        lowest = np.where(ranked & ~new, known, np.inf).min(axis=1)
        highest = np.where(ranked & new, new_scores, -np.inf).max(axis=1)
        below = [gap(one, other) for one, other in zip(lowest.tolist(), highest.tolist(), strict=True)]
        return np.where(new, new_scores + np.array(below)[:, None], known)

    def _fused(self, scores: Mapping[str, Floats], over: Bools | None = None) -> Floats:
        """[B, C] by these weights alone, standardised over the columns `over` [B, C]; a row without one: over all."""
        read = {name: weight for name, weight in self.used.items() if weight > 0 or name in scores}
        missing = [name for name in read or self.used if name not in scores]
        if missing:
            fitted = ", ".join(self.weights)
            raise RecalignError(f"fusion was fitted with {fitted}; the scores of {missing[0]} are missing")
        parts = _stacked({name: scores[name] for name in read}, None if over is None else or_all(over))
        fused: Floats = parts @ np.array(list(read.values()))
        return fused

    @property
    def used(self) -> dict[str, float]:
        """The parts that weigh anything, heaviest first: the others need not score. Where none does, all of them."""
        ordered = sorted(self.weights.items(), key=lambda part: (-part[1], part[0]))
        return {name: weight for name, weight in ordered if weight > 0} or dict(ordered)

    @property
    def asked(self) -> list[str]:
        """The parts that known or new items need."""
        return list(dict.fromkeys([*self.used, *(self.new.used if self.new else ())]))

    @property
    def read_by(self) -> str:
        """What ranks new items: 'content + llm-sdpo'."""
        return " + ".join((self.new or self).used)

    @property
    def sentence(self) -> str:
        """The weights as shares, idle parts last: '0.71 item_knn + 0.29 llm-sdpo + 0 (ease)'; then the new items'."""
        idle = sorted(self.weights.keys() - self.used.keys())
        said = self._shares
        said += f" + 0 ({', '.join(idle)})" if idle else ""
        return f"{said}; new items: {self.new._shares}" if self.new else said

    @property
    def _shares(self) -> str:
        total = sum(self.weights.values()) or 1.0
        return " + ".join(f"{weight / total:.2f} {name}" for name, weight in self.used.items())


class Part(BaseModel):
    """A part of a fitted fusion: its weight, and the digest of what scored (the fitted recommender, or the adapter).

    new_weight: among new items; None: the same, as in every fusion of before there were such weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(ge=0.0)
    digest: str
    new_weight: float | None = Field(default=None, ge=0.0)

    @model_serializer(mode="wrap")
    def _told(self, handler: Callable[["Part"], dict[str, Any]]) -> dict[str, Any]:
        return _without(self, handler(self), ("new_weight",))


class FittedFusion(BaseModel):
    """A fusion as evaluate leaves it: parts by name, which of them is the language model, and what it was fitted on.

    cases: validation cases of the language model's weight; recommender_cases: of the ID recommenders' weights.
    cold_events: items with fewer train events are new; None: there are no weights of their own for them. new_cases,
    new_recommender_cases: the hidden validation cases that these were fitted on, 0 where they were not fitted.
    offset: as in `Fusion`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: dict[str, Part]
    language_model: str
    manifest: str
    manifest_digest: str
    cases: int
    recommender_cases: int
    cold_events: int | None = None
    new_cases: int = 0
    new_recommender_cases: int = 0
    offset: float | None = None

    @model_serializer(mode="wrap")
    def _told(self, handler: Callable[["FittedFusion"], dict[str, Any]]) -> dict[str, Any]:
        """Without what says nothing: a fusion that knows no new items keeps its bytes and digest."""
        return _without(self, handler(self), ("cold_events", "new_cases", "new_recommender_cases", "offset"))

    @property
    def fusion(self) -> Fusion:
        """The weights."""
        weights = {name: part.weight for name, part in self.parts.items()}
        if self.cold_events is None:
            return Fusion(weights)
        new = {name: part.new_weight or 0.0 for name, part in self.parts.items()}
        return Fusion(weights, Fusion(new), self.offset)

    def new_items(self, catalogue: Items, own: Items | None = None) -> frozenset[int]:
        """The items of a catalogue that its recommenders do not know: with fewer than `cold_events` train events.

        own: the catalogue that they were fitted on, where it is another one; items are met by title, and those that it
        lacks are new. An item whose train events nobody counted is known.
        """
        if self.cold_events is None:
            return frozenset()
        if own is None:
            counts = {item: catalogue.train_events.get(item, self.cold_events) for item in catalogue.ids}
        else:
            titled = {own.titles[item]: own.train_events.get(item, self.cold_events) for item in own.ids}
            counts = {item: titled.get(catalogue.titles[item], 0) for item in catalogue.ids}
        return frozenset(item for item, count in counts.items() if count < self.cold_events)

    @property
    def recommenders(self) -> list[RecommenderName]:
        """The ID recommenders among the parts that weigh anything, for known or for new items."""
        return [cast(RecommenderName, name) for name in self.fusion.asked if name != self.language_model]

    @property
    def active_language_model(self) -> str | None:
        """The language model, where it weighs anything: where it does not, it need not be loaded."""
        part = self.parts[self.language_model]
        return self.language_model if part.weight > 0 or (part.new_weight or 0.0) > 0 else None

    def write(self, folder: Path) -> None:
        """Write fusion.json into a folder."""
        write_json(folder / FITTED, self.model_dump())


def read_fusion(folder: Path) -> FittedFusion:
    """The fusion that `FittedFusion.write` left in a folder. Raises RecalignError where it is missing."""
    return FittedFusion.model_validate(read_json(folder / FITTED))


def gap(lowest: float, highest: float) -> float:
    """What brings new items, at most `highest`, below known ones, at least `lowest`; 0 where one kind is not there."""
    return lowest - highest - 1.0 if math.isfinite(lowest) and math.isfinite(highest) else 0.0


def or_all(over: Bools) -> Bools:
    """`over` [B, C], and all columns of a row that has none."""
    return over | ~over.any(axis=1, keepdims=True)


def standardised(scores: Floats, over: Bools | None = None) -> Floats:
    """Each row of [B, C] at mean 0 and deviation 1 over the columns `over` [B, C]; of equal scores it becomes zeros."""
    mean, deviation = moments(scores, over)
    return np.where(deviation > 0, (scores - mean) / np.where(deviation > 0, deviation, 1.0), 0.0)


def moments(scores: Floats, over: Bools | None = None) -> tuple[Floats, Floats]:
    """Mean and deviation [B, 1] of each row of [B, C] over the columns `over` [B, C], all by default.

    The deviation of scores that differ by rounding alone is 0. Each row of `over` needs a column.
    """
    read: Any = True if over is None else over
    mean = scores.mean(axis=1, keepdims=True, where=read)
    deviation = (scores - mean).std(axis=1, keepdims=True, where=read)
    largest = np.abs(scores).max(axis=1, keepdims=True, initial=1e-300, where=read)
    return mean, np.where(deviation <= 1e-12 * largest, 0.0, deviation)


def _scale(scores: Floats, target_index: Sequence[int]) -> float:
    """What scores [B, C] are multiplied by, at least 0, so that the targets are most likely."""
    rows, targets = np.arange(scores.shape[0]), np.asarray(target_index)

    def loss(scale: Floats) -> tuple[float, Floats]:
        log_chances = log_softmax(scores * scale, axis=1)
        expected = (np.exp(log_chances) * scores).sum()
        value = -log_chances[rows, targets].sum() + RIDGE / 2 * scale @ scale
        return float(value), expected - scores[rows, targets].sum() + RIDGE * scale

    (found,) = minimize(loss, np.ones(1), jac=True, method="L-BFGS-B", bounds=[(0.0, None)]).x
    return float(found)


def _without(own: BaseModel, told: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What a model tells, minus the named fields that have their default."""
    default = {name: type(own).model_fields[name].default for name in names}
    return {name: value for name, value in told.items() if name not in default or value != default[name]}


def _stacked(scores: Mapping[str, Floats], over: Bools | None = None) -> Floats:
    """[B, C, systems] of the standardised scores."""
    shapes = {name: np.shape(values) for name, values in scores.items()}
    if len(set(shapes.values())) != 1:
        raise RecalignError(f"fusion needs scores of the same cases and candidates; the shapes are {shapes}")
    return np.stack([standardised(np.asarray(values, dtype=np.float64), over) for values in scores.values()], axis=2)
