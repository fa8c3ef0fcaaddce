"""The audit as a table on the terminal."""

from recalign.audit.audit import Audit
from recalign.audit.finding import LEAK, WARNING, Finding
from recalign.evaluation.significance import plain

WIDE = 160  # columns where there is no terminal, as in a log of CI
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
    """Print the table and the verdict to standard output, in colour where it is a terminal."""
    import rich.box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else WIDE, highlight=False)
    table = Table(box=rich.box.SIMPLE_HEAD)
    for heading in AUDIT_HEADINGS:
        table.add_column(heading, no_wrap=heading not in ("measures", "verdict"))
    for finding in audit.findings:
        table.add_row(*audit_row(finding), style=STYLES.get(finding.verdict))
    users = "users unknown" if audit.users is None else f"{audit.users} users"
    about = f"{name}: {audit.cases} cases, {users}, {audit.candidates} candidates each; 95 % intervals over users"
    console.print(about, markup=False, soft_wrap=True)
    console.print(table)
    console.print(audit.sentence, markup=False, soft_wrap=True)
