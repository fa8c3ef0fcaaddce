"""What a system puts before its users: fairness between groups of items, coverage and popularity bias of top lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recalign.common.errors import RecalignError
from recalign.common.item_groups import Grouping, membership
from recalign.evaluation.metrics import Floats
from recalign.evaluation.ranks import FULL, SystemRanks
from recalign.evaluation.significance import (
    CONFIDENCE,
    Interval,
    bootstrap_interval,
    bootstrap_intervals,
    percentile_interval,
    resampled_means,
)


def shown(protocol: str) -> int:
    """Items of each list that count as shown: 10 of a whole catalogue, 5 of a few candidates."""
    return 10 if protocol == FULL else 5


@dataclass(frozen=True)
class Fairness:
    """Item-side group fairness: gu is each group's share of the shown items minus its share of the history."""

    gu: dict[str, Interval]
    mgu: Interval
    dgu: Interval


@dataclass(frozen=True)
class Exposure:
    """One system's lists: fairness by the name of a grouping; coverage is the share of the catalogue that stands in any
    list (it grows with the cases, so it has no interval); lift is the mean train events of a shown item over those of
    an item that was liked, minus 1 (0: as popular as what people like; above: the system leans to the popular); top is
    how many items of each list count."""

    fairness: dict[str, Fairness]
    coverage: float
    lift: Interval
    top: int

    def as_dict(self) -> dict[str, float | dict[str, float]]:
        """What metrics.json holds: MGU and DGU of each grouping, coverage and lift."""
        told: dict[str, float | dict[str, float]] = {"coverage": round(self.coverage, 6), "lift": self.lift.as_dict()}
        for name, fair in self.fairness.items():
            told |= {f"mgu_{name}": fair.mgu.as_dict(), f"dgu_{name}": fair.dgu.as_dict()}
        return told


def group_unfairness(history: Floats, shown: Floats) -> tuple[Floats, float, float]:
    """GU [G], MGU and DGU from two distributions over groups [G] (scaled to sum 1 here).

    GU(g) = shown(g) - history(g); MGU = mean |GU|; DGU = max GU - min GU (Jiang et al. 2024, IFairLRS, section 3;
    the formulas as SPRec's evaluation computes them). All are 0 when each group is shown as often as it was liked.
    Raises RecalignError where a distribution is empty.
    """
    if history.sum() <= 0 or shown.sum() <= 0:
        raise RecalignError("a distribution over groups is empty; fairness needs a history and shown items")
    gu = shown / shown.sum() - history / history.sum()
    return gu, float(np.abs(gu).mean()), float(gu.max() - gu.min())


def measure_exposure(
    system: SystemRanks,
    popularity: Mapping[int, int],
    groupings: Mapping[str, Mapping[int, Sequence[str]]],
    resamples: int,
    seed: int,
    top: int | None = None,
) -> Exposure | None:
    """Exposure of a system's best items; None where its lists were not kept.

    popularity: item -> train events, which stands for the history of all users (taking the test users' histories would
    count a long one at each of its cases); groupings: name -> item -> groups; top: items of a list that count, None:
    as `shown` says. Intervals are clustered by user. Raises RecalignError where there is no train event.
    """
    if not system.top:
        return None
    top = shown(system.protocol) if top is None else top
    items = sorted(popularity)
    events = np.array([popularity[item] for item in items], dtype=np.float64)
    if events.sum() <= 0:
        raise RecalignError("no item has a train event; exposure is measured against what people liked")
    column = {item: place for place, item in enumerate(items)}
    lists = [[column[item] for item in own[:top]] for own in system.top]
    fairness = {
        name: _fairness(lists, events, *membership(items, groups), system.user_ids, resamples, seed)
        for name, groups in groupings.items()
    }
    lift = bootstrap_interval(lifts(system, popularity, top), system.user_ids, resamples, seed)
    return Exposure(fairness, len({place for own in lists for place in own}) / len(items), lift, top)


def lifts(system: SystemRanks, popularity: Mapping[int, int], top: int | None = None) -> Floats:
    """[B] of each case: mean train events of its best items over those of an item that was liked, minus 1."""
    top = shown(system.protocol) if top is None else top
    events = np.array(list(popularity.values()), dtype=np.float64)
    usual = float((events**2).sum() / events.sum())
    return np.array([np.mean([popularity[item] for item in own[:top]]) / usual - 1.0 for own in system.top])


def excess_of(ranks: SystemRanks, grouping: Grouping) -> Floats:
    """[B, G] of each case: each group's share of what is shown minus its share of the train events. Their mean is GU.

    The system's lists were kept; raises RecalignError for an empty one.
    """
    top = shown(ranks.protocol)
    excess: Floats = grouping.share_of([own[:top] for own in ranks.top]) - grouping.history
    return excess


def unfairness(excess: Floats) -> tuple[Floats, Floats]:
    """MGU and DGU [R] of rows of GU [R, G]: the mean of |GU|, and the largest minus the smallest GU."""
    mgu: Floats = np.abs(excess).mean(axis=1)
    dgu: Floats = excess.max(axis=1) - excess.min(axis=1)
    return mgu, dgu


def _fairness(
    lists: Sequence[Sequence[int]], events: Floats, names: Sequence[str], shares: Floats,
    users: Sequence[int], resamples: int, seed: int,
) -> Fairness:  # fmt: skip
    history = events @ shares
    given = np.stack([shares[own].mean(axis=0) for own in lists])
    excess = given - history / history.sum()
    resampled, count = resampled_means(excess, users, resamples, seed), len(set(users))
    _, mgu, dgu = group_unfairness(history, given.mean(axis=0))
    means, widths = unfairness(resampled)
    return Fairness(
        dict(zip(names, bootstrap_intervals(excess, users, resamples, seed), strict=True)),
        percentile_interval(mgu, means, count),
        percentile_interval(dgu, widths, count),
    )


@dataclass(frozen=True)
class FairnessGain:
    """What a system's MGU and DGU are over another's on the same cases, both minus: below 0 it is the fairer one."""

    mgu: Interval
    dgu: Interval


def fairness_gain(
    first: SystemRanks, second: SystemRanks, grouping: Grouping, resamples: int, seed: int,
    confidence: float = CONFIDENCE,
) -> FairnessGain:  # fmt: skip
    """MGU and DGU of `first` minus those of `second`, from resamples of the same users.

    Raises RecalignError where their cases differ, or the lists of one were not kept.
    """
    first.check_comparable(second)
    if not first.top or not second.top:
        raise RecalignError(f"the lists of '{first.system}' or '{second.system}' were not kept; evaluate them again")
    groups = len(grouping.names)
    together = np.concatenate([excess_of(first, grouping), excess_of(second, grouping)], axis=1)
    users = first.user_ids
    drawn = np.concatenate([together.mean(axis=0)[None], resampled_means(together, users, resamples, seed)])
    own, other = unfairness(drawn[:, :groups]), unfairness(drawn[:, groups:])
    gains = [one - two for one, two in zip(own, other, strict=True)]
    return FairnessGain(*(percentile_interval(float(g[0]), g[1:], len(set(users)), None, confidence) for g in gains))
