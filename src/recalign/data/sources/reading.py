"""From raw text columns to typed events and items, whatever the source; what cannot be typed goes to `malformed`.

Times are read as people's logs write them: which unit or form a column has, and what does not fit it.

A reader leaves raw_interactions and raw_items (texts, and where each row comes from in ORIGIN's columns), and two
relations made of them, which `write_tables` turns into the files of the contract:
events_read (user, item: text; rating: double; timestamp; position: bigint; file, line) and
items_read (item, title: text; attributes: map of lists; available_from: timestamp; file, line).
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.database import ROW_GROUP, one, write_rows
from recalign.data.ids import MARKERS, SPACES, TITLE_MARKERS, canonical, listed, number_ids, unmarked

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
INTEGER = "0|-?[1-9][0-9]{0,17}"
UNPARSABLE = "unparsable line"
FILE, LINE = "recalign file", "recalign line"  # of a raw row: names that no column of a person's file has
UP = ("true", "t", "yes", "y", "up", "thumbs up", "thumbs_up", "thumbsup", "thumb up", "like", "liked", "positive",
      "recommended", "👍")  # fmt: skip
DOWN = ("false", "f", "no", "n", "down", "thumbs down", "thumbs_down", "thumbsdown", "thumb down", "dislike",
        "disliked", "negative", "not recommended", "👎")  # fmt: skip
INTERACTIONS = pa.schema(
    {
        c.USER: pa.int64(), c.ITEM: pa.int64(), c.RATING: pa.float64(), c.TIMESTAMP: pa.timestamp("us"),
        c.POSITION: pa.int64(), c.FILE: pa.string(), c.LINE: pa.int64(),
    }
)  # fmt: skip
ITEMS = pa.schema(
    {
        c.ITEM: pa.int64(), c.TITLE: pa.string(), c.ATTRIBUTES: pa.map_(pa.string(), pa.list_(pa.string())),
        c.AVAILABLE: pa.timestamp("us"), "raw_id": pa.string(), c.FILE: pa.string(), c.LINE: pa.int64(),
    }
)  # fmt: skip
USERS = pa.schema({c.USER: pa.int64(), "raw_id": pa.string()})
QUARANTINE = pa.schema({name: pa.string() for name in ("table", "row", c.RULE, c.VALUE, c.FILE)} | {c.LINE: pa.int64()})
SCHEMAS = {"interactions": INTERACTIONS, "items": ITEMS, "users": USERS, "malformed": QUARANTINE}


@dataclass(frozen=True)
class SourceFacts:
    """What source.json says of a source; files maps a raw file's name to its sha256."""

    noun: str
    clock: bool
    min_rating: float | None
    terms: str
    files: dict[str, str]


@dataclass(frozen=True)
class Parsed:
    """A text column read as a type, in SQL: its text (null where empty), value (null where unreadable) and rule.

    In `value`, "{text}" stands for the text, which `typed` computes once. missing: texts that mean that there is none.
    """

    text: str
    value: str
    rule: str
    missing: tuple[str, ...] = ()


def quoted(name: str) -> str:
    """A column's name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def filled(column: str) -> str:
    """SQL: a column's text without spaces around it, null where nothing is left."""
    name = quoted(column)
    first, last = f"({name} < '!' or {name} >= chr(128))", f"({name}[-1] < '!' or {name}[-1] >= chr(128))"
    return f"nullif(case when {first} or {last} then trim({name}, {literal(SPACES)}) else {name} end, '')"


def title_text(column: str) -> str:
    """SQL: as `filled`, and null where it is a marker that no title is ("None" may be one)."""
    return unmarked(filled(column), TITLE_MARKERS)


def typed(relation: str, parsed: dict[str, Parsed]) -> str:
    """SQL: a relation and for each name the columns "text NAME" and "value NAME", each computed once."""
    texts = ", ".join(f'{p.text} as "text {name}"' for name, p in parsed.items())
    named = {f'"text {name}"': p.missing for name, p in parsed.items() if p.missing}
    kept = [f"{unmarked(text, missing)} as {text}" for text, missing in named.items()]
    known = f"* replace ({', '.join(kept)})" if kept else "*"
    values = ", ".join(
        p.value.replace("{text}", f'"text {name}"') + f' as "value {name}"' for name, p in parsed.items()
    )
    return f"(select *, {values} from (select {known} from (select *, {texts} from {relation})))"


