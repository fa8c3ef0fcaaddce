"""Figures of predicted pairs, each with an interval that is clustered by molecule.

A pair belongs to two molecules, so pairs are alike along both. Molecules are drawn with replacement, and a pair counts
as often as the product of its molecules' draws says (the pigeonhole bootstrap of Owen 2007, Annals of Applied
Statistics 1(2), for one set of molecules on both sides). Such intervals are too wide rather than too
narrow: by up to √3 where most molecules are in one pair only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import Interval, percentile_interval, wilson_interval

Metric = Callable[[np.ndarray, Floats, Floats], float]


def accuracy(truth: np.ndarray, outputs: Floats, weights: Floats) -> float:
    """Share of the pairs whose highest output [N, T] is the true answer; of equal outputs the first counts."""
    return float(weights @ (outputs.argmax(axis=1) == truth) / weights.sum())


def macro_f1(truth: np.ndarray, outputs: Floats, weights: Floats) -> float:
    """Mean over the answers that occur (with weight) in `truth` of F1 = 2 TP / (2 TP + FP + FN)."""
    said, count = outputs.argmax(axis=1), outputs.shape[1]
    truth = truth.astype(np.int64)
    hits = np.bincount(truth, weights=weights * (said == truth), minlength=count)
    there, named = (np.bincount(each, weights=weights, minlength=count) for each in (truth, said))
    occurs = there > 0
    return float((2 * hits[occurs] / (there + named)[occurs]).mean())


def auroc(truth: np.ndarray, outputs: Floats, weights: Floats) -> float:
    """Chance that a pair that interacts (1) scores above one that does not (0), equal scores counting half; the score
    is the last output minus the first. NaN where one of the two is missing."""
    score = outputs[:, -1] - (outputs[:, 0] if outputs.shape[1] > 1 else 0.0)
    _, level = np.unique(score, return_inverse=True)
    yes = np.bincount(level, weights=weights * (truth == 1))
    no = np.bincount(level, weights=weights * (truth == 0))
    if not yes.sum() or not no.sum():
        return float("nan")
    below = np.cumsum(no) - no
    return float((yes * (below + 0.5 * no)).sum() / (yes.sum() * no.sum()))


def mae(truth: np.ndarray, outputs: Floats, weights: Floats) -> float:
    """Mean absolute error, in the label's unit."""
    return float(weights @ np.abs(outputs[:, 0] - truth) / weights.sum())


def rmse(truth: np.ndarray, outputs: Floats, weights: Floats) -> float:
    """Root of the mean squared error, in the label's unit."""
    return float(np.sqrt(weights @ (outputs[:, 0] - truth) ** 2 / weights.sum()))


METRICS: Mapping[str, Mapping[str, Metric]] = {
    "types": {"accuracy": accuracy, "macro_f1": macro_f1},
    "yes-no": {"auroc": auroc, "accuracy": accuracy},
    "number": {"mae": mae, "rmse": rmse},
}
LOWER_IS_BETTER = ("mae", "rmse")
PIGEONHOLE = "pigeonhole bootstrap over molecules"


@dataclass(frozen=True)
class Cases:
    """The pairs of one view: first, second [N]: their molecules; truth [N]: places of types, or numbers."""

    kind: str
    first: np.ndarray
    second: np.ndarray
    truth: np.ndarray

    def figures(self, outputs: Floats, resamples: int, seed: int) -> dict[str, Interval]:
        """Every metric of the kind for outputs [N, T] ([N, 1] of numbers), with its 95 % interval; without those that
        these pairs do not have, as AUC where all are of one class. Wilson's interval where all or none are right.

        Raises RecalignError for no pair, another number of outputs, or one that is NaN.
        """
        return self._each(outputs, None, resamples, seed)

    def gains(self, outputs: Floats, over: Floats, resamples: int, seed: int) -> dict[str, Interval]:
        """The metrics of `outputs` minus those of `over` on the same pairs and draws; errors as those of `figures`."""
        self._metrics(over)
        return self._each(outputs, over, resamples, seed)

    def badness(self, outputs: Floats) -> float:
        """The first metric of the kind, the lower the better; ∞ where these pairs do not have it."""
        name, metric = self._metrics(outputs)[0]
        value = metric(self.truth, outputs, np.ones(len(self.truth)))
        return float("inf") if np.isnan(value) else value if name in LOWER_IS_BETTER else -value

    def _each(self, outputs: Floats, over: Floats | None, resamples: int, seed: int) -> dict[str, Interval]:
        named = self._metrics(outputs)
        found = {name: self._interval(metric, outputs, over, resamples, seed) for name, metric in named}
        return {name: interval for name, interval in found.items() if interval is not None}

    def _metrics(self, outputs: Floats) -> list[tuple[str, Metric]]:
        if not len(self.truth) or len(outputs) != len(self.truth):
            raise RecalignError(f"{len(outputs)} outputs for {len(self.truth)} pairs; each pair needs one")
        if np.isnan(outputs).any():
            raise RecalignError(f"the output of pair {int(np.isnan(outputs).any(axis=1).argmax())} is NaN")
        return list(METRICS[self.kind].items())

    def _interval(
        self, metric: Metric, outputs: Floats, over: Floats | None, resamples: int, seed: int
    ) -> Interval | None:
        def value(weights: Floats) -> float:
            own = metric(self.truth, outputs, weights)
            return own if over is None else own - metric(self.truth, over, weights)

        whole = value(np.ones(len(self.truth)))
        molecules = len(np.union1d(self.first, self.second))
        if not np.isfinite(whole):
            return None
        if metric is accuracy and over is None and whole in (0.0, 1.0):  # no resample differs
            apart = max(1, min(len(self.truth), molecules // 2))  # so many pairs at most share no molecule
            return wilson_interval(round(whole * apart), apart)
        drawn = np.array([value(weights) for weights in self.weights(resamples, seed)])
        return replace(percentile_interval(whole, drawn[np.isfinite(drawn)], molecules), method=PIGEONHOLE)

    def weights(self, resamples: int, seed: int) -> list[Floats]:
        """How often each pair counts in each resample, [N] each: the product of its molecules' draws, a molecule with
        itself once; resamples without any pair are drawn again by the next."""
        known, places = np.unique(np.concatenate([self.first, self.second]), return_inverse=True)
        one, other = places[: len(self.first)], places[len(self.first) :]
        generator = np.random.default_rng(seed)
        found: list[Floats] = []
        while len(found) < resamples:
            counts = np.bincount(generator.integers(len(known), size=len(known)), minlength=len(known))
            weights = np.where(one == other, counts[one], counts[one] * counts[other]).astype(np.float64)
            if weights.any():
                found.append(weights)
        return found
