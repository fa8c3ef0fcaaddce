"""A file of pairs against its rules, by Great Expectations and DuckDB; bad rows go to quarantine with the reason."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from moltc.answers import Answers
from moltc.chemistry import (
    MISSING,
    TOO_LONG,
    UNPARSABLE,
    BadMoleculeError,
    Molecule,
    read_molecule,
)
from moltc.params import DataParams
from recalign.common import columns as c
from recalign.common.artifacts import file_digest
from recalign.common.errors import RecalignError
from recalign.common.progress import track
from recalign.data.database import database
from recalign.data.records import hashed_order
from recalign.data.sources.files import MALFORMED, require_columns
from recalign.data.sources.reading import FILE, LINE, QUARANTINE, quoted
from recalign.data.sources.reading import UNPARSABLE as UNREADABLE
from recalign.data.sources.table import load_columns
from recalign.data.validation.rules import AMONG, EXACT_COPY, PRESENT, TRUE, Rule
from recalign.data.validation.tables import Outcome, judge, quarantined

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection

MEMORY = "1 GB"  # of DuckDB; beyond it rows spill to disk
TOO_MANY, SELF, UNKNOWN, LABEL = "too many atoms", "same molecule twice", "unknown molecule id", "unknown label"
SIDES = ("first", "second")
CONTRADICTION, SALT = "contradictory labels", "salt or mixture"
KNOWN = "pair of the first file"
MOLECULE_FAULTS = {  # rule: what every molecule has to be
    UNKNOWN: "every molecule's id is in the file of molecules",
    MISSING: "every molecule has a SMILES",
    TOO_LONG: "no SMILES has more than 2,000 characters",
    UNPARSABLE: "RDKit can parse every SMILES (one, without a name behind it)",
}


@dataclass(frozen=True)
class Clean:
    """The pairs that kept every rule; first, second [N]: places in `molecules`; labels [N]: places in `answers`, or
    numbers; as_written [N]: whether the file names the lower id (as text) first; given [N]: the file's own split; best
    [N]: the known best answer as a label, NaN where there is none.

    A pair with a closed answer is turned by a hash, its answer with it, so that the order says nothing.
    """

    molecules: tuple[Molecule, ...]
    answers: Answers
    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    as_written: np.ndarray
    given: tuple[str | None, ...]
    best: np.ndarray
    quarantine: pa.Table
    outcomes: tuple[Outcome, ...]
    files: Mapping[str, str]

    @property
    def truth(self) -> np.ndarray:
        """[N] what outputs are compared with: types or numbers (`Answers.truth`)."""
        return self.answers.truth(self.labels)

    @property
    def skeletons(self) -> frozenset[tuple[str, ...]]:
        """The skeletons of each pair, whatever their order."""
        pairs = zip(self.first.tolist(), self.second.tolist(), strict=True)
        return frozenset(_unordered(self.molecules[one], self.molecules[other]) for one, other in pairs)

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the data."""
        read = len(self.first) + len(self.quarantine)
        return {
            "pairs": {"read": read, "kept": len(self.first), "quarantined": len(self.quarantine)},
            "molecules": len(self.molecules),
            "rules": [
                {"name": o.rule.name, "level": o.rule.level, "sentence": o.rule.sentence, "failed": o.failed}
                for o in self.outcomes
            ],
            "files": dict(self.files),
        }  # fmt: skip


def _unordered(one: Molecule, other: Molecule) -> tuple[str, ...]:
    return tuple(sorted((one.skeleton, other.skeleton)))


def rules(data: DataParams, *, apart: bool = False) -> list[Rule]:
    """The rules of a row, in the order in which they take one, and at the end the warning of salts.

    apart: of a second file, which may repeat no pair of the first one.
    """

    def row(name: str, sentence: str, column: str, shown: str) -> Rule:
        return Rule(name, "pairs", "row", sentence, AMONG, column, shown, TRUE)

    few = {TOO_MANY: f"no molecule has more than {data.max_atoms} atoms"}
    found = [
        row(f"{fault} ({side})", sentence, f"{side} {fault}", f"{side} text")
        for side in SIDES
        for fault, sentence in (MOLECULE_FAULTS | few).items()
    ]
    allowed = {"number": "is a finite number", "yes-no": "is 0 or 1", "types": f"is a type of {data.types}"}[data.kind]
    found.append(Rule(LABEL, "pairs", "row", f"every label {allowed}", PRESENT, "label", "label text"))
    if not data.allow_self:
        found.append(row(SELF, "a pair has two molecules", "two molecules", "second text"))
    if apart:
        found.append(row(KNOWN, "no pair of the second file is in the first one", "new pair", "second text"))
    opposed = "all go" if data.kind != "number" else "the first is kept"
    parts = "every SMILES is one molecule (of a salt or mixture the largest part is read)"
    return [
        *found,
        row(EXACT_COPY, "no pair is listed twice with one label (the first is kept)", "no copy", "label text"),
        row(CONTRADICTION, f"a pair has one label (of several {opposed})", "one label", "label text"),
        Rule(SALT, "pairs", "warning", parts, AMONG, "one part", "first text", TRUE),
    ]


