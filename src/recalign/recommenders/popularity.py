"""Popularity: everybody gets what train liked most. The baseline that a recommender has to beat first."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.recommenders.recommender import Fitting, Request, Tuning
from recalign.recommenders.store import columns_of, load_state, same_for_all, save_state


class Popularity:
    """Scores an item by its number of train events; the history is not looked at."""

    name = "popularity"

    def __init__(self, catalogue: Items, counts: NDArray[np.int64]) -> None:
        """counts [items]: train events, in ascending item id."""
        self.catalogue = catalogue
        self.counts = counts

    @classmethod
    def fit(cls, catalogue: Items, events: pa.Table) -> "Popularity":
        """Count the train events (column item_id)."""
        items = columns_of(catalogue, events[c.ITEM].to_numpy())
        return cls(catalogue, np.bincount(items, minlength=len(catalogue.ids)))

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] counts of the candidates, or [B, items] of the whole catalogue."""
        return same_for_all(self.counts.astype(np.float64), self.catalogue, requests, candidates)

    def save(self, path: Path) -> None:
        """Write the counts into the folder `path`."""
        save_state(path, self.name, self.catalogue, {"counts": self.counts}, {})

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "Popularity":
        """Read what `save` wrote. Raises RecalignError for a model of another catalogue."""
        arrays, _ = load_state(path, cls.name, catalogue)
        return cls(catalogue, arrays["counts"])


def fit(log: Fitting) -> tuple[Popularity, Tuning]:
    """Count the train events; there is nothing to choose."""
    return Popularity.fit(log.catalogue, log.events), {"chosen": {}, "tried": []}


def load(name: str, path: Path, catalogue: Items) -> Popularity:
    """Read what `save` wrote."""
    return Popularity.load(path, catalogue)
