"""Fusion: one ranking from several systems' scores of the same candidates, with weights learned on validation cases.

Scores of different systems have different units, so each list of candidates is brought to mean 0 and deviation 1 a
system. The weights w ≥ 0 of the standardised scores z minimise the negative log-likelihood of the targets under a
conditional logit (McFadden 1974), P(target) = softmax(z · w), plus ½ · RIDGE · |w|²: a convex problem with one answer.
A weight cannot fall below 0: on a few cases, turning a system round would be noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from recalign.errors import RecalignError

RIDGE = 0.25  # in cases; a weight of 2 costs half a nat, so that a handful of cases cannot make it infinite
Floats = NDArray[np.float64]


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
        rows, targets = np.arange(parts.shape[0]), np.asarray(target_index)

        def loss(weights: Floats) -> tuple[float, Floats]:
            log_chances = log_softmax(parts @ weights, axis=1)
            expected = np.einsum("bc,bcs->s", np.exp(log_chances), parts)
            value = -log_chances[rows, targets].sum() + RIDGE / 2 * weights @ weights
            return float(value), expected - parts[rows, targets].sum(axis=0) + RIDGE * weights

        start = np.full(len(scores), 1.0 / len(scores))
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(scores))
        return cls(dict(zip(scores, found.x.tolist(), strict=True)))

    def scores(self, scores: Mapping[str, Floats]) -> Floats:
        """[B, C]: the weighted sum of the standardised scores; raises RecalignError when a system's are missing."""
        missing = [name for name in self.weights if name not in scores]
        if missing:
            fitted = ", ".join(self.weights)
            raise RecalignError(f"fusion was fitted with {fitted}; the scores of {missing[0]} are missing")
        fused: Floats = _stacked({name: scores[name] for name in self.weights}) @ np.array(list(self.weights.values()))
        return fused

    @property
    def sentence(self) -> str:
        """The weights as shares: '0.71 item_knn + 0.29 llm-sdpo'."""
        total = sum(self.weights.values()) or 1.0
        return " + ".join(f"{weight / total:.2f} {name}" for name, weight in self.weights.items())


def standardised(scores: Floats) -> Floats:
    """Each row of [B, C] at mean 0 and deviation 1; a row of equal scores becomes zeros."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    flat = deviation <= 1e-12 * np.abs(scores).max(axis=1, keepdims=True, initial=1e-300)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, deviation))


def _stacked(scores: Mapping[str, Floats]) -> Floats:
    """[B, C, systems] of the standardised scores."""
    shapes = {name: np.shape(values) for name, values in scores.items()}
    if len(set(shapes.values())) != 1:
        raise RecalignError(f"fusion needs scores of the same cases and candidates; the shapes are {shapes}")
    return np.stack([standardised(np.asarray(values, dtype=np.float64)) for values in scores.values()], axis=2)
