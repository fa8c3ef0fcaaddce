"""Ids as people's files write them: what is missing, which are one id, and the number that each has in recalign.

The number of an id depends on its own text alone, so no other id moves it: an integer below 2^52 is its own number, and
any other text has a number of its sha256 from 2^52 to 2^53, which JSON and float64 hold exactly.
"""

import hashlib
import logging
import re
from typing import TYPE_CHECKING

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
SMALL = "0|-?[1-9][0-9]{0,15}"


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
