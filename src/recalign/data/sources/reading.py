"""From raw text columns to typed events and items, whatever the source; what cannot be typed goes to `malformed`.

A reader leaves two relations in the database, which `write_tables` turns into the files of the contract:
events_read (user, item: text; rating: double; timestamp; position: bigint; file, line) and
items_read (item, title: text; attributes: map of lists; file, line).
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from recalign import columns as c
from recalign.data.database import ROW_GROUP, one, write_rows
from recalign.errors import RecalignError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
INTEGER = "0|-?[1-9][0-9]{0,17}"
INTERACTIONS = pa.schema(
    {
        c.USER: pa.int64(), c.ITEM: pa.int64(), c.RATING: pa.float64(), c.TIMESTAMP: pa.timestamp("us"),
        c.POSITION: pa.int64(), c.FILE: pa.string(), c.LINE: pa.int64(),
    }
)  # fmt: skip
ITEMS = pa.schema(
    {
        c.ITEM: pa.int64(), c.TITLE: pa.string(), c.ATTRIBUTES: pa.map_(pa.string(), pa.list_(pa.string())),
        "raw_id": pa.string(), c.FILE: pa.string(), c.LINE: pa.int64(),
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
    """A text column read as a type, in SQL: its text (null where empty), value (null where unreadable) and rule."""

    text: str
    value: str
    rule: str


def quoted(name: str) -> str:
    """A column's name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def filled(column: str) -> str:
    """SQL: a column's text without spaces around it, null where nothing is left."""
    return f"nullif(trim({quoted(column)}), '')"


def integer_id(column: str) -> Parsed:
    """An id that has to be an integer."""
    text = filled(column)
    return Parsed(text, f"case when regexp_full_match({text}, '{INTEGER}') then {text} end", f"{column} is no integer")


def number(column: str) -> Parsed:
    """A decimal number."""
    text = filled(column)
    return Parsed(text, f"try_cast({text} as double)", f"{column} is no number")


def epoch(column: str, per_second: int = 1) -> Parsed:
    """A time counted from 1970 in UTC, `per_second` units a second."""
    text = filled(column)
    micros = f"try_cast(try_cast({text} as double) * {1_000_000 // per_second} as bigint)"
    # beyond these bounds, years away from any log, DuckDB cannot make a timestamp and would stop the whole query
    value = f"case when abs({micros}) < 9e17 then make_timestamp({micros}) end"
    return Parsed(text, value, f"{column} is no time in {'milli' if per_second == 1000 else ''}seconds since 1970")


def iso_time(column: str) -> Parsed:
    """A time in ISO 8601; one without an offset is UTC."""
    text = filled(column)
    value = f"timezone('UTC', try_cast({text} as timestamptz))"
    return Parsed(text, f"case when isfinite({value}) then {value} end", f"{column} is no ISO 8601 time")


def attributes(columns: dict[str, str]) -> str:
    """SQL: a map from each attribute's name to the values that "|" separates in an SQL text, without empty ones."""
    entries = ", ".join(
        f"{{'key': {literal(name)}, 'value': list_filter(list_transform(string_split(coalesce({text}, ''), '|'), "
        "lambda part: trim(part)), lambda part: part <> '')}"
        for name, text in columns.items()
    )
    kept = f"list_filter([{entries}], lambda entry: len(entry.value) > 0)" if entries else "[]"
    return f"map_from_entries({kept}::struct(key varchar, value varchar[])[])"


def type_rows(connection: "DuckDBPyConnection", table: str, relation: str, parsed: dict[str, Parsed | str]) -> None:
    """Make the view `relation` of raw_<table>: names from Parsed columns or plain SQL expressions, then file and line.

    A row with a column that cannot be read goes to `malformed` under the first such column's rule.
    Raises RecalignError when that is every row.
    """
    checks = {f"{p.text} is not null and {p.value} is null": p for p in parsed.values() if isinstance(p, Parsed)}
    moved = 0
    if checks:
        rule = " ".join(f"when {fails} then {literal(p.rule)}" for fails, p in checks.items())
        value = " ".join(f"when {fails} then {p.text}" for fails, p in checks.items())
        moved = one(
            connection.execute(
                f"""insert into malformed
                    select '{table}', to_json(bad)::varchar, case {rule} end, case {value} end, file, line
                    from raw_{table} as bad where {" or ".join(f"({fails})" for fails in checks)}"""
            )
        )
    # mostly there are none, and a view that does not look at every column is read much faster
    good = " and ".join(f"not ({fails})" for fails in checks) if moved else "true"
    names = ", ".join(f"{p.value if isinstance(p, Parsed) else p} as {quoted(name)}" for name, p in parsed.items())
    connection.execute(f"create or replace view {relation} as select {names}, file, line from raw_{table} where {good}")
    if not connection.execute(f"select 1 from {relation} limit 1").fetchone():
        why = connection.execute("select rule, value, file, line from malformed order by line").fetchone()
        rule, value, file, line = why or ("it has no rows", "", table, 0)
        raise RecalignError(f"{file}: no row can be read; {rule}, first in line {line}: {value!r}; mend the column")


def write_tables(connection: "DuckDBPyConnection", folder: Path) -> None:
    """Number the ids of events_read and items_read and write interactions, items, users and malformed as Parquet.

    Integer ids are kept; if one is anything else, all ids of that kind are numbered from 1 in the order of their text.
    """
    user = _number_ids(connection, "users", 'select "user" as raw_id from events_read')
    item = _number_ids(
        connection, "items", "select item as raw_id from events_read union all select item from items_read"
    )
    users = "" if user.startswith("cast") else 'left join users_ids on users_ids.raw_id = events_read."user"'
    items = "" if item.startswith("cast") else "left join items_ids on items_ids.raw_id = item"
    events_order = "order by file, line" if users or items else ""  # a join forgets the order of the file
    queries = {
        "interactions": f"""select {user.format('"user"')} as user_id, {item.format('item')} as item_id, rating,
            timestamp, position, file, line from events_read {users} {items} {events_order}""",
        "items": f"""select {item.format('item')} as item_id, title, attributes, item as raw_id, file, line
            from items_read {items} order by item_id, file, line""",
        "users": "select number as user_id, raw_id from users_ids order by user_id",
        "malformed": 'select * from malformed order by "table", file, line',
    }
    for name, query in queries.items():
        reader = connection.sql(query).to_arrow_reader(ROW_GROUP)
        tables = (pa.Table.from_batches([batch]) for batch in reader)
        write_rows(folder / f"{name}.parquet", SCHEMAS[name], tables)


def _number_ids(connection: "DuckDBPyConnection", kind: str, raw_ids: str) -> str:
    """Make the table <kind>_ids (raw_id, number); returns the number's SQL, "{}" standing for the text to cast."""
    connection.execute(
        f"""create or replace table {kind}_ids as
            select raw_id, row_number() over (order by raw_id) as number
            from (select distinct raw_id from ({raw_ids}) where raw_id is not null)"""
    )
    odd = connection.execute(
        f"select raw_id from {kind}_ids where not regexp_full_match(raw_id, '{INTEGER}') order by raw_id limit 1"
    ).fetchall()
    if odd:
        log.info("ids of %s are text (%r, for one), so they are numbered in the order of their text", kind, odd[0][0])
        return f"{kind}_ids.number"
    connection.execute(f"update {kind}_ids set number = cast(raw_id as bigint)")
    return "cast({} as bigint)"