def any_id(column: str) -> Parsed:
    """An id of any kind, 12.0 being 12; markers of a missing value are none."""
    return Parsed(filled(column), canonical("{text}"), f"{column} is a number whose last digits are lost", MARKERS)


def integer_id(column: str) -> Parsed:
    """An id that has to be an integer."""
    value = f"case when regexp_full_match({{text}}, '{INTEGER}') then {{text}} end"
    return Parsed(filled(column), value, f"{column} is no integer")


def number(column: str) -> Parsed:
    """A decimal number."""
    return Parsed(filled(column), "try_cast({text} as double)", f"{column} is no number")


def opinion(text: str) -> str:
    """SQL: 1 or 0 of words such as true and thumbs down, else null."""
    return f"case when lower({text}) in {listed(UP)} then 1.0 when lower({text}) in {listed(DOWN)} then 0.0 end"


def rating(column: str) -> Parsed:
    """A rating: a number, also with a decimal comma (4,5), or words for yes and no (1 and 0)."""
    comma = "case when regexp_full_match({text}, '-?[0-9]+,[0-9]{1,2}') then replace({text}, ',', '.') end"
    word = opinion("{text}")
    value = f"coalesce(try_cast({{text}} as double), try_cast({comma} as double), {word})"
    return Parsed(filled(column), value, f"{column} is no number", MARKERS)


def attributes(columns: dict[str, str]) -> str:
    """SQL: a map from each attribute's name to the values that "|" separates in an SQL text, without empty ones."""
    entries = ", ".join(
        f"{{'key': {literal(name)}, 'value': list_filter(list_transform(string_split(coalesce({text}, ''), '|'), "
        "lambda part: trim(part)), lambda part: part <> '')}"
        for name, text in columns.items()
    )
    kept = f"list_filter([{entries}], lambda entry: len(entry.value) > 0)" if entries else "[]"
    return f"map_from_entries({kept}::struct(key varchar, value varchar[])[])"


def row_json(relation: str) -> str:
    """SQL: a raw row as JSON, without where it comes from."""
    removed = json.dumps(dict.fromkeys((FILE, LINE, "recalign rule", "recalign value")))
    return f"json_merge_patch(to_json({relation}), {literal(removed)})::varchar"


def type_rows(connection: "DuckDBPyConnection", table: str, relation: str, parsed: dict[str, Parsed | str]) -> None:
    """Make the table `relation` of raw_<table>: names from Parsed columns or plain SQL expressions, then file and line.

    A row with a column that cannot be read goes to `malformed` under the first such column's rule.
    Raises RecalignError when that is every row.
    """
    read = {name: p for name, p in parsed.items() if isinstance(p, Parsed)}
    rows = typed(f"raw_{table}", read) if read else f"raw_{table}"
    fails = {f'"text {name}" is not null and "value {name}" is null': name for name in read}
    cases = " ".join(f"when {fail} then {literal(name)}" for fail, name in fails.items())
    failed = f"case {cases} end" if cases else "null"
    values = {name: f'"value {name}"' if isinstance(p, Parsed) else p for name, p in parsed.items()}
    names = ", ".join(f"{value} as {quoted(name)}" for name, value in values.items())
    connection.execute(
        f"""create or replace table {relation} as
            select {names}, "{FILE}" as file, "{LINE}" as line, {failed} as failed from {rows}"""
    )
    if one(connection.execute(f"select count(failed) from {relation}")):
        rule = " ".join(f"when {literal(name)} then {literal(p.rule)}" for name, p in read.items())
        value = " ".join(f'when {literal(name)} then "text {name}"' for name in read)
        drop = ", ".join(f'"text {name}", "value {name}"' for name in read)
        connection.execute(
            f"""insert into malformed
                select '{table}', {row_json("bad")}, "recalign rule", "recalign value", "{FILE}", "{LINE}"
                from (select * exclude ({drop}, failed), case failed {rule} end as "recalign rule",
                          case failed {value} end as "recalign value"
                      from (select *, {failed} as failed from {rows}) where failed is not null) as bad"""
        )
        connection.execute(f"delete from {relation} where failed is not null")
    if not connection.execute(f"select 1 from {relation} limit 1").fetchone():
        why = connection.execute("select rule, value, file, line from malformed order by line").fetchone()
        rule, value, file, line = why or ("it has no rows", "", table, 0)
        raise RecalignError(f"{file}: no row can be read; {rule}, first in line {line}: {value!r}; correct the column")


