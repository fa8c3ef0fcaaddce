"""Item-kNN: what was liked together, is liked together.

The score of item j for the history h_1 … h_n (h_n the latest) is
    Σ_k r(n − k) · C[h_k, j] / (popularity[h_k]^q · popularity[j]^p),
where C[i, j] adds up, over train users u who like both, |u|^−w · d(distance of i and j in u's order). With a clock, r
and d fade by e over `recency` and `distance` likes; without one both are 1 and a history is a set. This is the
similarity by conditional probability of Deshpande and Karypis (ACM TOIS 2004), with its damping by popularity and its
lesser weight of long histories, both as exponents; the weights by age are ours.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import sparse

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.recommenders.recommender import Fitting, Request, Tuning
from recalign.recommenders.store import (
    REACH,
    bags,
    columns_of,
    in_blocks,
    load_state,
    save_state,
    sparse_arrays,
    sparse_matrix,
)
from recalign.recommenders.tuning import tuned

KNN_EVENTS = 500_000  # train events that it is tuned on: a setting's time grows with them, its choice does not
GRID: dict[str, tuple[Any, ...]] = {
    "distance": (None, 30.0, 10.0, 5.0, 2.5),
    "recency": (None, 30.0, 10.0, 5.0, 2.5),
    "user_damping": (0.0, 0.5, 1.0),
    "damping": (0.25, 0.5, 0.75),
    "context_damping": (0.0, 0.25, 0.5),
}
PAIRS = 2**21  # of likes that are counted at once
TIE_BREAK = 1e-9  # weight of popularity, which only orders items that the votes leave equal


@dataclass(frozen=True)
class Settings:
    """damping p, context_damping q, user_damping w; distance and recency in likes, None where order does not count.

    neighbours: how many items each item votes for at most; bounds the size of the model.
    """

    damping: float = 0.5
    context_damping: float = 0.25
    user_damping: float = 0.0
    distance: float | None = None
    recency: float | None = None
    neighbours: int = 1000


class ItemKNN:
    """Scores by co-occurrence in train; items without a vote come after all others, by popularity."""

    name = "item_knn"

    def __init__(
        self, catalogue: Items, votes: sparse.csr_array, popularity: NDArray[np.int64], settings: Settings
    ) -> None:
        """votes [items, items]: what the row's item, in a history, gives the column's; popularity [items] in train."""
        self.catalogue = catalogue
        self.votes = votes
        self.popularity = popularity
        self.settings = settings

    @classmethod
    def fit(cls, catalogue: Items, events: pa.Table, settings: Settings) -> "ItemKNN":
        """Fit on train events (columns user_id, item_id, position: the user's order, read only with a `distance`)."""
        return fitter(catalogue, events)(settings)

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] votes for the candidates, or [B, items] for the whole catalogue; float64.

        Raises RecalignError for an item, in a history or a list, that the catalogue does not hold.
        """
        return in_blocks(self.catalogue, requests, candidates, self._votes)

    def _votes(self, histories: list[tuple[int, ...]]) -> NDArray[np.float64]:
        context = bags(self.catalogue, histories, self.settings.recency)
        asked = np.unique(context.indices)  # in float64 the whole matrix would be a second copy, twice as large
        votes: NDArray[np.float64] = (context[:, asked] @ self.votes[asked].astype(np.float64)).toarray()
        votes += TIE_BREAK * self.popularity / max(int(self.popularity.max()), 1)
        return votes

    def save(self, path: Path) -> None:
        """Write votes (compressed sparse rows), popularity and settings into the folder `path`."""
        arrays = sparse_arrays("votes", self.votes) | {"popularity": self.popularity}
        save_state(path, self.name, self.catalogue, arrays, asdict(self.settings))

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "ItemKNN":
        """Read what `save` wrote. Raises RecalignError for a model of another catalogue."""
        arrays, settings = load_state(path, cls.name, catalogue)
        votes = sparse_matrix("votes", arrays, len(catalogue.ids))
        return cls(catalogue, votes, arrays["popularity"], Settings(**settings))


def fitter(catalogue: Items, events: pa.Table) -> Callable[[Settings], ItemKNN]:
    """Fits any settings on train events; what differs in `recency` alone, which only ranking reads, votes alike."""
    likes = Likes.of(catalogue, events)
    popularity = np.bincount(likes.items, minlength=likes.size)
    voted = lru_cache(maxsize=1)(lambda settings: votes(likes, popularity, settings))
    return lambda settings: ItemKNN(catalogue, voted(replace(settings, recency=None)), popularity, settings)


@dataclass(frozen=True, eq=False)
class Likes:
    """A log user by user, in each one's order: items [likes] as columns; starts [users + 1] of each user's."""

    items: NDArray[np.int32]
    starts: NDArray[np.int32]
    size: int  # items of the catalogue

    @classmethod
    def of(cls, catalogue: Items, events: pa.Table) -> "Likes":
        """Raises RecalignError for an item that the catalogue does not hold."""
        order = [(c.USER, "ascending"), (c.POSITION, "ascending")]
        ordered = events.select([c.USER, c.ITEM, c.POSITION]).sort_by(order)
        who = ordered[c.USER].to_numpy()
        new = np.append(True, who[1:] != who[:-1])[: len(who)]
        items = columns_of(catalogue, ordered[c.ITEM].to_numpy()).astype(np.int32)
        starts = np.append(np.flatnonzero(new), len(who)).astype(np.int32)
        return cls(items, starts, len(catalogue.ids))


def votes(likes: Likes, popularity: NDArray[np.int64], settings: Settings) -> sparse.csr_array:
    """[items, items] what the row's item gives the column's: damped, and each row's strongest alone; float32."""
    count = np.maximum(popularity, 1).astype(np.float64)
    voice, weight = count**-settings.context_damping, count**-settings.damping
    parts = []
    for rows, together in co_occurrence(likes, settings.user_damping, settings.distance):
        together.data *= np.repeat(voice[rows], np.diff(together.indptr))
        together.data *= weight[together.indices]
        parts.append(strongest(together, settings.neighbours).astype(np.float32))
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def co_occurrence(
    likes: Likes, user_damping: float, distance: float | None
) -> Iterator[tuple[slice, sparse.csr_array]]:
    """Blocks of rows of the [items, items] sum over users of |u|^−user_damping · exp(−distance / `distance`).

    Without a `distance` the diagonal is 0; with one it holds an item that a user liked again. Indices are in no order.
    Blocks, since the whole has far more entries than the neighbours that are kept, and none of it stays in a cache.
    """
    lengths = np.diff(likes.starts)
    share = lengths.astype(np.float64) ** -user_damping
    fade = np.exp(-np.arange(1, int(REACH * distance) + 1) / distance) if distance is not None else None
    liked, place = (
        sparse.csr_array((values, likes.items, likes.starts), shape=(len(lengths), likes.size))
        for values in (np.ones(len(likes.items)), np.arange(len(likes.items)))
    )
    by_item = place.tocsc()  # its users, its places in the log
    first = by_item.indptr
    pairs = lengths[by_item.indices] if fade is None else np.full(by_item.nnz, 2 * len(fade))
    for rows in blocks(np.append(0, np.cumsum(pairs))[first]):
        mine = slice(first[rows.start], first[rows.stop])
        users, row_starts = by_item.indices[mine], first[rows.start : rows.stop + 1] - first[rows.start]
        if fade is None:
            company, who = liked, users
        else:
            company, who = nearby(likes, by_item.data[mine], users, fade), np.arange(len(users), dtype=np.int32)
        shape = rows.stop - rows.start, company.shape[0]
        together = sparse.csr_array((share[users], who, row_starts), shape=shape) @ company
        if fade is None:
            own = np.repeat(np.arange(rows.start, rows.stop, dtype=np.int32), np.diff(together.indptr))
            together.data[together.indices == own] = 0.0
        yield rows, together


