"""The scorecard, the comparison of two runs, and the audit as tables on the terminal."""

from collections.abc import Mapping, Sequence

from recalign.audit.audit import MARK, Audit
from recalign.audit.finding import LEAK, WARNING, Finding
from recalign.evaluation.comparison import Compared, ComparedAnswers, Run
from recalign.evaluation.metrics import LABELS, METRICS
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.scorecard import Comparison, Row, Scorecard, no_verdict
from recalign.evaluation.significance import plain, signed
from recalign.evaluation.systems import ID, MEANINGLESS, ORACLE

PIPE = 120  # columns of a table that no terminal shows: a log or a pipe
MINOR = ("HR@5", "MRR")  # left out of a table that a terminal has no room for; the report shows all
BETWEEN = 3  # columns of the screen between two of the table


def difference(pair: Comparison | None) -> str:
    """A paired difference with its sign and interval; a dash where there is nothing to compare with.

    A question mark follows where the interval leaves out zero but Holm's correction does not let it count.
    """
    if pair is None:
        return "—"
    return signed(pair.interval) + (" ?" if pair.lost_by_correction else "")


def headings(card: Scorecard) -> list[str]:
    """The columns of the card."""
    return ["system", *(LABELS[metric] for metric in METRICS), f"NDCG@10 − {card.baseline}", "ranked by"]


def by_value(card: Scorecard) -> list[Row]:
    """The card's rows, best NDCG@10 last."""
    return sorted(card.rows, key=lambda row: (row.metrics[CHOSEN_BY].value, row.system))


def cells(card: Scorecard) -> list[list[str]]:
    """The card's rows as text, best NDCG@10 last, in the order of `headings`; MARK where a leak probe is not beaten."""
    marks = dict.fromkeys(card.unbeaten, f" {MARK}")
    return [
        [
            row.system,
            *(plain(row.metrics[metric]) for metric in METRICS),
            difference(row.difference),
            row.ranked_by + marks.get(row.system, ""),
        ]
        for row in by_value(card)
    ]


def caption(card: Scorecard, source: str) -> str:
    """What every figure of the card carries: source, view, protocol, manifest, digest, cases and users."""
    return (
        f"{source}, test split, {card.view}, {card.protocol}, manifest {card.manifest} {card.digest[:12]}, "
        f"{card.cases} cases of {card.users} users, 95 % intervals over {card.drawn}"
        + (f"; {MEANINGLESS}" if card.random_model else "")
    )


def print_left_out(views: Mapping[str, str]) -> None:
    """Print why a view has no table."""
    for view, why in views.items():
        print(f"{view}: left out, since {why}")


def print_scorecard(card: Scorecard, source: str) -> None:
    """Print the card to standard output, in colour where it is a terminal; a narrow one gets intervals below values.

    What ranks language models and fusions stands below the table: it is long, and the same for many rows.
    """
    print(caption(card, source))
    *columns, _ = headings(card)
    rows = [[_marked(card, name), *own] for name, *own, _ in cells(card)]
    print_table(columns, rows, bold=card.llm and _marked(card, card.llm))
    for note in (*_rules(card), *card.notes):
        print(note)


def _marked(card: Scorecard, system: str) -> str:
    return f"{system} {MARK}" if system in card.unbeaten else system


def _rules(card: Scorecard) -> list[str]:
    """A line a rule: the systems that it ranks; ID recommenders have but one each, which the report names."""
    ruled: dict[str, list[str]] = {}
    for row in by_value(card):
        if row.kind not in (ID, ORACLE):
            ruled.setdefault(row.ranked_by, []).append(row.system)
    return [f"Ranked by {rule}: {', '.join(systems)}." for rule, systems in ruled.items()]


def print_comparison(first: Run, second: Run, compared: Sequence[Compared]) -> None:
    """Print what the first run's systems reach minus the second's, a row a pair of systems."""
    ranks = next(iter(first.systems.values()))
    print(
        f"{first.name} minus {second.name}: {first.about['source']}, {first.about['split']} split, {ranks.view}, "
        f"{ranks.protocol}, manifest {ranks.manifest} {ranks.digest[:12]}, "
        f"{len(ranks.ranks)} cases of {len(set(ranks.user_ids))} users"
    )
    rows, undecided = [], no_verdict(ranks.view, len(ranks.ranks), len(set(ranks.user_ids)))
    for pair in compared:
        values = [difference(own) for own in pair.metrics.values()]
        words = "no verdict" if undecided else pair.metrics[CHOSEN_BY].words
        rows.append([_pair(pair.first, pair.second), *values, words])
    print_table(["system", *(LABELS[metric] for metric in METRICS), "by NDCG@10 the first is"], rows)
    if undecided:
        print(f"{ranks.view}: {undecided}")
    over = f"95 % intervals over {ranks.drawn}"
    print(f"{over}; '?': leaves out zero, but not when all of the table is corrected for (Holm)")


def print_second_views(answers: Sequence[ComparedAnswers], agreements: Sequence[Comparison]) -> None:
    """Print what differs in the generated titles and in the agreement of sampled with full ranking; nothing of none."""
    if answers:
        print("Generated titles, the first minus the second:")
        rows = []
        for own in answers:
            about = [_pair(own.first, own.second), own.mode, own.matching, str(own.cases)]
            rows.append(about + [difference(told) for told in own.metrics.values()])
        headings = ["system", "generated", "matching", "cases", "ValidRatio", "hit, all rows", "hit, valid rows"]
        print_table(headings, rows)
    if agreements:
        print("Kendall's tau-b of sampled and full ranks, the first minus the second:")
        rows = [[_pair(own.first, own.second), difference(own), own.words] for own in agreements]
        print_table(["system", "tau", "the first is"], rows)


def _pair(first: str, second: str) -> str:
    return first if first == second else f"{first} minus {second}"


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    bold: str | None = None,
    styles: Sequence[str | None] | None = None,
) -> None:
    """Print rows under their headings in the fullest form that fits the terminal, or PIPE columns.

    bold: whose row; styles: of rich, one a row.
    """
    import rich.box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else PIPE, highlight=False)
    shown, left_out = _fitted([list(columns), *map(list, rows)], console.width)
    table = Table(box=rich.box.SIMPLE_HEAD)
    for place, heading in enumerate(shown[0]):
        table.add_column(heading, no_wrap=place == 0)
    for row, style in zip(shown[1:], styles or [None] * len(rows), strict=True):
        table.add_row(*map(escape, row), style="bold" if row[0] == bold else style)
    console.print(table)
    if left_out:
        print(f"{' and '.join(left_out)}: shown where there are more than {console.width} columns, and in the report")


def _fitted(lines: list[list[str]], width: int) -> tuple[list[list[str]], list[str]]:
    """The table, headings first, in the fullest form that fits: as it is, with intervals below their values, without
    the minor metrics too; and the headings that were left out."""
    if _width(lines) <= width:
        return lines, []
    folded = [[cell.replace(" [", "\n[").replace(" − ", "\n− ") for cell in line] for line in lines]
    if _width(folded) <= width:
        return folded, []
    kept = [place for place, heading in enumerate(lines[0]) if heading not in MINOR]
    left_out = [heading for heading in lines[0] if heading in MINOR]
    return [[line[place] for place in kept] for line in folded], left_out


def _width(lines: list[list[str]]) -> int:
    """Columns of the screen that a table takes."""
    cells = [[len(part) for cell in column for part in cell.splitlines()] for column in zip(*lines, strict=True)]
    return sum(max(own, default=0) + BETWEEN for own in cells) + 1


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
