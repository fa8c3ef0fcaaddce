"""The one seam of every recommender: whatever ranks items answers the same call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch

from recalign.data.records import Items, hashed_order
from recalign.params.recommenders import RecommendersParams

Tuning = dict[str, Any]  # tuning.json: what was `chosen` of what was `tried`, and on how many cases
CASES_AT_ONCE = 256  # requests in one call over the whole catalogue
CELLS_AT_ONCE = 2**22  # and their scores, 32 MiB in float64: several matrices of that size are beside one another


def cases_at_once(items: int) -> int:
    """How many requests are scored over a catalogue of so many items at once: bounds the memory."""
    return max(1, min(CASES_AT_ONCE, CELLS_AT_ONCE // max(1, items)))


@dataclass(frozen=True)
class Request:
    """Whom to rank for: the history is oldest first (a set where there is no clock); cutoff is the time of asking.

    excluded: the items that the whole catalogue is ranked without; None: those of the history.
    """

    user_id: int | None
    history: tuple[int, ...]
    cutoff: datetime | None = None
    profile: str | None = None
    excluded: frozenset[int] | None = None

    @property
    def unranked(self) -> frozenset[int]:
        """What the whole catalogue is ranked without."""
        return frozenset(self.history) if self.excluded is None else self.excluded


@dataclass(frozen=True)
class Asked:
    """One ranking: the k best of `candidates`, or of the catalogue minus what is excluded.

    history: oldest first, item ids, or titles that need not be in the catalogue; `profile` as prompts show it;
    excluded: None for the history; case: the name whose lots equals stand by, None for ascending ids; terms: what is
    added to each item's score, of every item that is ranked.
    """

    history: Sequence[int | str]
    candidates: Sequence[int] | None
    k: int
    profile: str | None = None
    excluded: frozenset[int] | None = None
    case: str | None = None
    terms: Mapping[int, float] | None = None

    @property
    def unranked(self) -> frozenset[int | str]:
        """What the whole catalogue is ranked without."""
        return frozenset(self.history) if self.excluded is None else frozenset(self.excluded)


@dataclass(frozen=True)
class Scored:
    """An item and its score; higher is better, comparable within one request only."""

    item_id: int
    score: float


class Recommender(Protocol):
    """Scores candidates or the whole catalogue. `name` is the system's name in every table."""

    name: str

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] scores of equally long candidate lists, or [B, items] over the catalogue in ascending item id."""
        ...

    def save(self, path: Path) -> None:
        """Write the fitted state into the folder `path` (safetensors, Parquet, JSON)."""
        ...


@dataclass(frozen=True)
class Fitting:
    """What a recommender of the roster is fitted on, and by which settings.

    name: as the roster has it; catalogue: the items that train knows; events: train's (user_id, item_id, timestamp,
    position); clock: False where histories are sets; met: (user_id, item_id) of what users met in training's time,
    liked or not, which is no wrong item where settings are chosen; threads: of torch; hidden: validation cases
    (`HeldOut`) on items that the run hides, None where a recommender that reads new items hides some of its own.
    """

    name: str
    catalogue: Items
    events: pa.Table
    clock: bool
    seed: int
    threads: int
    params: RecommendersParams
    met: pa.Table | None = None
    hidden: Any = None


def top(recommender: Recommender, catalogue: Items, requests: list[Request], k: int) -> list[list[Scored]]:
    """The k best items a request that are not in its history, best first; equal scores by ascending item id."""
    best = []
    for request, row in zip(requests, recommender.scores(requests, None), strict=True):
        seen = set(request.history)
        scored = [Scored(i, float(s)) for i, s in zip(catalogue.ids, row.tolist(), strict=True) if i not in seen]
        best.append(sorted(scored, key=lambda s: (-s.score, s.item_id))[:k])
    return best


def own_seed(seed: int, name: str) -> int:
    """The seed of what is called `name` in a run with `seed`: 60 bits, for torch's seeds are signed 64-bit numbers."""
    return int(hashed_order(seed, name)[:15], 16)


def key(*parts: Any) -> int:
    """64 bits that depend on the parts only: numpy's keys and seeds are unsigned numbers."""
    return int(hashed_order(*parts)[:16], 16)
