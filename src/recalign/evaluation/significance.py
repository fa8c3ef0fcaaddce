"""How sure a figure is: bootstrap over users for means and differences, Wilson for shares, Holm for many at once.

Cases of one user are alike, so users are drawn, not cases; a mean over cases is then a ratio of two sums over users.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from recalign.errors import RecalignError
from recalign.evaluation.ranking import Floats, metric_values
from recalign.evaluation.system_ranks import SystemRanks

CONFIDENCE = 0.95
CELLS_AT_ONCE = 4_000_000  # draws held in memory together: 32 MB
SHARES = ("hr_at_1", "hr_at_5")  # metrics that are 0 or 1 a case
BOOTSTRAP, WILSON = "bootstrap over users", "Wilson"


@dataclass(frozen=True)
class Interval:
    """A mean over cases and its 95 % bounds."""

    value: float
    low: float
    high: float
    method: str = BOOTSTRAP

    def as_dict(self) -> dict[str, float]:
        """value, low and high, rounded to six places: what metrics.json holds."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True)
class Gain:
    """A paired difference: its interval, and its two-sided p before any correction."""

    interval: Interval
    p: float


def bootstrap_interval(values: Floats, users: Sequence[int], resamples: int, seed: int) -> Interval:
    """Mean of values [B] with its 95 % percentile interval, resampling users [B] with replacement (cluster bootstrap).

    Efron and Tibshirani 1993, chapter 13 (percentile interval); Field and Welsh 2007 (clusters). The draws depend on
    `seed` and on the number of users alone, so two systems on the same cases meet the same resamples. With one user
    there is nothing to resample, and the bounds are the value.
    Raises RecalignError when there is no case, a NaN, or a different number of users.
    """
    return bootstrap_intervals(np.asarray(values)[:, None], users, resamples, seed)[0]


def bootstrap_intervals(values: Floats, users: Sequence[int], resamples: int, seed: int) -> list[Interval]:
    """`bootstrap_interval` of each column of values [B, M], all from one set of draws; errors as there."""
    means = resampled_means(values, users, resamples, seed)
    return [percentile_interval(float(column.mean()), means[:, m]) for m, column in enumerate(values.T)]


def percentile_interval(value: float, resampled: Floats) -> Interval:
    """A value with the 95 % percentile interval of its resampled twins [resamples]."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def resampled_means(values: Floats, users: Sequence[int], resamples: int, seed: int) -> Floats:
    """Means over cases of each column of values [B, M] under `resamples` draws of users: [resamples, M]."""
    if len(values) == 0 or len(values) != len(users):
        raise RecalignError(f"{len(values)} values with {len(users)} users: give values, and a user for each")
    lost = np.isnan(values).any(axis=1)
    if lost.any():
        raise RecalignError(f"value {int(lost.argmax())} is NaN; an interval needs a number for each case")
    _, cluster = np.unique(np.asarray(users), return_inverse=True)
    sums = np.stack([np.bincount(cluster, weights=column) for column in values.T], axis=1)
    sizes: Floats = np.bincount(cluster).astype(np.float64)
    return np.concatenate([(drawn @ sums) / (drawn @ sizes)[:, None] for drawn in _draws(len(sizes), resamples, seed)])


def _draws(count: int, resamples: int, seed: int) -> Iterator[Any]:
    """How often each of `count` users is drawn, [resamples, count], in blocks of bounded size."""
    generator = np.random.default_rng(seed)
    rows = max(1, CELLS_AT_ONCE // count)
    for start in range(0, resamples, rows):
        yield generator.multinomial(count, np.full(count, 1.0 / count), size=min(rows, resamples - start))


def wilson_interval(hits: int, cases: int) -> Interval:
    """A share of independent cases with its 95 % score interval (Wilson 1927): honest at 0 and 1, where no resample
    differs from the sample. For cases of different users only. Raises RecalignError unless 0 <= hits <= cases > 0."""
    if not 0 <= hits <= cases or cases == 0:
        raise RecalignError(f"{hits} hits in {cases} cases: give 0 to {cases} hits, and at least one case")
    z2 = NormalDist().inv_cdf((1.0 + CONFIDENCE) / 2.0) ** 2
    share = hits / cases
    centre = (share + z2 / (2 * cases)) / (1 + z2 / cases)
    half = np.sqrt(z2 * (share * (1 - share) / cases + z2 / (4 * cases**2))) / (1 + z2 / cases)
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)), WILSON)


def metric_interval(system: SystemRanks, metric: str, resamples: int, seed: int) -> Interval:
    """The metric of a system with its interval: Wilson's for a share at one case a user, else clustered by user."""
    return metric_intervals(system, [metric], resamples, seed)[metric]


def metric_intervals(system: SystemRanks, metrics: Sequence[str], resamples: int, seed: int) -> dict[str, Interval]:
    """`metric_interval` of several metrics from one set of draws."""
    values = np.stack([metric_values(metric, system.ranks) for metric in metrics], axis=1)
    found = dict(zip(metrics, bootstrap_intervals(values, system.user_ids, resamples, seed), strict=True))
    if len(set(system.user_ids)) == len(system.user_ids):
        hits = dict(zip(metrics, values.sum(axis=0), strict=True))
        found |= {metric: wilson_interval(int(hits[metric]), len(values)) for metric in metrics if metric in SHARES}
    return found


def paired_difference(first: SystemRanks, second: SystemRanks, metric: str, resamples: int, seed: int) -> Interval:
    """The metric of `first` less that of `second`, case by case, with its interval clustered by user.

    An interval that leaves out zero says that the two differ on cases of this kind.
    Raises RecalignError naming the field (protocol, manifest, digest, example_id, user_id) in which their cases differ.
    """
    return paired_gains([(first, second)], metric, resamples, seed)[0].interval


def paired_gains(
    pairs: Sequence[tuple[SystemRanks, SystemRanks]], metric: str, resamples: int, seed: int
) -> list[Gain]:
    """`paired_difference` of several pairs on the same cases, from one set of draws, with p values; errors as there.

    p is that of the difference over its bootstrap standard error under a normal law: unlike a count of resamples it has
    no smallest value, so that a correction for many comparisons needs no more resamples.
    """
    if not pairs:
        return []
    for first, second in pairs:
        first.check_comparable(second)
        pairs[0][0].check_comparable(first)
    columns = [metric_values(metric, first.ranks) - metric_values(metric, second.ranks) for first, second in pairs]
    gains = np.stack(columns, axis=1)
    means = resampled_means(gains, pairs[0][0].user_ids, resamples, seed)
    return [
        Gain(percentile_interval(float(gains[:, m].mean()), means[:, m]), _p(float(gains[:, m].mean()), means[:, m]))
        for m in range(len(pairs))
    ]


def _p(value: float, resampled: Floats) -> float:
    if value == 0.0:
        return 1.0
    error = float(resampled.std(ddof=1))
    return 2.0 * NormalDist().cdf(-abs(value) / error) if error > 0.0 else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """The p values adjusted for standing together (Holm 1979, step-down): below 0.05, the chance of any false finding
    among all of them is below 0.05, whatever their dependence."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    adjusted, largest = [1.0] * len(p), 0.0
    for step, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - step) * p[place]))
        adjusted[place] = largest
    return adjusted
