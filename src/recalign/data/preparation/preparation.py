"""The validated log → events, items, examples and frozen candidate lists, in one folder.

The candidate manifests have for each validation and test example a frozen list of items, drawn in two ways.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recalign.common import artifacts
from recalign.common import columns as c
from recalign.common.progress import track
from recalign.data.database import database, one, run, write_rows
from recalign.data.preparation.candidates import Lists, draw_candidates
from recalign.data.preparation.tables import (
    Cutoffs,
    choose_targets,
    read_catalogue,
    select_likes,
    select_training,
    split_events,
    user_ranges,
    write_events,
    write_examples,
    write_met,
)
from recalign.data.prepared import Counts, Summary
from recalign.params.load import Params
from recalign.params.prepare import PrepareParams

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

UNIFORM, POPULARITY = "uniform", "popularity"
Columns = dict[str, NDArray[Any]]  # of a query's rows, by name
SCHEMA = pa.schema(
    [
        (c.MANIFEST, pa.string()),
        (c.EXAMPLE, pa.string()),
        (c.USER, pa.int64()),
        (c.CANDIDATES, pa.list_(pa.int64())),
        (c.TARGET_INDEX, pa.int64()),
    ]
)


def weights(popularity: NDArray[np.int64], alpha: float) -> dict[str, NDArray[np.float64]]:
    """Each manifest's weight of each item [items].

    An item that train never saw weighs as one seen once: were it never drawn, a cold target would give itself away.
    """
    return {UNIFORM: np.ones(len(popularity)), POPULARITY: np.maximum(popularity, 1).astype(np.float64) ** alpha}


def write_candidates(
    connection: "DuckDBPyConnection", path: Path, catalogue: pa.Table, params: PrepareParams, seed: int
) -> dict[str, dict[str, str]]:
    """Write both manifests of the tables `targets` and `seen`, an example's lists one after the other.

    Wrong candidates come from the target's pool (warm items, items as rare as it, items hidden like it), so that a
    list's training counts give no target away. In a pool of equally rare items both laws are one: UNIFORM alone is
    drawn.
    Returns a digest (hex) a manifest and view: the sha256 of its rows (user, target, target_index, candidates).
    """
    draw = _Draw.of(connection, catalogue, params)
    hashes: dict[str, dict[str, hashlib._Hash]] = {UNIFORM: {}, POPULARITY: {}}
    ranges = user_ranges(connection)

    def tables() -> Iterator[pa.Table]:
        for first, last in track(ranges, len(ranges), "candidates", "ranges of users"):
            cases = run(connection, "cases", first=first, last=last, seed=seed).fetchnumpy()
            if not len(cases[c.USER]):
                continue
            seen = run(connection, "seen_range", first=first, last=last).fetchnumpy()
            drawn = {name: draw.lists(name, cases, seen) for name in hashes}
            for name, lists in drawn.items():
                _hash_views(hashes[name], cases, lists)
            yield _table(cases, drawn)

    write_rows(path, SCHEMA, tables())
    return {name: {view: value.hexdigest() for view, value in own.items()} for name, own in hashes.items()}


@dataclass(frozen=True)
class _Draw:
    """What candidates are drawn from: ids, weights and (where any is known) first days of the items of each pool."""

    pools: dict[str, NDArray[np.int64]]
    weights: dict[str, dict[str, NDArray[np.float64]]]  # by manifest and pool
    available: dict[str, NDArray[np.int64]] | None  # µs since 1970 by pool; None where no item has a first day
    size: int

    @classmethod
    def of(cls, connection: "DuckDBPyConnection", catalogue: pa.Table, params: PrepareParams) -> "_Draw":
        """From the table `pools` and the catalogue, whose rows are in the same order."""
        labels = connection.sql("select pool from pools order by item_id").fetchnumpy()["pool"].astype(str)
        rows = {pool: np.flatnonzero(labels == pool) for pool in np.unique(labels).tolist()}
        ids = catalogue[c.ITEM].to_numpy()
        by_manifest = weights(catalogue[c.POPULARITY].to_numpy(), params.popularity_alpha)
        first = catalogue[c.AVAILABLE].cast(pa.int64())
        known = pc.fill_null(first, np.iinfo(np.int64).min).to_numpy()
        return cls(
            {pool: ids[own] for pool, own in rows.items()},
            {name: {pool: weight[own] for pool, own in rows.items()} for name, weight in by_manifest.items()},
            {pool: known[own] for pool, own in rows.items()} if first.null_count < len(first) else None,
            params.candidates,
        )

    def lists(self, manifest: str, cases: Columns, seen: Columns) -> Lists:
        """One manifest's lists of a range of users as item ids, −1 throughout where the manifest has no list."""
        count = len(cases[c.USER])
        drawn = Lists(np.full((count, self.size), -1, dtype=np.int64), np.full(count, -1, dtype=np.int64))
        pools = cases["pool"].astype(str)
        for pool in np.unique(pools).tolist():
            if manifest == POPULARITY and pool != "warm":
                continue
            rows, ids = np.flatnonzero(pools == pool), self.pools[pool]
            own = {name: values[rows] for name, values in cases.items()}
            met, codes = self._forbidden(pool, own, seen)
            lists = draw_candidates(
                keys=own["key"],
                targets=np.searchsorted(ids, own[c.TARGET]),
                rows=met,
                seen=codes,
                weights=self.weights[manifest][pool],
                size=self.size,
            )
            drawn.candidates[rows], drawn.target_index[rows] = ids[lists.candidates], lists.target_index
        return drawn

    def _forbidden(self, pool: str, cases: Columns, seen: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each case's row [B] and the sorted codes `row × items + item` of what may not stand in its list.

        A row is a user, and a case where items have a first day: what came later is forbidden by the case's own time.
        """
        ids = self.pools[pool]
        places = np.minimum(np.searchsorted(ids, seen[c.ITEM]), len(ids) - 1)
        inside = (ids[places] == seen[c.ITEM]) & np.isin(seen[c.USER], cases[c.USER])
        users, of_case = np.unique(cases[c.USER], return_inverse=True)
        codes = np.searchsorted(users, seen[c.USER][inside]) * len(ids) + places[inside]
        if self.available is None:
            return of_case, codes
        by_case = []
        times = cases[c.CUTOFF].astype("datetime64[us]").astype(np.int64)
        for row, (user, time) in enumerate(zip(of_case, times, strict=True)):
            low, high = np.searchsorted(codes, [user * len(ids), (user + 1) * len(ids)])
            later = np.flatnonzero(self.available[pool] > time)
            by_case.append(row * len(ids) + np.union1d(codes[low:high] - user * len(ids), later))
        return np.arange(len(times)), np.concatenate(by_case)


def _hash_views(hashes: dict[str, "hashlib._Hash"], cases: Columns, lists: Lists) -> None:
    views = cases[c.VIEW].astype(str)
    for view in c.VIEWS:
        rows = np.flatnonzero((views == view) & (lists.target_index >= 0))
        if len(rows):
            values = [cases[c.USER][rows], cases[c.TARGET][rows], lists.target_index[rows], *lists.candidates[rows].T]
            hashes.setdefault(view, hashlib.sha256()).update(np.stack(values, axis=1).astype("<i8").tobytes())


def _table(cases: Columns, drawn: dict[str, Lists]) -> pa.Table:
    """Rows of a range of users: for each example, in order, one row a manifest that has a list of it."""
    count, size = len(cases[c.USER]), next(iter(drawn.values())).candidates.shape[1]
    candidates = np.stack([lists.candidates for lists in drawn.values()], axis=1).reshape(-1, size)
    places = np.stack([lists.target_index for lists in drawn.values()], axis=1).reshape(-1)
    kept = np.flatnonzero(places >= 0)
    examples = [f"{user}-{target}" for user, target in zip(cases[c.USER], cases[c.TARGET], strict=True)]
    offsets = np.arange(0, len(kept) * size + 1, size, dtype=np.int32)
    return pa.table(
        {
            c.MANIFEST: pa.array(np.array(list(drawn) * count)[kept], pa.string()),
            c.EXAMPLE: pa.array(np.repeat(examples, len(drawn))[kept], pa.string()),
            c.USER: np.repeat(cases[c.USER], len(drawn))[kept],
            c.CANDIDATES: pa.ListArray.from_arrays(offsets, candidates[kept].reshape(-1)),
            c.TARGET_INDEX: places[kept],
        }
    )


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
        select_training(connection, options.core, options.hidden_items)
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
