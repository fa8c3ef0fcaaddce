"""Small validated logs, written as `validate` writes them, and what preparation made of them."""

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recalign.common.artifacts import write_json
from recalign.params.load import Params, parse_params

START = datetime(2024, 1, 1)
Row = tuple[int, int, int | None, float | None]  # user, item, hours after START, rating


def small_params(tree: dict[str, Any], **prepare: Any) -> Params:
    """The repository's params with small settings of preparation, changed by `prepare`."""
    small = {"core": 2, "min_history": 2, "max_history": 6, "candidates": 5, "cases_per_user": 3}
    tree["prepare"] |= small | {"train_examples_per_user": 4} | prepare
    return parse_params(tree)


def random_log(users: int = 40, items: int = 30, each: int = 12, *, clock: bool = True, seed: int = 0) -> list[Row]:
    """Each user likes `each` distinct items, low ids more often; with a clock at random hours, many of them equal."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for user in range(1, users + 1):
        liked = sorted(range(1, items + 1), key=lambda item: rng.random() * item)[:each]
        rows += [(user, item, rng.randrange(200) if clock else None, None) for item in liked]
    return rows


def write_log(
    folder: Path,
    rows: list[Row],
    *,
    titles: dict[int, str] | None = None,
    years: dict[int, str] | None = None,
    min_rating: float | None = None,
) -> Path:
    """Write interactions, items and source.json of a log; without hours the source has no clock."""
    folder.mkdir(parents=True, exist_ok=True)
    items = sorted({item for _, item, _, _ in rows} | set(titles or {}))
    years = years or {}
    times = [None if hours is None else START + timedelta(hours=hours) for _, _, hours, _ in rows]
    interactions = {
        "user_id": pa.array([row[0] for row in rows], pa.int64()),
        "item_id": pa.array([row[1] for row in rows], pa.int64()),
        "rating": pa.array([row[3] for row in rows], pa.float64()),
        "timestamp": pa.array(times, pa.timestamp("us")),
    }
    attributes = [[("year", [years[item]])] if item in years else [] for item in items]
    catalogue = {
        "item_id": pa.array(items, pa.int64()),
        "title": [(titles or {}).get(item, f"Item {item}") for item in items],
        "attributes": pa.array(attributes, pa.map_(pa.string(), pa.list_(pa.string()))),
    }
    pq.write_table(pa.table(interactions), folder / "interactions.parquet")
    pq.write_table(pa.table(catalogue), folder / "items.parquet")
    clock = any(hours is not None for _, _, hours, _ in rows)
    source = {"source": "table", "noun": "items", "clock": clock, "min_rating": min_rating, "files": {"log.csv": "0"}}
    write_json(folder / "source.json", source)
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A Parquet file as plain rows."""
    return pq.read_table(path).to_pylist()
