"""Your own log: CSV, JSON or Parquet in data/raw/table/, its columns named in params.table."""

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.errors import RecalignError
from recalign.data.database import one
from recalign.data.sources import files, json_rows, parquet, reading
from recalign.data.sources.reading import FILE, LINE
from recalign.params.load import Params
from recalign.params.table import TableParams

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
TERMS = "Your own data; recalign does not know its terms."
FORMATS = "CSV, JSON lines or Parquet"
MANY_ZEROS = 0.05  # share of ratings that are 0, beside whole ones from 1 on, that are hardly a judgement


def read(connection: "DuckDBPyConnection", raw: Path, spill: Path, params: Params) -> reading.SourceFacts:
    """Interactions, and items with titles and attributes; without an items file titles come from the interactions."""
    table = params.table
    needed = {table.user: "table.user", table.item: "table.item"}
    optional = {table.timestamp: "table.timestamp", table.rating: "table.rating"}
    needed |= {column: key for column, key in optional.items() if column is not None}
    described = {table.item: "table.item", table.title: "table.title"}
    described |= dict.fromkeys(table.attributes, "table.attributes")
    if table.available_from is not None:
        described |= {table.available_from: "table.available_from"}
    log_file = _place(raw, table.interactions, "table.interactions")
    if table.items is None:
        digests = _load(connection, "interactions", log_file, table, needed | described)
        _items_of_events(connection, table)
    else:
        items_file = _place(raw, table.items, "table.items")
        if items_file.samefile(log_file):
            raise RecalignError(f"table.items names the log itself ({log_file}); set it to null")
        digests = _load(connection, "interactions", log_file, table, needed)
        digests |= _load(connection, "items", items_file, table, described)
    reading.type_rows(
        connection, "interactions", "events_read",
        {
            "user": reading.any_id(table.user), "item": reading.any_id(table.item),
            "rating": "null" if table.rating is None else reading.rating(table.rating),
            "timestamp": _time(connection, "raw_interactions", table.timestamp, "table.timestamp"), "position": "null",
        },
    )  # fmt: skip
    attributes = {column: reading.title_text(column) for column in table.attributes}
    reading.type_rows(
        connection, "items", "items_read",
        {
            "item": reading.any_id(table.item), "title": reading.title_text(table.title),
            "attributes": reading.attributes(attributes),
            "available_from": _time(connection, "raw_items", table.available_from, "table.available_from"),
        },
    )  # fmt: skip
    least = table.min_rating
    if least is None and table.rating is not None:
        least = _least_like(connection, table.rating, params)
    return reading.SourceFacts(table.noun, table.timestamp is not None, least, TERMS, digests)


def _time(connection: "DuckDBPyConnection", relation: str, column: str | None, key: str) -> reading.Parsed | str:
    return "null::timestamp" if column is None else reading.column_time(connection, relation, column, key)


def _place(raw: Path, name: str, key: str) -> Path:
    """The file that a parameter names, in the folder that DVC watches.

    Raises RecalignError where it is outside of it, is no file, or is not there.
    """
    path = raw / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RecalignError(f"{key} is {name}, outside of {raw}, where DVC would not see it change; copy it there")
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.is_file())
        shown = ", ".join(inside[:3]) or "nothing"
        raise RecalignError(f"{path} is a folder ({shown}); join its files into one, and name that in {key}")
    if path.is_file():
        return path
    if path.is_symlink():
        raise RecalignError(f"{path} is a link to {path.readlink()}, which is not there; copy the file itself")
    tracked = path.with_name(f"{path.name}.dvc"), raw.with_name(f"{raw.name}.dvc")
    if tracked[0].is_file() or (tracked[1].is_file() and not raw.exists()):
        raise RecalignError(f"{path} is missing; fetch it with 'dvc pull'")
    there = [file.name for file in raw.iterdir()] if raw.is_dir() else []
    plain = {file.casefold(): file for file in there}
    near = difflib.get_close_matches(name.casefold(), plain, n=1)
    hint = f" ('{plain[near[0]]}' is there)" if near else ""
    raise RecalignError(f"{path} is missing; put your file there, or name another in {key} ({FORMATS}){hint}")


