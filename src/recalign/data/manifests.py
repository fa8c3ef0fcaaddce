"""The candidate manifests: for each validation and test example a frozen list of items, drawn in two ways."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recalign import columns as c
from recalign.data.candidates import Lists, draw_candidates
from recalign.data.database import run, write_rows
from recalign.data.prepare import user_ranges
from recalign.params import PrepareParams
from recalign.progress import track

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

UNIFORM, POPULARITY = "uniform", "popularity"
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
) -> dict[str, str]:
    """Write both manifests of the tables `targets` and `seen`, an example's lists one after the other; return digests.

    A manifest's digest is the sha256 of its rows (user, target, target_index, candidates) as little-endian int64.
    """
    ids = catalogue[c.ITEM].to_numpy()
    by_manifest = weights(catalogue["popularity"].to_numpy(), params.popularity_alpha)
    hashes = {name: hashlib.sha256() for name in by_manifest}
    ranges = user_ranges(connection)

    def tables() -> Iterator[pa.Table]:
        for first, last in track(ranges, len(ranges), "candidates", "ranges of users"):
            cases = run(connection, "cases", first=first, last=last, seed=seed).fetchnumpy()
            if not len(cases["user_id"]):
                continue
            seen = run(connection, "seen_range", first=first, last=last).fetchnumpy()
            drawn = {
                name: _draw(cases, seen, ids, weight, params.candidates) for name, weight in by_manifest.items()
            }
            for name, lists in drawn.items():
                rows = [cases["user_id"], cases["target"], lists.target_index, *lists.candidates.T]
                hashes[name].update(np.stack(rows, axis=1).astype("<i8").tobytes())
            yield _table(cases, drawn)

    write_rows(path, SCHEMA, tables())
    return {name: value.hexdigest() for name, value in hashes.items()}


def _draw(
    cases: dict[str, Any], seen: dict[str, Any], ids: NDArray[np.int64], weight: NDArray[np.float64], size: int
) -> Lists:
    """Draw one manifest's lists of a range of users; candidates are item ids."""
    users, rows = np.unique(seen["user_id"], return_inverse=True)
    codes = rows * len(ids) + np.searchsorted(ids, seen["item_id"])
    lists = draw_candidates(
        keys=cases["key"],
        targets=np.searchsorted(ids, cases["target"]),
        rows=np.searchsorted(users, cases["user_id"]),
        seen=codes,
        weights=weight,
        size=size,
    )
    return Lists(ids[lists.candidates], lists.target_index)


def _table(cases: dict[str, Any], drawn: dict[str, Lists]) -> pa.Table:
    """Rows of a range of users: for each example, in order, one row a manifest."""
    count, size = len(cases["user_id"]), next(iter(drawn.values())).candidates.shape[1]
    candidates = np.stack([lists.candidates for lists in drawn.values()], axis=1)
    offsets = np.arange(0, candidates.size + 1, size, dtype=np.int32)
    examples = [f"{user}-{target}" for user, target in zip(cases["user_id"], cases["target"], strict=True)]
    return pa.table(
        {
            c.MANIFEST: pa.array(list(drawn) * count, pa.string()),
            c.EXAMPLE: pa.array(np.repeat(examples, len(drawn)), pa.string()),
            c.USER: np.repeat(cases["user_id"], len(drawn)),
            c.CANDIDATES: pa.ListArray.from_arrays(offsets, candidates.reshape(-1)),
            c.TARGET_INDEX: np.stack([lists.target_index for lists in drawn.values()], axis=1).reshape(-1),
        }
    )
