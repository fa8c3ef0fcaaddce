"""The prepared pairs in one folder: molecules, pairs with their views, answers; and subsets of them drawn by a hash."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moltc.answers import Answers
from moltc.chemistry import Molecule
from moltc.evaluation import Cases
from moltc.validation import Clean
from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_json, read_parquet, write_json, write_parquet
from recalign.data.records import hashed_order

MOLECULES, PAIRS, ANSWERS, QUARANTINED, SUMMARY = (
    "molecules.parquet", "pairs.parquet", "answers.parquet", "quarantine.parquet", "summary.json",
)  # fmt: skip


@dataclass(frozen=True)
class PairSet:
    """kind: types, yes-no or number; molecules: SMILES, canonical; first, second [N]: places among them; labels [N]:
    places of answers, or numbers; best [N]: known best labels, of types in the file's direction (NaN: none); views
    [N]; digest: of all of it."""

    kind: str
    molecules: tuple[str, ...]
    answers: Answers
    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    best: np.ndarray
    views: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Sequence[int] | np.ndarray) -> "PairSet":
        """Some pairs, in the order of `places`."""
        chosen = np.asarray(places, dtype=np.int64)
        kept = {name: getattr(self, name)[chosen] for name in ("first", "second", "labels", "best", "views")}
        return replace(self, **kept)

    def of(self, view: str, most: int | None = None, seed: int = 0) -> "PairSet":
        """The pairs of a view (train, validation or a test view), at most so many, drawn by a hash of the molecules."""
        places = np.flatnonzero(self.views == view).tolist()
        places.sort(key=lambda place: hashed_order(seed, view, self.pair_id(place)))
        return self.take(places[:most])

    def pair_id(self, place: int) -> str:
        """The pair's name: its two SMILES."""
        return f"{self.molecules[self.first[place]]}|{self.molecules[self.second[place]]}"

    @property
    def truth(self) -> np.ndarray:
        """[N] what outputs are compared with: types or numbers (`Answers.truth`)."""
        return self.answers.truth(self.labels)

    @property
    def cases(self) -> Cases:
        """What outputs are compared with."""
        return Cases(self.kind, self.first, self.second, self.truth)

    def turned(self) -> "PairSet":
        """The same pairs and what they mean, their molecules named the other way round; not for numbers."""
        labels = np.array(self.answers.turned)[self.labels.astype(np.int64)].astype(np.float64)
        return replace(self, first=self.second, second=self.first, labels=labels)

    def both_orders(self) -> "PairSet":
        """Every pair in both orders, since closed answers do not go by it; numbers do, and stay as they are."""
        if self.kind == "number":
            return self
        other = self.turned()
        names = ("first", "second", "labels", "best", "views")
        both: dict[str, Any] = {n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in names}
        return replace(self, **both)

    @classmethod
    def read(cls, folder: Path) -> "PairSet":
        """What `write_prepared` wrote."""
        pairs, summary = read_parquet(folder / PAIRS), read_json(folder / SUMMARY)
        columns = {name: pairs[name].to_numpy(zero_copy_only=False) for name in pairs.column_names}
        return cls(
            summary["kind"], tuple(read_parquet(folder / MOLECULES)["smiles"].to_pylist()),
            Answers.read(folder / ANSWERS), columns["first"], columns["second"], columns["label"], columns["best"],
            columns[c.VIEW], summary["digest"],
        )  # fmt: skip


def write_prepared(folder: Path, clean: Clean, kind: str, views: np.ndarray) -> dict[str, Any]:
    """Write the contract's files into an existing folder; returns what summary.json says."""
    rows: list[Molecule] = list(clean.molecules)
    write_parquet(folder / MOLECULES, pa.table({
        "smiles": [m.smiles for m in rows], "skeleton": [m.skeleton for m in rows],
        "atoms": [m.atoms for m in rows],
    }))  # fmt: skip
    write_parquet(folder / PAIRS, pa.table({
        "first": clean.first, "second": clean.second, "label": clean.labels, "best": clean.best,
        c.VIEW: pa.array(views.tolist(), pa.string()),
    }))  # fmt: skip
    clean.answers.write(folder / ANSWERS)
    write_parquet(folder / QUARANTINED, clean.quarantine)
    columns = [clean.first.tolist(), clean.second.tolist(), clean.labels.tolist(), views.tolist()]
    counts = {view: int((views == view).sum()) for view in sorted(set(views.tolist()))}
    digest = digest_of([kind, [m.smiles for m in rows], vars(clean.answers), columns])
    summary = {**clean.summary(), "kind": kind, "views": counts, "digest": digest}
    write_json(folder / SUMMARY, summary)
    return summary
