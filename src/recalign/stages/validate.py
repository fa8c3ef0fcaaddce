"""Stage validate: the ingested log against its rules; bad rows go to quarantine with their reasons."""

import logging
import shutil
from pathlib import Path

from recalign.common.artifacts import folder, replacing, write_text
from recalign.common.errors import RecalignError
from recalign.data.validation.page import refusal, report_page, summary_lines
from recalign.data.validation.tables import write_validated
from recalign.params.load import Params
from recalign.project import CACHE, INTERACTIONS, REPORTS, VALIDATED

log = logging.getLogger(__name__)


def validate(
    params: Params, interactions: Path = INTERACTIONS, destination: Path = VALIDATED, reports: Path = REPORTS
) -> None:
    """Write the clean tables, quarantine.parquet and summary.json into `destination`, validation.html into `reports`.

    Raises RecalignError when a table rule is broken: then `destination` stays as it was, and the report and
    quarantine.parquet lie in `reports` to be looked at.
    """
    with folder(destination) as partial:
        validation = write_validated(params, interactions, partial, CACHE / "spill-validate")
        write_text(reports / "validation.html", report_page(validation))
        print("\n".join(summary_lines(validation)))
        for stop in validation.stops():
            with replacing(reports / "quarantine.parquet") as copy:
                shutil.copyfile(partial / "quarantine.parquet", copy)
            raise RecalignError(f"{refusal(validation, stop)}; {reports}/validation.html shows every rule")
    (reports / "quarantine.parquet").unlink(missing_ok=True)  # of a refused log before
    kept = validation.rows["interactions"]["kept"]
    log.info("%d interactions are clean; every rule is in %s", kept, reports / "validation.html")
