"""Anyone's cases: candidate lists in JSON lines, with the catalogue that they are drawn from and the log as CSV."""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from recalign import columns as c
from recalign.data.records import Items
from recalign.data.sources import containers, files
from recalign.errors import RecalignError

CASE = "case"
LARGEST = 2**63 - 1  # an id is a signed 64-bit integer here: these files' ids are not renumbered
FIELDS = "case, user_id, history, candidates, target"


@dataclass(frozen=True)
class FileCase:
    """A line of a cases file; `case` is its own name for itself, history is oldest first or a set.

    guessed: the file names no users. A line whose history holds the target of the line before then goes on with its
    user, as published windows follow one another; every other line gets a user of its own.
    """

    case: int | str
    user_id: int
    history: tuple[int, ...]
    candidates: tuple[int, ...]
    target: int
    guessed: bool = False


def read_catalogue(path: Path) -> Items:
    """Read a CSV with the columns item_id and title; titles stay as they are, no attributes, no popularity.

    Raises RecalignError naming file and line: a missing file or column, an id that is no number or stands twice, an
    empty title, text that is not UTF-8, no row.
    """
    titles: dict[int, str] = {}
    for number, row in _rows(path, "--items", (c.ITEM, c.TITLE), "--items needs item_id,title"):
        raw = row[c.ITEM]
        if not _is_whole(raw):
            _refuse(path, number, f"{c.ITEM} is {raw!r}; {_wanted(raw)}")
        if int(raw) in titles:
            _refuse(path, number, f"{c.ITEM} {raw} stands twice; keep one title an id")
        if not (row[c.TITLE] or "").strip():
            _refuse(path, number, f"{c.TITLE} of item {raw} is empty; give it one")
        titles[int(raw)] = row[c.TITLE]
    if not titles:
        raise RecalignError(f"{path} holds no item; --items needs a row an item")
    ids = tuple(sorted(titles))
    return Items(ids, titles, {item: {} for item in ids}, dict.fromkeys(ids, 0))


def read_file_cases(
    path: Path, catalogue: Items | None, *, option: str = "--cases", anonymous: bool = False
) -> list[FileCase]:
    """Read JSON lines with case, user_id, history, candidates and target, in the order of the file; blank lines pass.

    catalogue None: any id is taken. anonymous: case may be missing, and user_id, in all lines or none; published files
    often lack them. option: what the command line calls the file.
    Raises RecalignError naming file and line for whatever could not be ranked: no JSON, a missing or mistyped field,
    an id that the catalogue lacks, a candidate twice, a target that is no candidate, lists of different length.
    """
    cases: list[FileCase] = []
    seen: set[int | str] = set()
    for number, line in enumerate(_lines(path, option), start=1):
        if not line.strip():
            continue
        case = _parsed(path, number, line, cases[-1] if cases else None, anonymous=anonymous)
        _check(path, number, case, catalogue)
        if cases and case.guessed != cases[0].guessed:
            has, first = ("no", "one") if case.guessed else ("a", "none")
            _refuse(path, number, f"{has} {c.USER}, but the first case has {first}; give it in every line or in none")
        if case.case in seen:
            _refuse(path, number, f"case {case.case!r} stands twice; give each line a name of its own")
        if cases and len(case.candidates) != len(cases[0].candidates):
            width = len(cases[0].candidates)
            _refuse(path, number, f"{len(case.candidates)} candidates, but {width} in the first case; use one length")
        seen.add(case.case)
        cases.append(case)
    if not cases:
        raise RecalignError(f"{path} holds no case; write a JSON object a line with {FIELDS}")
    return cases