def nearby(
    likes: Likes, places: NDArray[np.int64], users: NDArray[np.int32], fade: NDArray[np.float64]
) -> sparse.csr_array:
    """[places, items]: what a place's user liked one, two, … places before or after it, each with its fade."""
    steps = np.append(np.arange(-len(fade), 0), np.arange(1, len(fade) + 1)).astype(np.int32)
    near = places.astype(np.int32)[:, None] + steps
    inside = (near >= likes.starts[users][:, None]) & (near < likes.starts[users + 1][:, None])
    weights = np.broadcast_to(np.append(fade[::-1], fade), near.shape)[inside]
    row_starts = np.append(0, np.cumsum(np.count_nonzero(inside, axis=1))).astype(np.int32)
    return sparse.csr_array((weights, likes.items[near[inside]], row_starts), shape=(len(places), likes.size))


def blocks(pairs: NDArray[np.int64]) -> list[slice]:
    """Slices of some PAIRS each, of one row at least; pairs [rows + 1]: how many stand before each row."""
    edges = np.searchsorted(pairs, np.arange(PAIRS, pairs[-1], PAIRS))
    edges = np.unique(np.concatenate([[0], edges, [len(pairs) - 1]]))
    return [slice(start, stop) for start, stop in pairwise(edges.tolist())]


def strongest(votes: sparse.csr_array, neighbours: int) -> sparse.csr_array:
    """The `neighbours` largest entries above 0 of each row; of equal ones those of the first columns."""
    keep = np.ones(votes.nnz, dtype=bool)
    for row in np.flatnonzero(np.diff(votes.indptr) > neighbours):
        span = slice(votes.indptr[row], votes.indptr[row + 1])
        entries = votes.data[span]
        weakest = nth_largest(entries, neighbours)
        kept = np.greater_equal(entries, weakest, out=keep[span])
        surplus = np.count_nonzero(kept) - neighbours
        if surplus:
            equal = np.flatnonzero(entries == weakest)
            kept[equal[np.argsort(votes.indices[span][equal])[-surplus:]]] = False
    left = np.flatnonzero(keep)
    row_starts = np.searchsorted(left, votes.indptr)
    found = sparse.csr_array((votes.data[left], votes.indices[left], row_starts), shape=votes.shape)
    found.eliminate_zeros()
    return found.tocsc().tocsr()  # which sorts the indices in linear time


def nth_largest(values: NDArray[np.float64], n: int) -> float:
    """The n-th largest of at least n values.

    Among many, the n-th largest of the maxima of 2n groups is a bound: n values reach it, and few more, so that the
    rest is left out before the values are put in order.
    """
    groups = 2 * n
    if len(values) >= 4 * groups:
        maxima = values[: len(values) // groups * groups].reshape(-1, groups).max(axis=0)
        values = values[values >= np.partition(maxima, n)[n]]
    place = len(values) - n
    return float(np.partition(values, place)[place])


def fit(log: Fitting) -> tuple[ItemKNN, Tuning]:
    """Choose the settings on KNN_EVENTS events at most, of whole users, then fit on all of train.

    Without a clock, order is never looked at.
    """
    start = Settings(distance=10.0, recency=10.0) if log.clock else Settings()
    grid = GRID if log.clock else {name: GRID[name] for name in GRID if name not in ("distance", "recency")}
    return tuned("item-kNN", fitter, start, grid, log, KNN_EVENTS)


def load(name: str, path: Path, catalogue: Items) -> ItemKNN:
    """Read what `save` wrote."""
    return ItemKNN.load(path, catalogue)
