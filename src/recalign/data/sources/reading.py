"""From raw text columns to typed events and items, whatever the source; what cannot be typed goes to `malformed`.

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
from recalign.data.sources.ids import MARKERS, SPACES, TITLE_MARKERS, canonical, listed, number_ids, unmarked

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
