"""Last.fm in the layout of the LLaRA and S-DPO papers' data (arXiv 2312.02445, 2406.09215): a set, not a sequence.

The files' source_order follows the artists' ids, not time, and is not read. The validation users' file holds the
answers to the published cases and is not opened.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from recalign.data.sources import files, reading
from recalign.params.load import Params

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TERMS = (
    "Last.fm listening data as published with LLaRA and S-DPO (arXiv 2312.02445, 2406.09215): third-party data under "
    "its own terms; for research, do not redistribute it."
)
FILES = {
    "interactions": ("train_interactions.csv", ("user_id", "item_id")),
    "items": ("items.csv", ("item_id", "title")),
}


def read(connection: "DuckDBPyConnection", raw: Path, spill: Path, params: Params) -> reading.SourceFacts:
    """train_interactions.csv and items.csv; there is no clock and no order."""
    fetch = f"copy a folder with train_interactions.csv and items.csv: 'cp -r lastfm {raw}'"
    digests = {}
    for table, (name, needed) in FILES.items():
        file = files.open_raw(connection, files.find(raw, name, spill, fetch), table)
        header, delimiter = files.read_header(file)
        files.require_columns(file.path, header, dict.fromkeys(needed, "of this source's layout"))
        digests[name] = files.read_text_table(connection, table, file, header, files.Layout(delimiter, header=True))
    nothing = {"rating": "null", "timestamp": "null", "position": "null"}
    reading.type_rows(
        connection, "interactions", "events_read",
        {"user": reading.integer_id("user_id"), "item": reading.integer_id("item_id"), **nothing},
    )  # fmt: skip
    reading.type_rows(
        connection, "items", "items_read",
        {
            "item": reading.integer_id("item_id"), "title": "trim(title)", "attributes": reading.attributes({}),
            "available_from": "null",
        },
    )  # fmt: skip
    return reading.SourceFacts("artists", False, None, TERMS, digests)
