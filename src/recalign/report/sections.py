"""Sections of the report beyond the scorecard: slices, exposure, truth and cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from recalign.common import html as page
from recalign.evaluation.costs import Cost
from recalign.evaluation.exposure import Exposure
from recalign.evaluation.scorecard import Scorecard
from recalign.evaluation.significance import Interval, plain, signed
from recalign.evaluation.slices import FEWEST, RARE_EVENTS, Slice
from recalign.report.costs import cost_sentences
from recalign.report.plots import Drawing


def slice_section(slices: Sequence[Slice], systems: Sequence[str]) -> str:
    """NDCG@10 of each system on each slice, as a heat map that is a table."""
    rows = [
        page.HeatRow(
            f"{own.dimension}: {own.label} [{own.cases} cases, {own.users} users]",
            [(plain(own.values[system]), own.values[system].value) for system in systems],
            systems.index(own.best) if own.best else None,
            own.small,
        )
        for own in slices
    ]
    note = (
        "NDCG@10 with 95 % intervals over users, a fuller tint is better; the best system of a slice is bold. Slices "
        f"under {FEWEST} cases are grey and name no best one. Users without train events may have a history; "
        f"rare items have under {RARE_EVENTS} train events; an item with several values of an attribute counts in each "
        "of theirs. First likes are those before a case's own cutoff."
    )
    return page.section("Slices of the warm cases", page.heat_table(["slice", *systems], rows, note))


def exposure_section(exposures: Mapping[str, Mapping[str, Exposure]]) -> str:
    """Fairness of item groups, coverage and popularity lift: a table a protocol (title -> system -> values)."""
    parts = []
    for title, own in exposures.items():
        if not own:
            continue
        names, top = list(next(iter(own.values())).fairness), next(iter(own.values())).top
        headings = ["system", *(f"{metric} by {name}" for name in names for metric in ("MGU", "DGU"))]
        rows = [
            [
                system,
                *(plain(value) for name in names for value in (told.fairness[name].mgu, told.fairness[name].dgu)),
                f"{told.coverage:.0%}",
                signed(told.lift),
            ]
            for system, told in own.items()
        ]
        parts.append(page.table([*headings, "coverage", "popularity lift"], rows, f"{title}, {top} items a case"))
        parts.append(page.folded(f"GU of every group ({title})", _groups(own)))
    note = (
        "Of the best items of each case. GU of a group: its share of the shown items minus its share of the "
        "train events (an item of several groups counts in each with its part); MGU: mean of |GU|; DGU: largest minus "
        "smallest GU; 0 is fair. Coverage: share of the catalogue in any list. Popularity lift: train events of a "
        "shown item over those of an item that was liked, minus 1."
    )
    heading = "What is shown on warm cases: fairness, coverage, popularity"
    return page.section(heading, page.paragraph(note, "faint"), *parts) if parts else ""


def _groups(own: Mapping[str, Exposure]) -> str:
    tables = []
    for name in next(iter(own.values())).fairness:
        groups = list(next(iter(own.values())).fairness[name].gu)
        rows = [[group, *(signed(told.fairness[name].gu[group]) for told in own.values())] for group in groups]
        tables.append(page.table([name, *own], rows, f"GU by {name}; above 0: shown more often than liked"))
    return "\n".join(tables)


def truth_section(scores: Mapping[str, Any] | None, shares: Mapping[str, Interval], planted: Drawing | None) -> str:
    """What is known because the world is simulated; empty where no truth is known."""
    parts = []
    if shares:
        rows = [(system, signed(told)) for system, told in sorted(shares.items(), key=lambda pair: pair[1].value)]
        note = (
            "(NDCG@10 − chance) / (oracle's − chance), chance being a random order of the candidates; 1: as good as "
            "knowing the true probabilities"
        )
        parts.append(page.table(["system", "share of the oracle's gain"], rows, note))
    if scores:
        claims = [
            (engine, split, row["users"], row["claims"], _share(row["precision"]), _share(row["recall"]))
            for engine, splits in sorted(scores.items())
            for split, row in sorted(splits.items())
        ]
        note = "Claims of the inferred profiles against the tastes that the simulator planted"
        parts.append(page.table(["engine", "split", "users", "claims", "precision", "recall"], claims, note))
    if planted:
        parts.append(page.figure(planted))
    return page.section("Against the truth", *parts) if parts else ""


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def cost_section(card: Scorecard, costs: Sequence[Cost], drawing: Drawing | None) -> str:
    """What each system costs beside what it gives."""
    rows = [
        (
            cost.system,
            _number(cost.fitting),
            _number(cost.per_thousand),
            _number(cost.megabytes),
            plain(card.row(cost.system).metrics["ndcg_at_10"]),
        )
        for cost in costs
    ]
    note = (
        "Wall seconds on the machine named below. Fitting of an aligned model holds that of the SFT model it starts "
        "from, fitting of a fusion that of its parts. Ranking is of 1,000 cases; weights are all that is loaded for "
        "it, the base model among them. —: not timed here, or read from what an earlier run stored."
    )
    headings = ["system", "fitting, s", "ranking, s", "weights, MB", "NDCG@10"]
    shown = [page.figure(drawing)] if drawing else []
    said = [page.paragraph(sentence) for sentence in cost_sentences(card, costs)]
    return page.section("Cost against gain", *said, *shown, page.table(headings, rows, note))


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:,.1f}"
