"""The readers of all sources: each reads its raw files into the same tables (docs/contracts.md, data/interactions)."""

import logging
from dataclasses import asdict
from pathlib import Path

from recalign.common.artifacts import write_json
from recalign.data.database import database
from recalign.data.sources import lastfm, movielens, reading, simulated, table
from recalign.data.sources.files import MALFORMED
from recalign.params.load import Params

log = logging.getLogger(__name__)
READERS = {
    "simulated": simulated.read,
    "movielens-100k": movielens.read_100k,
    "movielens-1m": movielens.read_1m,
    "lastfm": lastfm.read,
    "table": table.read,
}


def read_source(params: Params, raw: Path, folder: Path, spill: Path) -> None:
    """Read the raw files of params.source in `raw` and write the contract's tables into the existing `folder`.

    `spill` is a scratch folder for what exceeds prepare.memory_limit. Lines that cannot be read go to
    malformed.parquet. Raises RecalignError for a missing, empty or misencoded file, absent columns, and where no row
    at all can be read.
    """
    with database(spill, params.prepare.memory_limit, params.threads) as connection:
        connection.execute(MALFORMED)
        facts = READERS[params.source](connection, raw, spill, params)
        reading.write_tables(connection, folder)
    if params.source == "simulated":
        simulated.write_truth(raw, folder)
    write_json(folder / "source.json", {"source": params.source, **asdict(facts)})
    log.info("terms: %s", facts.terms)
