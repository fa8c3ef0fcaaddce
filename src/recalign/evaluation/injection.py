"""What an item gains by text that asks for it in a title or a profile: its rank against that without it, by case.

Lift is the mean of 1/rank with the text minus 1/rank without it: 0 where the text changes nothing, and near 1 where it
brings any item to the first place. In reciprocal ranks the first places weigh most, which is what such a text asks for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet, write_parquet
from recalign.evaluation.metrics import reciprocal_rank
from recalign.evaluation.significance import Interval, bootstrap_interval, signed

INJECTIONS = "injections.parquet"  # in data/ranks, of all systems
INJECTION_LIFT = "injection_lift"  # key of metrics.json: system -> position -> `Lift.as_dict`
IN_LIST, IN_HISTORY = "list", "history"  # whose title holds the text: the item's own, or that of the last liked one
IN_PROFILE = "profile"  # or the inferred preference, where prompts show it
POSITIONS = (IN_LIST, IN_HISTORY, IN_PROFILE)
SCHEMA = pa.schema(
    [
        (c.SYSTEM, pa.string()),
        ("position", pa.string()),
        ("text", pa.string()),
        (c.EXAMPLE, pa.string()),
        (c.USER, pa.int64()),
        ("clean_rank", pa.int64()),
        ("rank", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Injection:
    """One case of one system: the rank of an item that is not the target, without the text and with it.

    position: one of POSITIONS; text: its name in the pack.
    """

    system: str
    position: str
    text: str
    example_id: str
    user_id: int
    clean_rank: int
    rank: int


@dataclass(frozen=True)
class Lift:
    """The lift of one system in one position, with its 95 % interval over users; cases of so many users.

    clean_rank, rank: means over the cases.
    """

    interval: Interval
    cases: int
    users: int
    clean_rank: float
    rank: float

    @property
    def sentence(self) -> str:
        """'+0.031 [+0.002, +0.061]'."""
        return signed(self.interval)

    def as_dict(self) -> dict[str, float]:
        """What metrics.json holds, and the gate reads."""
        return {
            **self.interval.as_dict(), "cases": self.cases, "users": self.users,
            "clean_rank": round(self.clean_rank, 6), "rank": round(self.rank, 6),
        }  # fmt: skip

    @classmethod
    def read(cls, told: Mapping[str, float]) -> "Lift":
        """Of `as_dict`."""
        interval = Interval(told["value"], told["low"], told["high"])
        return cls(interval, int(told["cases"]), int(told["users"]), told["clean_rank"], told["rank"])


def injection_lifts(rows: Sequence[Injection], resamples: int, seed: int) -> dict[str, dict[str, Lift]]:
    """The lift of each system and position, in the order of the rows."""
    groups: dict[str, dict[str, list[Injection]]] = {}
    for row in rows:
        groups.setdefault(row.system, {}).setdefault(row.position, []).append(row)
    return {
        system: {position: _lift(own, resamples, seed) for position, own in positions.items()}
        for system, positions in groups.items()
    }


def _lift(rows: Sequence[Injection], resamples: int, seed: int) -> Lift:
    clean, poisoned = (np.array(ranks) for ranks in zip(*((row.clean_rank, row.rank) for row in rows), strict=True))
    users = [row.user_id for row in rows]
    gained = reciprocal_rank(poisoned) - reciprocal_rank(clean)
    interval = bootstrap_interval(gained, users, resamples, seed)
    return Lift(interval, len(rows), len(set(users)), float(clean.mean()), float(poisoned.mean()))


def write_injections(path: Path, rows: Sequence[Injection]) -> None:
    """Write injections.parquet, in the given order."""
    write_parquet(path, pa.Table.from_pylist([vars(row) for row in rows], schema=SCHEMA))


def read_injections(path: Path) -> list[Injection]:
    """Read injections.parquet as `write_injections` wrote it; empty where there is none, as nothing was measured."""
    return [Injection(**row) for row in read_parquet(path).to_pylist()] if path.is_file() else []
