"""Stage prepare: validated log → events, items, examples and frozen candidate lists."""

import logging

from recalign.data.preparation.preparation import write_prepared
from recalign.params.load import Params
from recalign.project import Project

log = logging.getLogger(__name__)


def prepare(params: Params, project: Project = Project()) -> None:
    """Write data/prepared from the validated log, as docs/contracts.md describes both.

    Raises RecalignError when too little is left to make examples or candidate lists of.
    """
    summary = write_prepared(params, project.validated, project.prepared, project.cache / "spill")
    counts = summary["counts"]
    log.info(
        "prepared %s: %d users, %d items, %d events; examples %s",
        summary["source"],
        counts["users"],
        counts["items"],
        sum(counts["events"].values()),
        ", ".join(f"{split} {number}" for split, number in counts["examples"].items()),
    )