def read_pairs(data: DataParams, root: Path, spill: Path, first: Clean | None = None) -> Clean:
    """Read and check the files that `data` names, relative to `root`; spill: DuckDB's folder.

    first: what the first file holds, where this is the second one: a pair of both goes to quarantine.
    Raises RecalignError for a missing or unreadable file and an absent column; bad rows do not raise.
    """
    with database(spill, MEMORY, 1) as connection:
        connection.execute(MALFORMED)
        needed = {data.first: "data.first", data.second: "data.second", data.label: "data.label"}
        optional = {name: key for name, key in ((data.split, "data.split"), (data.best, "data.best")) if name}
        rows = _load(connection, "pairs", root / data.pairs, needed | optional)
        ids = None
        if data.molecules:
            columns = {data.molecule_id: "data.molecule_id", data.molecule_smiles: "data.molecule_smiles"}
            listed = _load(connection, "molecules", root / data.molecules, columns)
            ids = {row[data.molecule_id]: row[data.molecule_smiles] for row in listed}
            if len(ids) < len(listed):
                counts = Counter(row[data.molecule_id] for row in listed)
                twice = next(name for name, count in counts.items() if count > 1)
                raise RecalignError(f"{data.molecules}: id {twice!r} is listed twice; keep one row of each molecule")
        answers = Answers((), (), ()) if data.kind == "number" else Answers.yes_no()
        if data.kind == "types" and data.types:
            columns = dict.fromkeys(("type", "sentence", "symmetric"), "data.types")
            answers = Answers.of_rows(_load(connection, "types", root / data.types, columns), data.types)
        malformed = connection.sql("select * from malformed").to_arrow_table().cast(QUARANTINE)
        sides = {side: _read_all([row[name] for row in rows], ids) for side, name in zip(
            SIDES, (data.first, data.second), strict=True)}  # fmt: skip
        labels = [_label(row[data.label], data, answers) for row in rows]
        checked = _Rows(data, rows, sides, labels, answers, first.skeletons if first else None)
        shown = checked.shown()
        outcomes = [Outcome(rule) for rule in rules(data, apart=first is not None)]
        broken = judge(checked.frame(connection), shown, outcomes)
    quarantine = pa.concat_tables([malformed, quarantined(shown, broken, outcomes)])
    outcomes.insert(0, Outcome(Rule(UNREADABLE, "pairs", "row", "every line can be read", "", "", ""), len(malformed)))
    named = [name for name in (data.pairs, data.molecules, data.types if data.kind == "types" else None) if name]
    return checked.kept(broken < 0, quarantine, tuple(outcomes), {name: file_digest(root / name) for name in named})


def read_across(data: DataParams, root: Path, spill: Path, first: Clean) -> Clean:
    """The pairs of data.across, minus those of the first file in either order; errors as those of `read_pairs`."""
    assert data.across, "only asked for where a second file is named"
    changed = {"pairs": data.across, "label": data.across_label or data.label, "split": None, "best": None}
    return read_pairs(data.model_copy(update=changed), root, spill, first)


def joined(first: Clean, second: Clean, name: str) -> Clean:
    """Both files as one, the pairs of the second behind those of the first; name: of the second, before its rules."""
    every = {m.smiles: m for m in (*first.molecules, *second.molecules)}
    ordered = sorted(every)
    number = {smiles: place for place, smiles in enumerate(ordered)}
    places = [np.array([number[m.smiles] for m in own.molecules], dtype=np.int64) for own in (first, second)]
    columns = {
        column: np.concatenate([getattr(first, column), getattr(second, column)])
        for column in ("labels", "as_written", "best")
    }
    ends = {
        side: np.concatenate([place[getattr(own, side)] for place, own in zip(places, (first, second), strict=True)])
        for side in SIDES
    }
    theirs = tuple(replace(o, rule=replace(o.rule, name=f"{name}: {o.rule.name}")) for o in second.outcomes)
    return Clean(
        tuple(every[smiles] for smiles in ordered), first.answers, ends["first"], ends["second"], columns["labels"],
        columns["as_written"], first.given + second.given, columns["best"],
        pa.concat_tables([first.quarantine, second.quarantine]), first.outcomes + theirs,
        {**first.files, **second.files},
    )  # fmt: skip