def read_file_log(path: Path, option: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Users and items [N] of an interactions CSV, each user's in the order of time, or else in the order of the file.

    The order of time is that of the column timestamp (numbers or ISO 8601), equal times in the order of the file.
    Raises RecalignError for a missing file, column or number.
    """
    events: list[tuple[int, int]] = []
    times: list[str] = []
    clock = False
    for number, row in _rows(path, option, (c.USER, c.ITEM), "add it"):
        for column in (c.USER, c.ITEM):
            if not _is_whole(row[column]):
                _refuse(path, number, f"{column} is {row[column]!r}; {_wanted(row[column])}")
        events.append((int(row[c.USER]), int(row[c.ITEM])))
        clock = clock or c.TIMESTAMP in row
        times.append(row.get(c.TIMESTAMP) or "")
    if not events:
        raise RecalignError(f"{path} holds no row; {option} needs a row an interaction")
    listed = np.array(events, dtype=np.int64)
    if clock:
        listed = listed[np.argsort(_moments(path, times), kind="stable")]
    return listed[:, 0], listed[:, 1]


def _moments(path: Path, times: list[str]) -> NDArray[Any]:
    """Something that sorts by time."""
    for kind in (np.float64, "datetime64[us]"):
        try:
            return np.array(times).astype(kind)
        except ValueError:
            continue
    raise RecalignError(f"{path}: column '{c.TIMESTAMP}' must hold numbers, or ISO 8601 without a zone, in every row")


def _rows(path: Path, option: str, needed: tuple[str, ...], fix: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV with their line numbers; what a quote or a comma has torn apart is refused."""
    reader = csv.reader(_lines(path, option), strict=True)
    before = 0
    try:
        header = [name.strip() for name in next(reader, [])]
        for column in needed:
            if column not in header:
                raise RecalignError(f"{path} has no column '{column}' (it has {', '.join(header) or 'none'}); {fix}")
        before = reader.line_num
        for values in reader:
            number, before = before + 1, reader.line_num
            if not values:
                continue
            if len(values) != len(header):
                _refuse(path, number, f"{len(values)} values for {len(header)} columns; quote a value with a comma")
            if files.drawn_in(values, ","):
                _refuse(path, number, 'a " that is not closed there draws the next lines in; write "" within quotes')
            yield number, dict(zip(header, values, strict=True))
    except csv.Error as error:
        _refuse(path, before + 1, f'a " that is not closed, or closed too early ({error}); write "" within quotes')


def _lines(path: Path, option: str) -> Iterator[str]:
    if not path.is_file():
        raise RecalignError(f"{path} is not a file; {option} names one")
    with tempfile.TemporaryDirectory() as place:
        content = containers.plain(path, Path(place), "plain").read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        sample = content[max(0, error.start - 2000) : error.start + 20_000]
        before = not content[: error.start].isascii()
        containers.not_utf8(path, line, content[error.start], sample, rest_is_utf8=before)
    return io.StringIO(text, newline="")  # ends lines at newlines only, not at the other separators of str.splitlines


def _parsed(path: Path, number: int, line: str, before: FileCase | None, *, anonymous: bool) -> FileCase:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        _refuse(path, number, f"not JSON ({error.msg}); a JSON object a line is needed")
    if not isinstance(fields, dict):
        _refuse(path, number, f"a {type(fields).__name__}; a JSON object with {FIELDS} is needed")
    guessed = anonymous and c.USER not in fields
    if anonymous:
        fields = {CASE: f"line {number}", c.USER: 0, **fields}
    case = FileCase(
        _field(path, number, fields, CASE, "a whole number or text"),
        _field(path, number, fields, c.USER, "a whole number"),
        tuple(_field(path, number, fields, c.HISTORY, "a list of item ids")),
        tuple(_field(path, number, fields, c.CANDIDATES, "a list of item ids")),
        _field(path, number, fields, c.TARGET, "a whole number"),
        guessed,
    )
    if guessed and before is not None:
        return replace(case, user_id=before.user_id + (before.target not in case.history))
    return case


def _field(path: Path, number: int, fields: Mapping[str, Any], name: str, wanted: str) -> Any:
    if name not in fields:
        _refuse(path, number, f"no field '{name}'; {wanted} is needed")
    value = fields[name]
    fits = {
        "a whole number": _is_id(value),
        "a whole number or text": _is_id(value) or isinstance(value, str),
        "a list of item ids": isinstance(value, list) and all(map(_is_id, value)),
    }[wanted]
    if not fits:
        beyond = any(isinstance(v, int) and abs(v) > LARGEST for v in (value if isinstance(value, list) else [value]))
        also = " (ids up to 2^63 - 1 are read; number larger ones anew)" if beyond else ""
        _refuse(path, number, f"{name} is {json.dumps(value)[:60]}; {wanted} is needed{also}")
    return value


def _check(path: Path, number: int, case: FileCase, catalogue: Items | None) -> None:
    for name, items in ((c.HISTORY, case.history), (c.CANDIDATES, case.candidates)):
        if catalogue is None:
            break
        unknown = next((item for item in items if item not in catalogue.titles), None)
        if unknown is not None:
            _refuse(path, number, f"{name} holds item {unknown}, which --items lacks; add it there")
    if len(set(case.candidates)) != len(case.candidates):
        twice = next(item for item in case.candidates if case.candidates.count(item) > 1)
        _refuse(path, number, f"{c.CANDIDATES} hold item {twice} twice; each may stand once")
    if not case.candidates:
        _refuse(path, number, f"{c.CANDIDATES} are empty; they must hold the target and others")
    if case.target not in case.candidates:
        _refuse(path, number, f"{c.TARGET} {case.target} is not among the candidates; add it to them")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_whole(text: str | None) -> bool:
    return bool(text) and (text or "").strip().lstrip("-").isdecimal() and abs(int(text or "")) <= LARGEST


def _wanted(text: str | None) -> str:
    """What an id that cannot be taken should be."""
    if text and text.strip().lstrip("-").isdecimal():
        return "ids up to 2^63 - 1 are read; number larger ones anew"
    return "a whole number is needed"


def _refuse(path: Path, number: int, what: str) -> NoReturn:
    raise RecalignError(f"{path}:{number}: {what}")
