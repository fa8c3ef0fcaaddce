"""How sure a figure is: bootstrap over users for means and differences, Wilson for shares, Holm for many at once.

Cases of one user are alike, so users are drawn, not cases; a mean over cases is then a ratio of two sums over users. On
new items, which are fewer, the items asked for take the users' place (`SystemRanks.clusters`).

A percentile interval of few users is too short: a resample spreads by (G − 1)/G of the variance that it should, and the
bounds of a normal law stand where Student's belong. Its percentiles are therefore moved outwards (the expanded
percentile interval, Hesterberg 2015, The American Statistician 69(4)), which keeps a share within 0 and 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats, metric_values
from recalign.evaluation.ranks import SystemRanks

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


def plain(interval: Interval) -> str:
    """A metric with its 95 % interval: '0.312 [0.264, 0.361]'."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def with_sign(value: float) -> str:
    """A number that may lie on either side of zero: '−0.031'."""
    return f"{value:+.3f}".replace("-", "−")


def signed(interval: Interval) -> str:
    """A figure that may lie on either side of zero, with its 95 % interval: '−0.031 [−0.062, +0.004]'."""
    return f"{with_sign(interval.value)} [{with_sign(interval.low)}, {with_sign(interval.high)}]"


def bootstrap_interval(values: Floats, users: Sequence[int], resamples: int, seed: int) -> Interval:
    """Mean of values [B] with its 95 % interval, resampling users [B] with replacement (cluster bootstrap).

    Efron and Tibshirani 1993, chapter 13 (percentile interval), expanded by `degrees_of_freedom`; Field and Welsh 2007
    (clusters). The draws depend on `seed` and on the number of users alone, so two systems on the same cases meet the
    same resamples. With one user there is nothing to resample, and the bounds are the value.
    Raises RecalignError when there is no case, a NaN, or a different number of users.
    """
    return bootstrap_intervals(np.asarray(values)[:, None], users, resamples, seed)[0]


def bootstrap_intervals(values: Floats, users: Sequence[int], resamples: int, seed: int) -> list[Interval]:
    """`bootstrap_interval` of each column of values [B, M], all from one set of draws; errors as there."""
    means, degrees = resampled_means(values, users, resamples, seed), degrees_of_freedom(values, users)
    count = len(set(users))
    return [
        percentile_interval(float(column.mean()), means[:, m], count, float(degrees[m]))
        for m, column in enumerate(values.T)
    ]


def percentile_interval(
    value: float, resampled: Floats, users: int, degrees: float | None = None, confidence: float = CONFIDENCE
) -> Interval:
    """A value with the expanded percentile interval (95 % by default) of its resampled twins [resamples].

    Its tails are Φ(−t √(G / (G − 1))) for G = `users`, with Student's t for `degrees` of freedom (None: G − 1).
    """
    from scipy.special import ndtr, stdtrit

    tail = (1.0 - confidence) / 2.0
    if users > 1:
        quantile = stdtrit(users - 1.0 if degrees is None else degrees, tail)
        tail = float(ndtr(quantile * np.sqrt(users / (users - 1.0))))
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def degrees_of_freedom(values: Floats, users: Sequence[int]) -> Floats:
    """How well the spread of each column's mean over cases is known, as Student's degrees of freedom; values [B, M].

    ν = 2 (Σ u²)² / (Σ u⁴ − (Σ u²)² / G), at most G − 1, where u is a user's sum minus what the mean lets expect of his
    cases: Satterthwaite's rule (1946) on the variance of Σ u², whose moments are taken from the users themselves; a
    choice of ours, made by simulated coverage (docs/protocol.md). A few users who differ much from all others, as at
    rare hits, leave few degrees; since the u sum to zero, no less than two where there are three users or more.
    """
    return cluster_spread(*sums_by_user(np.asarray(values, np.float64), users))[1]


def sums_by_user(values: Floats, users: Sequence[int]) -> tuple[Floats, Floats]:
    """Each user's sum of each column of values [B, M], and his number of cases: [G, M] and [G, 1]."""
    _, cluster = np.unique(np.asarray(users), return_inverse=True)
    sums: Floats = np.stack([np.bincount(cluster, weights=column) for column in values.T], axis=1, dtype=np.float64)
    return sums, np.bincount(cluster)[:, None].astype(np.float64)


