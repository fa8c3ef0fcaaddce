"""Stage validate: the ingested log against its rules; bad rows go to quarantine with their reasons."""

import logging
import shutil

from recalign.common.artifacts import folder, replacing, write_text
from recalign.common.errors import RecalignError
from recalign.data.validation.page import refusal, report_page, summary_lines
from recalign.data.validation.tables import write_validated
from recalign.params.load import Params
from recalign.project import Project

log = logging.getLogger(__name__)


def validate(params: Params, project: Project = Project()) -> None:
    """Write the clean tables, quarantine.parquet and summary.json into data/validated, validation.html into reports/.

    Raises RecalignError when a table rule is broken: then data/validated stays as it was, and the report and
    quarantine.parquet lie in reports/ to be looked at.
    """
    with folder(project.validated) as partial:
        validation = write_validated(params, project.interactions, partial, project.cache / "spill-validate")
        write_text(project.reports / "validation.html", report_page(validation))
        print("\n".join(summary_lines(validation)))
        for stop in validation.stops():
            with replacing(project.reports / "quarantine.parquet") as copy:
                shutil.copyfile(partial / "quarantine.parquet", copy)
            raise RecalignError(f"{refusal(validation, stop)}; {project.reports}/validation.html shows every rule")
    (project.reports / "quarantine.parquet").unlink(missing_ok=True)  # of a refused log before
    kept = validation.rows["interactions"]["kept"]
    log.info("%d interactions are clean; every rule is in %s", kept, project.reports / "validation.html")