def _load(connection: "DuckDBPyConnection", table: str, path: Path, needed: dict[str, str]) -> list[dict[str, Any]]:
    """The needed columns of a file as texts, with file and line."""
    if not path.is_file():
        raise RecalignError(f"{path} is missing; put your file there, or name another under 'data' in params.yaml")
    require_columns(path, load_columns(connection, table, path), needed)
    chosen = ", ".join(quoted(name) for name in dict.fromkeys((*needed, FILE, LINE)))
    query = f"select {chosen} from raw_{table} order by {quoted(LINE)}"  # noqa: S608  quoted names of columns
    rows: list[dict[str, Any]] = connection.sql(query).to_arrow_table().to_pylist()
    return rows


def _read_all(texts: list[str | None], ids: Mapping[str | None, str | None] | None) -> list[Molecule | str]:
    """Each text's molecule, or the rule that it breaks; every different text is read once."""
    known: dict[str, Molecule | str] = {}
    different = sorted({text or "" for text in texts})
    for text in track(different, len(different), "molecules", "texts"):
        try:
            if ids is not None and text and text not in ids:
                raise BadMoleculeError(UNKNOWN)
            known[text] = read_molecule(ids.get(text) if ids is not None else text)
        except BadMoleculeError as error:
            known[text] = error.rule
    return [known[text or ""] for text in texts]


def _label(text: str | None, data: DataParams, answers: Answers) -> float | None:
    """The label's number: the place of its answer, or its value; None where there is none."""
    text = (text or "").strip()
    if data.kind != "number":
        return float(answers.codes.index(text)) if text in answers.codes else None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


