"""Ids as people's files write them: what is missing, which are one id, and the number that each has in recalign.

The number of an id depends on its own text alone, so no other id moves it: an integer below 2^52 is its own number, and
any other text has a number of its sha256 from 2^52 to 2^53, which JSON and float64 hold exactly. Stages count with
numbers; commands take and give the ids of a person's own log, which `RawIds` keeps beside them.
"""

import hashlib
import logging
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet, write_parquet

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
KEPT = 2**52  # integers below are their own numbers; text has numbers from here on
DIGITS = 13  # hexadecimal digits of sha256 in a text's number: 52 bits
EXACT = 2**53  # integers beyond have no exact float64
# what exports write for "no value": of SQL, Hive, pandas, R, Excel, Java and JavaScript
MARKERS = (
    "\\N", "NULL", "Null", "null", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "None", "(null)", "<null>",
    "nil", "undefined",
)  # fmt: skip
TITLE_MARKERS = ("\\N", "NULL", "#N/A", "<NA>", "NaN", "nan", "(null)", "<null>")  # those that are no title either
SPACES = " \t\r\n\v\f\u00a0\u200b\ufeff"
BLANKS = (
    " \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"  # SQL's trim
)
SMALL = "0|-?[1-9][0-9]{0,15}"
WHOLE, POWER = r"(-?(?:0|[1-9][0-9]*))\.0*", r"-?[0-9](\.[0-9]+)?[eE]\+[0-9]+"


def number_of(raw_id: str) -> int:
    """The number of an id (collisions apart, which the tables' raw_id shows).

    Example: number_of("17") == 17; number_of("B07919Q1") is the same on every machine, whatever other ids there are.
    """
    if re.fullmatch(SMALL, raw_id) and abs(int(raw_id)) < KEPT:
        return int(raw_id)
    return KEPT + int(hashlib.sha256(raw_id.encode()).hexdigest()[:DIGITS], 16)


def listed(texts: tuple[str, ...]) -> str:
    """Texts as an SQL list."""
    return "(" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + ")"


def unmarked(text: str, markers: tuple[str, ...] = MARKERS) -> str:
    """SQL: a text, null where it is a marker of a missing value."""
    return f"case when {text} in {listed(markers)} then null else {text} end"


def canonical(text: str) -> str:
    """SQL: an id's text without the ".0" that floats add to integers; null where digits of it are lost.

    Lost are those of a power of ten (1.2e+17) and of a float beyond 2^53.
    """
    whole = f"regexp_extract({text}, '^(-?(0|[1-9][0-9]*))\\.0*$', 1)"
    exact = f"abs(try_cast({whole} as hugeint)) <= {EXACT}"
    power = f"regexp_full_match({text}, '-?[0-9](\\.[0-9]+)?[eE]\\+[0-9]+')"
    return (
        f"case when contains({text}, '.') and {whole} <> '' then case when {exact} then {whole} end "
        f"when contains({text}, '+') and {power} then null else {text} end"
    )


def read_text(text: str, markers: tuple[str, ...] = MARKERS) -> str:
    """A cell as ingest reads it: without spaces around it, empty where it is a marker of a missing value."""
    plain = text.strip(SPACES)
    return "" if plain in markers else plain


def read_id(text: str) -> str | None:
    """An id as ingest reads it, in Python what `canonical` is in SQL; empty where there is none."""
    plain = read_text(text)
    if found := re.fullmatch(WHOLE, plain):
        whole = found[1]
        return whole if len(whole) <= INTEGER_DIGITS and abs(int(whole)) <= EXACT else None
    return None if re.fullmatch(POWER, plain) else plain


def read_values(text: str) -> list[str]:
    """The values of an attribute that "|" separates in a cell, as ingest reads them."""
    parts = [part.strip(BLANKS) for part in read_text(text, TITLE_MARKERS).split("|")]
    return [part for part in parts if part]


