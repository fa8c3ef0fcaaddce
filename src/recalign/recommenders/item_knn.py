"""Item-kNN: what was liked together, is liked together.

The score of item j for the history h_1 … h_n (h_n the latest) is
    Σ_k r(n − k) · C[h_k, j] / (popularity[h_k]^q · popularity[j]^p),
where C[i, j] adds up, over train users u who like both, |u|^−w · d(distance of i and j in u's order). With a clock, r
and d fade by e over `recency` and `distance` likes; without one both are 1 and a history is a set. This is the
similarity by conditional probability of Deshpande and Karypis (ACM TOIS 2004), with its damping by popularity and its
lesser weight of long histories, both as exponents; the weights by age are ours.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import sparse

from recalign import columns as c
from recalign.data.records import Items
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.seam import Request
from recalign.recommenders.store import (
    REACH,
    bags,
    columns_of,
    in_blocks,
    load_state,
    save_state,
    sparse_arrays,
    sparse_matrix,
    successions,
)

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

    @classmethod
    def of(
        cls, catalogue: Items, together: sparse.csr_array, popularity: NDArray[np.int64], settings: Settings
    ) -> "ItemKNN":
        """Damp a co-occurrence [items, items] and keep each row's strongest votes."""
        count = np.maximum(popularity, 1).astype(np.float64)
        voice = np.repeat(count**-settings.context_damping, np.diff(together.indptr))
        damped = together.data * voice * count[together.indices] ** -settings.damping
        votes = sparse.csr_array((damped, together.indices, together.indptr), shape=together.shape)
        return cls(catalogue, strongest(votes, settings.neighbours).astype(np.float32), popularity, settings)

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] votes for the candidates, or [B, items] for the whole catalogue; float64.

        Raises RecalignError for an item, in a history or a list, that the catalogue does not hold.
        """
        return in_blocks(self.catalogue, requests, candidates, self._votes)

    def _votes(self, histories: list[tuple[int, ...]]) -> NDArray[np.float64]:
        context = bags(self.catalogue, histories, self.settings.recency)
        votes: NDArray[np.float64] = (context @ self.votes.astype(np.float64)).toarray()
        return votes + TIE_BREAK * self.popularity / max(int(self.popularity.max()), 1)

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
    """Fits any settings on train events; what settings share is counted once."""
    popularity = Popularity.fit(catalogue, events).counts
    together = cache(lambda *key: co_occurrence(catalogue, events, *key))
    return lambda settings: ItemKNN.of(
        catalogue, together(settings.user_damping, settings.distance), popularity, settings
    )


def co_occurrence(
    catalogue: Items, events: pa.Table, user_damping: float, distance: float | None
) -> sparse.csr_array:
    """Symmetric [items, items] sum over users of |u|^−user_damping · exp(−distance / `distance`), zero diagonal."""
    ordered = events.select([c.USER, c.ITEM, c.POSITION]).sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
    _, users, lengths = np.unique(ordered[c.USER].to_numpy(), return_inverse=True, return_counts=True)
    items = columns_of(catalogue, ordered[c.ITEM].to_numpy())
    size = len(catalogue.ids)
    weights = lengths[users] ** (-user_damping / 2)  # each of a pair brings the root of |u|^−w
    if distance is None:
        likes = sparse.csr_array((weights, (users, items)), shape=(len(lengths), size))
        together = sparse.csr_array(likes.T @ likes)
        together.setdiag(0)
        together.eliminate_zeros()
        together.sort_indices()
        return together

    def weight(step: int, same: NDArray[np.bool_]) -> NDArray[np.float64]:
        faded: NDArray[np.float64] = (weights[:-step] * weights[step:])[same] * np.exp(-step / distance)
        return faded

    after = successions(users, items, size, int(REACH * distance), weight)
    together = sparse.csr_array(after + after.T)
    together.sort_indices()
    return together


def strongest(votes: sparse.csr_array, neighbours: int) -> sparse.csr_array:
    """The `neighbours` largest entries of each row; of equal ones those of the first columns (indices are sorted)."""
    keep = np.ones(votes.nnz, dtype=bool)
    for row in np.flatnonzero(np.diff(votes.indptr) > neighbours):
        start, end = votes.indptr[row], votes.indptr[row + 1]
        entries = votes.data[start:end]
        weakest = np.partition(entries, len(entries) - neighbours)[len(entries) - neighbours]
        kept = entries > weakest
        kept[np.flatnonzero(entries == weakest)[: neighbours - kept.sum()]] = True
        keep[start:end] = kept
    row_starts = np.concatenate([[0], np.cumsum(keep)])[votes.indptr]
    return sparse.csr_array((votes.data[keep], votes.indices[keep], row_starts), shape=votes.shape)
