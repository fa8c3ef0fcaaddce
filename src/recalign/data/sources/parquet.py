"""A Parquet file as rows of text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recalign.common.artifacts import file_digest
from recalign.common.errors import RecalignError
from recalign.data.database import one
from recalign.data.ids import EXACT
from recalign.data.sources.files import Raw, require_columns
from recalign.data.sources.reading import FILE, LINE, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
ID_TYPES = (*INTEGERS, *(f"U{name}" for name in INTEGERS), "VARCHAR", "UUID", "DECIMAL", "ENUM", "FLOAT", "DOUBLE")
READ = "read_parquet($path, hive_partitioning = false)"
FLOATS = {"FLOAT": 2**24, "DOUBLE": EXACT}  # beyond, neighbouring integers are one number


def columns_of(connection: "DuckDBPyConnection", raw: Raw) -> dict[str, str]:
    """The columns of a Parquet file with DuckDB's types. Raises RecalignError when it is not readable."""
    import duckdb

    try:
        rows = connection.execute(f"describe from {READ}", {"path": str(raw.plain)}).fetchall()
    except duckdb.Error as error:
        raise RecalignError(f"{raw.path} is not a readable Parquet file ({str(error).splitlines()[0]})") from None
    return {row[0]: row[1] for row in rows}


def load(
    connection: "DuckDBPyConnection", table: str, raw: Raw, needed: dict[str, str], ids: Sequence[str] = ()
) -> str:
    """Read the needed columns ({column: key}) into raw_<table>; returns the file's sha256.

    Raises RecalignError where one is absent, is no id though among `ids`, or cannot be text; and for no row.
    """
    import duckdb

    types = columns_of(connection, raw)
    require_columns(raw.path, list(types), needed)
    for column in needed if ids else ():
        _check_type(connection, raw, column, types[column], needed[column], is_id=column in ids)
    texts = ", ".join(f"{_as_text(column, types[column])} as {quoted(column)}" for column in needed)
    try:
        connection.execute(
            f"""create or replace table raw_{table} as
                select {texts}, $file as "{FILE}", row_number() over () as "{LINE}" from {READ}""",
            {"file": raw.path.name, "path": str(raw.plain)},
        )
    except duckdb.Error as error:
        raise RecalignError(f"{raw.path} is damaged ({str(error).splitlines()[0]}); fetch it again") from None
    if not one(connection.execute(f"select count(*) from raw_{table}")):
        raise RecalignError(f"{raw.path} holds no row; it needs at least one")
    return file_digest(raw.path)


def _check_type(connection: "DuckDBPyConnection", raw: Raw, column: str, kind: str, key: str, *, is_id: bool) -> None:
    plain = kind.split("(")[0]
    if is_id and (plain not in ID_TYPES or kind.endswith("]")):
        raise RecalignError(
            f"{raw.path}: column '{column}' ({key}) has the type {kind}, which is no id; write it as text or integers"
        )
    if plain in ("BLOB", "STRUCT", "MAP", "UNION"):
        raise RecalignError(f"{raw.path}: column '{column}' ({key}) has the type {kind}; write it as text")
    if is_id and kind in FLOATS:
        largest = one(
            connection.execute(
                f"select max(abs({quoted(column)})) filter (isfinite({quoted(column)})) from {READ}",
                {"path": str(raw.plain)},
            )
        )
        if largest is not None and largest > FLOATS[kind]:
            raise RecalignError(
                f"{raw.path}: column '{column}' ({key}) holds ids as floats ({kind}) up to {largest:.0f}, beyond "
                f"{FLOATS[kind]}, where neighbouring ids are one number; write them as integers or text"
            )


def _as_text(column: str, kind: str) -> str:
    """SQL: a column as text; a list becomes its values with "|" between, 7.0 (an integer beside nulls) becomes 7."""
    name = quoted(column)
    if kind.endswith("]"):
        return f"array_to_string({name}::varchar[], '|')"
    if kind in FLOATS:
        return f"regexp_replace({name}::varchar, '\\.0$', '')"
    return f"{name}::varchar"
