"""Raw files on disk: found, made plain (containers.py), and read into DuckDB with the file and line of every row.

Every line of a file is a row, a part of one, blank, or among the lines that cannot be read: the reader counts, and
stops where the numbers differ.
"""

import csv
import difflib
import hashlib
import logging
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from recalign.common.artifacts import file_digest
from recalign.common.errors import RecalignError
from recalign.data.database import scratch
from recalign.data.sources import containers
from recalign.data.sources.reading import FILE, LINE, UNPARSABLE, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
CHUNK = 16 * 2**20  # bytes read at once
DELIMITERS = (",", ";", "\t", "|", "::", "\x01")  # the last is Hive's
CUT = 10_000  # bytes of a line that DuckDB keeps of one that it cannot read
ROWS_AT_ONCE = 10_000
MALFORMED = """create or replace table malformed
    ("table" varchar, "row" varchar, rule varchar, value varchar, file varchar, line bigint)"""


@dataclass(frozen=True)
class Raw:
    """A raw file: `path`, by which people know it, and `plain`, its content as containers.plain makes it."""

    path: Path
    plain: Path


@dataclass(frozen=True)
class Scan:
    """What one pass over a file's bytes tells: its sha256 (hex), lines, the numbers (from 1) of those that are blank.

    encoding: as it has to be read; quotes, backslashes: whether there is any ", and any \\"; newlines: whether its
    lines end in one way, which DuckDB needs.
    """

    sha256: str
    lines: int
    blank_lines: tuple[int, ...]
    encoding: str
    quotes: bool
    backslashes: bool
    newlines: bool


@dataclass(frozen=True)
class Dialect:
    """How a file writes a value that holds its delimiter: in quotes (none: ""), a quote itself behind `escape`."""

    quote: str
    escape: str


STANDARD, BACKSLASH, UNQUOTED = Dialect('"', '"'), Dialect('"', "\\"), Dialect("", "")


@dataclass(frozen=True)
class Parse:
    """What a dialect makes of a file: rows, rejected records, and what went wrong with quotes.

    broken: rejected for a quote; lost: lines that are in no record, or that a quote has drawn into another one;
    quoted_rejects: rejected lines that hold a quote; first: the line where it starts, 0 where nothing is wrong.
    """

    rows: int
    rejected: int
    broken: int
    lost: int
    quoted_rejects: int
    first: int

    @property
    def trouble(self) -> int:
        """Lines that the quotes of a file cost."""
        return self.broken + self.lost


def open_raw(connection: "DuckDBPyConnection", path: Path, table: str) -> Raw:
    """Make a file's content plain, in the folder where the database spills to.

    Raises RecalignError for what is no table (containers.plain), and for an empty file.
    """
    if not path.stat().st_size:
        raise RecalignError(f"{path} is empty; it needs at least one row")
    return Raw(path, containers.plain(path, scratch(connection), f"raw-{table}"))


def scan(raw: Raw, encoding: str = "utf-8") -> Scan:
    """Read a text file once, in pieces; one that is UTF-8 after all is read as that whatever `encoding` says.

    Raises RecalignError for an empty file, and for bytes that are not UTF-8 (only where `encoding` is "utf-8").
    """
    digest, blank, first = hashlib.sha256(), [], 1
    utf8, letters, quotes, backslashes = True, False, False, False
    ends = {b"\n": 0, b"\r\n": 0, b"\r": 0}
    with raw.plain.open("rb") as handle:
        while lines := handle.readlines(CHUNK):
            text = b"".join(lines)
            digest.update(text)
            if utf8 and not text.isascii():
                utf8 = _is_utf8(text, raw.path, first, letters) if encoding == "utf-8" else _decodes(text)
                letters = True
            quotes, backslashes = quotes or b'"' in text, backslashes or b'\\"' in text
            if b"\r" in text or ends[b"\r"]:
                for end in ends:
                    ends[end] += text.count(end)
            else:
                ends[b"\n"] += len(lines)
            blank += [first + place for place, line in enumerate(lines) if line in (b"\n", b"\r\n")]
            first += len(lines)
    if first == 1:
        raise RecalignError(f"{raw.path} is empty; it needs at least one row")
    one_way = not ends[b"\r"] or ends[b"\r"] == ends[b"\r\n"] >= ends[b"\n"]
    sha256 = digest.hexdigest() if raw.plain.is_symlink() else file_digest(raw.path)
    return Scan(sha256, first - 1, tuple(blank), "utf-8" if utf8 else encoding, quotes, backslashes, one_way)


