"""From a validated log to examples: DuckDB does the work (sql/), this module its order.

Examples are made in ranges of users, so memory does not grow with the log; rows are ordered: equal data, equal bytes.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_parquet
from recalign.common.errors import RecalignError
from recalign.common.progress import track
from recalign.data.database import ROW_GROUP, one, run, select, write_rows
from recalign.params.prepare import PrepareParams

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
CHUNK_EVENTS = 500_000  # events of the users that are worked on at once: bounds memory, changes no byte
EXAMPLES_SCHEMA = pa.schema(
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
Cutoffs = dict[str, datetime | None]  # when the targets of each split begin (UTC); None without a clock


def select_likes(
    connection: "DuckDBPyConnection", interactions: Path, items: Path, params: PrepareParams, min_rating: float | None,
    seed: int,
) -> None:  # fmt: skip
    """Make the tables `log` (every user and item once), `hidden` (items that this run hides) and `likes`.

    Raises RecalignError when no row is a like, or when the log names an item that the items file lacks.
    """
    run(connection, "log", interactions=str(interactions), min_rating=min_rating)
    run(connection, "hidden", items=str(items), share=params.hidden_items, seed=seed)
    run(connection, "likes")
    likes, hidden = connection.execute("select count(*), count(hidden) from likes").fetchall()[0]
    if likes and likes == hidden:
        raise RecalignError(f"prepare.hidden_items is {params.hidden_items:g} and hides every liked item; lower it")
    if not likes:
        why = "holds no row" if min_rating is None else f"holds no rating of at least {min_rating:g}"
        raise RecalignError(f"{interactions} {why}, so nothing is liked; lower prepare.min_rating or give it more rows")
    query = "select min(item_id) from log anti join read_parquet($items) using (item_id)"
    missing = one(connection.execute(query, {"items": str(items)}))
    if missing is not None:
        raise RecalignError(f"{items} lacks item {missing}, which the interactions name; run 'dvc repro' again")


def split_events(connection: "DuckDBPyConnection", params: PrepareParams, clock: bool) -> Cutoffs:
    """Make the tables `placed` (likes with position and split) and `seen` (what each user has met)."""
    run(connection, "seen")
    run(connection, "sequences")
    connection.execute("drop table log; drop table likes")
    cutoffs: Cutoffs = dict.fromkeys((c.TRAIN, c.VALIDATION, c.TEST))
    if not clock:
        run(connection, "split_users", validation_share=params.validation_share, test_share=params.test_share)
    else:
        before_test = 1.0 - params.test_share
        before_validation = before_test - params.validation_share
        times = run(
            connection,
            "cutoffs",
            profile_share=params.profile_share,
            before_validation=before_validation,
            before_test=before_test,
        )
        cutoffs = dict(zip(cutoffs, one(times), strict=True))
        if params.split == "time":
            run(connection, "split_time", validation=cutoffs[c.VALIDATION], test=cutoffs[c.TEST])
        else:
            log.warning("prepare.split is leave-one-out: it leaks other users' future into training; 'time' does not")
            run(connection, "split_last")
            for split in (c.VALIDATION, c.TEST):
                query = "select min(timestamp) from placed where split = $split and hidden is null"
                cutoffs[split] = one(connection.execute(query, {"split": split}))
    connection.execute("drop table sequences")
    return cutoffs


def select_training(connection: "DuckDBPyConnection", core: int, hidden: float) -> None:
    """Make the tables `trained` (the k-core of the train likes, and of no others) and `events` (all likes in order).

    hidden: the share of the items that is hidden from training. Raises RecalignError when the k-core is empty.
    """
    run(connection, "trained")
    liked = one(connection.execute("select count(*) from trained"))
    longest, widest = (
        one(connection.execute(f"select max(n) from (select count(*) as n from trained group by {key})"))  # noqa: S608
        for key in (c.USER, c.ITEM)
    )
    rounds = 0
    while sum(one(run(connection, half, core=core)) for half in ("core_users", "core_items")):
        rounds += 1
    left = one(connection.execute("select count(*) from trained"))
    log.info("%d-core: training reads %d of %d train likes after %d rounds", core, left, liked, rounds)
    if not left:
        fewer = f", or lower prepare.hidden_items ({hidden:g}), which leaves training so few items" if hidden else ""
        raise RecalignError(
            f"prepare.core is {core} and leaves none of {liked} train likes (the longest history has {longest}, the "
            f"most liked item {widest}); lower it, 1 keeps everything{fewer}"
        )
    run(connection, "events")


def read_catalogue(connection: "DuckDBPyConnection", items: Path, params: PrepareParams) -> pa.Table:
    """Every item in ascending id with a unique title, attributes, train events and how many of them the k-core keeps
    (popularity), the time since when it can be recommended and the split that it is hidden for.

    Makes the tables `pools` and `available`.

    Raises RecalignError when training knows too few items for candidate lists.
    """
    run(connection, "pools", items=str(items), cold_events=params.cold_events)
    warm = one(connection.execute("select count(*) from pools where pool = 'warm'"))
    if warm <= params.candidates:
        raise RecalignError(
            f"prepare.candidates is {params.candidates}, which needs at least {params.candidates + 1} items with "
            f"{params.cold_events} or more train events, and {warm} are left; lower it, or prepare.core"
        )
    table = read_parquet(items).sort_by(c.ITEM)
    if c.AVAILABLE not in table.column_names:
        table = table.append_column(c.AVAILABLE, pa.nulls(len(table), pa.timestamp("us")))
    pools = connection.sql("from pools order by item_id").to_arrow_table()
    titles = unique_titles(table.select([c.ITEM, c.TITLE, c.ATTRIBUTES]).to_pylist())
    attributes = [row or [] for row in table[c.ATTRIBUTES].to_pylist()]
    catalogue = pa.table(
        {
            c.ITEM: table[c.ITEM].cast(pa.int64()),
            c.TITLE: pa.array([titles[item] for item in table[c.ITEM].to_pylist()], pa.string()),
            c.ATTRIBUTES: pa.array(attributes, pa.map_(pa.string(), pa.list_(pa.string()))),
            c.TRAIN_EVENTS: pools[c.TRAIN_EVENTS].cast(pa.int64()),
            c.POPULARITY: pools[c.POPULARITY].cast(pa.int64()),
            c.AVAILABLE: table[c.AVAILABLE].cast(pa.timestamp("us")),
            c.HIDDEN_IN: pools["hidden"].cast(pa.string()),
        }
    )
    connection.register("catalogue", catalogue)
    connection.execute(
        "create table available as select item_id, available_from from catalogue where available_from is not null"
    )
    connection.unregister("catalogue")
    return catalogue


def unique_titles(rows: Iterable[dict[str, Any]]) -> dict[int, str]:
    """A title of its own for each item id: twins get their year in brackets, else their id; others stay as they are."""
    titles = {row[c.ITEM]: row[c.TITLE] for row in rows}
    years = {row[c.ITEM]: next(iter(dict(row[c.ATTRIBUTES] or []).get("year") or []), None) for row in rows}
    counts = Counter(titles.values())
    dated = {
        item: f"{title} ({years[item]})" if counts[title] > 1 and years[item] and years[item] not in title else title
        for item, title in titles.items()
    }
    while twins := {title for title, count in Counter(dated.values()).items() if count > 1}:
        dated = {item: f"{title} [{item}]" if title in twins else title for item, title in dated.items()}
    return dated


def choose_targets(connection: "DuckDBPyConnection", params: PrepareParams, cutoffs: Cutoffs) -> None:
    """Make the tables `possible` (what validation and test could ask) and `targets` (what is asked).

    Raises RecalignError naming the first split that stays empty.
    """
    begins = {c.VALIDATION: cutoffs[c.VALIDATION], c.TEST: cutoffs[c.TEST]}
    rules = {"min_history": params.min_history, "candidates": params.candidates}
    run(connection, "possible", **begins, **rules)
    query = "select count(distinct user_id) from possible where pool = 'warm' and not fits"
    if full := one(connection.execute(query)):
        log.warning("%d users met so many items that too few are left for a list: no case of theirs", full)
    limits = {
        "min_history": params.min_history,
        "max_history": params.max_history,
        "train_examples_per_user": params.train_examples_per_user,
        "cases_per_user": params.cases_per_user,
    }
    if cutoffs[c.TRAIN] is None:
        run(connection, "targets_set", **limits)
    else:
        run(connection, "targets_time", profile_cutoff=cutoffs[c.TRAIN], **limits)
    query = "select split, count(*) from targets where view is null or view = 'warm' group by split"
    counts = dict(connection.execute(query).fetchall())
    for split in cutoffs:
        if not counts.get(split):
            query = "select count(*), max(n) from (select count(*) as n from events group by user_id)"
            users, longest = connection.execute(query).fetchall()[0]
            raise RecalignError(
                f"no {split} example is left: none of {users} users (the longest history has {longest} likes) has a "
                f"target there after prepare.min_history = {params.min_history} likes; lower it or raise the share"
            )


def write_events(connection: "DuckDBPyConnection", path: Path) -> None:
    """Write `events` in the user's order."""
    columns = "user_id, item_id, timestamp, position, split"
    _stream(connection, f"select {columns} from events order by user_id, position", path)  # noqa: S608


