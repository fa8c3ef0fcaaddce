"""Stage ingest: the raw files of `source` become the tables of the contract."""

import logging
from pathlib import Path

import pyarrow.parquet as pq

from recalign.common.artifacts import folder
from recalign.data.sources.readers import read_source
from recalign.params.load import Params
from recalign.project import CACHE, INTERACTIONS, RAW

log = logging.getLogger(__name__)


def ingest(
    params: Params, raw: Path | None = None, destination: Path = INTERACTIONS, spill: Path = CACHE / "spill-ingest"
) -> None:
    """Read data/raw/<source> (or `raw`) and write `destination`: interactions, items, users, malformed, source.json.

    spill: DuckDB's folder on disk.
    Raises RecalignError in one line where a file is missing, empty, misencoded or has other columns.
    """
    with folder(destination) as partial:
        read_source(params, raw or RAW / params.source, partial, spill)
        rows = {
            name: pq.read_metadata(partial / f"{name}.parquet").num_rows
            for name in ("interactions", "users", "items", "malformed")
        }
    log.info("%s: %d interactions of %d users with %d items; %d lines could not be read", params.source, *rows.values())
