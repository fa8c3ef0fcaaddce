"""Popularity with time decay: everybody gets what train liked most of late.

An event that is `half_life` days older weighs half. Exponential decay keeps its order as time passes, so it does not
matter when a request asks: the weights are counted back from the newest train event.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.recommenders.recommender import Fitting, Request, Tuning
from recalign.recommenders.store import columns_of, load_state, same_for_all, save_state, with_clock
from recalign.recommenders.tuning import tuned

DAY = 86400.0e6  # microseconds

GRID = {"half_life": (7.0, 30.0, 90.0, 180.0, 365.0, 1460.0)}


@dataclass(frozen=True)
class Settings:
    """half_life in days."""

    half_life: float = 90.0


class RecentPopularity:
    """Scores an item by its decayed number of train events; the history is not looked at."""

    name = "recent_popularity"

    def __init__(self, catalogue: Items, weights: NDArray[np.float64], settings: Settings) -> None:
        """weights [items]: decayed counts, in ascending item id."""
        self.catalogue = catalogue
        self.weights = weights
        self.settings = settings

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] weights of the candidates, or [B, items] of the whole catalogue; float64."""
        return same_for_all(self.weights, self.catalogue, requests, candidates)

    def save(self, path: Path) -> None:
        """Write the weights and settings into the folder `path`."""
        save_state(path, self.name, self.catalogue, {"weights": self.weights}, asdict(self.settings))

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "RecentPopularity":
        """Read what `save` wrote. Raises RecalignError for a model of another catalogue."""
        arrays, settings = load_state(path, cls.name, catalogue)
        return cls(catalogue, arrays["weights"], Settings(**settings))


def fitter(catalogue: Items, events: pa.Table) -> Callable[[Settings], RecentPopularity]:
    """Fits any half-life on train events (columns item_id, timestamp); raises RecalignError without a clock."""
    times = with_clock(events, RecentPopularity.name)[c.TIMESTAMP].to_numpy().astype("datetime64[us]").astype(np.int64)
    items = columns_of(catalogue, events[c.ITEM].to_numpy())
    age = (times.max(initial=0) - times) / DAY

    def fit(settings: Settings) -> RecentPopularity:
        faded = np.bincount(items, 0.5 ** (age / settings.half_life), minlength=len(catalogue.ids))
        return RecentPopularity(catalogue, faded.astype(np.float64), settings)

    return fit


def fit(log: Fitting) -> tuple[RecentPopularity, Tuning]:
    """Choose the half-life, then fit on all of train; raises RecalignError without a clock."""
    return tuned("recent popularity", fitter, Settings(), GRID, log)


def load(name: str, path: Path, catalogue: Items) -> RecentPopularity:
    """Read what `save` wrote."""
    return RecentPopularity.load(path, catalogue)
