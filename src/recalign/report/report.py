"""reports/report.html: one page that says what came out, how sure it is, and what it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recalign.audit.audit import Audit
from recalign.common import columns as c
from recalign.common import html as page
from recalign.evaluation.exposure import Exposure
from recalign.evaluation.ranking_rule import CHOSEN_BY, RankingRule
from recalign.evaluation.scorecard import Scorecard
from recalign.evaluation.significance import Interval
from recalign.evaluation.slices import Slice
from recalign.evaluation.systems import Cost, System
from recalign.params.registry import RegistryParams
from recalign.report.plots import Drawing
from recalign.report.sections import (
    Claimed,
    cost_section,
    exposure_section,
    gate_section,
    ledger_section,
    slice_section,
    truth_section,
)
from recalign.report.table import AUDIT_HEADINGS, audit_row, by_value, caption, cells, difference, headings
from recalign.report.verdict import answer, spoken, verdict

TITLES = {
    "uniform": "Sampled candidates, drawn uniformly",
    "popularity": "Sampled candidates, drawn by popularity",
    "catalogue": "The full catalogue",
    "catalogue-cases": "The full catalogue, by the language models too",
}
NAMES = {
    c.USER_COLD: "Few likes in the history (user-cold)",
    c.NATURAL: "New items (item-cold, natural)",
    c.HIDDEN: "Hidden items (item-cold, hidden)",
}
BOLD = "Bold: the language model that is best on the validation cases; the verdict speaks of it."


@dataclass(frozen=True)
class Evidence:
    """What a report shows, as plain values.

    cards: the main card (warm, uniform candidates) first; about: cases.json; systems: what each is, by name; examples:
    examples.json; audits: what the candidate lists of each sampled card give away, by its title; left_out: why a view
    has no card; warnings: sentences on what went wrong in training; slices, exposures (by
    title of the protocol, then system), shares of the oracle's gain, costs; quality: summary.json of the validated
    data; truth: truth.json of the profiles, None where no truth is known; planted, cost_plot: drawings of their
    sections; lineage: what made them, by name; params: the effective parameters as YAML-like lines; reproduce,
    next_commands: what to type; second: sections of the second view; fairness: the section on reranked systems;
    injected: that on titles that ask to be recommended; claims: of a few users, with their evidence; registry: what the
    gate will ask, None: not told.
    """

    cards: Sequence[Scorecard]
    about: Mapping[str, Any]
    systems: Mapping[str, System]
    drawings: Sequence[Drawing]
    audits: Sequence[tuple[str, Audit]]
    warnings: Sequence[str]
    slices: Sequence[Slice]
    exposures: Mapping[str, Mapping[str, Exposure]]
    shares: Mapping[str, Interval]
    costs: Sequence[Cost]
    cost_plot: Drawing | None
    planted: Drawing | None
    examples: Sequence[Mapping[str, Any]]
    quality: Mapping[str, Any]
    truth: Mapping[str, Any] | None
    lineage: Mapping[str, str]
    params: Sequence[str]
    reproduce: Sequence[str]
    next_commands: Sequence[str]
    second: Sequence[str] = ()
    fairness: str = ""
    injected: str = ""
    claims: Sequence[Claimed] = ()
    registry: RegistryParams | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


def report_page(evidence: Evidence) -> str:
    """The page as HTML: the verdict first, then the evidence for it, then where it comes from."""
    source, main = evidence.about["source"], evidence.cards[0]
    systems = [row.system for row in by_value(main)]
    sections = [
        *[_card(card, source) for card in evidence.cards],
        _left_out(evidence.left_out),
        _audit(evidence.audits),
        _comparisons(main),
        _training(evidence),
        slice_section(evidence.slices, systems),
        exposure_section(evidence.exposures),
        evidence.fairness,
        evidence.injected,
        truth_section(evidence.truth, evidence.shares, evidence.planted),
        ledger_section(evidence.claims),
        *evidence.second,
        cost_section(main, evidence.costs, evidence.cost_plot),
        _choices(evidence),
        _examples(evidence),
        _quality(evidence.quality),
        _lineage(evidence),
        gate_section(evidence.registry),
        page.section("What next", page.commands(evidence.next_commands)),
    ]
    written = [part for part in sections if part]
    head = [f"<h1>{page.escape(f'recalign on {source}')}</h1>", _verdict(evidence), page.contents(written)]
    return page.document(f"recalign: {source}", head + written)


def _verdict(evidence: Evidence) -> str:
    said = [answer(evidence.cards[0]), *verdict(evidence.cards[0])]
    sentences = "\n".join(page.paragraph(sentence) for sentence in said)
    warnings = "\n".join(page.paragraph(f"Warning. {sentence}", "warning") for sentence in evidence.warnings)
    plotted = page.figure(evidence.drawings[0])
    return f'<div class="verdict">\n{sentences}\n</div>\n{warnings}\n{plotted}'


def title_of(card: Scorecard) -> str:
    """The heading of a card: its protocol, and its view where that is not the main one."""
    title = TITLES[card.manifest]
    return f"{NAMES[card.view]}: {title[:1].lower()}{title[1:]}" if card.view in NAMES else title


def _left_out(views: Mapping[str, str]) -> str:
    if not views:
        return ""
    said = [page.paragraph(f"{NAMES.get(view, view)}: {why}.") for view, why in views.items()]
    return page.section("Views that are left out", *said)


def _card(card: Scorecard, source: str) -> str:
    listed = page.table(headings(card), cells(card), caption(card, source), best=card.llm)
    notes = [*card.notes, *([BOLD] if any(row.system == card.llm for row in card.rows) else [])]
    said = verdict(card)[:1] if card.view in NAMES else []  # the main view's is at the top of the page
    return page.section(title_of(card), listed, *map(page.paragraph, [*said, *notes]))


def _audit(audits: Sequence[tuple[str, Audit]]) -> str:
    parts = []
    for title, audit in audits:
        listed = page.table(AUDIT_HEADINGS, [audit_row(finding) for finding in audit.findings], title)
        parts.append(page.paragraph(f"{title}, {audit.cases} cases: {audit.sentence}"))
        parts.append(page.folded("every probe, its figure and what chance gives", listed))
    return page.section("What the candidate lists give away", *parts)


def _comparisons(card: Scorecard) -> str:
    rows = [
        (f"{spoken(pair.first)} minus {spoken(pair.second)}", difference(pair), _p(pair.p), pair.words)
        for pair in card.comparisons
    ]
    note = (
        f"NDCG@10 on the same cases, 95 % intervals over {card.drawn}. p is corrected for all differences of this card "
        "(Holm); 'level with': p is 0.05 or more, or the interval holds zero; '?': the correction made it so."
    )
    columns = ["pair", "difference", "p (Holm)", "the first is"]
    return page.section("Paired comparisons", page.table(columns, rows, note))


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _training(evidence: Evidence) -> str:
    return page.section("Training", *[page.figure(drawing) for drawing in evidence.drawings[1:]])


def _choices(evidence: Evidence) -> str:
    rows = [
        (name, RankingRule(tried["kind"], tried["prior_weight"]).sentence, f"{tried[CHOSEN_BY]:.3f}")
        for name, about in evidence.systems.items()
        for tried in about.tried
    ]
    if not rows:
        return ""
    note = (
        f"NDCG@10 on {evidence.about['validation_cases']} validation cases; the simplest rule within one standard "
        "error of the best ranks the test cases."
    )
    listed = page.table(["system", "ranked by", "NDCG@10"], rows, note)
    return page.section("What ranks the language models", page.folded("every rule that was tried", listed))


def _examples(evidence: Evidence) -> str:
    shown = [name for name in (evidence.cards[0].baseline, evidence.cards[0].llm) if name]
    cards = []
    for example in evidence.examples:
        parts = [f"<h3>User {page.escape(str(example[c.USER]))}</h3>"]
        parts.append(page.paragraph(f"Liked, oldest first: {', '.join(example[c.HISTORY])}."))
        if example[c.PROFILE]:
            parts.append(page.paragraph(f"Inferred preference: {example[c.PROFILE]}"))
        parts.append(page.paragraph(f"Came next: {example[c.TARGET]}."))
        for name in shown:
            hit = example[c.TARGET] in example["ranked"][name]
            said = "with what came next among its first" if hit else "without what came next among its first"
            parts.append(page.paragraph(f"{name} ranks, {said} {len(example['ranked'][name])}:", "faint"))
            parts.append(page.ordered(example["ranked"][name], example[c.TARGET]))
        cards.append("<div>\n" + "\n".join(parts) + "\n</div>")
    return page.section("Three users", '<div class="cards">\n' + "\n".join(cards) + "\n</div>")


def _quality(quality: Mapping[str, Any]) -> str:
    counts = [(name, rows["read"], rows["kept"], rows["quarantined"]) for name, rows in sorted(quality["rows"].items())]
    failed = [
        (rule["rule"], rule["table"], rule["level"], rule["failed"]) for rule in quality["rules"] if rule["failed"]
    ]
    parts = [page.table(["table", "rows read", "kept", "quarantined"], counts)]
    if failed:
        parts.append(page.table(["rule", "table", "level", "rows"], failed, "Rules that some row broke"))
    return page.section("Data quality", *parts)


def _lineage(evidence: Evidence) -> str:
    listed = page.table(["what", "value"], evidence.lineage.items())
    return page.section(
        "Lineage, and how to reproduce it",
        listed,
        page.paragraph("In a clone of the repository, with its environment:"),
        page.commands(evidence.reproduce),
        page.folded("parameters in effect", page.commands(evidence.params)),
    )
