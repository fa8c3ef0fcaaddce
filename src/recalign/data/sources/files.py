"""Raw files on disk: found, checked for UTF-8, and read into DuckDB with the file and line of every row."""

import csv
import difflib
import hashlib
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.errors import RecalignError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
CHUNK = 16 * 2**20  # bytes read at once
DELIMITERS = ",;\t|"
UNPARSABLE = "unparsable line"
MALFORMED = """create or replace table malformed
    ("table" varchar, "row" varchar, rule varchar, value varchar, file varchar, line bigint)"""


@dataclass(frozen=True)
class Scan:
    """What one pass over a file's bytes tells: its sha256 (hex) and the numbers (from 1) of its blank lines."""

    sha256: str
    blank_lines: tuple[int, ...]


def scan(path: Path, encoding: str = "utf-8") -> Scan:
    """Read a text file once, in pieces.

    Raises RecalignError for an empty file, and for bytes that are not UTF-8 (only where `encoding` is "utf-8").
    """
    digest, blank, first = hashlib.sha256(), [], 1
    with path.open("rb") as handle:
        while lines := handle.readlines(CHUNK):
            text = b"".join(lines)
            digest.update(text)
            if encoding == "utf-8":
                _check_utf8(text, path, first)
            blank += [first + place for place, line in enumerate(lines) if line in (b"\n", b"\r\n")]
            first += len(lines)
    if first == 1:
        raise RecalignError(f"{path} is empty; it needs at least one row")
    return Scan(digest.hexdigest(), tuple(blank))


def _check_utf8(text: bytes, path: Path, first: int) -> None:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first + text[: error.start].count(b"\n")
        raise RecalignError(
            f"{path}, line {line}: byte 0x{text[error.start]:02x} is not UTF-8; "
            f"convert the file, for example with 'iconv -f latin1 -t utf-8 {path.name} > fixed.csv'"
        ) from None


def find(raw: Path, name: str, spill: Path, how_to_get: str) -> Path:
    """A source's file: in `raw`, in a folder of it, or in a zip there (then unpacked into `spill`).

    Raises RecalignError saying how to get it when it is nowhere.
    """
    for path in (raw / name, *sorted(raw.glob(f"*/{name}"))):
        if path.is_file():
            return path
    for archive in sorted(raw.glob("*.zip")):
        try:
            with zipfile.ZipFile(archive) as opened:
                member = next((m for m in opened.infolist() if Path(m.filename).name == name), None)
                if member:
                    member.filename = name  # beneath `spill` whatever path the archive claims
                    return Path(opened.extract(member, spill))
        except zipfile.BadZipFile:
            raise RecalignError(f"{archive} is not a zip archive (a broken download?); {how_to_get}") from None
    raise RecalignError(f"{raw / name} is missing; {how_to_get}")


def read_header(path: Path) -> tuple[list[str], str]:
    """The column names and the delimiter (one of , ; tab |) of a CSV file's first line.

    Raises RecalignError when that is empty.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        first = handle.readline()
    if not first.strip():
        raise RecalignError(f"{path} is empty; its first line has to name the columns")
    delimiter = max(DELIMITERS, key=first.count)
    return [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])], delimiter


def require_columns(path: Path, found: list[str], needed: dict[str, str]) -> None:
    """Check that a file has its columns, each once. `needed` maps a column to what names it ({"id": "table.user"}).

    Raises RecalignError naming the absent column, the nearest that is there, and all of them.
    """
    twice = [column for column in found if found.count(column) > 1]
    if twice:
        raise RecalignError(f"{path} has two columns '{twice[0]}'; rename one")
    for column, key in needed.items():
        if column not in found:
            plain = {name.casefold(): name for name in found}
            near = difflib.get_close_matches(column.casefold(), plain, n=1, cutoff=0.5)
            hint = f"did you mean '{plain[near[0]]}'? " if near else ""
            raise RecalignError(f"{path} has no column '{column}' ({key}); {hint}It has: {', '.join(found)}")


def read_text_table(
    connection: "DuckDBPyConnection",
    table: str,
    path: Path,
    columns: Sequence[str],
    *,
    delimiter: str,
    header: bool,
    quote: str = '"',
    encoding: str = "utf-8",
) -> str:
    """Read a delimited file into the table raw_<table>: its columns as text, then file and line; returns its sha256.

    Lines that do not have these columns go to the table `malformed`. `line` is exact but for line breaks in quotes.
    Raises RecalignError when the file is empty, not UTF-8, or no line at all can be read.
    """
    scanned = scan(path, encoding)
    connection.execute("drop table if exists rejects; drop table if exists rejects_scans")
    connection.execute(
        f"""create or replace table raw_{table} as
            select *, $file as file, row_number() over () + $header::int as line
            from read_csv($path, columns = $columns, delim = $delimiter, header = $header, quote = $quote,
                escape = $quote, encoding = $encoding, auto_detect = false, max_line_size = 10000000,
                store_rejects = true, rejects_table = 'rejects', rejects_scan = 'rejects_scans')""",
        {
            "file": path.name, "path": str(path), "columns": dict.fromkeys(columns, "VARCHAR"), "delimiter": delimiter,
            "header": header, "quote": quote, "encoding": encoding,
        },
    )  # fmt: skip
    connection.execute(
        f"""insert into malformed
            select '{table}', to_json({{'text': any_value(csv_line)}}), '{UNPARSABLE}',
                any_value(error_message), $file, line
            from rejects group by line""",
        {"file": path.name},
    )
    _number_lines(connection, table, scanned.blank_lines)
    rows, rejected = connection.execute(
        f"select (select count(*) from raw_{table}), (select count(distinct line) from rejects)"
    ).fetchone() or (0, 0)
    if not rows:
        if not rejected:
            raise RecalignError(f"{path} holds no row below its header; it needs at least one")
        raise RecalignError(
            f"{path}: none of its {rejected} lines has {len(columns)} columns ({', '.join(columns)}) with "
            f"{delimiter!r} between them; check the first lines of the file"
        )
    if rejected:
        log.warning("%s: %d lines cannot be parsed; they go to quarantine with their text", path, rejected)
    return scanned.sha256


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
            select rows.* replace (rows.line + coalesce(skips.number, 0) as line)
            from raw_{table} as rows asof left join
                (select unnest($starts) as start, unnest($numbers) as number) as skips on rows.line >= skips.start
            order by line""",
        {"starts": list(moved_from), "numbers": list(moved_from.values())},
    )
