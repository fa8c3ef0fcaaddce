"""A Markov (transition) model: what follows a liked item, of those that were liked soon after it.

The score of item j for the history h_1 … h_n (h_n the latest) is
    Σ_k e^(−(n−k)/recency) · (N[h_k, j] + s · share[j]) / (Σ_j N[h_k, j] + s) / popularity[j]^p,
where N[i, j] adds up e^(−(d−1)/distance) over train users who liked j d ≥ 1 places after i, share is popularity as a
distribution and s the smoothing in events. A first-order chain (Rendle et al., WWW 2010, section 3, without the
factorisation) is the limit of short distance and recency; the decays and the damping are ours.
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

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.recommenders.popularity import Popularity
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
    successions,
    with_clock,
)
from recalign.recommenders.tuning import tuned

GRID = {
    "distance": (1.0, 3.0, 10.0, 30.0),
    "recency": (1.0, 3.0, 10.0, 30.0),
    "damping": (0.0, 0.25, 0.5, 0.75),
    "smoothing": (0.1, 1.0, 10.0, 100.0),
}


@dataclass(frozen=True)
class Settings:
    """distance and recency in likes, smoothing in events, damping by popularity as an exponent."""

    distance: float = 3.0
    recency: float = 3.0
    smoothing: float = 10.0
    damping: float = 0.25


class Markov:
    """Scores by transitions in train; an empty history is ranked by damped popularity."""

    name = "markov"

    def __init__(
        self,
        catalogue: Items,
        follows: sparse.csr_array,
        popularity: NDArray[np.int64],
        settings: Settings,
    ) -> None:
        """follows [items, items]: N of the module's docstring, the row's item first; popularity [items] in train."""
        self.catalogue = catalogue
        self.follows = follows
        self.popularity = popularity
        self.settings = settings
        totals = np.asarray(follows.sum(axis=1)).ravel() + settings.smoothing
        self._voice = 1.0 / totals
        self._prior = popularity / max(int(popularity.sum()), 1)
        self._damping = np.maximum(popularity, 1).astype(np.float64) ** -settings.damping

    @classmethod
    def fit(cls, catalogue: Items, events: pa.Table, settings: Settings) -> "Markov":
        """Fit on train events (columns user_id, item_id, position, timestamp); raises RecalignError without a clock."""
        return fitter(catalogue, events)(settings)

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] scores of the candidates, or [B, items] of the whole catalogue; float64.

        Raises RecalignError for an item, in a history or a list, that the catalogue does not hold.
        """
        return in_blocks(self.catalogue, requests, candidates, self._chances)

    def _chances(self, histories: list[tuple[int, ...]]) -> NDArray[np.float64]:
        likes = bags(self.catalogue, histories, self.settings.recency)
        voices = likes.multiply(self._voice[None, :]).tocsr()
        backed_off = np.asarray(voices.sum(axis=1)).ravel() * self.settings.smoothing
        backed_off[np.diff(likes.indptr) == 0] = 1.0
        chances: NDArray[np.float64] = (voices @ self.follows).toarray() + backed_off[:, None] * self._prior
        return chances * self._damping

    def save(self, path: Path) -> None:
        """Write transitions (compressed sparse rows), popularity and settings into the folder `path`."""
        arrays = sparse_arrays("follows", self.follows) | {"popularity": self.popularity}
        save_state(path, self.name, self.catalogue, arrays, asdict(self.settings))

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "Markov":
        """Read what `save` wrote. Raises RecalignError for a model of another catalogue."""
        arrays, settings = load_state(path, cls.name, catalogue)
        follows = sparse_matrix("follows", arrays, len(catalogue.ids))
        return cls(catalogue, follows, arrays["popularity"], Settings(**settings))


def fitter(catalogue: Items, events: pa.Table) -> Callable[[Settings], Markov]:
    """Fits any settings on train events; each distance is counted once. Raises RecalignError without a clock."""
    order = [(c.USER, "ascending"), (c.POSITION, "ascending")]
    ordered = with_clock(events, Markov.name).sort_by(order)
    users = ordered[c.USER].to_numpy()
    items = columns_of(catalogue, ordered[c.ITEM].to_numpy())
    popularity = Popularity.fit(catalogue, events).counts
    follows = cache(lambda distance: transitions(users, items, len(catalogue.ids), distance))
    return lambda settings: Markov(catalogue, follows(settings.distance), popularity, settings)


def transitions(users: NDArray[np.int64], items: NDArray[np.int64], size: int, distance: float) -> sparse.csr_array:
    """N [items, items] of the module's docstring; users and items (columns) user by user, in each one's order."""

    def weight(step: int, same: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.full(int(same.sum()), np.exp(-(step - 1) / distance))

    follows = successions(users, items, size, max(int(REACH * distance), 1), weight)
    follows.sort_indices()
    return follows


def fit(log: Fitting) -> tuple[Markov, Tuning]:
    """Choose the settings, then fit on all of train; raises RecalignError without a clock."""
    return tuned("Markov", fitter, Settings(), GRID, log)


def load(name: str, path: Path, catalogue: Items) -> Markov:
    """Read what `save` wrote."""
    return Markov.load(path, catalogue)
