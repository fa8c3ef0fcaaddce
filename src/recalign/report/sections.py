"""Sections of the report beyond the scorecard: slices, exposure, truth, cost, injection, and the gate's bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recalign.common import html as page
from recalign.evaluation.exposure import Exposure
from recalign.evaluation.injection import IN_HISTORY, IN_LIST, IN_PROFILE, Lift
from recalign.evaluation.metrics import LABELS
from recalign.evaluation.scorecard import Scorecard
from recalign.evaluation.significance import Interval, plain, signed
from recalign.evaluation.slices import FEWEST, RARE_EVENTS, Slice
from recalign.evaluation.systems import FUSION, Cost
from recalign.params.registry import RegistryParams
from recalign.report.plots import Drawing
from recalign.report.verdict import cost_sentences

SHOWN_SUPPORTS = 5  # titles named a claim


@dataclass(frozen=True)
class Claimed:
    """A line of a user's ledger as the report shows it; supports: titles, oldest first."""

    user: str
    claim: str
    about: str
    score: float | None
    by: str
    supports: tuple[str, ...]

    @property
    def told(self) -> str:
        """The latest titles, and how many there are beside them."""
        rest = len(self.supports) - SHOWN_SUPPORTS
        named = ", ".join(reversed(self.supports[-SHOWN_SUPPORTS:]))
        return f"{named}{f' and {rest} more' if rest > 0 else ''}" or "—"


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


def ledger_section(claims: Sequence[Claimed]) -> str:
    """What is claimed of a few users, and why; empty where no profile claims anything."""
    if not claims:
        return ""
    rows = [
        (own.user, own.claim, own.about, "—" if own.score is None else f"{own.score:+.2f}", own.by, own.told)
        for own in claims
    ]
    note = (
        "Each claim with the liked items that support it, the latest first. A person may forbid or change one "
        "(recalign profile USER --edit …), which recommend reads; edits are kept apart, and are not in this report."
    )
    listed = page.table(["user", "claim", "attribute", "score", "by", "because of"], rows, note)
    return page.section("What is claimed of users", listed)


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


Lifts = Mapping[str, Mapping[str, Lift]]  # by system, then position
WHERE = {IN_LIST: "its own", IN_HISTORY: "the last liked item's", IN_PROFILE: "the profile"}


def injection_section(lifts: Lifts) -> str:
    """A row a system and position; empty where nothing was measured (evaluate.injection_cases is 0)."""
    if not lifts:
        return ""
    rows = [
        (system, WHERE[position], lift.sentence, f"{lift.clean_rank:.1f}", f"{lift.rank:.1f}",
         f"{lift.cases} of {lift.users}")
        for system, positions in lifts.items() for position, lift in positions.items()
    ]  # fmt: skip
    note = (
        "In each case a wrong candidate is on trial, and a title or the profile asks for it in one of a few ways, such "
        "as 'recommend me next'. Lift: 1/rank with the text minus 1/rank without it, 95 % intervals over users; above "
        "0: the text works. ID recommenders read no titles, so theirs is 0. The recommender content does and is not "
        "measured; in a fusion it keeps the scores of the clean titles."
    )
    headings = ["system", "the text is in", "lift", "mean rank without", "with", "cases of users"]
    return page.section("Titles that ask to be recommended", page.table(headings, rows, note))


def injection_note(lifts: Lifts, llm: str | None) -> list[str]:
    """A line for the table: of the best language model and of the fusion; none where neither was measured."""
    told = [
        f"{system} {lifts[system][IN_LIST].sentence} in its own title, {lifts[system][IN_HISTORY].sentence} in the "
        "last liked one"
        + (f", {lifts[system][IN_PROFILE].sentence} in the profile" if IN_PROFILE in lifts[system] else "")
        for system in (llm, FUSION) if system and system in lifts
    ]  # fmt: skip
    return [f"Lift of a title that asks for its item, in 1/rank: {'; '.join(told)}."] if told else []


WATCHED = {  # key of registry.guards: what it watches, how its bound is said
    "user_cold": ("{metric} of users with short histories", "may lose {bound:g}"),
    "item_cold": ("{metric} of new items", "may lose {bound:g}"),
    "popularity_lift": ("popularity lift of its lists", "may add {bound:g}"),
    "mgu": ("MGU of its lists", "may add {bound:g}"),
    "dgu": ("DGU of its lists", "may add {bound:g}"),
    "valid_answers": ("share of valid generated answers", "may lose {bound:g}"),
    "injection_lift": ("lift by a text in a title", "may add {bound:g}"),
    "latency_ratio": ("seconds per answer", "at most {bound:g} times the champion's"),
    "megabytes_ratio": ("megabytes of weights", "at most {bound:g} times the champion's"),
}


def gate_section(registry: RegistryParams | None) -> str:
    """The guards and their bounds; empty where they are not told."""
    if registry is None:
        return ""
    metric = LABELS[registry.metric]
    rows = [("leak probes", f"{metric} must be above what the candidate lists give away")]
    for key, (what, said) in WATCHED.items():
        bound = getattr(registry.guards, key)
        rows.append((what.format(metric=metric), "not looked at" if bound is None else said.format(bound=bound)))
    note = "Against the present champion; a guard is broken only where its whole interval lies beyond the bound."
    told = page.paragraph(
        "This page was written before any registration. What the gate said of the last one is in reports/gate.html, "
        "which 'recalign register' writes, and with the version in MLflow."
    )
    return page.section("What the gate will ask", page.table(["guard", "bound"], rows, note), told)
