"""The candidate manifests: for each validation and test example a frozen list of items, drawn in two ways."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.progress import track
from recalign.data.database import run, write_rows
from recalign.data.preparation.candidates import Lists, draw_candidates
from recalign.data.preparation.tables import user_ranges
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
    hashes: dict[str, dict[str, Any]] = {UNIFORM: {}, POPULARITY: {}}
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


def _hash_views(hashes: dict[str, Any], cases: Columns, lists: Lists) -> None:
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
