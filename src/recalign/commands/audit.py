"""Command audit: look for leaks in anyone's candidate lists. It reads no params.yaml: a file has one verdict."""

import logging
from collections.abc import Sequence
from pathlib import Path

from recalign.audit.audit import Split, audit_cases
from recalign.audit.cases import LARGEST, CaseSet, Log, case_set
from recalign.common.artifacts import file_digest
from recalign.common.console import STDOUT, check_json_file, give_json
from recalign.data.case_file import FileCase, read_catalogue, read_file_cases, read_file_log
from recalign.report.table import print_audit

log = logging.getLogger(__name__)
LEAKS = 1  # exit code


def audit(
    cases: Path,
    fit: Path | None = None,
    interactions: Path | None = None,
    items: Path | None = None,
    split: Split = "user",
    json: Path | None = None,
) -> int:
    """Audit the cases file, print a table and a verdict; the exit code: 0 clean, 1 leak found.

    fit: other cases, interactions: the log, from which a system may learn; items: the catalogue; split: what is kept
    apart, users or times; json: the file to write the findings to, or STDOUT to print them in place of the table.
    Raises RecalignError naming file and line of bad input.
    """
    check_json_file(json)
    catalogue = None if items is None else read_catalogue(items)
    asked = _sampled(_case_set(cases, read_file_cases(cases, catalogue, anonymous=True)))
    other = None
    if fit is not None:
        other = _sampled(_case_set(fit, read_file_cases(fit, catalogue, option="--fit", anonymous=True)))
    events = None
    if interactions is not None:
        events = Log(interactions.name, *read_file_log(interactions, "--interactions"))
    found = audit_cases(asked, other, events, None if catalogue is None else catalogue.titles, split)
    if json != STDOUT:
        print_audit(found, cases.name)
    if json is not None:
        files = {path.name: file_digest(path) for path in (cases, fit, interactions, items) if path is not None}
        give_json({"files": files, **found.as_dict()}, json)
    return LEAKS if found.leaks else 0


def _case_set(path: Path, cases: Sequence[FileCase]) -> CaseSet:
    return case_set(
        path.name,
        [case.user_id for case in cases],
        [case.history for case in cases],
        [case.candidates for case in cases],
        [case.target for case in cases],
        has_users=not cases[0].guessed,
    )


def _sampled(cases: CaseSet) -> CaseSet:
    sample = cases.sample()
    if len(sample) < len(cases):
        log.info("%s: %d of %d cases audited, by a hash of their users", cases.name, LARGEST, len(cases))
    return sample