def _decodes(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_utf8(text: bytes, path: Path, first: int, letters: bool) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first + text[: error.start].count(b"\n")
        before = letters or not text[: error.start].isascii()
        sample = text[max(0, error.start - 2000) : error.start + 20_000]
        containers.not_utf8(path, line, text[error.start], sample, rest_is_utf8=before)
    return True


def _unify_newlines(raw: Raw) -> None:
    """Rewrite the plain content with \\n at the end of every line; a lone \\r within a line becomes a space."""
    unified = raw.plain.with_name(f"{raw.plain.name}-lines")
    with raw.plain.open("rb") as source, unified.open("wb") as sink:
        while lines := source.readlines(CHUNK):
            text = b"".join(lines).replace(b"\r\n", b"\n")
            sink.write(text.replace(b"\r", b" " if b"\n" in text else b"\n"))
    raw.plain.unlink()
    unified.rename(raw.plain)


def find(raw: Path, name: str, spill: Path, how_to_get: str) -> Path:
    """A source's file: in `raw`, in a folder of it, or in a zip there (then unpacked into `spill`).

    Raises RecalignError saying how to get it when it is nowhere, and naming the places where it is in several.
    """
    if (raw / name).is_file():
        return raw / name
    folders = [path for path in sorted(raw.glob(f"*/{name}")) if path.is_file()]
    archives: dict[Path, zipfile.ZipInfo] = {}
    for archive in sorted(raw.glob("*.zip")):
        try:
            with zipfile.ZipFile(archive) as opened:
                members = [m for m in opened.infolist() if Path(m.filename).name == name]
        except zipfile.BadZipFile:
            raise RecalignError(f"{archive} is not a zip archive (a broken download?); {how_to_get}") from None
        _refuse_several([f"{archive}: {member.filename}" for member in members], name)
        if members:
            archives[archive] = members[0]
    _refuse_several([str(path) for path in folders], name)
    if folders:
        return folders[0]
    _refuse_several([str(path) for path in archives], name)
    for archive, member in archives.items():
        with zipfile.ZipFile(archive) as opened:
            member.filename = name  # beneath `spill` whatever path the archive claims
            return Path(opened.extract(member, spill))
    raise RecalignError(f"{raw / name} is missing; {how_to_get}")


def _refuse_several(places: Sequence[str], name: str) -> None:
    if len(places) > 1:
        raise RecalignError(f"{name} is there {len(places)} times ({', '.join(places[:3])}); keep the right one")


def read_header(raw: Raw, names: Sequence[str] | None = None, key: str = "table.columns") -> tuple[list[str], str]:
    """The column names of a text file and its delimiter (one of , ; tab | :: and \\x01, as its first line shows).

    names: those of a file without a header line, as params give them in `key`; None: the first line names them.
    Raises RecalignError when the first line is empty, and where it has another number of values than `names`.
    """
    first = next(containers.lines_of(raw.plain), "")
    if not first.strip():
        raise RecalignError(f"{raw.path}: its first line is empty; it has to name the columns")
    if re.match(r"(?i)sep=.\s*$", first):
        raise RecalignError(f"{raw.path} begins with Excel's line '{first.strip()}'; remove that line")
    delimiter = max(DELIMITERS, key=first.count)
    if delimiter == "::":
        cells = first.strip("\r\n").split(delimiter)
    else:
        cells = next(csv.reader([first], delimiter=delimiter), [])
    cells = [cell.strip() for cell in cells]
    if names is None:
        return cells, delimiter
    if len(names) != len(cells):
        shown = ", ".join(cells[:8])
        raise RecalignError(
            f"{raw.path}: {key} names {len(names)} columns ({', '.join(names)}), but its lines have {len(cells)} "
            f"({shown}); name each of them, in their order"
        )
    return list(names), delimiter


def require_names(path: Path, found: Sequence[str], key: str) -> None:
    """Check that a first line holds names. Raises RecalignError where it looks like a row of data."""
    if looks_like_data(found):
        shown = ", ".join(found[:8])
        raise RecalignError(
            f"{path}: its first line ({shown}) is data, it names no columns; name them in {key} of params.yaml, in "
            f"their order ({key}: [user_id, item_id, …]), or add a first line with names"
        )


def looks_like_data(cells: Sequence[str]) -> bool:
    """Whether one of a line's values is a number or a date, which no column is called."""
    return any(re.fullmatch(r"[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?|\d{4}-\d\d-\d\d([ T].*)?", cell) for cell in cells)


def require_columns(path: Path, found: Sequence[str], needed: dict[str, str]) -> None:
    """Check that a file has its columns, each once. `needed` maps a column to what names it ({"id": "table.user"}).

    Raises RecalignError naming the absent column, the nearest that is there, and all of them.
    """
    twice = [column for column in found if found.count(column) > 1]
    if twice:
        raise RecalignError(f"{path} has two columns '{twice[0]}'; rename one")
    plain = {name.casefold(): name for name in found}
    alike = next((name for name in found if plain[name.casefold()] != name), None)
    if alike is not None:
        raise RecalignError(
            f"{path} has columns '{alike}' and '{plain[alike.casefold()]}', which differ in case alone; rename one"
        )
    for column, key in needed.items():
        if column not in found:
            near = difflib.get_close_matches(column.casefold(), plain, n=1, cutoff=0.5)
            hint = f"did you mean '{plain[near[0]]}'? " if near else ""
            raise RecalignError(f"{path} has no column '{column}' ({key}); {hint}It has: {', '.join(found)}")


@dataclass(frozen=True)
class Layout:
    """How a delimited file is written: what stands between its columns, whether a line of names comes first.

    quote: around values, "" where nothing is.
    """

    delimiter: str
    header: bool
    quote: str = '"'
    encoding: str = "utf-8"


def read_text_table(
    connection: "DuckDBPyConnection", table: str, raw: Raw, columns: Sequence[str], layout: Layout
) -> str:
    """Read a delimited file into raw_<table>: texts, and their origin (reading.FILE, LINE); returns its sha256.

    layout.quote '"': as most files do, by "" or by \\", or not at all where no value needs it: whichever reads every
    line.
    Lines that do not have these columns go to the table `malformed`. `line` is exact but for line breaks in quotes.
    Raises RecalignError when the file is empty, not UTF-8, no line at all can be read, or lines would be lost.
    """
    delimiter, encoding = layout.delimiter, layout.encoding
    scanned = scan(raw, encoding)
    if not scanned.newlines:
        log.info("%s: its lines end in different ways; all are read", raw.path)
        _unify_newlines(raw)
        scanned = scan(raw, encoding)
    source = _TextFile(connection, table, raw, tuple(columns), delimiter, layout.header, scanned)
    parse = _best_parse(source, UNQUOTED if not layout.quote or delimiter == "::" or not scanned.quotes else STANDARD)
    if parse.lost:
        _refuse_loss(source, parse)
    _keep_rejects(source)
    _number_lines(connection, table, scanned.blank_lines if len(columns) > 1 else ())
    if not parse.rows:
        if not parse.rejected:
            raise RecalignError(f"{raw.path} holds no row below its header; it needs at least one")
        raise RecalignError(
            f"{raw.path}: none of its {parse.rejected} lines has {len(columns)} columns ({', '.join(columns)}) with "
            f"{delimiter!r} between them; check the first lines of the file"
        )
    if parse.rejected:
        log.warning("%s: %d lines cannot be parsed; they go to quarantine with their text", raw.path, parse.rejected)
    return scanned.sha256


@dataclass(frozen=True)
class _TextFile:
    connection: "DuckDBPyConnection"
    table: str
    raw: Raw
    columns: tuple[str, ...]
    delimiter: str
    header: bool
    scanned: Scan


def _best_parse(source: _TextFile, dialect: Dialect) -> Parse:
    """Read a file in the dialect that costs no line, `dialect` before others; it stays in the database."""
    parse = _parse(source, dialect)
    if dialect == UNQUOTED or not parse.trouble:
        return parse
    best, chosen = parse, STANDARD
    if source.scanned.backslashes:
        tried = _parse(source, BACKSLASH)
        if tried.trouble < best.trouble:
            best, chosen = tried, BACKSLASH
    if best.trouble:
        tried = _parse(source, UNQUOTED)
        if not tried.quoted_rejects and not tried.lost:
            log.warning('%s: its values are not in quotes, so a " in it is read as it is written', source.raw.path)
            _unwrap(source)
            return tried
        return _parse(source, chosen)
    log.info('%s: a \\" in quotes is read as "', source.raw.path)
    return best


def _parse(source: _TextFile, dialect: Dialect) -> Parse:
    connection, table = source.connection, source.table
    connection.execute("drop table if exists rejects; drop table if exists rejects_scans")
    connection.execute(
        f"""create or replace table raw_{table} as
            select *, $file as "{FILE}", row_number() over () + $header::int as "{LINE}"
            from read_csv($path, columns = $columns, delim = $delimiter, header = $header, quote = $quote,
                escape = $escape, encoding = $encoding, auto_detect = false, max_line_size = 10000000,
                compression = 'none', hive_partitioning = false,
                store_rejects = true, rejects_table = 'rejects', rejects_scan = 'rejects_scans')""",
        {
            "file": source.raw.path.name, "path": str(source.raw.plain),
            "columns": dict.fromkeys(source.columns, "VARCHAR"), "delimiter": source.delimiter, "header": source.header,
            "quote": dialect.quote, "escape": dialect.escape, "encoding": source.scanned.encoding,
        },
    )  # fmt: skip
    rows, rejected, broken, quoted_rejects, first = connection.execute(
        f"""select (select count(*) from raw_{table}), count(distinct line),
                count(distinct line) filter (error_type = 'UNQUOTED VALUE'),
                count(distinct line) filter (contains(csv_line, '"')),
                coalesce(min(line) filter (error_type = 'UNQUOTED VALUE'), 0) from rejects"""
    ).fetchone() or (0, 0, 0, 0, 0)
    alone = source.scanned.lines - source.header - rows - rejected  # lines that are no record of their own
    blank = len(source.scanned.blank_lines)
    if alone == blank or (len(source.columns) == 1 and 0 <= alone <= blank):
        return Parse(rows, rejected, broken, 0, quoted_rejects, first)
    held, blank_held, drawn, first_drawn = _held_lines(source)
    held += _newlines_of_rejects(connection)
    lost = max(0, alone - held - (blank - blank_held)) + drawn
    first = min((line for line in (first, first_drawn) if line), default=0)
    return Parse(rows, rejected, broken, lost, quoted_rejects, first)


def _held_lines(source: _TextFile) -> tuple[int, int, int, int]:
    """Line breaks in values, blank lines among them, lines that a quote drew in, and the line of the first such row."""
    names = [quoted(column) for column in source.columns]
    broken = " or ".join(f"contains({name}, chr(10))" for name in names)
    found = source.connection.execute(
        f"""select "{LINE}", {", ".join(names)} from raw_{source.table} where {broken} order by "{LINE}" """
    )
    held = blank = drawn = first = 0
    while rows := found.fetchmany(ROWS_AT_ONCE):
        for line, *values in rows:
            lines = [value.split("\n") for value in values if value]
            held += sum(len(parts) - 1 for parts in lines)
            blank += sum(part in ("", "\r") for parts in lines for part in parts[1:-1])
            caught = drawn_in(values, source.delimiter)
            drawn += caught
            first = first or (line if caught else 0)
    return held, blank, drawn, first


def drawn_in(values: Sequence[str | None], delimiter: str) -> int:
    """Lines that an open quote drew into one of a row's values, though they are rows of their own; 0 for text of lines.

    They have as many columns as the row, and most begin as it does: "217" as "216", but "and so on" not.
    """
    last = len(values) - 1
    start = _shape((values[0] or "").split("\n")[0])
    for place, value in enumerate(values):
        first, *others = (value or "").split("\n")
        if not others or first.count(delimiter) != last - place or others[-1].count(delimiter) != place:
            continue
        full = sum(part.count(delimiter) == last for part in others[:-1])
        alike = sum(_shape(part.split(delimiter)[0]) == start for part in others)
        if full >= 0.9 * (len(others) - 1) and (alike >= 0.5 * len(others)):
            return len(others)
    return 0


def _shape(text: str) -> str:
    """A text with one 9 for a run of digits and one a for a run of letters."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", text.strip(' "')))


def _newlines_of_rejects(connection: "DuckDBPyConnection") -> int:
    """Line breaks in records that were rejected for another reason than a quote."""
    found = connection.execute(
        """select coalesce(sum(length(text) - length(replace(text, chr(10), ''))), 0) from (
               select any_value(csv_line) as text from rejects group by line
               having bool_and(error_type <> 'UNQUOTED VALUE'))"""
    ).fetchone()
    return int(found[0]) if found else 0


def _unwrap(source: _TextFile) -> None:
    """Take the quotes off values that are in quotes as a whole."""
    values = ", ".join(
        f"""case when {name} like '"%"' and length({name}) > 1 then nullif(replace({name}[2:-2], '""', '"'), '')
            else {name} end as {name}"""
        for name in map(quoted, source.columns)
    )
    source.connection.execute(
        f"""create or replace table raw_{source.table} as
            select {values}, "{FILE}", "{LINE}" from raw_{source.table} order by "{LINE}" """
    )


def _refuse_loss(source: _TextFile, parse: Parse) -> NoReturn:
    lines = source.scanned.lines - source.header - len(source.scanned.blank_lines)
    where = f"a quotation mark in line {parse.first}" if parse.first else "a quotation mark"
    raise RecalignError(
        f"{source.raw.path}: {parse.rows:,} rows and {parse.rejected:,} unreadable ones are fewer than its {lines:,} "
        f"lines, for {where} is not closed there and takes {parse.lost:,} lines with it; double it within quotes "
        f'("…""…"), or remove it'
    )


def _keep_rejects(source: _TextFile) -> None:
    """Move what was rejected to `malformed`, with the whole text of its lines."""
    found = source.connection.execute(
        """select line, any_value(csv_line), any_value(error_message), min(line_byte_position) from rejects
            group by line order by line"""
    ).fetchall()
    if not found:
        return
    texts = [_whole_text(source.raw.plain, text, start) for _, text, _, start in found]
    source.connection.execute(
        f"""insert into malformed
            select '{source.table}', to_json({{'text': unnest($texts)}}), '{UNPARSABLE}', unnest($why), $file,
                unnest($lines)""",
        {
            "texts": texts, "why": [why for _, _, why, _ in found], "file": source.raw.path.name,
            "lines": [line for line, *_ in found],
        },
    )  # fmt: skip


def _whole_text(plain: Path, text: str, start: int) -> str:
    """The line that DuckDB kept the beginning of; where it cannot be found again, the beginning and a note."""
    if len(text.encode()) < CUT - 3:  # it may be cut within a letter
        return text
    with plain.open("rb") as handle:
        handle.seek(start - 1)
        line = handle.readline().decode("utf-8", errors="replace").rstrip("\r\n")
    return line if line.startswith(text[:1000].split("\n")[0]) else f"{text} [cut after {len(text)} characters]"


def _number_lines(connection: "DuckDBPyConnection", table: str, blank: Sequence[int]) -> None:
    """Add to each row's line the number of skipped lines (rejected or blank) above it."""
    rejected = [line for (line,) in connection.execute("select distinct line from rejects").fetchall()]
    skipped = sorted({*rejected, *blank})
    if not skipped:
        return
    # the k-th skipped line moves every row from this number on, counted without the skipped ones
    moved_from = {line - place: place + 1 for place, line in enumerate(skipped)}
    connection.execute(
        f"""create or replace table raw_{table} as
            select rows.* replace (rows."{LINE}" + coalesce(skips.number, 0) as "{LINE}")
            from raw_{table} as rows asof left join
                (select unnest($starts) as start, unnest($numbers) as number) as skips on rows."{LINE}" >= skips.start
            order by "{LINE}" """,
        {"starts": list(moved_from), "numbers": list(moved_from.values())},
    )
