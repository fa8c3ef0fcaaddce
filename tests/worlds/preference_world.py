"""A small prepared log by code alone: what the stages `profiles` and `pairs` read."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import folder, write_json, write_parquet
from recalign.data.records import Items
from recalign.recommenders.item_knn import ItemKNN, Settings

START = datetime(2020, 1, 1)
CUTOFFS = {
    c.TRAIN: START + timedelta(days=40),
    c.VALIDATION: START + timedelta(days=70),
    c.TEST: START + timedelta(days=85),
}
GENRES = ("Crime", "Drama", "Comedy", "War")
DIRECTORS = ("Ida Lupino", "John Ford", "Agnès Varda", "Satyajit Ray", "Jane Campion")
Event = tuple[int, int, datetime]  # user, item, time


def split_of(time: datetime) -> str:
    return c.TEST if time >= CUTOFFS[c.TEST] else c.VALIDATION if time >= CUTOFFS[c.VALIDATION] else c.TRAIN


def random_log(users: int = 24, items: int = 40, events_a_user: int = 14, seed: int = 3) -> list[Event]:
    """Each user's distinct items at random times of a hundred days; every item is taken in training."""
    draw = random.Random(seed)
    log = [(1000 + item, item, START + timedelta(hours=item)) for item in range(1, items + 1)]
    for user in range(1, users + 1):
        hours = sorted(draw.sample(range(100 * 24), events_a_user))
        taken = draw.sample(range(1, items + 1), events_a_user)
        log += [(user, item, START + timedelta(hours=hour)) for item, hour in zip(taken, hours, strict=True)]
    return log


@dataclass(frozen=True)
class PreparedLog:
    """A log with what preparation makes of it; `write` gives the folders that the stages read."""

    events: list[Event]
    items: int = 40
    attributes: bool = True
    clock: bool = True
    shuffle: random.Random | None = field(default=None)
    disliked: list[Event] = field(default_factory=list)  # met, and never liked
    met_before: list[Event] = field(default_factory=list)  # met, and liked at another time

    def rows(self) -> list[dict[str, Any]]:
        """events.parquet, in the user's order."""
        rows: list[dict[str, Any]] = []
        for user in sorted({event[0] for event in self.events}):
            own = sorted((event for event in self.events if event[0] == user), key=lambda event: event[2])
            for position, (_, item, time) in enumerate(own):
                split = split_of(time) if self.clock else (c.TRAIN, c.VALIDATION, c.TEST)[min(user % 6, 2)]
                rows.append({c.USER: user, c.ITEM: item, c.TIMESTAMP: time, c.POSITION: position, c.SPLIT: split})
        return rows

    def examples(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every event from its user's fourth on, after the profiles' cutoff; without a clock every third."""
        made = []
        for row in rows:
            own = [other for other in rows if other[c.USER] == row[c.USER]]
            if self.clock:
                history = [other[c.ITEM] for other in own if other[c.POSITION] < row[c.POSITION]]
                wanted = row[c.POSITION] >= 3 and row[c.TIMESTAMP] >= CUTOFFS[c.TRAIN]
            else:
                history = [other[c.ITEM] for other in own if other[c.POSITION] % 3]
                wanted = row[c.POSITION] % 3 == 0
            if wanted and history:
                made.append(
                    {
                        c.EXAMPLE: f"{row[c.USER]}-{row[c.ITEM]}",
                        c.USER: row[c.USER],
                        c.SPLIT: row[c.SPLIT],
                        c.VIEW: None if row[c.SPLIT] == c.TRAIN else c.WARM,
                        c.CUTOFF: row[c.TIMESTAMP] if self.clock else None,
                        c.HISTORY: history,
                        c.TARGET: row[c.ITEM],
                    }
                )
        return made

    def write(self, root: Path) -> Path:
        """Write root/prepared and root/baselines/item_knn; returns root."""
        rows = self.rows()
        examples = self.examples(rows)
        train = [row for row in rows if row[c.SPLIT] == c.TRAIN]
        if self.shuffle:
            self.shuffle.shuffle(rows)
            self.shuffle.shuffle(examples)
        events = self._events(rows)
        with folder(root / "prepared") as partial:
            write_parquet(partial / "events.parquet", events)
            write_parquet(partial / "items.parquet", self._items(train))
            write_parquet(partial / "met.parquet", self._met(rows))
            write_parquet(partial / "examples.parquet", self._examples(examples))
            write_json(partial / "summary.json", self._summary())
        catalogue = Items.read(root / "prepared").trained
        fitted = ItemKNN.fit(catalogue, self._events(train), Settings())
        fitted.save(root / "baselines" / "item_knn")
        return root

    def _events(self, rows: list[dict[str, Any]]) -> pa.Table:
        schema = pa.schema(
            [
                (c.USER, pa.int64()),
                (c.ITEM, pa.int64()),
                (c.TIMESTAMP, pa.timestamp("us")),
                (c.POSITION, pa.int64()),
                (c.SPLIT, pa.string()),
            ]
        )
        return pa.Table.from_pylist([row | ({} if self.clock else {c.TIMESTAMP: None}) for row in rows], schema)

    def _met(self, rows: list[dict[str, Any]]) -> pa.Table:
        """met.parquet: what was liked, and `disliked` beside it."""
        earlier = {event[:2]: event[2] for event in self.met_before}
        liked = [
            (row[c.USER], row[c.ITEM], earlier.get((row[c.USER], row[c.ITEM]), row[c.TIMESTAMP]), True) for row in rows
        ]
        met = sorted(liked + [(*event, False) for event in self.disliked])
        return pa.table(
            {
                c.USER: pa.array([row[0] for row in met], pa.int64()),
                c.ITEM: pa.array([row[1] for row in met], pa.int64()),
                c.TIMESTAMP: pa.array([row[2] if self.clock else None for row in met], pa.timestamp("us")),
                c.LIKED: pa.array([row[3] for row in met], pa.bool_()),
            }
        )

    def _items(self, train: list[dict[str, Any]]) -> pa.Table:
        ids = range(1, self.items + 1)
        described = [
            {
                "genre": [GENRES[item % 4], *(["Musical"] if item % 10 == 0 else [])],
                "director": [DIRECTORS[item % 5]],
                "year": [str(1940 + item)],
            }
            for item in ids
        ]
        return pa.table(
            {
                c.ITEM: pa.array(ids, pa.int64()),
                c.TITLE: pa.array([f"The Story of {item}" for item in ids], pa.string()),
                c.ATTRIBUTES: pa.array(
                    [list(d.items()) if self.attributes else [] for d in described],
                    pa.map_(pa.string(), pa.list_(pa.string())),
                ),
                "popularity": pa.array([sum(row[c.ITEM] == item for row in train) for item in ids], pa.int64()),
            }
        )

    def _examples(self, rows: list[dict[str, Any]]) -> pa.Table:
        schema = pa.schema(
            [
                (c.EXAMPLE, pa.string()),
                (c.USER, pa.int64()),
                (c.SPLIT, pa.string()),
                (c.VIEW, pa.string()),
                (c.CUTOFF, pa.timestamp("us")),
                (c.HISTORY, pa.list_(pa.int64())),
                (c.TARGET, pa.int64()),
            ]
        )
        return pa.Table.from_pylist(rows, schema)

    def _summary(self) -> dict[str, Any]:
        cutoffs = {split: time.isoformat() if self.clock else None for split, time in CUTOFFS.items()}
        return {"source": "small", "noun": "films", "clock": self.clock, "cutoffs": cutoffs}