@dataclass(frozen=True)
class _Rows:
    """The rows of a file as they were read: a molecule or a broken rule a side, a label or None."""

    data: DataParams
    rows: list[dict[str, Any]]
    sides: Mapping[str, list[Molecule | str]]
    labels: list[float | None]
    answers: Answers
    apart: frozenset[tuple[str, ...]] | None  # skeletons of the pairs of the first file, where this is the second one

    def shown(self) -> pa.Table:
        """What the quarantine shows of a row."""
        names = (self.data.first, self.data.second, self.data.label)
        texts = {f"{shown} text": [row[name] for row in self.rows] for shown, name in zip(
            (*SIDES, "label"), names, strict=True)}  # fmt: skip
        origin = {c.FILE: [row[FILE] for row in self.rows], c.LINE: [row[LINE] for row in self.rows]}
        return pa.table(texts | origin)

    def frame(self, connection: "DuckDBPyConnection") -> "pd.DataFrame":
        """The checked columns: True where a row keeps the rule of that name."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for side, read in self.sides.items():
            for fault in MOLECULE_FAULTS:
                columns[f"{side} {fault}"] = [each != fault for each in read]
            most = self.data.max_atoms
            columns[f"{side} {TOO_MANY}"] = [isinstance(each, str) or each.atoms <= most for each in read]
        pairs = list(zip(*self.sides.values(), strict=True))
        if not self.data.allow_self:
            two = [isinstance(a, str) or isinstance(b, str) or a.smiles != b.smiles for a, b in pairs]
            columns["two molecules"] = two
        if (apart := self.apart) is not None:
            new = [isinstance(a, str) or isinstance(b, str) or _unordered(a, b) not in apart for a, b in pairs]
            columns["new pair"] = new
        frame = pd.DataFrame(columns)
        labels = pd.Series(self.labels, dtype="float64")
        copies, opposed = self._repeated((frame.all(axis=1) & labels.notna()).to_numpy(), connection)
        one_part = [all(isinstance(each, str) or each.fragments == 1 for each in pair) for pair in pairs]
        return frame.assign(**{"label": labels, "no copy": ~copies, "one label": ~opposed, "one part": one_part})

    def _repeated(self, good: np.ndarray, connection: "DuckDBPyConnection") -> tuple[np.ndarray, np.ndarray]:
        """[N] good rows that are copies of an earlier one, and good rows whose pair has another label elsewhere.

        A pair is unordered, and two answers contradict each other, a type's two directions too; numbers go by the
        order, and of several the first is kept.
        """
        copies, opposed = np.zeros(len(good), dtype=bool), np.zeros(len(good), dtype=bool)
        if not good.any():
            return copies, opposed
        ends = {row: self._smiles(row) for row in np.flatnonzero(good).tolist()}
        fixed = self.data.kind == "number"
        labels = {row: self._said(row, turned=not fixed and pair[0] > pair[1]) for row, pair in ends.items()}
        keys = [pair if fixed else tuple(sorted(pair)) for pair in ends.values()]
        table = {
            "row": list(ends), "label": [labels[row] for row in ends],
            "low": [key[0] for key in keys], "high": [key[1] for key in keys],
        }  # fmt: skip
        connection.register("good_pairs", pa.table(table))
        found = connection.execute(
            """select row, row_number() over (partition by low, high, label order by row) > 1 as copy,
                      min(label) over whole <> max(label) over whole as opposed,
                      label <> first_value(label) over (partition by low, high order by row) as later
               from good_pairs window whole as (partition by low, high)"""
        ).fetchnumpy()
        copies[found["row"]] = found["copy"]
        opposed[found["row"]] = found["later" if fixed else "opposed"]
        return copies, opposed

    def _smiles(self, row: int) -> tuple[str, str]:
        one, other = (self.sides[side][row] for side in SIDES)
        assert isinstance(one, Molecule)
        assert isinstance(other, Molecule)
        return one.smiles, other.smiles

    def _said(self, row: int, *, turned: bool) -> float:
        """A good row's label, as it is of the pair in the other order where that is asked for."""
        label = self.labels[row]
        assert label is not None, "a good row has a label"
        return float(self.answers.turned[int(label)]) if turned else label

    def kept(
        self, good: np.ndarray, quarantine: pa.Table, outcomes: tuple[Outcome, ...], files: Mapping[str, str]
    ) -> Clean:
        """The good rows, molecules numbered by their SMILES, pairs with a closed answer turned by a hash."""
        places = np.flatnonzero(good).tolist()
        turned = [self._is_turned(place) for place in places]
        ends = [self._smiles(place)[::-1] if turn else self._smiles(place) for place, turn in zip(
            places, turned, strict=True)]  # fmt: skip
        every = {m.smiles: m for read in self.sides.values() for m in read if isinstance(m, Molecule)}
        ordered = sorted({smiles for pair in ends for smiles in pair})
        number = {smiles: place for place, smiles in enumerate(ordered)}
        pairs = np.array([[number[one], number[other]] for one, other in ends], dtype=np.int64).reshape(-1, 2)
        data, rows = self.data, self.rows
        best = [_label(rows[place][data.best], data, self.answers) if data.best else None for place in places]
        labels = [self._said(place, turned=turn) for place, turn in zip(places, turned, strict=True)]
        return Clean(
            tuple(every[smiles] for smiles in ordered), self.answers, pairs[:, 0], pairs[:, 1],
            np.array(labels, dtype=np.float64),
            np.array([str(rows[place][data.first]) < str(rows[place][data.second]) for place in places], dtype=bool),
            tuple(rows[place][data.split] if data.split else None for place in places),
            np.array([np.nan if each is None else each for each in best], dtype=np.float64),
            quarantine, outcomes, files,
        )  # fmt: skip

    def _is_turned(self, row: int) -> bool:
        """Whether a row's molecules change places: by a hash of the unordered pair, whichever the file names first."""
        ends = self._smiles(row)
        low, high = sorted(ends)
        wanted = (high, low) if hashed_order("turn", low, high) < "8" else (low, high)  # half of md5's first digits
        return self.data.kind != "number" and ends != wanted


def refusal(clean: Clean, max_rejected: float) -> str | None:
    """Why a file cannot be used, in words: nothing is left, or quarantine took too much; None where it can.

    Copies, and pairs that the first file has too, are no faults of a file and do not count.
    """
    reasons = Counter(clean.quarantine[c.RULE].to_pylist())
    faults = Counter({rule: rows for rule, rows in reasons.items() if rule not in (EXACT_COPY, KNOWN)})
    rejected, kept = faults.total(), len(clean.first)
    if kept and rejected <= max_rejected * (rejected + kept):
        return None
    worst = (faults if kept else reasons).most_common(1)[0][0]
    asked = {outcome.rule.name: f"{outcome.rule.sentence}; " for outcome in clean.outcomes}.get(worst, "")
    first = next(row for row in clean.quarantine.to_pylist() if row[c.RULE] == worst)
    told = f"most for '{worst}' ({asked}line {first[c.LINE]}: {first[c.VALUE]!r:.80})"
    if not kept:
        return f"no pair of the file is clean: all of {reasons.total()} rows are in quarantine, {told}"
    return (
        f"{rejected} of {rejected + kept} rows ({rejected / (rejected + kept):.1%}) are in quarantine, {told}; allowed "
        f"is data.max_rejected {max_rejected:.1%}: correct the file, or do without them with a higher data.max_rejected"
    )
