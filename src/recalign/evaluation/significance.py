"""How sure a figure is: percentile bootstrap over users, for a metric and for a paired difference of two systems.

Cases of one user are alike, so users are drawn, not cases; a mean over cases is then a ratio of two sums over users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recalign.errors import RecalignError
from recalign.evaluation.ranking import Floats, metric_values
from recalign.evaluation.system_ranks import SystemRanks

CONFIDENCE = 0.95
CELLS_AT_ONCE = 4_000_000  # draws held in memory together: 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean over cases and its 95 % bounds."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """value, low and high, rounded to six places: what metrics.json holds."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def bootstrap_interval(values: Floats, users: Sequence[int], resamples: int, seed: int) -> Interval:
    """Mean of values [B] with its 95 % percentile interval, resampling users [B] with replacement (cluster bootstrap).

    Efron and Tibshirani 1993, chapter 13 (percentile interval); Field and Welsh 2007 (clusters). The draws depend on
    `seed` and on the number of users alone, so two systems on the same cases meet the same resamples. With one user
    there is nothing to resample, and the bounds are the value.
    Raises RecalignError when there is no case, a NaN, or a different number of users.
    """
    if len(values) == 0 or len(values) != len(users):
        raise RecalignError(f"{len(values)} values with {len(users)} users: give values, and a user for each")
    if np.isnan(values).any():
        raise RecalignError(f"value {int(np.isnan(values).argmax())} is NaN; an interval needs a number for each case")
    _, cluster = np.unique(np.asarray(users), return_inverse=True)
    sums: Floats = np.bincount(cluster, weights=values).astype(np.float64)
    sizes: Floats = np.bincount(cluster).astype(np.float64)
    means = _resampled_means(sums, sizes, resamples, np.random.default_rng(seed))
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def _resampled_means(sums: Floats, sizes: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    count = len(sums)
    rows = max(1, CELLS_AT_ONCE // count)
    means = []
    for start in range(0, resamples, rows):
        drawn = generator.multinomial(count, np.full(count, 1.0 / count), size=min(rows, resamples - start))
        means.append((drawn @ sums) / (drawn @ sizes))
    return np.concatenate(means)


def metric_interval(system: SystemRanks, metric: str, resamples: int, seed: int) -> Interval:
    """The metric of a system with its interval clustered by user."""
    return bootstrap_interval(metric_values(metric, system.ranks), system.user_ids, resamples, seed)


def paired_difference(first: SystemRanks, second: SystemRanks, metric: str, resamples: int, seed: int) -> Interval:
    """The metric of `first` less that of `second`, case by case, with its interval clustered by user.

    An interval that leaves out zero says that the two differ on cases of this kind.
    Raises RecalignError naming the field (protocol, manifest, digest, example_id, user_id) in which their cases differ.
    """
    first.check_comparable(second)
    gains = metric_values(metric, first.ranks) - metric_values(metric, second.ranks)
    return bootstrap_interval(gains, first.user_ids, resamples, seed)
