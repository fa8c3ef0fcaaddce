"""The ranks that one system reached on a set of cases, and the table that holds those of all systems."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recalign import columns as c
from recalign.artifacts import read_parquet, write_parquet
from recalign.errors import RecalignError
from recalign.evaluation.ranking import Floats, Ranks

KEPT = 10  # best items kept a case: what exposure is measured on
SAMPLED, FULL = "sampled-20", "full"
CATALOGUE = "catalogue"  # stands in the manifest column of the full protocol, whose list is the catalogue itself
CATALOGUE_CASES = "catalogue-cases"  # the same on the few cases for which language models score the whole catalogue too

SCHEMA = pa.schema(
    [
        (c.MANIFEST, pa.string()),
        (c.PROTOCOL, pa.string()),
        (c.SYSTEM, pa.string()),
        (c.EXAMPLE, pa.string()),
        (c.USER, pa.int64()),
        (c.RANK, pa.int64()),
        (c.SCORE, pa.float64()),
        (c.TOP, pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class SystemRanks:
    """Ranks of one system's targets, a row a case, cases in ascending example id.

    digest is that of the candidate manifest (or of the catalogue): equal digests, equal lists. top holds each case's
    best items (at most KEPT, best first), and is empty where only ranks are known.
    """

    system: str
    protocol: str
    manifest: str
    digest: str
    example_ids: tuple[str, ...]
    user_ids: tuple[int, ...]
    ranks: Ranks
    scores: Floats
    top: tuple[tuple[int, ...], ...] = ()

    def check_comparable(self, other: "SystemRanks") -> None:
        """Raise RecalignError naming the first field in which the cases of the two systems differ."""
        for field in ("protocol", "manifest", "digest"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise RecalignError(
                    f"'{self.system}' and '{other.system}' cannot be compared: {field} is '{mine}' for the one and "
                    f"'{theirs}' for the other; evaluate both on the same cases"
                )
        if self.example_ids != other.example_ids:
            odd = min(set(self.example_ids) ^ set(other.example_ids))
            raise RecalignError(
                f"'{self.system}' and '{other.system}' cannot be compared: {c.EXAMPLE} {odd} was "
                f"ranked by one of them only ({len(self.example_ids)} and {len(other.example_ids)} cases); "
                "evaluate both on the same cases"
            )
        if self.user_ids != other.user_ids:
            raise RecalignError(
                f"'{self.system}' and '{other.system}' cannot be compared: {c.USER} differs for the same {c.EXAMPLE}; "
                "evaluate both on the same cases"
            )


def in_case_order(
    system: str,
    protocol: str,
    manifest: str,
    digest: str,
    cases: Sequence[tuple[str, int]],
    ranks: Ranks,
    scores: Floats,
    top: Sequence[tuple[int, ...]] = (),
) -> SystemRanks:
    """SystemRanks of `cases` (example id, user id) in any order; ranks, the targets' scores and top are in that order.

    Raises RecalignError when an example stands twice.
    """
    order = sorted(range(len(cases)), key=lambda row: cases[row][0])
    ids = tuple(cases[row][0] for row in order)
    if len(set(ids)) != len(ids):
        twice = next(a for a, b in itertools.pairwise(ids) if a == b)
        raise RecalignError(f"{c.EXAMPLE} {twice} was ranked twice by '{system}'; a case counts once")
    users = tuple(cases[row][1] for row in order)
    best = tuple(top[row] for row in order) if top else ()
    return SystemRanks(system, protocol, manifest, digest, ids, users, ranks[order], scores[order], best)


def write_system_ranks(path: Path, systems: Sequence[SystemRanks]) -> None:
    """Write ranks.parquet: the systems in the given order, each in ascending example id."""
    rows = [
        pa.table(
            [
                pa.array([s.manifest] * len(s.ranks)),
                pa.array([s.protocol] * len(s.ranks)),
                pa.array([s.system] * len(s.ranks)),
                pa.array(s.example_ids, pa.string()),
                pa.array(s.user_ids, pa.int64()),
                pa.array(s.ranks, pa.int64()),
                pa.array(s.scores, pa.float64()),
                pa.array(s.top or [None] * len(s.ranks), pa.list_(pa.int64())),
            ],
            schema=SCHEMA,
        )
        for s in systems
    ]
    write_parquet(path, pa.concat_tables(rows))


def read_system_ranks(path: Path, digests: dict[str, str]) -> list[SystemRanks]:
    """Read ranks.parquet as `write_system_ranks` wrote it; `digests` maps each manifest to its digest.

    A file from before lists were kept has ranks without them.
    """
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in read_parquet(path).to_pylist():
        groups.setdefault((row[c.SYSTEM], row[c.PROTOCOL], row[c.MANIFEST]), []).append(row)
    return [
        in_case_order(
            system,
            protocol,
            manifest,
            digests.get(manifest, ""),
            [(row[c.EXAMPLE], row[c.USER]) for row in rows],
            np.array([row[c.RANK] for row in rows], dtype=np.int64),
            np.array([row[c.SCORE] for row in rows], dtype=np.float64),
            [tuple(row[c.TOP]) for row in rows] if all(row.get(c.TOP) is not None for row in rows) else (),
        )
        for (system, protocol, manifest), rows in groups.items()
    ]
