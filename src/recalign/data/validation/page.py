"""What validation found, for people: a page that needs no network, and the lines for the terminal."""

from collections.abc import Iterator

from recalign.common import columns as c
from recalign.common import html as page
from recalign.data.validation.rules import EXACT_COPY, admitting
from recalign.data.validation.tables import Outcome, Validation

LEVELS = {
    "row": ("Rules of a row", "A row that breaks one goes to quarantine, under the first rule it breaks."),
    "table": ("Rules of the whole log", "A broken one stops the run."),
    "warning": ("Warnings", "Rows that break one stay."),
}


def report_page(validation: Validation) -> str:
    """The page as HTML: the verdict, the rows, every rule with its level, sentence, count and first examples."""
    title = f"recalign: validation of {validation.source}"
    counts = [(table, n["read"], n["kept"], n["quarantined"]) for table, n in validation.rows.items()]
    body = [
        f"<h1>{page.escape(title)}</h1>",
        '<div class="verdict">' + "".join(page.paragraph(sentence) for sentence in verdict(validation)) + "</div>",
        page.section("Rows", page.table(["table", "read", "kept", "quarantined"], counts)),
    ]
    for level, (heading, note) in LEVELS.items():
        outcomes = [o for o in validation.outcomes if o.rule.level == level]
        body.append(page.section(heading, page.paragraph(note, "faint"), _rules_table(outcomes), *_examples(outcomes)))
    return page.document(title, body)


def verdict(validation: Validation) -> list[str]:
    """The result in sentences, the most important first."""
    stops = validation.stops()
    if stops:
        return ["The log was refused.", *(refusal(validation, outcome) for outcome in stops)]
    gone = sum(n["quarantined"] for n in validation.rows.values())
    broken = sum(1 for o in validation.outcomes if o.failed and o.rule.level == "row")
    if not gone:
        return ["Every row keeps every rule."]
    usable = f"The log is usable: {gone} rows went to quarantine under {broken} rules, the rest is kept."
    copies = sum(o.failed for o in validation.outcomes if o.rule.name == EXACT_COPY)
    harmless = f"{copies} of them are exact copies of rows that are kept: they cost nothing."
    return [usable, *([harmless] if copies else [])]


def refusal(validation: Validation, outcome: Outcome) -> str:
    """Why a table rule stops the run, in one line: the figure, what is allowed, what took most rows, what admits it."""
    rule = outcome.rule
    figure = next(iter(outcome.examples[0].values()))
    taking = [o for o in validation.outcomes if o.rule.level == "row" and o.rule.name != EXACT_COPY]
    took = max(taking, key=lambda o: o.failed)
    most = f" (most under '{took.rule.name}': {took.failed} rows, where {took.rule.sentence})" if took.failed else ""
    lost = max((o for o in taking if o.rule.table == "items"), key=lambda o: o.failed)
    if lost.failed and lost is not took:  # an item takes its interactions with it, so it is what to fix first
        most += f"; {lost.failed} items are in quarantine themselves, most under '{lost.rule.name}'"
    if validation.rows["interactions"]["read"] and not validation.rows["interactions"]["kept"]:
        read = validation.rows["interactions"]["read"]
        return f"every one of {read} interactions is in quarantine{most}; fix the rows: no setting admits an empty log"
    return f"{rule.name}: {figure:g} where {rule.sentence}{most}; fix the rows, or {admitting(rule, figure)}"


def summary_lines(validation: Validation) -> list[str]:
    """The rows of each table, and how many each broken rule took, aligned for a terminal."""
    lines = [f"{name}: {n['read']} rows read, {n['quarantined']} to quarantine" for name, n in validation.rows.items()]
    broken = [o for o in validation.outcomes if o.failed]
    width = max((len(str(o.failed)) for o in broken), default=0)
    return lines + [
        f"  {o.failed:>{width}}  {o.rule.level:<7}  {o.rule.table}: {o.rule.name} ({o.rule.sentence})" for o in broken
    ]


def _rules_table(outcomes: list[Outcome]) -> str:
    headings = ["rule", "table", "what has to hold", "failed"]
    rows = [(o.rule.name, o.rule.table, o.rule.sentence, o.failed) for o in outcomes]
    return page.table(headings, rows)


def _examples(outcomes: list[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        rule = outcome.rule
        if not outcome.failed or rule.level == "table":
            continue
        columns = [rule.shown or c.VALUE, *([rule.beside] if rule.beside else [])]
        rows = [(e[c.FILE], e[c.LINE], *(_value(e, column) for column in columns)) for e in outcome.examples]
        heading = f"{rule.table}, {rule.name}: the first of {outcome.failed}"
        yield page.folded(heading, page.table(["file", "line", *columns], rows))


def _value(row: dict[str, object], column: str) -> str:
    """A value as text in which control characters show."""
    value = row[column]
    return "missing" if value is None else ascii(value)[1:-1] if isinstance(value, str) else str(value)
