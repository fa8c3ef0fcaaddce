"""Stage ingest: the raw files of `source` become the tables of the contract."""

import logging
from pathlib import Path

import pyarrow.parquet as pq

from recalign.common.artifacts import folder
from recalign.data.sources.readers import read_source
from recalign.params.load import Params
from recalign.project import Project

log = logging.getLogger(__name__)


def ingest(params: Params, project: Project = Project(), *, raw: Path | None = None) -> None:
    """Read data/raw/<source>, or the folder `raw`, and write interactions, items, users, malformed and source.json.

    Raises RecalignError in one line where a file is missing, empty, misencoded or has other columns.
    """
    with folder(project.interactions) as partial:
        read_source(params, raw or project.raw / params.source, partial, project.cache / "spill-ingest")
        rows = {
            name: pq.read_metadata(partial / f"{name}.parquet").num_rows
            for name in ("interactions", "users", "items", "malformed")
        }
    log.info("%s: %d interactions of %d users with %d items; %d lines could not be read", params.source, *rows.values())
