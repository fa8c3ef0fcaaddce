"""Ranks of targets in scored lists, and the metrics that are functions of a rank. Pure numpy."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recalign.errors import RecalignError

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]


def target_ranks(scores: ArrayLike, target_index: ArrayLike) -> Ranks:
    """Rank of each case's target: 1 + the number of other candidates that score at least as high.

    scores [B, C]: higher is better, -inf for a candidate that is out of the ranking; target_index [B]: its column.
    Returns [B], 1 = best. A target stands after its equals, so a model that scores everything alike gains nothing.
    Raises RecalignError on NaN, on an empty list and on a target outside of its list.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    target = np.asarray(target_index, dtype=np.int64)
    if matrix.ndim != 2 or matrix.shape[0] != target.shape[0]:
        raise RecalignError(f"scores have shape {matrix.shape} for {target.shape[0]} targets; give a row a target")
    if matrix.shape[0] and matrix.shape[1] == 0:
        raise RecalignError("a list of candidates is empty; it must hold at least the target")
    lost = np.isnan(matrix).any(axis=1)
    if lost.any():
        raise RecalignError(f"a score of case {lost.argmax()} is NaN; finite and -inf are allowed: retrain the model")
    outside = (target < 0) | (target >= matrix.shape[1])
    if outside.any():
        row = int(outside.argmax())
        raise RecalignError(f"target_index of case {row} is {target[row]}; 0 … {matrix.shape[1] - 1} is allowed")
    own = np.take_along_axis(matrix, target[:, None], axis=1)
    ranks: Ranks = (matrix >= own).sum(axis=1, dtype=np.int64)  # the target counts itself: the 1 of the definition
    return ranks


def best_items(
    scores: ArrayLike, items: Sequence[Sequence[int]], target_index: ArrayLike, k: int
) -> list[tuple[int, ...]]:
    """The k best items of each case, best first, in the order that `target_ranks` counts in: a target after its equals.

    scores [B, C] (-inf: out of the ranking, never listed), items [B, C] their ids; other equals keep their columns'
    order. A list is shorter than k where fewer items are in the ranking.
    """
    best = []
    for row, ids, target in zip(np.asarray(scores, np.float64), items, np.asarray(target_index), strict=True):
        bound = np.partition(row, -k)[-k] if k < len(row) else -np.inf
        columns = np.flatnonzero((row >= bound) & (row > -np.inf))
        order = np.lexsort((columns == target, -row[columns]))[:k]
        best.append(tuple(int(ids[column]) for column in columns[order]))
    return best


def target_places(candidates: Sequence[Sequence[int]], targets: Sequence[int]) -> list[int]:
    """Column of each target in its candidate list.

    Raises RecalignError, naming the case, when a list lacks its target or holds an item twice.
    """
    places = []
    for case, (items, target) in enumerate(zip(candidates, targets, strict=True)):
        if len(set(items)) != len(items):
            twice = next(item for item in items if list(items).count(item) > 1)
            raise RecalignError(f"candidates of case {case} hold item {twice} twice; each item may stand once")
        if target not in items:
            raise RecalignError(f"candidates of case {case} lack the target {target}; add it to the list")
        places.append(list(items).index(target))
    return places


def hit_rate(ranks: Ranks, k: int) -> Floats:
    """HR@k a case, [B]: 1 where the target is among the first k, else 0; with one target also Recall@k."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Ranks, k: int) -> Floats:
    """NDCG@k a case, [B]: 1 / log2(1 + rank) where the rank is at most k, else 0.

    With one relevant item the ideal gain is 1 (Järvelin and Kekäläinen 2002, with the log2(1 + rank) discount).
    """
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def reciprocal_rank(ranks: Ranks) -> Floats:
    """1 / rank a case, [B]; its mean is MRR, over the whole list."""
    gains: Floats = 1.0 / ranks
    return gains


METRICS: dict[str, Callable[[Ranks], Floats]] = {
    "hr_at_1": lambda ranks: hit_rate(ranks, 1),
    "hr_at_5": lambda ranks: hit_rate(ranks, 5),
    "ndcg_at_10": lambda ranks: ndcg(ranks, 10),
    "mrr": reciprocal_rank,
}
LABELS = {"hr_at_1": "HR@1", "hr_at_5": "HR@5", "ndcg_at_10": "NDCG@10", "mrr": "MRR"}


def chance(metric: str, candidates: int) -> float:
    """What a random order of so many candidates expects of a metric."""
    return float(metric_values(metric, np.arange(1, candidates + 1)).mean())


def metric_values(metric: str, ranks: ArrayLike) -> Floats:
    """The metric of each case, [B], from ranks [B].

    Raises RecalignError for an unknown metric, for no cases, and for ranks below 1.
    """
    values = np.asarray(ranks)
    if metric not in METRICS:
        raise RecalignError(f"metric '{metric}' is unknown; allowed are {', '.join(METRICS)}")
    if values.size == 0:
        raise RecalignError(f"{metric} of no cases has no value; give at least one case")
    if not np.issubdtype(values.dtype, np.integer) or (values < 1).any():
        raise RecalignError(f"a rank is {values.min()}; ranks are whole numbers from 1, 1 = best")
    return METRICS[metric](values.astype(np.int64))
