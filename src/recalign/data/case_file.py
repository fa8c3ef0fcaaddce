"""Anyone's cases: candidate lists in JSON lines, with the catalogue that they are drawn from and the log as CSV."""

import csv
import io
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.ids import (
    INTEGER,
    INTEGER_DIGITS,
    TITLE_MARKERS,
    RawIds,
    number_in_file,
    read_id,
    read_text,
    read_values,
)
from recalign.data.records import Items
from recalign.data.titles import safe_title
from recalign.data.validation.rules import LONGEST_TITLE

log = logging.getLogger(__name__)
CASE = "case"
FIELDS = "case, user_id, history, candidates, target"
SMALLEST, LARGEST_ID = -(2**63), 2**63 - 1  # what a column of 64-bit whole numbers holds
ID, NAME, IDS = "a whole number or a text", "a whole number or text", "a list of item ids"
LONGEST = 100_000  # characters of a field: a longer one is a quote left open, or no table


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
    """As `read_own_catalogue`, by number alone."""
    return read_own_catalogue(path)[0]


def read_own_catalogue(path: Path) -> tuple[Items, RawIds]:
    """Read a CSV with the columns item_id and title, and what its ids are; no popularity.

    All other columns are attributes, their values divided by "|". An id is a whole number or a text, which
    `number_in_file` numbers; titles stay as they are. Raises RecalignError naming file and line: a missing file or
    column, an id that is empty or listed twice, an empty title, text that is not UTF-8, no row.
    """
    titles: dict[int, str] = {}
    texts: dict[int, str] = {}
    attributes: dict[int, dict[str, list[str]]] = {}
    for number, row in _rows(path, "--items", (c.ITEM, c.TITLE)):
        item, text = _id(path, number, c.ITEM, row[c.ITEM]), row[c.ITEM].strip()
        if item in titles:
            _refuse(path, number, f"{c.ITEM} {text} is listed twice; keep one title an id")
        if not (row[c.TITLE] or "").strip():
            _refuse(path, number, f"{c.TITLE} of item {text} is empty; give it one")
        titles[item], texts[item] = row[c.TITLE], text
        attributes[item] = _attributes(row, row.keys() - {c.ITEM, c.TITLE, ""})
    if not titles:
        raise RecalignError(f"{path} holds no item; --items needs a row an item")
    ids = tuple(sorted(titles))
    return Items(ids, titles, attributes, dict.fromkeys(ids, 0)), RawIds(texts)


def with_new_items(path: Path, catalogue: Items, raw: RawIds) -> tuple[Items, RawIds, list[int]]:
    """The catalogue and its ids with the items of a CSV (item_id, title, attributes) beside them, and their numbers.

    Attributes are the columns of the catalogue's own names, their values divided by "|"; other columns are named in the
    log. Cells are read as stages `ingest` and `validate` read an items file. Raises RecalignError naming file and line
    as `read_catalogue` does, and for an id or a title that the catalogue has already: such an item is not new.
    """
    known = {name for own in catalogue.attributes.values() for name in own}
    texts = {item: str(raw.shown(item)) for item in catalogue.ids} | dict(raw.texts)
    taken = {text: catalogue.titles.get(item, "an item that the log was cleaned of") for item, text in texts.items()}
    titled = {catalogue.titles[item].casefold(): texts[item] for item in catalogue.ids}
    first, titles, attributes = max(texts) + 1, dict[int, str](), dict[int, dict[str, list[str]]]()
    for line, row in _rows(path, "--items", (c.ITEM, c.TITLE)):
        text, title, number = read_id(row[c.ITEM]), _validated(row[c.TITLE]), first + len(titles)
        if text is None:
            _refuse(path, line, f"{c.ITEM} {row[c.ITEM]} is a number whose last digits are lost; write them all")
        if not text or not title:
            _refuse(path, line, f"{c.TITLE if text else c.ITEM} is empty; give each item an id and a visible title")
        if text in taken:
            _refuse(path, line, f"{c.ITEM} {text} is that of {taken[text]!r}; give each new item an id of its own")
        if title.casefold() in titled:
            other = titled[title.casefold()]
            _refuse(path, line, f"{c.TITLE} {title!r} is that of item {other}; tell them apart, as by the year")
        taken[text], titled[title.casefold()], texts[number], titles[number] = title, text, text, title
        attributes[number] = _attributes(row, known & row.keys())
    if not titles:
        raise RecalignError(f"{path} holds no item; --items needs a row an item")
    if unread := sorted(row.keys() - known - {c.ITEM, c.TITLE}):
        log.info("%s: not read, for the catalogue has no such attribute: %s", path, ", ".join(unread))
    none = dict.fromkeys(titles, 0)
    more = replace(
        catalogue, ids=(*catalogue.ids, *titles), titles=catalogue.titles | titles,
        attributes=catalogue.attributes | attributes, popularity=catalogue.popularity | none,
        train_events=catalogue.train_events | none,
    )  # fmt: skip
    return more, RawIds(texts), list(titles)


