"""A prepared log: what its summary.json says of it, typed."""

from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from recalign.common.artifacts import read_json


class Counts(TypedDict):
    """How much is left after preparation; by split, by view and split, and by pool of candidates where mappings."""

    users: int
    items: int
    trained_items: int
    events: dict[str, int]
    examples: dict[str, int]
    views: dict[str, dict[str, int]]
    cold_both: int
    pools: dict[str, int]


class Summary(TypedDict):
    """summary.json (docs/contracts.md)."""

    source: str
    noun: str
    clock: bool
    cutoffs: dict[str, str | None]
    counts: Counts
    views_left_out: dict[str, str]
    hidden_items: float
    data_digest: str
    manifests: dict[str, dict[str, str]]


class Prepared:
    """What preparation made of a log, by its folder: the facts of its summary.json, read when one is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _told(self) -> Summary:
        told: Summary = read_json(self.folder / "summary.json")
        return told

    @property
    def source(self) -> str:
        """The name of the source."""
        return self._told["source"]

    @property
    def noun(self) -> str:
        """What an item is called: movies, artists, …"""
        return self._told["noun"]

    @property
    def clock(self) -> bool:
        """Whether the source has times; without them every history is a set."""
        return self._told["clock"]

    def cutoff(self, split: str) -> datetime | None:
        """When a split begins; None without a clock."""
        stated = self._told["cutoffs"].get(split)
        return datetime.fromisoformat(stated).replace(tzinfo=None) if stated else None

    @property
    def counts(self) -> Counts:
        """How much is left."""
        return self._told["counts"]

    @property
    def views_left_out(self) -> dict[str, str]:
        """Which views have no test case, and why."""
        return self._told["views_left_out"]

    @property
    def hidden_items(self) -> float:
        """The share of items that is hidden from training; 0 in a folder of before there was one."""
        return self._told.get("hidden_items", 0.0)

    @property
    def data_digest(self) -> str:
        """Of the raw files, and of what is hidden."""
        return self._told["data_digest"]

    @property
    def manifests(self) -> dict[str, dict[str, str]]:
        """Digests of the candidate lists, by manifest and view."""
        return self._told["manifests"]
