"""What a profile may know: each user's events before the split's cutoff, and nothing after it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.data.prepared import Prepared
from recalign.data.records import hashed_order


@dataclass(frozen=True)
class Histories:
    """Of one split: what each chosen user did before the cutoff (None without a clock), and how often items were met.

    of: user -> item ids, oldest first, never empty;
    counts: item -> events before the cutoff, all users.
    """

    split: str
    cutoff: datetime | None
    of: dict[int, tuple[int, ...]]
    counts: dict[int, int]


@dataclass(frozen=True)
class Known:
    """Of one split: what everybody did before the cutoff (None without a clock).

    asked: the users of the split's examples, in the order of `read_examples`, of training or warm cases first; users,
    items: the events before the cutoff, by user and their order [events]; counts: item -> events before the cutoff.
    """

    split: str
    cutoff: datetime | None
    asked: tuple[int, ...]
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    counts: dict[int, int]

    def history(self, user: int) -> tuple[int, ...]:
        """The user's items before the cutoff, oldest first; empty for one who came later."""
        start, stop = np.searchsorted(self.users, [user, user + 1])
        return tuple(self.items[start:stop].tolist())

    @cached_property
    def present(self) -> list[int]:
        """The users of `asked` who did something before the cutoff, in its order."""
        there = frozenset(np.unique(self.users).tolist())
        return [user for user in self.asked if user in there]

    def histories(self, users: Iterable[int]) -> Histories:
        """The histories of these users, in their order; those who came after the cutoff have none."""
        of = {user: history for user in users if (history := self.history(user))}
        return Histories(self.split, self.cutoff, of, self.counts)


def read_known(prepared: Path, split: str, seed: int) -> Known:
    """What a split's profiles may be made from.

    With a clock: the events strictly before summary.json's cutoff of the split (for train, before the first training
    target); who came later has no history. Without one: the user's items that are the target of no example of any view,
    and counts of the train users.
    """
    wanted = [c.EXAMPLE, c.USER, c.TARGET, c.VIEW]
    examples = read_parquet(prepared / "examples.parquet", wanted, pc.field(c.SPLIT) == split)
    cutoff = Prepared(prepared).cutoff(split)
    file, own = prepared / "events.parquet", [c.USER, c.ITEM, c.POSITION]
    if cutoff is None:
        counted = read_parquet(file, own, pc.field(c.SPLIT) == c.TRAIN)
        asked = pc.field(c.USER).isin(pc.unique(examples[c.USER]))
        known = _without_targets(read_parquet(file, own, asked), examples)
    else:
        known = counted = read_parquet(file, own, pc.field(c.TIMESTAMP) < pa.scalar(cutoff, pa.timestamp("us")))
    known = known.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
    met = counted[c.ITEM].value_counts()
    counts = dict(zip(met.field("values").to_pylist(), met.field("counts").to_pylist(), strict=True))
    return Known(split, cutoff, _asked(examples, seed), known[c.USER].to_numpy(), known[c.ITEM].to_numpy(), counts)


def read_histories(prepared: Path, split: str, users: int, seed: int) -> Histories:
    """The profile histories of a split's first `users` users, in the order of `read_examples`, who have one."""
    known = read_known(prepared, split, seed)
    return known.histories(known.present[:users])


def _asked(examples: pa.Table, seed: int) -> tuple[int, ...]:
    rows = zip(*(examples[name].to_pylist() for name in (c.VIEW, c.EXAMPLE, c.USER)), strict=True)
    ordered = sorted((view not in (None, c.WARM), hashed_order(seed, name), user) for view, name, user in rows)
    return tuple(dict.fromkeys(user for _, _, user in ordered))


def _without_targets(events: pa.Table, examples: pa.Table) -> pa.Table:
    targets = pa.table({c.USER: examples[c.USER], c.ITEM: examples[c.TARGET]})
    return events.join(targets, [c.USER, c.ITEM], join_type="left anti")
