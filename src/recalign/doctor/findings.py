"""What the doctor found: a line a check, with the fix where something is wrong."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from recalign.common.errors import RecalignError
from recalign.params.load import Params

State = Literal["ok", "warn", "fail"]
Result = tuple[State, str, str]  # state, what was found, the fix
Check = Callable[[Params], Result]  # of a project
STYLES: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
NARROW = 110  # columns of a log or a pipe, which have no width of their own


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and the fix ("" where there is none to make).

    state: ok; warn, it works, but not as one may think; fail, it will not work.
    """

    name: str
    state: State
    found: str
    fix: str = ""


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what the parts say of themselves when they run: what is found says it in their place."""
    logger = logging.getLogger("recalign")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def from_error(name: str, error: RecalignError) -> Finding:
    """A failed check from an error's line, whose fix follows the semicolon."""
    found, _, fix = str(error).partition("; ")
    return Finding(name, "fail", found, fix)


def worst(findings: Sequence[Finding]) -> State:
    """The gravest state."""
    states = {finding.state for finding in findings}
    return "fail" if "fail" in states else "warn" if "warn" in states else "ok"


def print_findings(findings: Sequence[Finding]) -> None:
    """Print the checks as a table, and below it what to fix; to standard output, in colour where it is a terminal."""
    import rich.box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if Console().is_terminal else NARROW, highlight=False)
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", ratio=1)
    for finding in findings:
        table.add_row(Text(finding.state, STYLES[finding.state]), finding.name, Text(finding.found))
    console.print(table)
    for state, heading in (("fail", "To fix:"), ("warn", "To know:")):
        told = [finding for finding in findings if finding.state == state]
        if told:
            console.print(heading)
        for finding in told:
            console.print(Text(f"  {finding.name}: {finding.fix or finding.found}"), soft_wrap=True)
    if worst(findings) == "ok":
        console.print("Nothing is wrong.")
