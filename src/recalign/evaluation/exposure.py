"""What a system puts before its users: fairness between groups of items, coverage and popularity bias of top lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import (
    Interval,
    bootstrap_interval,
    bootstrap_intervals,
    percentile_interval,
    resampled_means,
)

TOP = 5  # items of each list that count as shown


@dataclass(frozen=True)
class Fairness:
    """Item-side group fairness at TOP: gu is each group's share of the shown items minus its share of the history."""

    gu: dict[str, Interval]
    mgu: Interval
    dgu: Interval


@dataclass(frozen=True)
class Exposure:
    """One system's lists: fairness by the name of a grouping; coverage is the share of the catalogue that stands in any
    list (it grows with the cases, so it has no interval); lift is the mean train events of a shown item over those of
    an item that was liked, minus 1 (0: as popular as what people like; above: the system leans to the popular)."""

    fairness: dict[str, Fairness]
    coverage: float
    lift: Interval

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


def membership(items: Sequence[int], groups: Mapping[int, Sequence[str]]) -> tuple[list[str], Floats]:
    """The groups in sorted order, and [items, G] shares: an item of several groups counts in each with 1 / how many.

    IFairLRS counts a whole item in each of its groups; SPRec, and we, split it, so that every item weighs the same.
    Items without a group are of the group "none".
    """
    of = [tuple(groups.get(item) or ("none",)) for item in items]
    names = sorted({group for own in of for group in own})
    column = {name: place for place, name in enumerate(names)}
    shares = np.zeros((len(of), len(names)))
    for row, own in enumerate(of):
        for group in own:
            shares[row, column[group]] += 1.0 / len(own)
    return names, shares


def measure_exposure(
    system: SystemRanks,
    popularity: Mapping[int, int],
    groupings: Mapping[str, Mapping[int, Sequence[str]]],
    resamples: int,
    seed: int,
) -> Exposure | None:
    """Exposure of a system's best TOP items; None where its lists were not kept.

    popularity: item -> train events, which stands for the history of all users (taking the test users' histories would
    count a long one at each of its cases); groupings: name -> item -> groups. Intervals are clustered by user.
    Raises RecalignError where there is no train event.
    """
    if not system.top:
        return None
    items = sorted(popularity)
    events = np.array([popularity[item] for item in items], dtype=np.float64)
    if events.sum() <= 0:
        raise RecalignError("no item has a train event; exposure is measured against what people liked")
    column = {item: place for place, item in enumerate(items)}
    lists = [[column[item] for item in own[:TOP]] for own in system.top]
    fairness = {
        name: _fairness(lists, events, *membership(items, groups), system.user_ids, resamples, seed)
        for name, groups in groupings.items()
    }
    usual = float((events**2).sum() / events.sum())
    shown = np.array([events[own].mean() / usual - 1.0 for own in lists])
    lift = bootstrap_interval(shown, system.user_ids, resamples, seed)
    return Exposure(fairness, len({place for own in lists for place in own}) / len(items), lift)


def _fairness(
    lists: Sequence[Sequence[int]], events: Floats, names: Sequence[str], shares: Floats,
    users: Sequence[int], resamples: int, seed: int,
) -> Fairness:  # fmt: skip
    history = events @ shares
    shown = np.stack([shares[own].mean(axis=0) for own in lists])
    excess = shown - history / history.sum()
    resampled, count = resampled_means(excess, users, resamples, seed), len(set(users))
    _, mgu, dgu = group_unfairness(history, shown.mean(axis=0))
    return Fairness(
        dict(zip(names, bootstrap_intervals(excess, users, resamples, seed), strict=True)),
        percentile_interval(mgu, np.abs(resampled).mean(axis=1), count),
        percentile_interval(dgu, resampled.max(axis=1) - resampled.min(axis=1), count),
    )
