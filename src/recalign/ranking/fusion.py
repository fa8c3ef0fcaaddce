"""Fusion: one ranking from several systems' scores of the same candidates, with weights learned on validation cases.

Scores of different systems have different units, so each list of candidates is brought to mean 0 and deviation 1 a
system. The weights w ≥ 0 of the standardised scores z minimise the negative log-likelihood of the targets under a
conditional logit (McFadden 1974), P(target) = softmax(z · w), plus ½ · RIDGE · |w|²: a convex problem with one answer.
A weight cannot fall below 0: on a few cases, turning a system round would be noise.

ID recommenders score thousands of validation cases in a second, a language model a few dozen: so theirs are fitted on
the many first, and the language model joins on its few with those weights held.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize
from scipy.special import log_softmax

from recalign.common.artifacts import read_json, write_json
from recalign.common.errors import RecalignError
from recalign.params.recommenders import RecommenderName

FITTED = "fusion.json"
RIDGE = 0.25  # in cases; a weight of 2 costs half a nat, so that a handful of cases cannot make it infinite
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Fusion:
    """The weight of each system, as fitted."""

    weights: Mapping[str, float]

    @classmethod
    def fit(cls, scores: Mapping[str, Floats], target_index: Sequence[int]) -> "Fusion":
        """Fit on scores [B, C] a system and the target's column [B] of the same cases.

        Raises RecalignError when the systems scored lists of different shape.
        """
        parts = _stacked(scores)
        weights = _fitted(parts, np.zeros(parts.shape[:2]), target_index)
        return cls(dict(zip(scores, weights.tolist(), strict=True)))

    def joined(self, name: str, scores: Mapping[str, Floats], target_index: Sequence[int]) -> "Fusion":
        """This fusion and the system `name`, whose weight is fitted on scores [B, C] of all parts, the others' held."""
        stacked = _stacked({name: scores[name]})
        (weight,) = _fitted(stacked, self.scores(scores), target_index).tolist()
        return Fusion({**self.weights, name: weight})

    def scores(self, scores: Mapping[str, Floats]) -> Floats:
        """[B, C]: the weighted sum of the standardised scores; raises RecalignError when a system's are missing."""
        missing = [name for name in self.used if name not in scores]
        if missing:
            fitted = ", ".join(self.weights)
            raise RecalignError(f"fusion was fitted with {fitted}; the scores of {missing[0]} are missing")
        fused: Floats = _stacked({name: scores[name] for name in self.used}) @ np.array(list(self.used.values()))
        return fused

    @property
    def used(self) -> dict[str, float]:
        """The parts that weigh anything, heaviest first: the others need not score. Where none does, all of them."""
        ordered = sorted(self.weights.items(), key=lambda part: (-part[1], part[0]))
        return {name: weight for name, weight in ordered if weight > 0} or dict(ordered)

    @property
    def sentence(self) -> str:
        """The weights as shares, idle parts last: '0.71 item_knn + 0.29 llm-sdpo + 0 (ease)'."""
        total = sum(self.weights.values()) or 1.0
        idle = sorted(self.weights.keys() - self.used.keys())
        said = " + ".join(f"{weight / total:.2f} {name}" for name, weight in self.used.items())
        return said + (f" + 0 ({', '.join(idle)})" if idle else "")


class Part(BaseModel):
    """A part of a fitted fusion: its weight, and the digest of what scored (the fitted recommender, or the adapter)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(ge=0.0)
    digest: str


class FittedFusion(BaseModel):
    """A fusion as evaluate leaves it: parts by name, which of them is the language model, and what it was fitted on.

    cases: validation cases of the language model's weight; recommender_cases: of the ID recommenders' weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: dict[str, Part]
    language_model: str
    manifest: str
    manifest_digest: str
    cases: int
    recommender_cases: int

    @property
    def fusion(self) -> Fusion:
        """The weights."""
        return Fusion({name: part.weight for name, part in self.parts.items()})

    @property
    def recommenders(self) -> list[RecommenderName]:
        """The ID recommenders among the parts that weigh anything."""
        return [cast(RecommenderName, name) for name in self.fusion.used if name != self.language_model]

    @property
    def active_language_model(self) -> str | None:
        """The language model, where it weighs anything: where it does not, it need not be loaded."""
        return self.language_model if self.parts[self.language_model].weight > 0 else None

    def write(self, folder: Path) -> None:
        """Write fusion.json into a folder."""
        write_json(folder / FITTED, self.model_dump())


def read_fusion(folder: Path) -> FittedFusion:
    """The fusion that `FittedFusion.write` left in a folder. Raises RecalignError where it is missing."""
    return FittedFusion.model_validate(read_json(folder / FITTED))


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


def _fitted(parts: Floats, offset: Floats, target_index: Sequence[int]) -> Floats:
    """[systems] weights of parts [B, C, systems] that, beside an offset [B, C], make the targets most likely."""
    rows, targets = np.arange(parts.shape[0]), np.asarray(target_index)

    def loss(weights: Floats) -> tuple[float, Floats]:
        log_chances = log_softmax(parts @ weights + offset, axis=1)
        expected = np.einsum("bc,bcs->s", np.exp(log_chances), parts)
        value = -log_chances[rows, targets].sum() + RIDGE / 2 * weights @ weights
        return float(value), expected - parts[rows, targets].sum(axis=0) + RIDGE * weights

    systems = parts.shape[2]
    bounds = [(0.0, None)] * systems
    found: Floats = minimize(loss, np.full(systems, 1.0 / systems), jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def _stacked(scores: Mapping[str, Floats]) -> Floats:
    """[B, C, systems] of the standardised scores."""
    shapes = {name: np.shape(values) for name, values in scores.items()}
    if len(set(shapes.values())) != 1:
        raise RecalignError(f"fusion needs scores of the same cases and candidates; the shapes are {shapes}")
    return np.stack([standardised(np.asarray(values, dtype=np.float64)) for values in scores.values()], axis=2)
