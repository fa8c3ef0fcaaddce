"""A file of JSON objects as rows of text: one a line, an array of them, or one after the other."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from recalign.common.artifacts import file_digest
from recalign.common.errors import RecalignError
from recalign.data.database import one
from recalign.data.sources import containers, files
from recalign.data.sources.files import Raw
from recalign.data.sources.reading import FILE, LINE, UNPARSABLE, literal, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Kind = Literal["text", "parquet", "lines", "array", "unstructured"]
SAMPLE = 10_000  # objects whose keys are the columns
FEW = 5  # lines by which JSON lines are told from objects over several lines
NO_CHARACTER = "\x1f"  # which JSON holds escaped only: it separates nothing
NO_IDS = ("OBJECT", "ARRAY", "BOOLEAN")


def kind_of(raw: Raw) -> Kind:
    """What a plain file holds, by its beginning. Raises RecalignError for lines that are Python, not JSON."""
    head = containers.read_head(raw.plain)
    if head.startswith(containers.PARQUET):
        return "parquet"
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if text.startswith("[") and text[1:].lstrip()[:1] in ("{", "]", ""):
        return "array"
    if not text.startswith("{"):
        return "text"
    lines = text.split("\n")
    whole = lines[:FEW] if len(head) < containers.HEAD else lines[:-1][:FEW]
    if not whole or any(_is_object(line) for line in whole):
        return "lines"
    if text[1:].lstrip().startswith("'"):
        raise RecalignError(
            f"{raw.path} holds Python's {{'key': …}}, which is no JSON; convert it: python -c \"import ast, json, sys; "
            f'[print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]" < {raw.path.name} > fixed.jsonl'
        )
    return "unstructured"


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def load(
    connection: "DuckDBPyConnection",
    table: str,
    raw: Raw,
    kind: Kind,
    needed: dict[str, str] | None,
    ids: Sequence[str] = (),
) -> str:
    """Read the needed keys ({key: what names it}; None: all) into raw_<table>; returns the file's sha256.

    What is no object goes to `malformed`. Raises RecalignError where a key is absent, or holds no ids though among
    `ids`; for an array that is no JSON; and for no row.
    """
    if kind == "lines":
        digest = files.read_text_table(
            connection, table, raw, ["text"], files.Layout(NO_CHARACTER, header=False, quote="")
        )
    else:
        digest = _read_objects(connection, table, raw, kind)
    connection.execute(
        f"""create or replace table json_{table} as
            select case when json_type(json) = 'OBJECT' then json end as json, text, "{FILE}", "{LINE}"
            from (select try_cast(text as json) as json, * from raw_{table} where text is not null)
            order by "{LINE}" """
    )
    connection.execute(
        f"""insert into malformed
            select '{table}', to_json({{'text': text}}), '{UNPARSABLE}', 'no JSON object', "{FILE}", "{LINE}"
            from json_{table} where json is null"""
    )
    names = _keys(connection, table)
    if not names:
        raise RecalignError(f"{raw.path} holds no JSON object with keys; it needs a row at least")
    if needed is None:
        needed = dict.fromkeys(names, "its own name")
    seldom = [name for name in needed if name not in names and _has_key(connection, table, name)]
    files.require_columns(raw.path, [*names, *seldom], needed)
    for column in ids:
        _check_ids(connection, table, raw, column, needed[column])
    texts = ", ".join(f"{_as_text(column)} as {quoted(column)}" for column in needed)
    connection.execute(
        f"""create or replace table raw_{table} as
            select {texts}, "{FILE}", "{LINE}" from json_{table} where json is not null order by "{LINE}" """
    )
    connection.execute(f"drop table json_{table}")
    return digest


def names_of(connection: "DuckDBPyConnection", table: str) -> list[str]:
    """The columns of raw_<table> that come from the file."""
    rows = connection.execute(f"describe raw_{table}").fetchall()
    return [row[0] for row in rows if row[0] not in (FILE, LINE)]


def _read_objects(connection: "DuckDBPyConnection", table: str, raw: Raw, kind: Kind) -> str:
    import duckdb

    try:
        connection.execute(
            f"""create or replace table raw_{table} as
                select json::varchar as text, $file as "{FILE}", row_number() over () as "{LINE}"
                from read_json_objects($path, format = '{kind}', compression = 'none', hive_partitioning = false)""",
            {"file": raw.path.name, "path": str(raw.plain)},
        )
    except duckdb.Error as error:
        said = str(error).splitlines()[0].replace(str(raw.plain), raw.path.name)
        raise RecalignError(f"{raw.path} is not readable JSON ({said}); write one object a line") from None
    return file_digest(raw.path)


def _pointer(key: str) -> str:
    return literal("/" + key.replace("~", "~0").replace("/", "~1"))


def _keys(connection: "DuckDBPyConnection", table: str) -> list[str]:
    rows = connection.execute(
        f"select json_keys(json) from json_{table} where json is not null limit {SAMPLE}"
    ).fetchall()
    return list(dict.fromkeys(key for (keys,) in rows for key in keys))


def _has_key(connection: "DuckDBPyConnection", table: str, key: str) -> bool:
    return bool(one(connection.execute(f"select count(*) from json_{table} where json_exists(json, {_pointer(key)})")))


def _check_ids(connection: "DuckDBPyConnection", table: str, raw: Raw, column: str, key: str) -> None:
    kind = f"json_type(json, {_pointer(column)})"
    found = connection.execute(
        f"""select {kind}, "{LINE}" from json_{table} where {kind} in {NO_IDS} order by "{LINE}" limit 1"""
    ).fetchone()
    if found:
        raise RecalignError(
            f"{raw.path}, row {found[1]}: '{column}' ({key}) is {found[0].lower()}, which is no id; "
            "write it as text or integers"
        )


def _as_text(column: str) -> str:
    """SQL: a value as text; a list becomes its values with "|" between, and a float in powers of ten its usual text."""
    pointer = _pointer(column)
    text = f"json_extract_string(json, {pointer})"
    listed = f"array_to_string(from_json(json_extract(json, {pointer}), '[\"VARCHAR\"]'), '|')"
    power = f"contains(lower({text}), 'e') then try_cast({text} as double)::varchar"
    return (
        f"case json_type(json, {pointer}) when 'ARRAY' then {listed} "
        f"when 'DOUBLE' then case when {power} else {text} end else {text} end"
    )