def cluster_spread(sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Standard error of each column's mean over cases, and its degrees of freedom (`degrees_of_freedom`): both [M].

    sums and sizes are those of `sums_by_user`; sizes may be [G, M], where columns are samples of their own. The error
    is that of a ratio of two sums over users (linearised), the variance over G − 1. With one user it is 0 and says
    nothing.
    """
    influence = sums - sizes * (sums.sum(axis=0) / sizes.sum(axis=0))
    squares, count = (influence**2).sum(axis=0), len(sums)
    excess = (influence**4).sum(axis=0) - squares**2 / count
    known = excess > 0.0
    degrees: Floats = np.where(known, 2.0 * squares**2 / np.where(known, excess, 1.0), np.inf)
    error: Floats = np.sqrt(squares * count / max(1, count - 1)) / sizes.sum(axis=0)
    return error, np.minimum(degrees, max(1.0, count - 1.0))


def lower_bounds(sums: Floats, sizes: Floats, chance: float) -> Floats:
    """What each column's mean over cases lies above, but for this chance: [M], one-sided, for users as they are drawn.

    mean − t · error, with Student's t at `chance` for the degrees of freedom of `cluster_spread`; arguments as there.
    Unlike a percentile of resamples it holds at chances far below one in the number of resamples.
    """
    from scipy.special import stdtrit

    error, degrees = cluster_spread(sums, sizes)
    bound: Floats = sums.sum(axis=0) / sizes.sum(axis=0) + stdtrit(degrees, chance) * error
    return bound


def resampled_means(values: Floats, users: Sequence[int], resamples: int, seed: int) -> Floats:
    """Means over cases of each column of values [B, M] under `resamples` draws of users: [resamples, M]."""
    if len(values) == 0 or len(values) != len(users):
        raise RecalignError(f"{len(values)} values with {len(users)} users: give values, and a user for each")
    lost = np.isnan(values).any(axis=1)
    if lost.any():
        raise RecalignError(f"value {int(lost.argmax())} is NaN; an interval needs a number for each case")
    sums, sizes = sums_by_user(values, users)
    blocks = user_draws(len(sizes), resamples, seed)
    return np.concatenate([(drawn @ sums) / (drawn @ sizes) for drawn in blocks])


def user_draws(count: int, resamples: int, seed: int) -> Iterator[Any]:
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
    """The metric of a system with its interval, by its `clusters`; of a share as `of_share` says."""
    return metric_intervals(system, [metric], resamples, seed)[metric]


def metric_intervals(system: SystemRanks, metrics: Sequence[str], resamples: int, seed: int) -> dict[str, Interval]:
    """`metric_interval` of several metrics from one set of draws."""
    values = np.stack([metric_values(metric, system.ranks) for metric in metrics], axis=1)
    found = dict(zip(metrics, bootstrap_intervals(values, system.clusters, resamples, seed), strict=True))
    users = len(set(system.clusters))
    return found | {m: of_share(found[m], len(values), users) for m in metrics if m in SHARES}


def of_share(resampled: Interval, cases: int, users: int) -> Interval:
    """A share's interval from its resampled one: Wilson's at one case a user, and where all cases or none are hits.

    No resample differs then, and as many cases as users are what is known at the least.
    """
    alike = resampled.value in (0.0, 1.0)
    return wilson_interval(round(resampled.value * users), users) if users == cases or alike else resampled


def paired_difference(first: SystemRanks, second: SystemRanks, metric: str, resamples: int, seed: int) -> Interval:
    """The metric of `first` minus that of `second`, case by case, with its interval by their `clusters`.

    An interval that leaves out zero says that the two differ on cases of this kind.
    Raises RecalignError naming the field (protocol, manifest, digest, example_id, user_id) in which their cases differ.
    """
    return paired_gains([(first, second)], metric, resamples, seed)[0].interval


def paired_lower_bound(first: SystemRanks, second: SystemRanks, metric: str, chance: float) -> float:
    """What the metric of `first` minus that of `second` lies above, but for this chance (`lower_bounds`); errors as
    those of `paired_difference`."""
    first.check_comparable(second)
    gains = metric_values(metric, first.ranks) - metric_values(metric, second.ranks)
    return float(lower_bounds(*sums_by_user(gains[:, None], first.clusters), chance)[0])


def paired_gains(
    pairs: Sequence[tuple[SystemRanks, SystemRanks]], metric: str, resamples: int, seed: int
) -> list[Gain]:
    """`paired_difference` of several pairs on the same cases, from one set of draws, with p values; errors as there.

    p is that of the difference over its bootstrap standard error under Student's law of the interval's degrees of
    freedom: unlike a count of resamples it has no smallest value, so that a correction for many comparisons needs no
    more resamples. With one user nothing is known, and p is 1.
    """
    if not pairs:
        return []
    for first, second in pairs:
        first.check_comparable(second)
        pairs[0][0].check_comparable(first)
    columns = [metric_values(metric, first.ranks) - metric_values(metric, second.ranks) for first, second in pairs]
    return gains_of(np.stack(columns, axis=1), pairs[0][0].clusters, resamples, seed)


def gains_of(values: Floats, clusters: Sequence[int], resamples: int, seed: int) -> list[Gain]:
    """Each column of differences [B, M], with interval and p value, all from one set of draws; clusters [B]."""
    means, degrees = resampled_means(values, clusters, resamples, seed), degrees_of_freedom(values, clusters)
    columns, count = zip(values.mean(axis=0).tolist(), means.T, degrees.tolist(), strict=True), len(set(clusters))
    return [gain_of(value, column, count, freedom) for value, column, freedom in columns]


def gain_of(value: float, resampled: Floats, users: int, degrees: float) -> Gain:
    """A difference with the interval and the p value that its resampled twins [resamples] give it."""
    return Gain(percentile_interval(value, resampled, users, degrees), _p(value, resampled, users, degrees))


def _p(value: float, resampled: Floats, users: int, degrees: float) -> float:
    from scipy.special import stdtr

    if value == 0.0 or users == 1:
        return 1.0
    error = float(resampled.std(ddof=1)) * np.sqrt(users / (users - 1.0))
    return float(2.0 * stdtr(degrees, -abs(value) / error)) if error > 0.0 else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """The p values adjusted for standing together (Holm 1979, step-down): below 0.05, the chance of any false finding
    among all of them is below 0.05, whatever their dependence."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    adjusted, largest = [1.0] * len(p), 0.0
    for step, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - step) * p[place]))
        adjusted[place] = largest
    return adjusted
