"""Ranks of targets in scored lists, and the metrics that are functions of a rank. Pure numpy."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recalign.common.errors import RecalignError

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]
Lots = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: the step of a Weyl sequence


def draw_lots(cases: Sequence[str], items: ArrayLike) -> Lots:
    """The lot of each item in each case: among items of equal score the one with the lowest lot stands first.

    cases [B]: names; items [B, C] or, the same for all cases, [C]: ids. Returns [B, C]. A lot is a hash of (case, item)
    and of nothing else: not of the target, the list, the scores or the system. Within a case all lots differ, since
    SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) is one-to-one.
    """
    keys = np.array([_number(case) for case in cases], dtype=np.uint64)
    x = keys[:, None] + np.asarray(items, dtype=np.int64).astype(np.uint64) * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    lots: Lots = x ^ (x >> np.uint64(31))
    return lots


def order_of_equals(case: str | None, items: Sequence[int]) -> list[int]:
    """What items of equal score stand by, lowest first: their lots in a case; their ids without one (serving)."""
    lots: list[int] = list(items) if case is None else draw_lots([case], [*items])[0].tolist()
    return lots


def _number(case: str) -> int:
    return int.from_bytes(hashlib.blake2b(case.encode(), digest_size=8).digest(), "little")


def target_ranks(scores: ArrayLike, target_index: ArrayLike, lots: ArrayLike) -> Ranks:
    """Rank of each case's target: 1 + the number of other candidates that stand before it.

    scores [B, C]: higher is better, -inf for a candidate that is out of the ranking; target_index [B]: its column;
    lots [B, C]: of `draw_lots`. Before a target stands what scores more, and of what scores alike the items with lower
    lots; so a system that scores everything alike gets what chance gets. A target at -inf is the last.
    Returns [B], 1 = best. Raises RecalignError on NaN, on an empty list and on a target outside of its list.
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
    drawn = np.asarray(lots, dtype=np.uint64).reshape(matrix.shape)
    own, lot = (np.take_along_axis(values, target[:, None], axis=1) for values in (matrix, drawn))
    before = (matrix > own) | ((matrix == own) & (drawn < lot))
    ranks: Ranks = 1 + before.sum(axis=1, dtype=np.int64)
    return np.where(own[:, 0] == -np.inf, matrix.shape[1], ranks)


def best_items(
    scores: ArrayLike, items: NDArray[np.int64] | Sequence[Sequence[int]], lots: ArrayLike, k: int
) -> list[tuple[int, ...]]:
    """The k best items of each case, best first, in the order that `target_ranks` counts in.

    scores [B, C] (-inf: out of the ranking, never listed), items [B, C] their ids, lots [B, C] of `draw_lots`. A list
    is shorter than k where fewer items are in the ranking.
    """
    best = []
    for row, ids, drawn in zip(np.asarray(scores, np.float64), items, np.asarray(lots, np.uint64), strict=True):
        bound = np.partition(row, -k)[-k] if k < len(row) else -np.inf
        columns = np.flatnonzero((row >= bound) & (row > -np.inf))
        order = np.lexsort((drawn[columns], -row[columns]))[:k]
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
            raise RecalignError(f"candidates of case {case} hold item {twice} twice; each item may be listed once")
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
