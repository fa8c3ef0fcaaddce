"""The validated log → events, items, examples and frozen candidate lists, in one folder."""

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa

from recalign.common import artifacts
from recalign.common import columns as c
from recalign.data.database import database, one
from recalign.data.preparation.manifests import write_candidates
from recalign.data.preparation.tables import (
    Cutoffs,
    choose_targets,
    read_catalogue,
    select_likes,
    select_training,
    split_events,
    write_events,
    write_examples,
    write_met,
)
from recalign.data.prepared import Counts, Summary
from recalign.params.load import Params

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class Source(TypedDict):
    """What source.json says of a validated log: name -> sha256 of its files, and facts (docs/contracts.md)."""

    source: str
    noun: str
    clock: bool
    files: dict[str, str]
    min_rating: float | None


def write_prepared(params: Params, validated: Path, prepared: Path, spill: Path) -> Summary:
    """Prepare the validated log in `validated` as docs/contracts.md describes; `spill` is DuckDB's folder on disk.

    Returns what summary.json says. Raises RecalignError when too little is left to make examples or candidate lists of.
    """
    source: Source = artifacts.read_json(validated / "source.json")
    options = params.prepare
    min_rating = source["min_rating"] if options.min_rating is None else options.min_rating
    with (
        artifacts.folder(prepared) as out,
        database(spill, options.memory_limit, params.threads) as connection,
    ):
        items = validated / "items.parquet"
        select_likes(connection, validated / "interactions.parquet", items, options, min_rating, params.seed)
        cutoffs = split_events(connection, options, source["clock"])
        select_training(connection, options.core)
        catalogue = read_catalogue(connection, items, options)
        choose_targets(connection, options, cutoffs)
        artifacts.write_parquet(out / "items.parquet", catalogue)
        write_events(connection, out / "events.parquet")
        write_met(connection, out / "met.parquet")
        examples = write_examples(connection, out / "examples.parquet", source["clock"])
        lists = write_candidates(connection, out / "candidates.parquet", catalogue, options, params.seed)
        counts = _counts(connection, source["clock"])
        summary = _summary(params, source, cutoffs, counts, _digests(catalogue, examples, lists))
        artifacts.write_json(out / "summary.json", summary)
    return summary


def _counts(connection: "DuckDBPyConnection", clock: bool) -> Counts:
    def by_split(table: str, splits: tuple[str, ...] = (c.TRAIN, c.VALIDATION, c.TEST)) -> dict[str, int]:
        rows = connection.execute(f"select split, count(*) from {table} group by split").fetchall()  # noqa: S608
        return {split: dict(rows).get(split, 0) for split in splits}

    query = "select count(distinct user_id), (select count(*) from pools) from events"
    users, items = connection.execute(query).fetchall()[0]
    views = {view: dict.fromkeys((c.VALIDATION, c.TEST), 0) for view in c.VIEWS}
    query = "select view, split, count(*) from targets where view is not null group by view, split"
    for view, split, count in connection.execute(query).fetchall():
        views[view][split] = count
    return {
        "users": users,
        "items": items,
        "trained_items": one(connection.execute("select count(*) from pools where popularity > 0")),
        "events": by_split("events", (c.TRAIN, c.OUTSIDE, c.VALIDATION, c.TEST)),
        "examples": by_split("targets"),
        "views": views,
        "cold_both": one(connection.execute("select count(*) from possible where view is null")) if clock else 0,
        "pools": dict(connection.execute("select pool, count(*) from pools group by pool order by pool").fetchall()),
    }


def _digests(
    catalogue: pa.Table, examples: dict[str, str], lists: dict[str, dict[str, str]]
) -> dict[str, dict[str, str]]:
    """What tells two sets of cases apart, a manifest and view: lists, histories, users, times and titles."""
    titles = artifacts.digest_of([catalogue[c.ITEM].to_pylist(), catalogue[c.TITLE].to_pylist()])
    return {
        name: {view: artifacts.digest_of([titles, examples[view], digest]) for view, digest in own.items()}
        for name, own in lists.items()
    }


def _left_out(params: Params, counts: Counts) -> dict[str, str]:
    """Why a view has no test case, for each that has none."""
    size, cold = params.prepare.candidates, params.prepare.cold_events
    rare = max((own for pool, own in counts["pools"].items() if pool.startswith("count-")), default=0)
    hidden = counts["pools"].get(f"hidden-{c.TEST}", 0)
    why = {
        c.WARM: "no case",
        c.USER_COLD: f"no test user begins with fewer than {params.prepare.min_history} likes",
        c.NATURAL: f"{rare} items have fewer than {cold} train events, and a list takes {size}"
        if rare < size
        else f"no test user likes an item with fewer than {cold} train events",
        c.HIDDEN: "prepare.hidden_items is 0"
        if not params.prepare.hidden_items
        else f"{hidden} items are hidden for test, and a list takes {size}"
        if hidden < size
        else "no test user likes a hidden item",
    }
    return {view: why[view] for view in c.VIEWS if not counts["views"][view][c.TEST]}


def _summary(
    params: Params,
    source: Source,
    cutoffs: Cutoffs,
    counts: Counts,
    manifests: dict[str, dict[str, str]],
) -> Summary:
    hidden = params.prepare.hidden_items
    return {
        "source": source["source"],
        "noun": source["noun"],
        "clock": source["clock"],
        "cutoffs": {split: time.isoformat() if time else None for split, time in cutoffs.items()},
        "counts": counts,
        "views_left_out": _left_out(params, counts),
        "hidden_items": hidden,
        # what is hidden is another data set: its figures are never taken for those of the whole log
        "data_digest": artifacts.digest_of([source["files"], hidden, params.seed] if hidden else source["files"]),
        "manifests": manifests,
    }