def _attributes(row: Mapping[str, str], names: Collection[str]) -> dict[str, list[str]]:
    """What some columns of a row tell, without those that tell nothing."""
    told = {name: read_values(row[name]) for name in sorted(names)}
    return {name: values for name, values in told.items() if values}


def _validated(title: str) -> str:
    """A title as stage validate leaves it; empty where there is none."""
    return safe_title(read_text(title, TITLE_MARKERS))[:LONGEST_TITLE].rstrip()


def read_file_cases(
    path: Path, catalogue: Items | None, *, option: str = "--cases", anonymous: bool = False
) -> list[FileCase]:
    """Read JSON lines with case, user_id, history, candidates and target, in the order of the file; blank lines pass.

    Ids are whole numbers or texts, which `number_in_file` numbers.
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
        _check(path, number, case, catalogue, line)
        if cases and case.guessed != cases[0].guessed:
            has, first = ("no", "one") if case.guessed else ("a", "none")
            _refuse(path, number, f"{has} {c.USER}, but the first case has {first}; give it in every line or in none")
        if case.case in seen:
            _refuse(path, number, f"case {case.case!r} is listed twice; give each line a name of its own")
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
    Raises RecalignError for a missing file, column or id.
    """
    events: list[tuple[int, int]] = []
    times: list[str] | None = []
    for number, row in _rows(path, option, (c.USER, c.ITEM)):
        events.append((_id(path, number, c.USER, row[c.USER]), _id(path, number, c.ITEM, row[c.ITEM])))
        if c.TIMESTAMP not in row:
            times = None
        elif times is not None:
            times.append(row[c.TIMESTAMP])
    if not events:
        raise RecalignError(f"{path} holds no row; {option} needs a row an interaction")
    listed = np.array(events, dtype=np.int64)
    if times is not None:
        listed = listed[np.argsort(_moments(path, times), kind="stable")]
    return listed[:, 0], listed[:, 1]


def _moments(path: Path, times: list[str]) -> NDArray[Any]:
    """Something that sorts by time."""
    for kind in (np.float64, "datetime64[us]"):
        try:
            moments: NDArray[Any] = np.array(times).astype(kind)
        except (ValueError, OverflowError):
            continue
        if not (np.isnan(moments) if kind is np.float64 else np.isnat(moments)).any():
            return moments
    raise RecalignError(f"{path}: column '{c.TIMESTAMP}' must hold numbers, or ISO 8601 without a zone, in every row")


