"""The audit as a table on the terminal."""

from recalign.audit.audit import Audit
from recalign.audit.finding import LEAK, WARNING, Finding
from recalign.evaluation.significance import plain
from recalign.report.table import print_table

STYLES = {LEAK: "bold red", WARNING: "yellow"}


AUDIT_HEADINGS = ("probe", "measures", "figure", "chance", "p", "verdict")


def audit_row(finding: Finding) -> list[str]:
    """A finding as text: probe, what it measures, figure with interval, chance, p, verdict with its reason."""
    return [
        finding.probe,
        finding.measures,
        "—" if finding.figure is None else plain(finding.figure),
        "—" if finding.chance is None else f"{finding.chance:.3f}",
        "—" if finding.p is None else f"{finding.p:.3f}",
        finding.verdict + (f": {finding.note}" if finding.note else ""),
    ]


def print_audit(audit: Audit, name: str) -> None:
    """Print the table, which folds to the terminal or a pipe, and the verdict to standard output."""
    users = "users unknown" if audit.users is None else f"{audit.users} users"
    about = f"{name}: {audit.cases} cases, {users}, {audit.candidates} candidates each; 95 % intervals over users"
    print(about)
    styles = [STYLES.get(finding.verdict) for finding in audit.findings]
    print_table(AUDIT_HEADINGS, [audit_row(finding) for finding in audit.findings], styles=styles)
    print(audit.sentence)
