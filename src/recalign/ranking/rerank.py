"""Reranking: the first stage's n best items, put in another order by any reranker.

A target outside of the n best is a miss for every arm, so arms differ by the reranking alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recalign.data.records import Items
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import Interval, bootstrap_interval
from recalign.recommenders.knowledge import scores_under
from recalign.recommenders.listed import LIST_METRICS, ListedCase, best_columns, list_values
from recalign.recommenders.recommender import Recommender, Request, cases_at_once


@dataclass(frozen=True)
class Window:
    """A user's history (oldest first), what came right after it, and all that was met before."""

    user_id: int
    history: tuple[int, ...]
    targets: frozenset[int]
    met: frozenset[int]


def listed_cases(first: Recommender, catalogue: Items, windows: Sequence[Window], n: int) -> list[ListedCase]:
    """Each window with the first stage's n best items that the user had not met, best first, equals by ascending id.

    Lists are equally long: n, or what the user with the fewest unmet items has left.
    """
    best: list[list[int]] = []
    step = cases_at_once(len(catalogue.ids))
    for start in range(0, len(windows), step):
        block = windows[start : start + step]
        asked = [Request(w.user_id, w.history, excluded=w.met | frozenset(w.history)) for w in block]
        order = best_columns(first.scores(asked, None).double(), catalogue, asked, n)
        best += [[catalogue.ids[column] for column in row] for row in order.tolist()]
    return [
        ListedCase(w.user_id, w.history, tuple(items), w.targets, w.met) for w, items in zip(windows, best, strict=True)
    ]


def reranked(
    reranker: Recommender, cases: Sequence[ListedCase], texts: Mapping[int, Sequence[str]] | None
) -> dict[str, Floats]:
    """Each metric of each case, [B], under the reranker; texts: of each user, whose lists are measured one by one and
    averaged; None, or a user without any: read without a text."""
    values: dict[str, list[float]] = {metric: [] for metric in LIST_METRICS}
    for case in cases:
        own: list[str | None] = [*(texts or {}).get(case.user_id, ())] or [None]
        scores = scores_under(reranker, case, own)
        for metric in LIST_METRICS:
            values[metric].append(float(list_values(metric, [case] * len(own), list(scores)).mean()))
    return {metric: np.array(found) for metric, found in values.items()}


def unreranked(cases: Sequence[ListedCase]) -> dict[str, Floats]:
    """Each metric of each case, [B], in the first stage's own order."""
    orders = [-np.arange(len(case.listed), dtype=np.float64) for case in cases]
    return {metric: list_values(metric, cases, orders) for metric in LIST_METRICS}


@dataclass(frozen=True)
class Arm:
    """One row of the reranking table: a metric's mean, and its paired difference to the arm `against`."""

    name: str
    metrics: dict[str, Interval]
    gains: dict[str, Interval]


def arms_table(
    arms: Mapping[str, Mapping[str, Floats]], against: str, users: Sequence[int], resamples: int, seed: int
) -> list[Arm]:
    """Every arm's metrics with 95 % intervals, and paired by case against one of them; resampled by user."""
    return [
        Arm(
            name,
            {m: bootstrap_interval(own[m], users, resamples, seed) for m in own},
            {m: bootstrap_interval(own[m] - arms[against][m], users, resamples, seed) for m in own},
        )
        for name, own in arms.items()
    ]
