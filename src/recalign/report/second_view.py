"""The report's second view: what language models write when they are not given a list to rank, and whether ranking a
few candidates agrees with ranking the whole catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recalign.common import html as page
from recalign.evaluation.generation import ERRORS, GenerationRow, generation_rows, read_answers
from recalign.evaluation.protocol_agreement import Agreement, order_agreement, rank_agreement
from recalign.evaluation.ranks import CATALOGUE, CATALOGUE_CASES, SystemRanks
from recalign.evaluation.significance import Interval, plain, signed

HEADINGS = ["system", "generated", "matching", "cases", "ValidRatio", "hit, all rows", "hit, valid rows", *ERRORS]


@dataclass(frozen=True)
class SecondView:
    """Rows of generated titles (none where evaluate.generation_cases is 0), and the agreement of each system; order: of
    the systems among themselves, None for fewer than three."""

    generated: Sequence[GenerationRow]
    agreements: Sequence[Agreement]
    order: Agreement | None

    @property
    def all_agreements(self) -> list[Agreement]:
        """Those of the systems, and of their order where it has one."""
        return [*self.agreements, *([self.order] if self.order else [])]


def second_view(
    generations: Path, systems: Sequence[SystemRanks], sampled: str, resamples: int, seed: int
) -> SecondView:
    """From generations.parquet, if it is there, and all ranks; sampled: the manifest to compare with the catalogue.

    All of it is about the main view, whose systems come first. A system's ranks in the whole catalogue are those of the
    few cases that language models share, where there are any.
    """
    systems = [system for system in systems if system.view == systems[0].view]
    rows = generation_rows(read_answers(generations), resamples, seed) if generations.is_file() else []
    full = in_whole_catalogue(systems)
    both = [(s, full[s.system]) for s in systems if s.manifest == sampled and s.system in full]
    order = order_agreement([pair[0] for pair in both], [pair[1] for pair in both], resamples, seed)
    return SecondView(rows, [rank_agreement(*pair, resamples, seed) for pair in both], order)


def in_whole_catalogue(systems: Sequence[SystemRanks]) -> dict[str, SystemRanks]:
    """By system, its ranks in the whole catalogue: those of the few cases that language models share, if there are."""
    few, every = (
        {system.system: system for system in systems if system.manifest == manifest}
        for manifest in (CATALOGUE_CASES, CATALOGUE)
    )
    return few or every


def second_view_metrics(view: SecondView) -> dict[str, Any]:
    """What metrics.json holds of it: nothing where there is nothing."""
    found: dict[str, Any] = {}
    if view.generated:
        found["generation"] = [
            {"system": row.system, "mode": row.mode, "matching": row.matching, **row.as_dict()}
            for row in view.generated
        ]
    if view.agreements:
        found["sampled_against_full"] = {entry.system: _entry(entry) for entry in view.all_agreements}
    return found


def _entry(agreement: Agreement) -> dict[str, Any]:
    bounds = agreement.interval.as_dict() if agreement.interval else {"low": None, "high": None}
    tau = None if agreement.tau is None else round(agreement.tau, 6)
    return {"kendall_tau": tau, "low": bounds["low"], "high": bounds["high"], "cases": agreement.cases}


def second_view_sections(view: SecondView) -> list[str]:
    """Its sections of report.html; none where there is nothing."""
    return [part for part in (_generated(view.generated), _agreement(view)) if part]


def _generated(rows: Sequence[GenerationRow]) -> str:
    if not rows:
        return ""
    cells = [
        [row.system, row.mode, row.matching, row.cases, plain(row.valid), plain(row.hit_all), _or_dash(row.hit_valid)]
        + [row.errors[kind] for kind in ERRORS]
        for row in rows
    ]
    note = (
        "One title a case, greedy or by beam search. ValidRatio: the answer names exactly one candidate. Papers divide "
        "hits by all rows or by the valid ones; 'substring' is their matching, 'title' asks for the whole title."
    )
    return page.section("Generated titles", page.table(HEADINGS, cells, note))


def _agreement(view: SecondView) -> str:
    if not view.agreements:
        return ""
    cells = [[entry.system, _tau(entry), entry.cases] for entry in view.all_agreements]
    note = (
        "Kendall's tau-b between a target's rank among the sampled candidates and in the whole catalogue, over cases; "
        "last, between the orders in which the two put the systems (NDCG@10). 1: the same order, 0: none in common."
    )
    return page.section("Sampled against full ranking", page.table(["system", "tau", "cases"], cells, note))


def _tau(agreement: Agreement) -> str:
    if agreement.tau is None:
        return "—"
    return signed(agreement.interval) if agreement.interval else f"{agreement.tau:+.3f}".replace("-", "−")


def _or_dash(interval: Interval | None) -> str:
    return "—" if interval is None else plain(interval)
