"""prepare: validated log → events, items, examples and frozen candidate lists."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recalign import artifacts
from recalign import columns as c
from recalign.data.database import database
from recalign.data.manifests import write_candidates
from recalign.data.prepare import (
    Cutoffs,
    choose_targets,
    read_catalogue,
    select_likes,
    split_events,
    write_events,
    write_examples,
)
from recalign.layout import CACHE, PREPARED, VALIDATED
from recalign.params import Params

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)


def prepare(
    params: Params, validated: Path = VALIDATED, prepared: Path = PREPARED, spill: Path = CACHE / "spill"
) -> None:
    """Prepare the validated log in `validated` as docs/contracts.md describes; `spill` is DuckDB's folder on disk.

    Raises RecalignError when too little is left to make examples or candidate lists of.
    """
    source = artifacts.read_json(validated / "source.json")
    options = params.prepare
    min_rating = source["min_rating"] if options.min_rating is None else options.min_rating
    with (
        artifacts.folder(prepared) as out,
        database(spill, options.memory_limit, params.threads) as connection,
    ):
        select_likes(connection, validated / "interactions.parquet", min_rating, options.core)
        cutoffs = split_events(connection, options, source["clock"])
        catalogue = read_catalogue(connection, validated / "items.parquet", options.candidates)
        choose_targets(connection, options, cutoffs, len(catalogue))
        artifacts.write_parquet(out / "items.parquet", catalogue)
        write_events(connection, out / "events.parquet")
        write_examples(connection, out / "examples.parquet", options.max_history, source["clock"])
        manifests = write_candidates(connection, out / "candidates.parquet", catalogue, options, params.seed)
        summary = _summary(source, cutoffs, _counts(connection), manifests)
        artifacts.write_json(out / "summary.json", summary)
    counts = summary["counts"]
    log.info(
        "prepared %s: %d users, %d items, %d events; examples %s",
        source["source"],
        counts["users"],
        counts["items"],
        sum(counts["events"].values()),
        ", ".join(f"{split} {number}" for split, number in counts["examples"].items()),
    )


def _counts(connection: "DuckDBPyConnection") -> dict[str, Any]:
    def by_split(table: str) -> dict[str, int]:
        rows = connection.execute(f"select split, count(*) from {table} group by split").fetchall()  # noqa: S608
        return {split: dict(rows).get(split, 0) for split in (c.TRAIN, c.VALIDATION, c.TEST)}

    query = "select count(distinct user_id), count(distinct item_id) from events"
    users, items = connection.execute(query).fetchall()[0]
    return {"users": users, "items": items, "events": by_split("events"), "examples": by_split("targets")}


def _summary(
    source: dict[str, Any], cutoffs: Cutoffs, counts: dict[str, Any], manifests: dict[str, str]
) -> dict[str, Any]:
    return {
        "source": source["source"],
        "noun": source["noun"],
        "clock": source["clock"],
        "cutoffs": {split: time and time.isoformat() for split, time in cutoffs.items()},
        "counts": counts,
        "data_digest": artifacts.digest_of(source["files"]),
        "manifests": manifests,
    }