def write_tables(connection: "DuckDBPyConnection", folder: Path) -> None:
    """Number the ids of events_read and items_read and write interactions, items, users and malformed as Parquet.

    Raises RecalignError where the rows written are not the rows read, which would be a fault of recalign.
    """
    user = _number(connection, "users", '"user"', 'select "user" as raw_id from events_read')
    item = _number(
        connection, "items", "item", "select item as raw_id from events_read union all select item from items_read"
    )
    users = "" if user.startswith("cast") else 'left join users_ids on users_ids.raw_id = events_read."user"'
    items = "" if item.startswith("cast") else "left join items_ids on items_ids.raw_id = item"
    events_order = "order by file, line" if users or items else ""  # a join forgets the order of the file
    queries = {
        "interactions": f"""select {user} as user_id, {item} as item_id, rating,
            timestamp, position, file, line from events_read {users} {items} {events_order}""",
        "items": f"""select {item} as item_id, title, attributes, available_from, item as raw_id, file, line
            from items_read {items} order by item_id, file, line""",
        "users": "select number as user_id, raw_id from users_ids order by user_id",
        "malformed": 'select * from malformed order by "table", file, line',
    }
    for name, query in queries.items():
        reader = connection.sql(query).to_arrow_reader(ROW_GROUP)
        tables = (pa.Table.from_batches([batch]) for batch in reader)
        write_rows(folder / f"{name}.parquet", SCHEMAS[name], tables)
    for name in ("interactions", "items"):
        _check_rows(connection, name, folder / f"{name}.parquet")


def _number(connection: "DuckDBPyConnection", kind: str, raw_id: str, raw_ids: str) -> str:
    """Number the ids of a kind; returns the number's SQL, "cast…" where every id is a small integer."""
    if number_ids(connection, kind, raw_ids):
        return f"{kind}_ids.number"
    return f"cast({raw_id} as bigint)"


def _check_rows(connection: "DuckDBPyConnection", table: str, path: Path) -> None:
    read, moved = connection.execute(
        f"""select (select count(*) from raw_{table}),
            (select count(*) from malformed where "table" = '{table}' and rule <> '{UNPARSABLE}')"""
    ).fetchone() or (0, 0)
    written = pq.read_metadata(path).num_rows
    if written + moved != read:
        raise RecalignError(f"{table}: {read} rows read, {written} written and {moved} set aside; report this fault")


EARLIEST, LATEST = 631_152_000, 4_102_444_800  # seconds to 1990 and to 2100: a log's times lie between
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}  # of one second
# digits that spell a date: their number, the name of the form and strptime's format
FORMS = (
    (8, "YYYYMMDD", "%Y%m%d"),
    (10, "YYYYMMDDHH", "%Y%m%d%H"),
    (12, "YYYYMMDDHHMM", "%Y%m%d%H%M"),
    (14, "YYYYMMDDHHMMSS", "%Y%m%d%H%M%S"),
    (17, "YYYYMMDDHHMMSSmmm", "%Y%m%d%H%M%S%g"),
)
LATER = 1_990_000_000  # seconds to 2033: a log that seems to be of that year counts YYYYMMDDHH
NUMBER = '"value n"'  # SQL: a column's number, in typed(…, {"n": …})
MIXED = 0.01  # share of values in another unit above which the file is refused as a whole


def column_time(connection: "DuckDBPyConnection", table: str, column: str, key: str) -> Parsed:
    """How a column's times are written: digits of a date, a unit since 1970, or ISO 8601; most values decide.

    Raises RecalignError, naming the first row, where more than one value
    in a hundred has another unit, and for years alone or Excel's days.
    """
    number = Parsed(filled(column), "try_cast({text} as double)", "", MARKERS)
    others = ", ".join(f"count(*) filter ({_within(NUMBER, unit)})" for unit in UNITS)
    [(count, numeric, typical, *of_unit)] = connection.execute(
        f"""select count("text n"), count("value n"), median(abs("value n")), {others}
            from {typed(table, {"n": number})}"""
    ).fetchall()
    if not count or numeric < 0.5 * count:
        return iso_time(column)
    _refuse_days_and_years(column, key, typical)
    for digits, name, form in FORMS:
        if len(f"{typical:.0f}") == digits and (digits != 10 or typical >= LATER):
            parsed = spelled(column, name, form)
            found = connection.execute(f"""select count("value n") from {typed(table, {"n": parsed})}""").fetchone()
            if found and found[0] > 0.9 * count:
                return parsed
    unit = unit_of(typical)
    for other, times in zip(UNITS, of_unit, strict=True):
        if other != unit and times > MIXED * count:
            _refuse_mixture(connection, table, column, key, (unit, other), (times, count))
    return epoch(column, unit)