def _load(
    connection: "DuckDBPyConnection", table: str, path: Path, params: TableParams, needed: dict[str, str]
) -> dict[str, str]:
    """Read one file as text columns into raw_<table>; returns its name and sha256."""
    raw = files.open_raw(connection, path, table)
    names, key = (params.columns, "table.columns") if table == "interactions" else (
        params.items_columns, "table.items_columns"
    )  # fmt: skip
    ids = [column for column, told in needed.items() if told in ("table.user", "table.item")]
    kind = json_rows.kind_of(raw)
    if kind != "text" and names is not None:
        raise RecalignError(f"{key} names columns, but {path} names its own; set {key} to null")
    if kind == "parquet":
        return {path.name: parquet.load(connection, table, raw, needed, ids)}
    if kind != "text":
        return {path.name: json_rows.load(connection, table, raw, kind, needed, ids)}
    header, delimiter = files.read_header(raw, names, key)
    if not needed.keys() <= set(header):
        files.require_names(path, header, key)
    files.require_columns(path, header, needed)
    digest = files.read_text_table(connection, table, raw, header, files.Layout(delimiter, header=names is None))
    if table == "interactions":
        _set_headers_aside(connection, params)
    return {path.name: digest}


def load_columns(
    connection: "DuckDBPyConnection",
    table: str,
    path: Path,
    names: Sequence[str] | None = None,
    key: str = "table.columns",
) -> list[str]:
    """Read all columns of a file as text into raw_<table>, whatever they are; returns their names.

    names: those of a text file without a header line, as `key` of params gives them.
    Raises RecalignError for a file that is no table, is empty or not UTF-8, has no header, or has a column without a
    name of its own.
    """
    raw = files.open_raw(connection, path, table)
    kind = json_rows.kind_of(raw)
    if kind == "parquet":
        columns = list(parquet.columns_of(connection, raw))
        parquet.load(connection, table, raw, dict.fromkeys(columns, "its own name"))
        return columns
    if kind != "text":
        json_rows.load(connection, table, raw, kind, None)
        return json_rows.names_of(connection, table)
    columns, delimiter = files.read_header(raw, names, key)
    if names is None:
        files.require_names(path, columns, key)
    files.require_columns(path, columns, {})
    if "" in columns:
        raise RecalignError(
            f"{path}: column {columns.index('') + 1} has no name; name it in the first line, or leave it out"
        )
    files.read_text_table(connection, table, raw, columns, files.Layout(delimiter, header=names is None))
    return columns


def _set_headers_aside(connection: "DuckDBPyConnection", table: TableParams) -> None:
    """Move header lines among the rows, of files that were joined, to `malformed`."""
    again = " and ".join(f"{reading.quoted(name)} = {reading.literal(name)}" for name in (table.user, table.item))
    moved = one(
        connection.execute(
            f"""insert into malformed
                select 'interactions', {reading.row_json("bad")}, '{reading.UNPARSABLE}', 'the header once more',
                    "{FILE}", "{LINE}" from raw_interactions as bad where {again}"""
        )
    )
    if moved:
        log.warning("%s: %d more header lines among the rows; they go to quarantine", table.interactions, moved)
        connection.execute(f"delete from raw_interactions where {again}")


def _items_of_events(connection: "DuckDBPyConnection", table: TableParams) -> None:
    """Make raw_items of the interactions: an item's first row that has a title describes it."""
    ids = reading.typed("raw_interactions", {"item": reading.any_id(table.item)})
    title = reading.title_text(table.title)
    connection.execute(
        f"""create or replace table raw_items as
            select * exclude ("text item", "value item") from {ids} where "value item" is not null
            qualify row_number() over (partition by "value item" order by {title} is null, "{LINE}") = 1
            order by "{LINE}" """
    )


def _least_like(connection: "DuckDBPyConnection", column: str, params: Params) -> float | None:
    """What prepare.min_rating null means: 1 where ratings are words for yes and no, else no bound.

    Says where zeros seem to mean "not rated".
    """
    word = reading.opinion('"text r"')
    [(words, zeros, positive, whole, highest, count)] = connection.execute(
        f"""select count(*) filter ({word} is not null), count(*) filter ("value r" = 0),
                coalesce(min("value r") filter ("value r" > 0), 0),
                coalesce(bool_and("value r" = floor("value r")), false), coalesce(max("value r"), 0), count("value r")
            from {reading.typed("raw_interactions", {"r": reading.rating(column)})}"""
    ).fetchall()
    if words:
        log.info("%s holds words: yes is 1 and no is 0; a like is what is 1 (prepare.min_rating)", column)
        return 1.0
    if zeros_mean_unrated(zeros, count, positive, highest, whole=whole) and not (params.prepare.min_rating or 0) > 0:
        log.warning(
            "%s: %d of %d ratings are 0, which mostly means 'not rated', and count as likes; set prepare.min_rating to "
            "1 or more, or leave those cells empty", column, zeros, count,
        )  # fmt: skip
    return None


def zeros_mean_unrated(zeros: int, count: int, positive: float, highest: float, *, whole: bool) -> bool:
    """Whether zeros beside whole ratings from 1 on (`positive`: the least above 0) are too many for a judgement."""
    return whole and positive >= 1 and highest > 1 and zeros > MANY_ZEROS * count
