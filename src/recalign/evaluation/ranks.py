"""The ranks that one system reached on a set of cases, and the table that holds those of all systems."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet, write_parquet
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats, Ranks

CaseKey = tuple[str, int] | tuple[str, int, int]  # example id, user id and, where it is known, target

USERS, ITEMS = "users", "the items asked for"
KEPT = 10  # best items kept a case: what exposure is measured on
SAMPLED, FULL = "sampled-20", "full"
UNKNOWN = "unknown"  # view of ranks from before views were recorded
CATALOGUE = "catalogue"  # stands in the manifest column of the full protocol, whose list is the catalogue itself
CATALOGUE_CASES = "catalogue-cases"  # the same on the few cases for which language models score the whole catalogue too

SCHEMA = pa.schema(
    [
        (c.VIEW, pa.string()),
        (c.MANIFEST, pa.string()),
        (c.PROTOCOL, pa.string()),
        (c.SYSTEM, pa.string()),
        (c.EXAMPLE, pa.string()),
        (c.USER, pa.int64()),
        (c.RANK, pa.int64()),
        (c.SCORE, pa.float64()),
        (c.TOP, pa.list_(pa.int64())),
        (c.TARGET, pa.int64()),
    ]
)


@dataclass(frozen=True)
class CaseList:
    """The cases that are ranked, by their keys, in any order: by which protocol, from which manifest and view."""

    protocol: str
    manifest: str
    digest: str
    keys: Sequence[CaseKey]
    view: str = c.WARM


@dataclass(frozen=True)
class SystemRanks:
    """Ranks of one system's targets, a row a case, cases in ascending example id.

    digest is that of the cases with their lists (or with what the catalogue is ranked without): equal digests, equal
    cases. view: who and what is asked; UNKNOWN in ranks that were made before views were. top holds each case's best
    items (at most KEPT, best first), and is empty where only ranks are known; so is target_ids in ranks of earlier
    versions.
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
    view: str = c.WARM
    target_ids: tuple[int, ...] = ()

    @property
    def cases(self) -> CaseList:
        """The cases that it ranked."""
        return CaseList(self.protocol, self.manifest, self.digest, self.keys, self.view)

    @property
    def keys(self) -> list[CaseKey]:
        """Example id, user id and, where it is known, target of each case."""
        if not self.target_ids:
            return list(zip(self.example_ids, self.user_ids, strict=True))
        return list(zip(self.example_ids, self.user_ids, self.target_ids, strict=True))

    @property
    def clusters(self) -> tuple[int, ...]:
        """[B] What intervals draw again: users, or on new items, of which there are fewer, the items asked for."""
        return self.target_ids if self.drawn == ITEMS else self.user_ids

    @property
    def drawn(self) -> str:
        """What `clusters` are, in words."""
        return drawn_over(self.view, self.user_ids, self.target_ids)

    def check_comparable(self, other: "SystemRanks") -> None:
        """Raise RecalignError naming the first field in which the cases of the two systems differ."""
        if UNKNOWN in (self.view, other.view) and self.view != other.view:
            raise RecalignError(histories_unknown(self.system if self.view == UNKNOWN else other.system))
        for field in ("view", "protocol", "manifest", "digest"):
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


def drawn_over(view: str, users: Sequence[int], targets: Sequence[int]) -> str:
    """What cases are clustered by: USERS, or ITEMS on new items that are fewer than users; targets: () if unknown."""
    new = view in (c.NATURAL, c.HIDDEN) and bool(targets)
    return ITEMS if new and len(set(targets)) < len(set(users)) else USERS


def histories_unknown(name: str) -> str:
    """Why ranks from before views were recorded compare with nothing, and what to do."""
    return (
        f"'{name}' cannot be compared: histories unknown. Its ranks are of a version whose digests left the histories "
        "out, so nobody can tell that the cases are equal; evaluate it again with 'dvc repro' (a registered version: "
        "register it again)"
    )


def in_case_order(
    system: str, of: CaseList, ranks: Ranks, scores: Floats, top: Sequence[tuple[int, ...]] = ()
) -> SystemRanks:
    """SystemRanks by ascending example id; ranks, the targets' scores and top are in the order of `of.keys`.

    Raises RecalignError when an example is listed twice.
    """
    cases = of.keys
    order = sorted(range(len(cases)), key=lambda row: cases[row][0])
    ids = tuple(cases[row][0] for row in order)
    if len(set(ids)) != len(ids):
        twice = next(a for a, b in itertools.pairwise(ids) if a == b)
        raise RecalignError(f"{c.EXAMPLE} {twice} was ranked twice by '{system}'; a case counts once")
    users = tuple(cases[row][1] for row in order)
    best = tuple(top[row] for row in order) if top else ()
    targets = tuple(own for row in order for own in cases[row][2:])
    return SystemRanks(
        system, of.protocol, of.manifest, of.digest, ids, users, ranks[order], scores[order], best, of.view, targets
    )


def write_system_ranks(path: Path, systems: Sequence[SystemRanks]) -> None:
    """Write ranks.parquet: the systems in the given order, each in ascending example id."""
    rows = [
        pa.table(
            [
                pa.array([s.view] * len(s.ranks)),
                pa.array([s.manifest] * len(s.ranks)),
                pa.array([s.protocol] * len(s.ranks)),
                pa.array([s.system] * len(s.ranks)),
                pa.array(s.example_ids, pa.string()),
                pa.array(s.user_ids, pa.int64()),
                pa.array(s.ranks, pa.int64()),
                pa.array(s.scores, pa.float64()),
                pa.array(s.top or [None] * len(s.ranks), pa.list_(pa.int64())),
                pa.array(s.target_ids or [None] * len(s.ranks), pa.int64()),
            ],
            schema=SCHEMA,
        )
        for s in systems
    ]
    write_parquet(path, pa.concat_tables(rows))


Digests = Mapping[str, Mapping[str, str] | str]  # by manifest, then view; before views were, by manifest alone


def read_system_ranks(path: Path, digests: Digests) -> list[SystemRanks]:
    """Read ranks.parquet as `write_system_ranks` wrote it; `digests` as cases.json holds them.

    Ranks from before views were recorded have the view UNKNOWN. Raises RecalignError when the file is missing.
    """
    groups: dict[tuple[str, str, str, str], list[dict]] = {}
    for row in read_parquet(path).to_pylist():
        kind = (row[c.SYSTEM], row[c.PROTOCOL], row[c.MANIFEST], row.get(c.VIEW, UNKNOWN))
        groups.setdefault(kind, []).append(row)
    return [
        in_case_order(
            system,
            CaseList(protocol, manifest, _digest(digests, manifest, view), [_key(row) for row in rows], view),
            np.array([row[c.RANK] for row in rows], dtype=np.int64),
            np.array([row[c.SCORE] for row in rows], dtype=np.float64),
            [tuple(row[c.TOP]) for row in rows] if all(row.get(c.TOP) is not None for row in rows) else (),
        )
        for (system, protocol, manifest, view), rows in groups.items()
    ]


def _key(row: dict[str, Any]) -> CaseKey:
    target = row.get(c.TARGET)
    return (row[c.EXAMPLE], row[c.USER]) if target is None else (row[c.EXAMPLE], row[c.USER], target)


def _digest(digests: Digests, manifest: str, view: str) -> str:
    told = digests.get(manifest, "")
    return told if isinstance(told, str) else told.get(view, "")
