"""EASE: every item's likes predicted linearly from the likes of all the others, in closed form.

B = I − P · diag(P)⁻¹ with P = (XᵀX + λI)⁻¹ minimises ‖X − XB‖² + λ‖B‖² under diag(B) = 0 (Steck, "Embarrassingly
Shallow Autoencoders for Sparse Data", WWW 2019, equation 8). The score of item j for a history is the sum of B[i, j]
over its items, divided by popularity[j]^damping; the division is ours, 0 leaves the paper's score.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse

from recalign.common import columns as c
from recalign.common.errors import TooLargeError
from recalign.data.records import Items
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recommender import Fitting, Request, Tuning
from recalign.recommenders.store import bags, columns_of, in_blocks, load_state, save_state
from recalign.recommenders.tuning import tuned

GRID = {"ridge": (100.0, 300.0, 1000.0, 3000.0), "damping": (0.0, 0.25, 0.5)}
MOST_ITEMS = 20_000  # a dense matrix of items × items: 3.2 GB in float64, and its inverse takes minutes


@dataclass(frozen=True)
class Settings:
    """ridge λ, in events; damping by popularity as an exponent."""

    ridge: float = 300.0
    damping: float = 0.0


class EASE:
    """Scores by a linear model of the history as a set; its order and repetitions are not looked at."""

    name = "ease"

    def __init__(self, catalogue: Items, weights: NDArray[np.float32], settings: Settings) -> None:
        """weights [items, items]: what the row's item, in a history, adds to the column's; zero diagonal."""
        self.catalogue = catalogue
        self.weights = np.ascontiguousarray(weights)  # else scipy copies them for every block of histories
        self.settings = settings

    @classmethod
    def fit(cls, catalogue: Items, events: pa.Table, settings: Settings) -> "EASE":
        """Fit on train events (columns user_id, item_id); raises TooLargeError above MOST_ITEMS items."""
        return fitter(catalogue, events)(settings)

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] scores of the candidates, or [B, items] of the whole catalogue; float64, zeros for an empty history.

        Raises RecalignError for an item, in a history or a list, that the catalogue does not hold.
        """
        return in_blocks(self.catalogue, requests, candidates, self._scores)

    def _scores(self, histories: list[tuple[int, ...]]) -> NDArray[np.float64]:
        likes = bags(self.catalogue, [tuple(set(history)) for history in histories])
        # in the weights' own format, or scipy casts all of them for every block of histories
        return np.asarray(likes.astype(np.float32) @ self.weights, dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write weights and settings into the folder `path`."""
        save_state(path, self.name, self.catalogue, {"weights": self.weights}, asdict(self.settings))

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "EASE":
        """Read what `save` wrote. Raises RecalignError for a model of another catalogue."""
        arrays, settings = load_state(path, cls.name, catalogue)
        return cls(catalogue, arrays["weights"], Settings(**settings))


def fitter(catalogue: Items, events: pa.Table) -> Callable[[Settings], EASE]:
    """Fits any settings on train events; each ridge is inverted once. Raises TooLargeError above MOST_ITEMS items."""
    size = len(catalogue.ids)
    if size > MOST_ITEMS:
        raise TooLargeError(
            f"ease inverts a matrix of items × items, and training knows {size} items (at most {MOST_ITEMS})"
        )
    distinct, users = np.unique(events[c.USER].to_numpy(), return_inverse=True)
    items = columns_of(catalogue, events[c.ITEM].to_numpy())
    likes = sparse.csr_array((np.ones(len(items)), (users, items)), shape=(len(distinct), size))
    likes.data[:] = 1.0  # a repetition is one like
    together = (likes.T @ likes).toarray()
    popularity = np.maximum(Popularity.fit(catalogue, events).counts, 1).astype(np.float64)
    undamped = cache(lambda ridge: item_weights(together, ridge))

    def fit(settings: Settings) -> EASE:
        damped = undamped(settings.ridge) * popularity**-settings.damping
        return EASE(catalogue, damped.astype(np.float32), settings)

    return fit


def item_weights(together: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """B [items, items] of the module's docstring from XᵀX [items, items]; the ridge is above 0.

    In place after one copy, and with a third of the work of solving for I: both count at ten thousand items.
    """
    weights = together.copy(order="F")  # as LAPACK holds a matrix
    weights[np.diag_indices_from(weights)] += ridge
    factor, _ = linalg.cho_factor(weights, lower=True, overwrite_a=True)
    weights, _ = linalg.lapack.dpotri(factor, lower=True, overwrite_c=True)  # the lower half of the inverse
    _mirror(weights)
    weights /= -np.diag(weights)
    np.fill_diagonal(weights, 0.0)
    return weights


def _mirror(matrix: NDArray[np.float64], step: int = 1024) -> None:
    """Copy the lower half of a square matrix onto the upper one, in place, a strip of `step` columns at a time."""
    for start in range(0, len(matrix), step):
        stop = start + step
        corner = matrix[start:stop, start:stop]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T


def fit(log: Fitting) -> tuple[EASE, Tuning]:
    """Choose ridge and damping, then fit on all of train; raises TooLargeError above MOST_ITEMS items."""
    return tuned("EASE", fitter, Settings(), GRID, log)


def load(name: str, path: Path, catalogue: Items) -> EASE:
    """Read what `save` wrote."""
    return EASE.load(path, catalogue)
