"""What a profile may know: each user's events before the split's cutoff, and nothing after it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recalign import columns as c
from recalign.artifacts import read_json, read_parquet
from recalign.data.records import Example, read_examples


@dataclass(frozen=True)
class Histories:
    """Of one split: what each chosen user did before the cutoff (None without a clock), and how often items were met.

    of: user -> item ids, oldest first, never empty; users in the order in which examples are read;
    counts: item -> events before the cutoff, all users.
    """

    split: str
    cutoff: datetime | None
    of: dict[int, tuple[int, ...]]
    counts: dict[int, int]


def read_histories(prepared: Path, split: str, users: int, seed: int) -> Histories:
    """The profile histories of a split's first `users` users, in the order of `read_examples`, who have one.

    With a clock: the events strictly before summary.json's cutoff of the split (for train, before the first training
    target); who came later has no history. Without one: the user's items that are the target of no example, and counts
    of the train users.
    """
    examples = read_examples(prepared, split, seed=seed)
    stated = read_json(prepared / "summary.json")["cutoffs"].get(split)
    cutoff = datetime.fromisoformat(stated).replace(tzinfo=None) if stated else None
    events = read_parquet(prepared / "events.parquet")
    if cutoff is None:
        known = _without_targets(events, examples)
        counted = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
    else:
        known = counted = events.filter(pc.less(events[c.TIMESTAMP], pa.scalar(cutoff, events[c.TIMESTAMP].type)))
    present = set(pc.unique(known[c.USER]).to_pylist())
    chosen = [user for user in dict.fromkeys(example.user_id for example in examples) if user in present][:users]
    return Histories(split, cutoff, _by_user(known, chosen), dict(Counter(counted[c.ITEM].to_pylist())))


def _without_targets(events: pa.Table, examples: Sequence[Example]) -> pa.Table:
    targets = pa.table(
        {
            c.USER: pa.array([example.user_id for example in examples], pa.int64()),
            c.ITEM: pa.array([example.target for example in examples], pa.int64()),
        }
    )
    own = events.filter(pc.is_in(events[c.USER], targets[c.USER]))
    return own.select([c.USER, c.ITEM, c.POSITION]).join(targets, [c.USER, c.ITEM], join_type="left anti")


def _by_user(events: pa.Table, users: Sequence[int]) -> dict[int, tuple[int, ...]]:
    wanted = events.filter(pc.is_in(events[c.USER], pa.array(users, pa.int64())))
    wanted = wanted.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
    items = defaultdict(list)
    for user, item in zip(wanted[c.USER].to_pylist(), wanted[c.ITEM].to_pylist(), strict=True):
        items[user].append(item)
    return {user: tuple(items[user]) for user in users}