def number_ids(connection: "DuckDBPyConnection", kind: str, raw_ids: str) -> bool:
    """Make the table <kind>_ids (raw_id, number) of a query of texts; whether any of them is no integer below 2^52.

    Two texts of one number (one pair in 4.5e15 tries): the later in sorted order is hashed again, with a count.
    """
    connection.execute(
        f"""create or replace table {kind}_ids as
            select raw_id, case when regexp_full_match(raw_id, '{SMALL}') and abs(try_cast(raw_id as bigint)) < {KEPT}
                then cast(raw_id as bigint) end as number
            from (select distinct raw_id from ({raw_ids}) where raw_id is not null)"""
    )
    [(hashed, example, ids)] = connection.execute(
        f"select count(*) filter (number is null), min(raw_id) filter (number is null), count(*) from {kind}_ids"
    ).fetchall()
    if not hashed:
        return False
    log.info(
        "%s: %d of %d ids are no integers below 2^52 (%r, for one); each has a number of its text (raw_id keeps it)",
        kind, hashed, ids, example,
    )  # fmt: skip
    connection.execute(f"update {kind}_ids set number = {_hashed('raw_id')} where number is null")
    _part_twins(connection, kind)
    return True


def _hashed(text: str) -> str:
    return f"{KEPT} + cast('0x' || sha256({text})[1:{DIGITS}] as bigint)"


def _part_twins(connection: "DuckDBPyConnection", kind: str) -> None:
    """Give every text a number of its own."""
    again = 0
    while True:
        twins = f"""select raw_id from {kind}_ids where number >= {KEPT}
            qualify row_number() over (partition by number order by raw_id) > 1"""
        found = [raw_id for (raw_id,) in connection.execute(twins).fetchall()]
        if not found:
            return
        again += 1
        log.warning("%s: %d ids share a number (%r, for one); they get another", kind, len(found), found[0])
        salted = _hashed(f"raw_id || chr(0) || '{again}'")
        connection.execute(
            f"update {kind}_ids set number = {salted} where raw_id in (select unnest($found))", {"found": found}
        )


RAW = "raw_id"
INTEGER = re.compile("0|-?[1-9][0-9]*")
INTEGER_DIGITS = 20  # no whole number of 64 bits has more, its sign included
KEPT_FILE = "item_ids.parquet"  # in a package


def number_in_file(raw: int | str) -> int:
    """The number of an id in files of one's own, which stage ingest never numbered: a whole number is its own.

    Another text ("A4WSJ…", "007") gets one of its hash, so that all files agree on it.
    """
    text = str(raw).strip()
    return int(text) if INTEGER.fullmatch(text) and len(text) <= INTEGER_DIGITS else number_of(text)


@dataclass(frozen=True)
class RawIds:
    """Ids of items or users as their log writes them, by number. A number without one is its own id."""

    texts: Mapping[int, str]

    @classmethod
    def of_items(cls, interactions: Path) -> "RawIds":
        """As stage ingest numbered them in data/interactions."""
        return cls(_read(interactions / "items.parquet", c.ITEM))

    @classmethod
    def of_users(cls, interactions: Path) -> "RawIds":
        """As stage ingest numbered them in data/interactions."""
        return cls(_read(interactions / "users.parquet", c.USER))

    @classmethod
    def of_package(cls, package: Path) -> "RawIds":
        """As they are kept in a package; one registered before they were knows numbers only."""
        return cls(_read(package / KEPT_FILE, c.ITEM) if (package / KEPT_FILE).is_file() else {})

    def write(self, package: Path) -> None:
        """Keep them in a package."""
        ids = sorted(self.texts)
        columns = {c.ITEM: pa.array(ids, pa.int64()), RAW: pa.array([self.texts[i] for i in ids], pa.string())}
        write_parquet(package / KEPT_FILE, pa.table(columns))

    def within(self, ids: Container[int]) -> "RawIds":
        """Those of some numbers."""
        return RawIds({number: text for number, text in self.texts.items() if number in ids})

    def shown(self, number: int) -> int | str:
        """The id as its owner knows it: a whole number where it is one, else text."""
        text = self.texts.get(number, str(number))
        return number if text == str(number) else text

    def number(self, raw: int | str) -> int | None:
        """The number of an id; None for one that nobody wrote so."""
        text = str(raw).strip()
        if self.texts:
            return self._numbers.get(text)
        return int(text) if INTEGER.fullmatch(text) else None

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {text: number for number, text in self.texts.items()}


def _read(path: Path, column: str) -> dict[int, str]:
    table = read_parquet(path).select([column, RAW])
    pairs = zip(table[column].to_pylist(), table[RAW].to_pylist(), strict=True)
    return {number: raw for number, raw in pairs if raw is not None}
