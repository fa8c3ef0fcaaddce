"""Cases whose list is a first stage's own: targets may lie outside of it, and a case may have several of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.evaluation.metrics import Floats
from recalign.recommenders.recommender import Request
from recalign.recommenders.store import columns_of


@dataclass(frozen=True)
class ListedCase:
    """One user's case: the history (oldest first), the first stage's n best items, best first, and the targets.

    targets: the items that came next; those that `listed` lacks are missed by every reranker of it.
    met: all that the user met before, where the history is a part of it; no list holds any of it.
    """

    user_id: int
    history: tuple[int, ...]
    listed: tuple[int, ...]
    targets: frozenset[int]
    met: frozenset[int] = frozenset()

    @property
    def found(self) -> NDArray[np.bool_]:
        """[n] whether each listed item is a target."""
        return np.array([item in self.targets for item in self.listed], dtype=bool)


def best_columns(scores: Tensor, catalogue: Items, requests: Sequence[Request], n: int) -> Tensor:
    """[B, n] columns of the n best items of each request that it does not exclude, by scores [B, items]; equals by
    ascending id."""
    left = scores.clone()
    for row, request in enumerate(requests):
        left[row, torch.from_numpy(columns_of(catalogue, sorted(request.unranked)))] = -torch.inf
    return torch.argsort(left, dim=1, descending=True, stable=True)[:, :n]


def target_places(case: ListedCase, scores: ArrayLike) -> NDArray[np.int64]:
    """The ranks, ascending from 1, of the targets that the list holds, once it is ordered by `scores` [n].

    Equal scores keep the first stage's order, which knows no target. Raises RecalignError on NaN or another length.
    """
    given = np.asarray(scores, dtype=np.float64)
    if given.shape != (len(case.listed),) or np.isnan(given).any():
        raise RecalignError(
            f"user {case.user_id}: {len(case.listed)} items are listed, and the scores have shape {given.shape}"
            f"{' with NaN among them' if np.isnan(given).any() else ''}; give one number an item"
        )
    order = np.argsort(-given, kind="stable")
    return np.flatnonzero(case.found[order]) + 1


def ndcg_of_places(places: NDArray[np.int64], targets: int, k: int) -> float:
    """NDCG@k with binary gains: Σ 1 / log2(1 + rank) over targets at rank ≤ k, by what k or all targets could reach.

    Targets outside of the list count in the ideal. Järvelin and Kekäläinen 2002, log2(1 + rank) discount.
    Raises RecalignError for a case without targets.
    """
    if targets < 1:
        raise RecalignError("a case has no target, so no list of it is better than another; leave it out")
    gained = float((1.0 / np.log2(1.0 + places[places <= k])).sum())
    return gained / float((1.0 / np.log2(np.arange(2, 2 + min(k, targets)))).sum())


LIST_METRICS: dict[str, Callable[[NDArray[np.int64], int], float]] = {
    "ndcg_at_10": lambda places, targets: ndcg_of_places(places, targets, 10),
    "hr_at_5": lambda places, targets: float((places <= 5).any()),
    "mrr": lambda places, targets: 1.0 / float(places[0]) if len(places) else 0.0,
}


def list_values(metric: str, cases: Sequence[ListedCase], scores: Sequence[ArrayLike]) -> Floats:
    """[B] a metric of each case's list ordered by its scores: NDCG@10, HR@5 (any target), MRR (of the first target).

    Raises RecalignError for an unknown metric.
    """
    if metric not in LIST_METRICS:
        raise RecalignError(f"metric '{metric}' is unknown for lists; allowed are {', '.join(LIST_METRICS)}")
    measure = LIST_METRICS[metric]
    return np.array(
        [measure(target_places(case, row), len(case.targets)) for case, row in zip(cases, scores, strict=True)],
        dtype=np.float64,
    )
