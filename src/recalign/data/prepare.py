"""From a validated log to examples: DuckDB does the work (sql/), this module its order.

Examples are made in ranges of users, so memory does not grow with the log; rows are ordered: equal data, equal bytes.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recalign import columns as c
from recalign.artifacts import read_parquet
from recalign.data.database import ROW_GROUP, one, run, select, write_rows
from recalign.errors import RecalignError
from recalign.params import PrepareParams
from recalign.progress import track

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
CHUNK_EVENTS = 500_000  # events of the users that are worked on at once: bounds memory, changes no byte
EXAMPLES_SCHEMA = pa.schema(
    [
        (c.EXAMPLE, pa.string()),
        (c.USER, pa.int64()),
        (c.SPLIT, pa.string()),
        (c.CUTOFF, pa.timestamp("us")),
        (c.HISTORY, pa.list_(pa.int64())),
        (c.TARGET, pa.int64()),
    ]
)
Cutoffs = dict[str, datetime | None]  # when the targets of each split begin (UTC); None without a clock


def select_likes(connection: "DuckDBPyConnection", interactions: Path, min_rating: float | None, core: int) -> None:
    """Make the tables `log` (every user and item once) and `likes` (its k-core).

    Raises RecalignError when no row is a like, or the k-core is empty.
    """
    run(connection, "log", interactions=str(interactions), min_rating=min_rating)
    run(connection, "likes")
    liked = one(connection.execute("select count(*) from likes"))
    if not liked:
        why = "holds no row" if min_rating is None else f"holds no rating of at least {min_rating:g}"
        raise RecalignError(f"{interactions} {why}, so nothing is liked; lower prepare.min_rating or give it more rows")
    longest, widest = (
        one(connection.execute(f"select max(n) from (select count(*) as n from likes group by {key})"))  # noqa: S608
        for key in (c.USER, c.ITEM)
    )
    rounds = 0
    while sum(one(run(connection, half, core=core)) for half in ("core_users", "core_items")):
        rounds += 1
    left = one(connection.execute("select count(*) from likes"))
    log.info("%d-core: %d of %d likes stay after %d rounds", core, left, liked, rounds)
    if not left:
        raise RecalignError(
            f"prepare.core is {core} and leaves none of {liked} likes (the longest history has {longest}, the most "
            f"liked item {widest}); lower it, 1 keeps everything"
        )


def split_events(connection: "DuckDBPyConnection", params: PrepareParams, clock: bool) -> Cutoffs:
    """Make the tables `events` (likes with position and split, in order) and `seen` (what each user has met)."""
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
                query = "select min(timestamp) from events where split = $split"
                cutoffs[split] = one(connection.execute(query, {"split": split}))
    connection.execute("drop table sequences")
    return cutoffs


def read_catalogue(connection: "DuckDBPyConnection", items: Path, candidates: int) -> pa.Table:
    """The kept items in ascending id with unique titles, attributes and popularity (train events).

    Raises RecalignError when they are too few for candidate lists, or the items file lacks one.
    """
    popularity = dict(run(connection, "catalogue").fetchall())
    if len(popularity) <= candidates:
        raise RecalignError(
            f"prepare.candidates is {candidates}, which needs at least {candidates + 1} items, and "
            f"{len(popularity)} are left; lower it, or prepare.core"
        )
    rows = sorted(read_parquet(items).select([c.ITEM, c.TITLE, c.ATTRIBUTES]).to_pylist(), key=lambda row: row[c.ITEM])
    missing = popularity.keys() - {row[c.ITEM] for row in rows}
    if missing:
        raise RecalignError(f"{items} lacks item {min(missing)}, which the interactions name; run 'dvc repro' again")
    titles = unique_titles(rows)
    kept = [row for row in rows if row[c.ITEM] in popularity]
    return pa.table(
        {
            c.ITEM: pa.array([row[c.ITEM] for row in kept], pa.int64()),
            c.TITLE: pa.array([titles[row[c.ITEM]] for row in kept], pa.string()),
            c.ATTRIBUTES: pa.array(
                [row[c.ATTRIBUTES] or [] for row in kept], pa.map_(pa.string(), pa.list_(pa.string()))
            ),
            "popularity": pa.array([popularity[row[c.ITEM]] for row in kept], pa.int64()),
        }
    )


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


def choose_targets(connection: "DuckDBPyConnection", params: PrepareParams, cutoffs: Cutoffs, items: int) -> None:
    """Make the table `targets`. Raises RecalignError naming the first split that stays empty."""
    most_seen = items - params.candidates + 1
    query = "select count(*) from (select user_id from seen group by user_id having count(*) > $most)"
    if full := one(connection.execute(query, {"most": most_seen})):
        log.warning("%d users met over %d of %d items: too few are left for a list, so no case", full, most_seen, items)
    limits = {
        "min_history": params.min_history,
        "most_seen": most_seen,
        "train_examples_per_user": params.train_examples_per_user,
        "cases_per_user": params.cases_per_user,
    }
    if cutoffs[c.TRAIN] is None:
        run(connection, "targets_set", **limits)
    else:
        run(connection, "targets_time", profile_cutoff=cutoffs[c.TRAIN], **limits)
    counts = dict(connection.execute("select split, count(*) from targets group by split").fetchall())
    for split in cutoffs:
        if not counts.get(split):
            users, longest = connection.execute(
                "select count(*), max(n) from (select count(*) as n from events group by user_id)"
            ).fetchone() or (0, 0)
            raise RecalignError(
                f"no {split} example is left: none of {users} users (the longest history has {longest} likes) has a "
                f"target there after prepare.min_history = {params.min_history} likes; lower it or raise the share"
            )


def write_events(connection: "DuckDBPyConnection", path: Path) -> None:
    """Write `events` in the user's order."""
    query = "select user_id, item_id, timestamp, position, split from events order by user_id, position"
    batches = connection.sql(query).to_arrow_reader(ROW_GROUP)
    write_rows(path, batches.schema, (pa.Table.from_batches([batch]) for batch in batches))


def user_ranges(connection: "DuckDBPyConnection") -> list[tuple[int, int]]:
    """First and last user of each range of users with some CHUNK_EVENTS events, in ascending order."""
    return run(connection, "chunks", chunk_events=CHUNK_EVENTS).fetchall()


def write_examples(connection: "DuckDBPyConnection", path: Path, max_history: int, clock: bool) -> None:
    """Write the examples of the table `targets`, ordered by user and the target's position."""
    name = "examples_time" if clock else "examples_set"
    ranges = user_ranges(connection)
    tables = (
        select(connection, name, first=first, last=last, max_history=max_history).to_arrow_table()
        for first, last in track(ranges, len(ranges), "examples", "ranges of users")
    )
    write_rows(path, EXAMPLES_SCHEMA, tables)
