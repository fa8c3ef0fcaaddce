"""Stage prepare: validated log → events, items, examples and frozen candidate lists."""

import logging
from pathlib import Path

from recalign.data.preparation.prepared import write_prepared
from recalign.params.load import Params
from recalign.project import CACHE, PREPARED, VALIDATED

log = logging.getLogger(__name__)


def prepare(
    params: Params, validated: Path = VALIDATED, prepared: Path = PREPARED, spill: Path = CACHE / "spill"
) -> None:
    """Write `prepared` from the validated log, as docs/contracts.md describes both; `spill` is DuckDB's folder on disk.

    Raises RecalignError when too little is left to make examples or candidate lists of.
    """
    summary = write_prepared(params, validated, prepared, spill)
    counts = summary["counts"]
    log.info(
        "prepared %s: %d users, %d items, %d events; examples %s",
        summary["source"],
        counts["users"],
        counts["items"],
        sum(counts["events"].values()),
        ", ".join(f"{split} {number}" for split, number in counts["examples"].items()),
    )
