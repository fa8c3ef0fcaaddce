"""What the rooms hand to one another: the catalogue, and the examples of a split.

What each example's user has met: never drawn as unseen, and what of it was declined in earnest.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.data.prepared import Prepared


@dataclass(frozen=True)
class Items:
    """The catalogue, in ascending item id.

    titles are unique; attributes map a name ("genre", "year", …) to its values. train_events counts them, popularity
    what the k-core keeps of them, which is what is trained on. available_from holds the items with a known first day;
    hidden those that a run keeps from training, with the split that asks for them.
    """

    ids: tuple[int, ...]
    titles: dict[int, str]
    attributes: dict[int, dict[str, list[str]]]
    popularity: dict[int, int]
    train_events: dict[int, int] = field(default_factory=dict)
    available_from: dict[int, datetime] = field(default_factory=dict)
    hidden: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, prepared: Path) -> "Items":
        """Read data/prepared/items.parquet."""
        rows = sorted(read_parquet(prepared / "items.parquet").to_pylist(), key=lambda row: row[c.ITEM])
        return cls(
            ids=tuple(row[c.ITEM] for row in rows),
            titles={row[c.ITEM]: row[c.TITLE] for row in rows},
            attributes={row[c.ITEM]: {k: list(v) for k, v in row[c.ATTRIBUTES]} for row in rows},
            popularity={row[c.ITEM]: row[c.POPULARITY] for row in rows},
            train_events={row[c.ITEM]: row[c.TRAIN_EVENTS] for row in rows if c.TRAIN_EVENTS in row},
            available_from={row[c.ITEM]: row[c.AVAILABLE] for row in rows if row.get(c.AVAILABLE)},
            hidden={row[c.ITEM]: row[c.HIDDEN_IN] for row in rows if row.get(c.HIDDEN_IN)},
        )

    @cached_property
    def ascending(self) -> NDArray[np.int64]:
        """[items] the ids as an array, built once: it is searched for every list that is ranked."""
        ids = np.array(self.ids, dtype=np.int64)
        ids.flags.writeable = False
        return ids

    @property
    def trained(self) -> "Items":
        """The items that are trained on, which is what an ID recommender can know; all where nothing is counted."""
        return self._only([item for item in self.ids if self.popularity.get(item, 1)])

    @property
    def shown(self) -> "Items":
        """The items that the run does not hide."""
        return self._only([item for item in self.ids if item not in self.hidden])

    def _only(self, known: Sequence[int]) -> "Items":
        """A part of the catalogue; itself where that is all of it."""
        if len(known) == len(self.ids):
            return self
        titles = {item: self.titles[item] for item in known if item in self.titles}
        return replace(self, ids=tuple(known), titles=titles)


@dataclass(frozen=True)
class Example:
    """A history (oldest first) and the item that came next; cutoff is None where the source has no clock."""

    example_id: str
    user_id: int
    split: str
    cutoff: datetime | None
    history: tuple[int, ...]
    target: int
    view: str | None = None  # of a validation or test case

    @property
    def length(self) -> int:
        """Items of the history."""
        return len(self.history)


@dataclass(frozen=True)
class Outline:
    """An example without what it holds: enough to choose among many. length: items of its history."""

    example_id: str
    user_id: int
    length: int


E = TypeVar("E", Example, Outline)


@dataclass(frozen=True)
class Met:
    """What a user has met, liked or not, with the time of the first meeting (None without a clock).

    disliked: what of it was never liked; targets: what validation or test asks of this user.
    """

    times: dict[int, datetime | None]
    disliked: frozenset[int]
    targets: frozenset[int]

    def before(self, example: Example) -> set[int]:
        """What the user met before an example's cutoff, its history with it, its target left out.

        Without a clock there is no before: it is everything that is asked in no case of this user.
        """
        if example.cutoff is None:
            earlier = self.times.keys() - self.targets
        else:
            earlier = {item for item, time in self.times.items() if time is not None and time < example.cutoff}
        return (earlier | set(example.history)) - {example.target}


@dataclass(frozen=True)
class Case:
    """An example with its frozen candidate list (the target at `target_index`)."""

    example: Example
    candidates: tuple[int, ...]
    target_index: int


def hashed_order(*parts: Any) -> str:
    """A sort key that depends on nothing but its parts: md5 (hex) of them, joined by '-'. Never on row order."""
    return hashlib.md5("-".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def hashed_batches(names: Iterable[str], size: int, *parts: Any) -> list[list[str]]:
    """The names in batches of `size`, the last one shorter; who is in one depends on nothing but `parts` and names."""
    order = sorted(names, key=lambda name: hashed_order(*parts, name))
    return [order[start : start + size] for start in range(0, len(order), size)]


def hashed_share(*parts: Any) -> float:
    """A number in [0, 1) that depends on nothing but its parts: the first 52 bits of `hashed_order`."""
    return int(hashed_order(*parts)[:13], 16) / 16**13


def read_outlines(prepared: Path, split: str, *, seed: int = 0, view: str | None = None) -> list[Outline]:
    """What there is to choose from: the examples that `read_examples` reads without a limit, in its order."""
    wanted = {name: pc.field(name) for name in (c.EXAMPLE, c.USER)}
    wanted["length"] = pc.list_value_length(pc.field(c.HISTORY))
    table = read_parquet(prepared / "examples.parquet", wanted, _of_view(split, view))
    rows = zip(*(table[name].to_pylist() for name in wanted), strict=True)
    outlines = [Outline(name, user, length) for name, user, length in rows]
    return sorted(outlines, key=lambda outline: hashed_order(seed, outline.example_id))


def read_whole(prepared: Path, split: str, outlines: Sequence[Outline], *, view: str | None = None) -> list[Example]:
    """The examples of a split and view that these outlines stand for, in their order."""
    return read_named(prepared, split, [outline.example_id for outline in outlines], view=view)


def read_examples(
    prepared: Path, split: str, limit: int | None = None, *, seed: int = 0, view: str | None = None
) -> list[Example]:
    """The examples of a split in hashed order, so that a few hold many users; `limit` takes the first so many, so a
    larger sample holds a smaller one. Of validation and test the cases of one view, the warm ones by default."""
    path = prepared / "examples.parquet"
    names = read_parquet(path, [c.EXAMPLE], _of_view(split, view))[c.EXAMPLE].to_pylist()
    return read_named(prepared, split, sorted(names, key=lambda name: hashed_order(seed, name))[:limit], view=view)


def _of_view(split: str, view: str | None) -> pc.Expression:
    wanted = None if split == c.TRAIN else view or c.WARM
    of_view = pc.field(c.VIEW).is_null() if wanted is None else pc.field(c.VIEW) == wanted
    return (pc.field(c.SPLIT) == split) & of_view


def read_named(prepared: Path, split: str, names: Sequence[str], *, view: str | None = None) -> list[Example]:
    """The examples of a split and view with these ids, in their order."""
    filters = _of_view(split, view) & pc.field(c.EXAMPLE).isin(pa.array(names, pa.string()))
    rows = read_parquet(prepared / "examples.parquet", filters=filters).to_pylist()
    by_name = {row[c.EXAMPLE]: row for row in rows}
    return [
        Example(name, row[c.USER], split, row[c.CUTOFF], tuple(row[c.HISTORY]), row[c.TARGET], row[c.VIEW])
        for name in names
        for row in [by_name[name]]
    ]


def longest_histories(examples: Iterable[E], seed: int = 0) -> list[E]:
    """Each user's example with the longest history, users in hashed order: a user's others repeat parts of it."""
    longest: dict[int, E] = {}
    for example in examples:
        kept = longest.get(example.user_id)
        if kept is None or (example.length, example.example_id) > (kept.length, kept.example_id):
            longest[example.user_id] = example
    return [longest[user] for user in sorted(longest, key=lambda user: hashed_order(seed, user))]


def unread_first(examples: Iterable[E], read: Set[int]) -> list[E]:
    """The examples of users that SFT does not read before those of the users that it reads, each part in its order.

    SFT has learned its users' histories by heart: what a reference remembers, pairs cannot teach.
    """
    return sorted(examples, key=lambda example: example.user_id in read)


def read_cases(
    prepared: Path, split: str, manifest: str, limit: int | None = None, *, seed: int = 0, view: str | None = None
) -> list[Case]:
    """The cases of a split and view under a candidate manifest, in the order of `read_examples`."""
    examples = read_examples(prepared, split, limit, seed=seed, view=view)
    names = pa.array([example.example_id for example in examples], pa.string())
    filters = (pc.field(c.MANIFEST) == manifest) & pc.field(c.EXAMPLE).isin(names)
    rows = read_parquet(prepared / "candidates.parquet", filters=filters).to_pylist()
    lists = {row[c.EXAMPLE]: row for row in rows}
    found = [(example, lists[example.example_id]) for example in examples if example.example_id in lists]
    return [Case(example, tuple(row[c.CANDIDATES]), row[c.TARGET_INDEX]) for example, row in found]


def read_met(prepared: Path, users: Iterable[int]) -> dict[int, Met]:
    """What each of these users has met, from met.parquet; a user who met nothing has an empty record."""
    wanted = sorted(set(users))
    of_them = pc.field(c.USER).isin(pa.array(wanted, pa.int64()))
    rows = read_parquet(prepared / "met.parquet", filters=of_them).to_pylist()
    filters = of_them & pc.field(c.VIEW).is_valid()
    asked = read_parquet(prepared / "examples.parquet", [c.USER, c.TARGET], filters).to_pylist()
    times: dict[int, dict[int, datetime | None]] = {user: {} for user in wanted}
    targets: dict[int, set[int]] = {user: set() for user in wanted}
    disliked: dict[int, set[int]] = {user: set() for user in wanted}
    for row in rows:
        times[row[c.USER]][row[c.ITEM]] = row[c.TIMESTAMP]
        if not row[c.LIKED]:
            disliked[row[c.USER]].add(row[c.ITEM])
    for row in asked:
        targets[row[c.USER]].add(row[c.TARGET])
    return {user: Met(times[user], frozenset(disliked[user]), frozenset(targets[user])) for user in wanted}


Likes = dict[tuple[int, str], dict[int, datetime | None]]  # by user and split: item -> when it was liked


@dataclass(frozen=True)
class Taken:
    """items: what may not be drawn as unseen: history, target, train likes, and whatever the user met before.

    disliked: what the user met before the example's cutoff and had not liked by then (rated low, skipped), ascending.
    later: what the user liked in the example's own split from its cutoff on (without a clock: besides its history),
    the next first, its target left out; empty where `read_taken` was not asked for it.
    """

    items: frozenset[int]
    disliked: tuple[int, ...] = ()
    later: tuple[int, ...] = ()


def read_taken(prepared: Path, examples: Sequence[Example], *, later: bool = False) -> list[Taken]:
    """What the user of each example has taken or met, from met.parquet and events.parquet; `later` on request.

    Of a training example all that was met in training's time counts, as all train likes do; of a validation example
    what was met before its cutoff. Nothing later is consulted: an item that is liked one day is disliked until then.
    Without a clock users are split, not times, and a user's own split holds their whole set, which has no later part:
    there everything counts but what validation or test asks.
    """
    users = {example.user_id for example in examples}
    met, likes = read_met(prepared, users), _likes(prepared, users)
    ends = Prepared(prepared).cutoff(c.VALIDATION)
    taken = [_taken(example, met[example.user_id], likes, ends) for example in examples]
    if not later:
        return taken
    return [
        replace(own, later=_later(example, met[example.user_id], likes[example.user_id, example.split]))
        for own, example in zip(taken, examples, strict=True)
    ]


def later_items(items: Items, example: Example) -> set[int]:
    """The items that are known not to have been there yet at an example's cutoff."""
    if example.cutoff is None:
        return set()
    return {item for item, since in items.available_from.items() if since > example.cutoff}