def unit_of(number: float) -> str:
    """The unit in which a count since 1970 is nearest to our days."""
    return next((unit for unit, per_second in UNITS.items() if abs(number) < 1e11 * per_second), "nanoseconds")


def epoch(column: str, unit: str = "seconds") -> Parsed:
    """A time counted from 1970 in UTC."""
    scale = f"* {10**6 // UNITS[unit]}" if UNITS[unit] <= 10**6 else f"/ {UNITS[unit] // 10**6}"
    micros = f"try_cast(try_cast({{text}} as double) {scale} as bigint)"
    # beyond these bounds, years away from any log, DuckDB cannot make a timestamp and would stop the whole query
    value = f"case when abs({micros}) < 9e17 then make_timestamp({micros}) end"
    return Parsed(filled(column), value, f"{column} is no time in {unit} since 1970", MARKERS)


def spelled(column: str, name: str, form: str) -> Parsed:
    """A time in UTC whose digits spell it, such as 202101051230."""
    whole = "regexp_extract({text}, '^([0-9]+)(\\.0*)?$', 1)"
    value = f"case when length({whole}) = {len(name)} then try_strptime({whole}, '{form}') end"
    return Parsed(filled(column), value, f"{column} is no time as {name}", MARKERS)


def iso_time(column: str) -> Parsed:
    """A time in ISO 8601; one without an offset is UTC."""
    value = "timezone('UTC', try_cast({text} as timestamptz))"
    finite = f"case when isfinite({value}) then {value} end"
    return Parsed(filled(column), finite, f"{column} is no ISO 8601 time", MARKERS)


def looks_like_time(text: str) -> str:
    """SQL: whether a text is a time: ISO 8601, digits of a date, or a count of any unit to a year from 1973 to 2128."""
    number = f"try_cast({text} as double)"
    counts = " or ".join(f"{number} between {10**8 * per} and {5 * 10**9 * per}" for per in UNITS.values())
    dates = " or ".join(
        f"(length({text}) = {digits} and year(try_strptime({text}, '{form}')) between 1990 and 2100)"
        for digits, _, form in FORMS
    )
    iso = f"try_cast({text} as timestamptz) is not null"
    return f"case when {number} is null then {iso} else ({counts} or {dates}) and {number} = floor({number}) end"


def _within(number: str, unit: str) -> str:
    """SQL: whether a count in this unit is a time of our days."""
    return f"abs({number}) between {EARLIEST * UNITS[unit]} and {LATEST * UNITS[unit]}"


def _refuse_days_and_years(column: str, key: str, typical: float) -> None:
    if 1900 <= typical <= 2100:
        raise RecalignError(
            f"column '{column}' ({key}) holds years alone ({typical:g}); give dates or times, or set {key} to null"
        )
    if 20_000 <= typical <= 80_000:
        raise RecalignError(
            f"column '{column}' ({key}) counts days ({typical:g}), as Excel stores dates; "
            "format the column as yyyy-mm-dd hh:mm:ss and export it again"
        )


def _refuse_mixture(
    connection: "DuckDBPyConnection", table: str, column: str, key: str, units: tuple[str, str], counts: tuple[int, int]
) -> None:
    number = Parsed(filled(column), "try_cast({text} as double)", "", MARKERS)
    [(first, file, line)] = connection.execute(
        f"""select "text n", "{FILE}", "{LINE}" from {typed(table, {"n": number})}
            where {_within(NUMBER, units[1])} order by "{LINE}" limit 1"""
    ).fetchall()
    raise RecalignError(
        f"{file}: column '{column}' ({key}) mixes units: most times are {units[0]}, but {counts[0]:,} of {counts[1]:,} "
        f"are {units[1]}, first in line {line} ({first}); write all in one unit"
    )
