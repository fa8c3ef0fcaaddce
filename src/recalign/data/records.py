"""What the rooms hand to one another: the catalogue, and the examples of a split."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from recalign import columns as c
from recalign.artifacts import read_parquet


@dataclass(frozen=True)
class Items:
    """The catalogue, in ascending item id.

    titles are unique; attributes map a name ("genre", "year", …) to its values; popularity counts train events.
    """

    ids: tuple[int, ...]
    titles: dict[int, str]
    attributes: dict[int, dict[str, list[str]]]
    popularity: dict[int, int]

    @classmethod
    def read(cls, prepared: Path) -> "Items":
        """Read data/prepared/items.parquet."""
        rows = sorted(read_parquet(prepared / "items.parquet").to_pylist(), key=lambda row: row[c.ITEM])
        return cls(
            ids=tuple(row[c.ITEM] for row in rows),
            titles={row[c.ITEM]: row[c.TITLE] for row in rows},
            attributes={row[c.ITEM]: {k: list(v) for k, v in row[c.ATTRIBUTES]} for row in rows},
            popularity={row[c.ITEM]: row["popularity"] for row in rows},
        )


@dataclass(frozen=True)
class Example:
    """A history (oldest first) and the item that came next; cutoff is None where the source has no clock."""

    example_id: str
    user_id: int
    split: str
    cutoff: datetime | None
    history: tuple[int, ...]
    target: int


@dataclass(frozen=True)
class Case:
    """An example with its frozen candidate list (the target at `target_index`)."""

    example: Example
    candidates: tuple[int, ...]
    target_index: int


def hashed_order(*parts: Any) -> str:
    """A sort key that depends on nothing but its parts: md5 (hex) of them, joined by '-'. Never on row order."""
    return hashlib.md5("-".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def read_examples(prepared: Path, split: str, limit: int | None = None, *, seed: int = 0) -> list[Example]:
    """The examples of a split in hashed order, so that a few hold many users; `limit` takes the first so many, so a
    larger sample holds a smaller one."""
    rows = [row for row in read_parquet(prepared / "examples.parquet").to_pylist() if row[c.SPLIT] == split]
    rows.sort(key=lambda row: hashed_order(seed, row[c.EXAMPLE]))
    return [
        Example(row[c.EXAMPLE], row[c.USER], split, row[c.CUTOFF], tuple(row[c.HISTORY]), row[c.TARGET])
        for row in rows[:limit]
    ]


def longest_histories(examples: Iterable[Example], seed: int = 0) -> list[Example]:
    """Each user's example with the longest history, users in hashed order: a user's others repeat parts of it."""
    longest: dict[int, Example] = {}
    for example in examples:
        kept = longest.get(example.user_id)
        if kept is None or (len(example.history), example.example_id) > (len(kept.history), kept.example_id):
            longest[example.user_id] = example
    return [longest[user] for user in sorted(longest, key=lambda user: hashed_order(seed, user))]


def unread_first(examples: Sequence[Example], sequences: int, seed: int = 0) -> list[Example]:
    """The examples of users beyond the first `sequences` before those of the first, each part in its order.

    SFT has learned the first users' histories by heart: what a reference remembers, pairs cannot teach.
    """
    read = {example.user_id for example in longest_histories(examples, seed)[:sequences]}
    return sorted(examples, key=lambda example: example.user_id in read)


def read_cases(prepared: Path, split: str, manifest: str, limit: int | None = None, *, seed: int = 0) -> list[Case]:
    """The cases of a split under a candidate manifest, in the order of `read_examples`."""
    lists = {
        row[c.EXAMPLE]: row
        for row in read_parquet(prepared / "candidates.parquet").to_pylist()
        if row[c.MANIFEST] == manifest
    }
    examples = read_examples(prepared, split, limit, seed=seed)
    return [Case(e, tuple(lists[e.example_id][c.CANDIDATES]), lists[e.example_id][c.TARGET_INDEX]) for e in examples]