def _rows(path: Path, option: str, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV with its line numbers; every line is a row, so that no quote can swallow another one.

    Raises RecalignError naming file and line: a missing column, one listed twice, quotes that do not match, a row
    that goes on over several lines, that has more or fewer fields than the header, or that is too long to be one.
    """
    header: list[str] | None = None
    read = csv.reader(_lines(path, option), strict=True)
    end = 0
    while True:
        try:
            fields = next(read, None)
        except csv.Error as error:
            _refuse(path, end + 1, f"{error}: a quote that opens here is not closed in this line, or one stands inside "
                    "a field; close it, or double it")  # fmt: skip
        number, end = end + 1, read.line_num
        if fields is None:
            break
        if end > number:
            _refuse(path, number, f"a quote that opens here is closed {end - number} lines later, and takes them in; "
                    "close it in its line")  # fmt: skip
        if not fields:  # an empty line
            continue
        if longest := next((field for field in fields if len(field) > LONGEST), None):
            _refuse(path, number, f"a field of {len(longest):,} characters; {LONGEST:,} are allowed")
        if header is None:
            header = [name.strip() for name in fields]
            _check_header(path, option, header, needed)
        elif len(fields) != len(header):
            _refuse(path, number, f"{len(fields)} fields, but the header has {len(header)}; put a field that holds a "
                    "comma into double quotes")  # fmt: skip
        else:
            yield number, dict(zip(header, fields, strict=True))
    if header is None:
        _check_header(path, option, [], needed)


def _check_header(path: Path, option: str, header: list[str], needed: tuple[str, ...]) -> None:
    found = ", ".join(header)[:200] or "none"
    for column in needed:
        if column not in header:
            raise RecalignError(
                f"{path} has no column '{column}' (it has {found}); {option} needs {','.join(needed)} in its first line"
            )
    for column in (*needed, c.TIMESTAMP):
        if header.count(column) > 1:
            raise RecalignError(f"{path} has the column '{column}' {header.count(column)} times; keep one")


def _lines(path: Path, option: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8, as with iconv -f ITS-ENCODING -t UTF-8"
        raise RecalignError(f"{path} is not UTF-8 (byte {error.start}); {fix}") from None
    except (FileNotFoundError, IsADirectoryError):
        raise RecalignError(f"{path} is not a file; {option} names one") from None
    except OSError as error:
        raise RecalignError(f"{path} cannot be read ({error.strerror}); {option} names a file") from None
    if (place := text.find("\0")) >= 0:
        number = text.count("\n", 0, place) + 1
        _refuse(path, number, "a NUL byte, so it is no text in UTF-8 (UTF-16, or damaged); write it anew as UTF-8")
    return io.StringIO(text, newline="")  # ends lines at newlines only, not at the other separators of str.splitlines


def _parsed(path: Path, number: int, line: str, before: FileCase | None, *, anonymous: bool) -> FileCase:
    try:
        fields = json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        _refuse(path, number, f"not JSON ({error.msg}); a JSON object a line is needed")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, a field twice, lists in lists
        _refuse(path, number, f"cannot be read ({str(error)[:100]}); a JSON object with {FIELDS} is needed")
    if not isinstance(fields, dict):
        _refuse(path, number, f"a {type(fields).__name__}; a JSON object with {FIELDS} is needed")
    guessed = anonymous and c.USER not in fields
    if anonymous:
        fields = {CASE: f"line {number}", c.USER: 0, **fields}
    case = FileCase(
        _field(path, number, fields, CASE, NAME),
        number_in_file(_field(path, number, fields, c.USER, ID)),
        tuple(map(number_in_file, _field(path, number, fields, c.HISTORY, IDS))),
        tuple(map(number_in_file, _field(path, number, fields, c.CANDIDATES, IDS))),
        number_in_file(_field(path, number, fields, c.TARGET, ID)),
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
        ID: _is_id(value),
        NAME: isinstance(value, int | str) and not isinstance(value, bool),
        IDS: isinstance(value, list) and all(map(_is_id, value)),
    }[wanted]
    if not fits:
        large = next((each for each in (value if isinstance(value, list) else [value]) if _is_large(each)), None)
        if large is not None:
            _refuse(path, number, f"{name} holds {_beyond(str(large))}")
        _refuse(path, number, f"{name} is {json.dumps(value)[:60]}; {wanted} is needed")
    return value


def _check(path: Path, number: int, case: FileCase, catalogue: Items | None, line: str) -> None:
    def told(item: int) -> int | str:
        """An id as the line writes it."""
        fields = json.loads(line)
        written = [*fields[c.HISTORY], *fields[c.CANDIDATES], fields[c.TARGET]]
        return next(raw for raw in written if number_in_file(raw) == item)

    for name, items in ((c.HISTORY, case.history), (c.CANDIDATES, case.candidates)):
        if catalogue is None:
            break
        unknown = next((item for item in items if item not in catalogue.titles), None)
        if unknown is not None:
            _refuse(path, number, f"{name} holds item {told(unknown)}, which --items lacks; add it there")
    if len(set(case.candidates)) != len(case.candidates):
        twice = next(item for item in case.candidates if case.candidates.count(item) > 1)
        _refuse(path, number, f"{c.CANDIDATES} hold item {told(twice)} twice; each may be listed once")
    if not case.candidates:
        _refuse(path, number, f"{c.CANDIDATES} are empty; they must hold the target and others")
    if case.target not in case.candidates:
        _refuse(path, number, f"{c.TARGET} {told(case.target)} is not among the candidates; add it to them")


def _is_id(value: object) -> bool:
    """A whole number that a column holds, or a text that is no larger number and not empty."""
    if isinstance(value, str):
        return bool(value.strip()) and not _is_large(value)
    return isinstance(value, int) and not isinstance(value, bool) and not _is_large(value)


def _is_large(value: object) -> bool:
    if isinstance(value, str) and INTEGER.fullmatch(value.strip()):
        return len(value.strip()) > INTEGER_DIGITS or not SMALLEST <= int(value) <= LARGEST_ID
    return isinstance(value, int) and not SMALLEST <= value <= LARGEST_ID


def _beyond(digits: str) -> str:
    allowed = f"{SMALLEST} to {LARGEST_ID}"
    return f"{digits[:30]}, which no 64-bit whole number holds ({allowed}); renumber the ids in all files"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names each stand once: of two values, readers would take different ones."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, _ in pairs if [each for each, _ in pairs].count(name) > 1)
        raise ValueError(f"field '{twice}' is listed twice")
    return fields


def _id(path: Path, number: int, column: str, text: str) -> int:
    """The number of an id in a field of a CSV."""
    if not _is_id(text):
        _refuse(path, number, f"{column} is {_beyond(text.strip()) if text.strip() else f'{text!r}; {ID} is needed'}")
    return number_in_file(text)


def _refuse(path: Path, number: int, what: str) -> NoReturn:
    raise RecalignError(f"{path}:{number}: {what}")
