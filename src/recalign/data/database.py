"""The DuckDB database that preparation works in, and the one way its rows become Parquet."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

ROW_GROUP = 131_072  # rows of a Parquet row group: fixed, since equal data must have equal bytes


@contextmanager
def database(spill: Path, memory_limit: str, threads: int) -> Iterator["DuckDBPyConnection"]:
    """A DuckDB database on disk in the folder `spill`, swept before and after: tables larger than memory stay cheap."""
    import duckdb

    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir(parents=True)
    connection = duckdb.connect(spill / "prepare.duckdb")
    try:
        connection.execute("set memory_limit = $value", {"value": memory_limit.replace(" ", "")})
        connection.execute("set temp_directory = $value", {"value": str(spill)})
        connection.execute(f"set threads = {threads:d}")
        connection.execute("set preserve_insertion_order = true; set enable_progress_bar = false; set timezone = 'UTC'")
        yield connection
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)


def scratch(connection: "DuckDBPyConnection") -> Path:
    """The folder that a database of `database` spills to: swept with it."""
    return Path(one(connection.execute("select current_setting('temp_directory')")))


def statement(name: str) -> str:
    """The text of preparation/sql/<name>.sql."""
    return (files("recalign.data") / "preparation" / "sql" / f"{name}.sql").read_text("utf-8")


def run(connection: "DuckDBPyConnection", name: str, **values: Any) -> "DuckDBPyConnection":
    """Execute sql/<name>.sql with named parameters and return its result."""
    return connection.execute(statement(name), values)


def select(connection: "DuckDBPyConnection", name: str, **values: Any) -> "DuckDBPyRelation":
    """The rows of the query in sql/<name>.sql, to be read as Arrow."""
    return connection.sql(statement(name), params=values)


def one(result: "DuckDBPyConnection") -> Any:
    """The first value of a result's first row; the result is read to its end, which frees the connection."""
    rows = result.fetchall()
    assert rows, "the query returned no row"
    return rows[0][0]


def write_rows(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Stream tables into one Parquet file; its bytes do not depend on where one table ends and the next begins."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in in_row_groups(tables):
            writer.write_table(table.cast(schema), row_group_size=ROW_GROUP)


def in_row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Cut a stream of tables into tables of ROW_GROUP rows (the last one shorter), wherever its pieces ended."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        while rows >= ROW_GROUP:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, ROW_GROUP).combine_chunks()
            waiting = [joined.slice(ROW_GROUP)]
            rows -= ROW_GROUP
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()
