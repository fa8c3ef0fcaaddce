"""Your own log: CSV or Parquet in data/raw/table/, its columns named in params.table."""

from pathlib import Path
from typing import TYPE_CHECKING

from recalign.artifacts import file_digest
from recalign.data.database import one
from recalign.data.sources import files, reading
from recalign.errors import RecalignError
from recalign.params import Params, TableParams

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TERMS = "Your own data; recalign does not know its terms."
PARQUET = (".parquet", ".pq")
MILLISECONDS = 1e11  # a typical time above this is counted in milliseconds (in seconds it would be the year 5138)


def read(connection: "DuckDBPyConnection", raw: Path, spill: Path, params: Params) -> reading.SourceFacts:
    """Interactions, and items with titles and attributes; without an items file titles come from the interactions."""
    table = params.table
    needed = {table.user: "table.user", table.item: "table.item"}
    optional = {table.timestamp: "table.timestamp", table.rating: "table.rating"}
    needed |= {column: key for column, key in optional.items() if column is not None}
    described = {table.item: "table.item", table.title: "table.title"}
    described |= dict.fromkeys(table.attributes, "table.attributes")
    if table.items is None:
        digests = _load(connection, "interactions", raw, table.interactions, "table.interactions", needed | described)
        _items_of_events(connection, table)
    else:
        digests = _load(connection, "interactions", raw, table.interactions, "table.interactions", needed)
        digests |= _load(connection, "items", raw, table.items, "table.items", described)
    reading.type_rows(
        connection, "interactions", "events_read",
        {
            "user": reading.filled(table.user), "item": reading.filled(table.item),
            "rating": "null" if table.rating is None else reading.number(table.rating),
            "timestamp": "null" if table.timestamp is None else _time(connection, table.timestamp), "position": "null",
        },
    )  # fmt: skip
    attributes = {column: reading.quoted(column) for column in table.attributes}
    reading.type_rows(
        connection, "items", "items_read",
        {
            "item": reading.filled(table.item), "title": reading.filled(table.title),
            "attributes": reading.attributes(attributes),
        },
    )  # fmt: skip
    return reading.SourceFacts(table.noun, table.timestamp is not None, table.min_rating, TERMS, digests)


def _load(
    connection: "DuckDBPyConnection", table: str, raw: Path, name: str, key: str, needed: dict[str, str]
) -> dict[str, str]:
    """Read one file as text columns into raw_<table>; returns its name and sha256."""
    path = raw / name
    if not path.is_file():
        raise RecalignError(f"{path} is missing; put your file there, or name another in {key} (CSV or Parquet)")
    if path.suffix.lower() in PARQUET:
        return {path.name: _load_parquet(connection, table, path, needed)}
    header, delimiter = files.read_header(path)
    files.require_columns(path, header, needed)
    return {path.name: files.read_text_table(connection, table, path, header, delimiter=delimiter, header=True)}


def load_columns(connection: "DuckDBPyConnection", table: str, path: Path) -> list[str]:
    """Read all columns of a CSV or Parquet file as text into raw_<table>, whatever they are; returns their names.

    Raises RecalignError for a file that is neither, is empty or not UTF-8, or has a column without a name of its own.
    """
    if path.suffix.lower() in PARQUET:
        names = _parquet_columns(connection, path)
        _load_parquet(connection, table, path, dict.fromkeys(names, "its own name"))
        return names
    names, delimiter = files.read_header(path)
    files.require_columns(path, names, {})
    if "" in names:
        raise RecalignError(
            f"{path}: column {names.index('') + 1} has no name; name it in the first line, or leave it out"
        )
    files.read_text_table(connection, table, path, names, delimiter=delimiter, header=True)
    return names


def _load_parquet(connection: "DuckDBPyConnection", table: str, path: Path, needed: dict[str, str]) -> str:
    files.require_columns(path, _parquet_columns(connection, path), needed)
    texts = ", ".join(f"{_as_text(column)} as {reading.quoted(column)}" for column in needed)
    connection.execute(
        f"""create or replace table raw_{table} as
            select {texts}, $file as file, row_number() over () as line from read_parquet($path)""",
        {"file": path.name, "path": str(path)},
    )
    if not one(connection.execute(f"select count(*) from raw_{table}")):
        raise RecalignError(f"{path} holds no row; it needs at least one")
    return file_digest(path)


def _parquet_columns(connection: "DuckDBPyConnection", path: Path) -> list[str]:
    import duckdb

    try:
        return [row[0] for row in connection.execute("describe from read_parquet($p)", {"p": str(path)}).fetchall()]
    except duckdb.Error as error:
        raise RecalignError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _as_text(column: str) -> str:
    """SQL: a Parquet column as text; a list becomes its values with "|" between, 7.0 (an id beside nulls) becomes 7."""
    name = reading.quoted(column)
    listed = f"when typeof({name}) like '%[]' then array_to_string({name}::varchar[], '|')"
    whole = f"when typeof({name}) in ('DOUBLE', 'FLOAT') then regexp_replace({name}::varchar, '\\.0$', '')"
    return f"case {listed} {whole} else {name}::varchar end"


def _items_of_events(connection: "DuckDBPyConnection", table: TableParams) -> None:
    """Make raw_items of the interactions: an item's first row that has a title describes it."""
    item, title = reading.filled(table.item), reading.filled(table.title)
    connection.execute(
        f"""create or replace table raw_items as select * from raw_interactions where {item} is not null
            qualify row_number() over (partition by {item} order by {title} is null, line) = 1 order by line"""
    )


def _time(connection: "DuckDBPyConnection", column: str) -> reading.Parsed:
    """How the column's times are written: seconds or milliseconds since 1970 where most are numbers, else ISO 8601."""
    numeric, typical = connection.execute(
        f"""select avg((number is not null)::int), median(abs(number))
            from (select try_cast({reading.filled(column)} as double) as number, {reading.filled(column)} as text
                  from raw_interactions) where text is not null"""
    ).fetchone() or (None, None)
    if not numeric or numeric < 0.5:
        return reading.iso_time(column)
    return reading.epoch(column, 1000 if typical > MILLISECONDS else 1)
