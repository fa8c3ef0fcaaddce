"""The scorecard as a table on the terminal."""

from recalign.evaluation.ranking import LABELS, METRICS
from recalign.evaluation.scorecard import Comparison, Scorecard
from recalign.evaluation.significance import Interval

WIDE = 172  # columns in which every cell of the table fits on one line


def plain(interval: Interval) -> str:
    """A metric with its 95 % interval: '0.312 [0.264, 0.361]'."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def difference(pair: Comparison | None) -> str:
    """A paired difference with its sign and interval; a dash where there is nothing to compare with.

    A question mark follows where the interval leaves out zero but Holm's correction does not let it count.
    """
    if pair is None:
        return "—"
    doubt = " ?" if pair.lost_by_correction else ""
    numbers = pair.interval
    return f"{numbers.value:+.3f} [{numbers.low:+.3f}, {numbers.high:+.3f}]{doubt}".replace("-", "−")


def headings(card: Scorecard) -> list[str]:
    """The columns of the card."""
    return ["system", *(LABELS[metric] for metric in METRICS), f"NDCG@10 − {card.baseline}", "ranked by"]


def cells(card: Scorecard) -> list[list[str]]:
    """The card's rows as text, best NDCG@10 last, in the order of `headings`."""
    rows = sorted(card.rows, key=lambda row: (row.metrics["ndcg_at_10"].value, row.system))
    return [
        [row.system, *(plain(row.metrics[metric]) for metric in METRICS), difference(row.difference), row.ranked_by]
        for row in rows
    ]


def caption(card: Scorecard, source: str) -> str:
    """What every figure of the card carries: source, protocol, manifest with digest, numbers of cases and users."""
    return (
        f"{source}, test split, {card.protocol}, manifest {card.manifest} {card.digest[:12]}, "
        f"{card.cases} cases of {card.users} users, 95 % intervals over users"
    )


def print_scorecard(card: Scorecard, source: str) -> None:
    """Print the card to standard output, in colour where it is a terminal; a narrow one gets intervals below values."""
    import rich.box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else WIDE, highlight=False)
    table = Table(box=rich.box.SIMPLE_HEAD)
    for place, heading in enumerate(headings(card)):
        table.add_column(heading, no_wrap=place == 0)
    for row in cells(card):
        folded = row if console.width >= WIDE else [cell.replace(" [", "\n[") for cell in row]
        table.add_row(*folded, style="bold" if row[0] == card.llm else None)
    console.print(caption(card, source))
    console.print(table)
