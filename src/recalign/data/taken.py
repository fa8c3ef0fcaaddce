"""What each example's user has met: never drawn as unseen, and what of it was declined in earnest."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pyarrow.compute as pc

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.data.records import Example, Items, Met, hashed_order, read_met

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
    stated = read_json(prepared / "summary.json")["cutoffs"].get(c.VALIDATION)
    ends = datetime.fromisoformat(stated).replace(tzinfo=None) if stated else None
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
