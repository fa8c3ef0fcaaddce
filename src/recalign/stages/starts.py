"""When users and items were first liked, as was known at each case's own cutoff: what a recommender meets cold."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pyarrow.compute as pc

from recalign import columns as c
from recalign.artifacts import read_json, read_parquet
from recalign.evaluation.slices import AFTER, BEFORE, LATE, NEVER

RECENT = 0.1  # share of train's time, at its end, in which a start is late


def read_starts(prepared: Path, split: str) -> dict[str, tuple[str, str]]:
    """Labels of (the user's first like, the target's first like) of the warm cases, by example id; empty where
    no global time splits.

    A like at a case's cutoff or later is not looked at.
    """
    end = read_json(prepared / "summary.json")["cutoffs"].get(c.VALIDATION)
    if end is None:
        return {}
    file = prepared / "events.parquet"
    bounds = pc.min_max(read_parquet(file, [c.TIMESTAMP], pc.field(c.SPLIT) == c.TRAIN)[c.TIMESTAMP]).as_py()
    train_end = datetime.fromisoformat(end)
    if bounds["max"] is None or bounds["max"] >= train_end:  # no clock, or each user is split at a time of its own
        return {}
    late = train_end - RECENT * (train_end - bounds["min"])
    users, items = _firsts(file, c.USER), _firsts(file, c.ITEM)
    warm = (pc.field(c.SPLIT) == split) & (pc.field(c.VIEW) == c.WARM)
    columns = [c.EXAMPLE, c.USER, c.CUTOFF, c.TARGET]
    rows = read_parquet(prepared / "examples.parquet", columns, warm).to_pylist()

    def label(first: datetime, cutoff: datetime) -> str:
        if first >= cutoff:
            return NEVER
        return AFTER if first >= train_end else LATE if first >= late else BEFORE

    return {
        row[c.EXAMPLE]: (label(users[row[c.USER]], row[c.CUTOFF]), label(items[row[c.TARGET]], row[c.CUTOFF]))
        for row in rows
    }


def _firsts(file: Path, column: str) -> Mapping[int, datetime]:
    grouped = read_parquet(file, [column, c.TIMESTAMP]).group_by(column).aggregate([(c.TIMESTAMP, "min")])
    return dict(zip(grouped[column].to_pylist(), grouped[f"{c.TIMESTAMP}_min"].to_pylist(), strict=True))