def _taken(example: Example, met: Met, likes: Likes, training_ends: datetime | None) -> Taken:
    known = {item for split in _consulted(example) for item in likes[example.user_id, split]}
    known |= {*example.history, example.target}
    if example.cutoff is None or training_ends is None:
        before = met.before(example)
        return Taken(frozenset(known | before), tuple(sorted((met.disliked & before) - known)))
    last = max(example.cutoff, training_ends)
    liked = {item for item, time in likes[example.user_id, example.split].items() if time and time < example.cutoff}
    disliked = met.before(example) - known - liked
    return Taken(frozenset(known | _met_before(met, last)), tuple(sorted(disliked)))


def _later(example: Example, met: Met, likes: dict[int, datetime | None]) -> tuple[int, ...]:
    """What was liked in the example's split from its cutoff on, by time; without a clock what no case asks, by lot."""
    shown = {*example.history, example.target} | (set() if example.cutoff else met.targets)
    timed = [
        (time if example.cutoff else None, hashed_order(example.example_id, item), item)
        for item, time in likes.items()
        if item not in shown and (example.cutoff is None or (time is not None and time >= example.cutoff))
    ]
    return tuple(item for *_, item in sorted(timed, key=lambda one: (one[0] or datetime.min, one[1])))


def _met_before(met: Met, end: datetime) -> set[int]:
    return {item for item, time in met.times.items() if time is not None and time < end}


def _consulted(example: Example) -> tuple[str, str]:
    """The splits whose likes of the user are looked at: with a clock those of training's time."""
    return (c.TRAIN if example.cutoff is not None else example.split), c.OUTSIDE


def _likes(prepared: Path, users: Iterable[int]) -> Likes:
    wanted = [c.USER, c.ITEM, c.SPLIT, c.TIMESTAMP]
    of_them = pc.field(c.USER).isin(sorted(users))
    rows = read_parquet(prepared / "events.parquet", wanted, of_them).to_pydict()
    likes: Likes = defaultdict(dict)
    for user, item, split, time in zip(*(rows[name] for name in (c.USER, c.ITEM, c.SPLIT, c.TIMESTAMP)), strict=True):
        likes[user, split][item] = time
    return likes
