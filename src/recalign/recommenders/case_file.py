"""Anyone's cases: candidate lists in JSON lines, and the catalogue that they are drawn from as CSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from recalign import columns as c
from recalign.data.records import Items
from recalign.errors import RecalignError

CASE = "case"
FIELDS = "case, user_id, history, candidates, target"


@dataclass(frozen=True)
class FileCase:
    """A line of a cases file; `case` is its own name for itself, history is oldest first or a set."""

    case: int | str
    user_id: int
    history: tuple[int, ...]
    candidates: tuple[int, ...]
    target: int


def read_catalogue(path: Path) -> Items:
    """Read a CSV with the columns item_id and title; titles stay as they are, no attributes, no popularity.

    Raises RecalignError naming file and line: a missing file or column, an id that is no number or stands twice, an
    empty title, text that is not UTF-8, no row.
    """
    titles: dict[int, str] = {}
    rows = csv.DictReader(_lines(path, "--items"))
    for column in (c.ITEM, c.TITLE):
        if column not in (rows.fieldnames or []):
            found = ", ".join(rows.fieldnames or []) or "none"
            raise RecalignError(f"{path} has no column '{column}' (it has {found}); --items needs item_id,title")
    for row in rows:
        number, raw = rows.line_num, row[c.ITEM]
        if not _is_whole(raw):
            _refuse(path, number, f"{c.ITEM} is {raw!r}; a whole number is needed")
        if int(raw) in titles:
            _refuse(path, number, f"{c.ITEM} {raw} stands twice; keep one title an id")
        if not (row[c.TITLE] or "").strip():
            _refuse(path, number, f"{c.TITLE} of item {raw} is empty; give it one")
        titles[int(raw)] = row[c.TITLE]
    if not titles:
        raise RecalignError(f"{path} holds no item; --items needs a row an item")
    ids = tuple(sorted(titles))
    return Items(ids, titles, {item: {} for item in ids}, dict.fromkeys(ids, 0))


def read_file_cases(path: Path, catalogue: Items) -> list[FileCase]:
    """Read JSON lines with case, user_id, history, candidates and target, in the order of the file; blank lines pass.

    Raises RecalignError naming file and line for whatever could not be ranked: no JSON, a missing or mistyped field,
    an id that the catalogue lacks, a candidate twice, a target that is no candidate, lists of different length.
    """
    cases: list[FileCase] = []
    seen: set[int | str] = set()
    for number, line in enumerate(_lines(path, "--cases"), start=1):
        if not line.strip():
            continue
        case = _parsed(path, number, line)
        _check(path, number, case, catalogue)
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


def _lines(path: Path, option: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise RecalignError(f"{path} is not a file; {option} names one") from None
    except UnicodeDecodeError as error:
        raise RecalignError(f"{path} is not UTF-8 (byte {error.start}); convert it, as with iconv -t utf-8") from None
    return io.StringIO(text, newline="")  # ends lines at newlines only, not at the other separators of str.splitlines


def _parsed(path: Path, number: int, line: str) -> FileCase:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        _refuse(path, number, f"not JSON ({error.msg}); a JSON object a line is needed")
    if not isinstance(fields, dict):
        _refuse(path, number, f"a {type(fields).__name__}; a JSON object with {FIELDS} is needed")
    return FileCase(
        _field(path, number, fields, CASE, "a whole number or text"),
        _field(path, number, fields, c.USER, "a whole number"),
        tuple(_field(path, number, fields, c.HISTORY, "a list of item ids")),
        tuple(_field(path, number, fields, c.CANDIDATES, "a list of item ids")),
        _field(path, number, fields, c.TARGET, "a whole number"),
    )


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
        _refuse(path, number, f"{name} is {json.dumps(value)[:60]}; {wanted} is needed")
    return value


def _check(path: Path, number: int, case: FileCase, catalogue: Items) -> None:
    for name, items in ((c.HISTORY, case.history), (c.CANDIDATES, case.candidates)):
        unknown = next((item for item in items if item not in catalogue.titles), None)
        if unknown is not None:
            _refuse(path, number, f"{name} holds item {unknown}, which --items lacks; add it there")
    if len(set(case.candidates)) != len(case.candidates):
        twice = next(item for item in case.candidates if case.candidates.count(item) > 1)
        _refuse(path, number, f"{c.CANDIDATES} hold item {twice} twice; each may stand once")
    if case.target not in case.candidates:
        _refuse(path, number, f"{c.TARGET} {case.target} is not among the candidates; add it to them")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(text: str | None) -> bool:
    return bool(text) and (text or "").strip().lstrip("-").isdecimal()


def _refuse(path: Path, number: int, what: str) -> NoReturn:
    raise RecalignError(f"{path}:{number}: {what}")