def write_met(connection: "DuckDBPyConnection", path: Path) -> None:
    """Write `seen`: what each user has met, when first, and whether it is liked."""
    _stream(connection, "select user_id, item_id, timestamp, liked from seen order by user_id, item_id", path)


def _stream(connection: "DuckDBPyConnection", query: str, path: Path) -> None:
    batches = connection.sql(query).to_arrow_reader(ROW_GROUP)
    write_rows(path, batches.schema, (pa.Table.from_batches([batch]) for batch in batches))


def user_ranges(connection: "DuckDBPyConnection") -> list[tuple[int, int]]:
    """First and last user of each range of users with some CHUNK_EVENTS events, in ascending order."""
    return run(connection, "chunks", chunk_events=CHUNK_EVENTS).fetchall()


def write_examples(connection: "DuckDBPyConnection", path: Path, clock: bool) -> dict[str, str]:
    """Write the examples of the table `targets`, ordered by user and the target's position; a digest (hex) a view.

    It covers user, cutoff, history and target of every validation and test case.
    """
    name = "examples_time" if clock else "examples_set"
    ranges = user_ranges(connection)
    hashes: dict[str, tuple[Any, Any]] = {}

    def tables() -> Iterator[pa.Table]:
        for first, last in track(ranges, len(ranges), "examples", "ranges of users"):
            table = select(connection, name, first=first, last=last).to_arrow_table().cast(EXAMPLES_SCHEMA)
            for view in c.VIEWS:
                own = table.filter(pc.equal(table[c.VIEW], view))
                if len(own):
                    _hash_rows(*hashes.setdefault(view, (hashlib.sha256(), hashlib.sha256())), own)
            yield table

    write_rows(path, EXAMPLES_SCHEMA, tables())
    return {view: digest_of([half.hexdigest() for half in both]) for view, both in hashes.items()}


def _hash_rows(rows_hash: Any, items_hash: Any, table: pa.Table) -> None:
    """Update one sha256 by each row's user, cutoff, length of history and target, the other by the histories' items.

    Two, so that it does not matter where one table ends and the next begins. Numbers are little-endian int64.
    """
    histories = table[c.HISTORY].combine_chunks()
    cutoffs = pc.fill_null(table[c.CUTOFF].cast(pa.int64()), -1)
    rows = [table[c.USER], cutoffs, pc.list_value_length(histories), table[c.TARGET]]
    rows_hash.update(np.stack([row.to_numpy().astype("<i8") for row in rows], axis=1).tobytes())
    items_hash.update(histories.flatten().to_numpy().astype("<i8").tobytes())
