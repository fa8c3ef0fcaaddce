"""The scorecard, and the comparison of two runs, as tables on the terminal."""

from collections.abc import Mapping, Sequence

from recalign.audit.contest import MARK
from recalign.evaluation.comparison import Compared, ComparedAnswers, Run
from recalign.evaluation.metrics import LABELS, METRICS
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.scorecard import Comparison, Row, Scorecard, no_verdict
from recalign.evaluation.significance import plain, signed

WIDE = 172  # columns in which every cell of the table fits on one line


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
        f"{card.cases} cases of {card.users} users, 95 % intervals over users"
    )


def print_left_out(views: Mapping[str, str]) -> None:
    """Print why a view has no table."""
    for view, why in views.items():
        print(f"{view}: left out, since {why}")


def print_scorecard(card: Scorecard, source: str) -> None:
    """Print the card to standard output, in colour where it is a terminal; a narrow one gets intervals below values."""
    print(caption(card, source))
    _print_table(headings(card), cells(card), bold=card.llm)
    for note in card.notes:
        print(note)


def print_comparison(first: Run, second: Run, compared: Sequence[Compared]) -> None:
    """Print what the first run's systems reach less the second's, a row a pair of systems."""
    ranks = next(iter(first.systems.values()))
    print(
        f"{first.name} less {second.name}: {first.about['source']}, {first.about['split']} split, {ranks.view}, "
        f"{ranks.protocol}, manifest {ranks.manifest} {ranks.digest[:12]}, "
        f"{len(ranks.ranks)} cases of {len(set(ranks.user_ids))} users"
    )
    rows, undecided = [], no_verdict(ranks.view, len(ranks.ranks), len(set(ranks.user_ids)))
    for pair in compared:
        values = [difference(own) for own in pair.metrics.values()]
        words = "no verdict" if undecided else pair.metrics[CHOSEN_BY].words
        rows.append([_pair(pair.first, pair.second), *values, words])
    _print_table(["system", *(LABELS[metric] for metric in METRICS), "by NDCG@10 the first is"], rows)
    if undecided:
        print(f"{ranks.view}: {undecided}")
    print("95 % intervals over users; '?': leaves out zero, but not when all of the table is corrected for (Holm)")


def print_second_views(answers: Sequence[ComparedAnswers], agreements: Sequence[Comparison]) -> None:
    """Print what differs in the generated titles and in the agreement of sampled with full ranking; nothing of none."""
    if answers:
        print("Generated titles, the first less the second:")
        rows = []
        for own in answers:
            about = [_pair(own.first, own.second), own.mode, own.matching, str(own.cases)]
            rows.append(about + [difference(told) for told in own.metrics.values()])
        headings = ["system", "generated", "matching", "cases", "ValidRatio", "hit, all rows", "hit, valid rows"]
        _print_table(headings, rows)
    if agreements:
        print("Kendall's tau-b of sampled and full ranks, the first less the second:")
        rows = [[_pair(own.first, own.second), difference(own), own.words] for own in agreements]
        _print_table(["system", "tau", "the first is"], rows)


def _pair(first: str, second: str) -> str:
    return first if first == second else f"{first} less {second}"


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], bold: str | None = None) -> None:
    import rich.box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else WIDE, highlight=False)
    table = Table(box=rich.box.SIMPLE_HEAD)
    for place, heading in enumerate(columns):
        table.add_column(heading, no_wrap=place == 0)
    for row in rows:
        folded = row if console.width >= WIDE else [cell.replace(" [", "\n[") for cell in row]
        table.add_row(*folded, style="bold" if row[0] == bold else None)
    console.print(table)
