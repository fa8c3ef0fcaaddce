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
from recalign.data.records import read_examples


@dataclass(frozen=True)
class Histories:
    """Of one split: what each chosen user did before the cutoff (None without a clock), and how often items were met.

    of: user -> item ids, oldest first (empty for a newcomer), users in the order in which examples are read;
    counts: item -> events before the cutoff, all users.
    """

    split: str
    cutoff: datetime | None
    of: dict[int, tuple[int, ...]]
    counts: dict[int, int]


def read_histories(prepared: Path, split: str, users: int, seed: int) -> Histories:
    """The profile histories of the first `users` users among the examples of a split in the order of `read_examples`.

    With a clock: the events strictly before summary.json's cutoff of the split (for train, before the first training
    target). Without one: the user's items that are the target of no example, and counts of the train users.
    """
    examples = read_examples(prepared, split, seed=seed)
    chosen = list(dict.fromkeys(example.user_id for example in examples))[:users]
    stated = read_json(prepared / "summary.json")["cutoffs"].get(split)
    cutoff = datetime.fromisoformat(stated).replace(tzinfo=None) if stated else None
    events = read_parquet(prepared / "events.parquet")
    if cutoff is not None:
        known = events.filter(pc.less(events[c.TIMESTAMP], pa.scalar(cutoff, events[c.TIMESTAMP].type)))
        return Histories(split, cutoff, _by_user(known, chosen), _counts(known))
    targets = {(example.user_id, example.target) for example in examples}
    of = {
        user: tuple(item for item in history if (user, item) not in targets)
        for user, history in _by_user(events, chosen).items()
    }
    return Histories(split, None, of, _counts(events.filter(pc.equal(events[c.SPLIT], c.TRAIN))))


def _by_user(events: pa.Table, users: Sequence[int]) -> dict[int, tuple[int, ...]]:
    wanted = events.filter(pc.is_in(events[c.USER], pa.array(users, pa.int64())))
    wanted = wanted.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
    items = defaultdict(list)
    for user, item in zip(wanted[c.USER].to_pylist(), wanted[c.ITEM].to_pylist(), strict=True):
        items[user].append(item)
    return {user: tuple(items.get(user, ())) for user in users}


def _counts(events: pa.Table) -> dict[int, int]:
    return dict(Counter(events[c.ITEM].to_pylist()))
