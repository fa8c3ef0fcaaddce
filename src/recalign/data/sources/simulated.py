"""The simulated world: films.csv, events.csv and tastes.json, as `recalign simulate` writes them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import file_digest, write_parquet
from recalign.data.sources import files, reading
from recalign.params.load import Params

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

HOW_TO_GET = "fetch it with 'dvc pull data/raw/films.dvc', or make it with 'recalign simulate'"
TERMS = "Simulated people; titles, years, genres and directors of films are facts. Free to use."


def read(connection: "DuckDBPyConnection", raw: Path, spill: Path, params: Params) -> reading.SourceFacts:
    """Events with the person's own order as position, and films with genre, director and year."""
    tables = {
        "interactions": ("events.csv", ("user_id", "item_id", "timestamp")),
        "items": ("films.csv", ("item_id", "title", "year", "genres", "director")),
    }
    digests = {}
    for table, (name, needed) in tables.items():
        file = files.open_raw(connection, files.find(raw, name, spill, HOW_TO_GET), table)
        header, delimiter = files.read_header(file)
        files.require_columns(file.path, header, dict.fromkeys(needed, "as 'recalign simulate' writes it"))
        digests[name] = files.read_text_table(connection, table, file, header, files.Layout(delimiter, header=True))
    connection.execute(
        f"""create or replace table raw_interactions as
            select *, row_number() over (partition by user_id order by "{reading.LINE}") as position
            from raw_interactions order by "{reading.LINE}" """
    )
    reading.type_rows(
        connection, "interactions", "events_read",
        {
            "user": reading.integer_id("user_id"), "item": reading.integer_id("item_id"), "rating": "null",
            "timestamp": reading.iso_time("timestamp"), "position": "position",
        },
    )  # fmt: skip
    described = {"genre": "genres", "director": "director", "year": '"year"'}
    reading.type_rows(
        connection, "items", "items_read",
        {
            "item": reading.integer_id("item_id"), "title": "title", "attributes": reading.attributes(described),
            "available_from": "null",
        },
    )  # fmt: skip
    tastes = files.find(raw, "tastes.json", spill, HOW_TO_GET)
    return reading.SourceFacts("movies", True, None, TERMS, {**digests, tastes.name: file_digest(tastes)})


def write_truth(raw: Path, folder: Path) -> None:
    """Write truth.parquet: user_id, taste (JSON), in ascending user id."""
    tastes = sorted(json.loads((raw / "tastes.json").read_text(encoding="utf-8")), key=lambda taste: taste[c.USER])
    write_parquet(
        folder / "truth.parquet",
        pa.table({c.USER: [taste[c.USER] for taste in tastes], "taste": [json.dumps(taste) for taste in tastes]}),
    )
