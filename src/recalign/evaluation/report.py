"""reports/report.html: one page that says what came out, how sure it is, and what it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recalign import columns as c
from recalign.evaluation import page
from recalign.evaluation.plots import Drawing
from recalign.evaluation.ranking_rule import CHOSEN_BY, RankingRule
from recalign.evaluation.scorecard import Scorecard
from recalign.evaluation.table import caption, cells, difference, headings
from recalign.evaluation.verdict import spoken, verdict

TITLES = {
    "uniform": "Sampled candidates, drawn uniformly",
    "popularity": "Sampled candidates, drawn by popularity",
    "catalogue": "The full catalogue",
}


@dataclass(frozen=True)
class Evidence:
    """What a report shows, as plain values.

    cards: the main card (uniform candidates) first; about: cases.json; systems: systems.json; examples: examples.json;
    quality: summary.json of the validated data; truth: truth.json of the profiles, None where no truth is known;
    lineage: what made the figures, by name; params: the effective parameters as YAML-like lines.
    """

    cards: Sequence[Scorecard]
    about: Mapping[str, Any]
    systems: Mapping[str, Mapping[str, Any]]
    drawings: Sequence[Drawing]
    examples: Sequence[Mapping[str, Any]]
    quality: Mapping[str, Any]
    truth: Mapping[str, Any] | None
    lineage: Mapping[str, str]
    params: Sequence[str]
    next_commands: Sequence[str]


def report_page(evidence: Evidence) -> str:
    """The page as HTML: the verdict first, then the evidence for it, then where it comes from."""
    source = evidence.about["source"]
    sections = [
        f"<h1>{page.escape(f'recalign on {source}')}</h1>",
        _verdict(evidence),
        *[_card(card, source) for card in evidence.cards],
        page.section("Figures", *[page.figure(drawing) for drawing in evidence.drawings]),
        _comparisons(evidence.cards[0]),
        _choices(evidence),
        _examples(evidence),
        _quality(evidence.quality),
        _truth(evidence.truth),
        _lineage(evidence),
        page.section("What next", page.commands(evidence.next_commands)),
    ]
    return page.document(f"recalign: {source}", [part for part in sections if part])


def _verdict(evidence: Evidence) -> str:
    sentences = "\n".join(page.paragraph(sentence) for sentence in verdict(evidence.cards[0]))
    return f'<div class="verdict">\n{sentences}\n</div>'


def _card(card: Scorecard, source: str) -> str:
    listed = page.table(headings(card), cells(card), caption(card, source), best=card.llm)
    return page.section(TITLES[card.manifest], listed)


def _comparisons(card: Scorecard) -> str:
    rows = [
        (f"{spoken(pair.first)} less {spoken(pair.second)}", difference(pair), f"{pair.p:.3f}", pair.words)
        for pair in card.comparisons
    ]
    note = (
        "NDCG@10 on the same cases, 95 % intervals over users. p is corrected for all differences of this card (Holm); "
        "'level with': p is 0.05 or more, or the interval holds zero; '?': the correction made it so."
    )
    columns = ["pair", "difference", "p (Holm)", "the first is"]
    return page.section("Paired comparisons", page.table(columns, rows, note))


def _choices(evidence: Evidence) -> str:
    rows = [
        (name, RankingRule(tried["kind"], tried["prior_weight"]).sentence, f"{tried[CHOSEN_BY]:.3f}")
        for name, about in evidence.systems.items()
        for tried in about.get("tried", [])
    ]
    if not rows:
        return ""
    note = f"NDCG@10 on {evidence.about['validation_cases']} validation cases; the best one ranks the test cases."
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
            parts.append(page.paragraph(f"{name} ranks", "faint"))
            parts.append(page.ordered(example["ranked"][name], example[c.TARGET]))
        cards.append("<div>\n" + "\n".join(parts) + "\n</div>")
    return page.section("Three users", '<div class="cards">\n' + "\n".join(cards) + "\n</div>")


def _quality(quality: Mapping[str, Any]) -> str:
    counts = [
        (name, rows["read"], rows["kept"], rows["quarantined"]) for name, rows in sorted(quality["rows"].items())
    ]
    failed = [
        (rule["rule"], rule["table"], rule["level"], rule["failed"]) for rule in quality["rules"] if rule["failed"]
    ]
    parts = [page.table(["table", "rows read", "kept", "quarantined"], counts)]
    if failed:
        parts.append(page.table(["rule", "table", "level", "rows"], failed, "Rules that some row broke"))
    return page.section("Data quality", *parts)


def _truth(truth: Mapping[str, Any] | None) -> str:
    if not truth:
        return ""
    rows = [
        (engine, split, row["users"], row["claims"], _share(row["precision"]), _share(row["recall"]))
        for engine, splits in sorted(truth.items())
        for split, row in sorted(splits.items())
    ]
    note = "Claims of the inferred profiles against the tastes that the simulator planted"
    listed = page.table(["engine", "split", "users", "claims", "precision", "recall"], rows, note)
    return page.section("Profiles against the truth", listed)


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _lineage(evidence: Evidence) -> str:
    listed = page.table(["what", "value"], evidence.lineage.items())
    return page.section(
        "Lineage",
        listed,
        page.folded("parameters in effect", page.commands(evidence.params)),
    )
