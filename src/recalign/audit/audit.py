"""The audit of candidate cases: what can be had from them without knowing anybody's taste.

A leak lets a system score without learning; a warning is a property of honest data that a reader should know. Then
systems against the leak probes: a figure that knowing nobody's taste reaches as well says nothing about a system.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from recalign.audit.blind import (
    Lookup,
    count_scores,
    follow_shares,
    nearest_after,
    orders_for,
    place_scores,
    seen_scores,
)
from recalign.audit.cases import CaseSet, Log
from recalign.audit.finding import (
    CLEAN,
    LEAK,
    WARNING,
    Finding,
    counts_finding,
    equal_target_findings,
    ids_finding,
    lookup_finding,
    order_finding,
    place_finding,
    popularity_finding,
    seen_finding,
    shared_findings,
    titles_finding,
)
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import LABELS, Floats, draw_lots, metric_values, target_ranks
from recalign.evaluation.ranks import SystemRanks, in_case_order
from recalign.evaluation.significance import Interval, metric_interval, paired_difference, signed
from recalign.params.load import Params

Split = Literal["user", "time"]


@dataclass(frozen=True)
class Audit:
    """The findings, what they are about, and the scores [B, C] that each leak probe ranks the candidates by."""

    findings: tuple[Finding, ...]
    cases: int
    users: int | None
    candidates: int
    scores: Mapping[str, Floats] = field(repr=False)

    @property
    def leaks(self) -> list[Finding]:
        """What makes the cases unfit to measure a system on."""
        return [finding for finding in self.findings if finding.verdict == LEAK]

    @property
    def verdict(self) -> str:
        """leak or clean."""
        return LEAK if self.leaks else CLEAN

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.leaks:
            named = ", ".join(finding.probe for finding in self.leaks)
            return f"Leak: {named}. Figures on these cases do not show what a system knows of anybody's taste."
        warned = [finding.probe for finding in self.findings if finding.verdict == WARNING]
        if warned:
            return f"No leak found; warnings, which are no leaks: {', '.join(warned)}."
        return "No leak found."

    def as_dict(self) -> dict[str, Any]:
        """What --json holds."""
        about = {"cases": self.cases, "users": self.users, "candidates": self.candidates}
        found = {finding.probe: finding.as_dict() for finding in self.findings}
        return {"verdict": self.verdict, "sentence": self.sentence, "about": about, "probes": found}


def audit_cases(
    cases: CaseSet,
    fit: CaseSet | None = None,
    log: Log | None = None,
    titles: Mapping[int, str] | None = None,
    split: Split = "user",
    *,
    by_count: bool = False,
) -> Audit:
    """Put every probe to `cases`; what a probe must learn, it learns from `fit`, the log, or other users' cases.

    split says whether users or only times were meant to be kept apart; titles: of every candidate, or None; by_count:
    candidates are as popular as targets, so that what training counts reach is to be beaten as a leak probe is.
    Raises RecalignError when the two sets have lists of different length.
    """
    if fit is not None and fit.width != cases.width:
        raise RecalignError(
            f"{fit.name} has {fit.width} candidates a case, {cases.name} has {cases.width}: mixed protocols; "
            "give --fit cases of the same protocol, or audit each file alone"
        )
    if fit is not None and not (fit.has_users and cases.has_users):
        fit = replace(fit, users=fit.users + 1 + cases.users.max(), has_users=False)  # guessed users are nobody else's
    lookup = Lookup.of(cases, fit)
    orders = orders_for(cases, fit, log)
    scores = {
        "lookup": lookup.scores(),
        "place": place_scores(cases, fit),
        "order": nearest_after(cases, orders),
        "seen": seen_scores(cases),
    }
    counted = count_scores(cases, fit, log)
    learned_from = log.name if log is not None else fit.name if fit is not None else "other users' cases"
    findings = (
        lookup_finding(cases, lookup),
        place_finding(cases, scores["place"]),
        *equal_target_findings(cases, fit),
        order_finding(cases, follow_shares(cases, orders), scores["order"], learned_from),
        seen_finding(cases, scores["seen"]),
        *shared_findings(cases, fit, log, by_user=split == "user"),
        popularity_finding(cases, fit, log),
        counts_finding(cases, counted),
        ids_finding(cases),
        titles_finding(cases, titles),
    )
    users = len(np.unique(cases.users)) if cases.has_users else None
    return Audit(findings, len(cases), users, cases.width, scores | ({"training count": counted} if by_count else {}))


AUDIT, UNBEATEN = "audit", "unbeaten"  # keys of metrics.json, which the gate reads


MARK = "†"  # of a system that does not beat the best leak probe


@dataclass(frozen=True)
class ProbeContest:
    """The audit of the frozen cases; the best leak probe's metric on the ranked ones; what each system has above it.

    metric: the one that the gate compares; main: whether it compares by these cases. unbeaten: the systems whose 95 %
    interval of it, minus the probe's, does not lie above zero.
    """

    audit: Audit
    metric: str
    probe: str
    reached: Interval
    gains: Mapping[str, Interval]
    main: bool = True

    @property
    def unbeaten(self) -> dict[str, str]:
        """Why each system that does not beat the probe may not be champion."""
        return {
            system: f"{LABELS[self.metric]} of {system} minus that of the leak probe '{self.probe}' is {signed(gain)}, "
            "not above zero"
            for system, gain in self.gains.items()
            if gain.low <= 0
        }

    @property
    def bars(self) -> str:
        """What follows for the gate, which judges by the main table's cases."""
        return " and cannot become champion" if self.main else ""

    @property
    def lines(self) -> list[str]:
        """What is said under the table: the audit's verdict, the probe to beat, and who does not beat it."""
        known = f"the best leak probe, '{self.probe}', reaches {LABELS[self.metric]} {self.reached.value:.3f}"
        lines = [f"Audit of the candidate lists: {self.audit.sentence} Without any taste, {known}."]
        if self.unbeaten:
            lines.append(f"{MARK} does not beat that probe by its interval{self.bars}.")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """What metrics.json holds under `audit`: verdict, each probe's figure, the probe to beat and who does not."""
        figures: dict[str, dict[str, float | str | None]] = {
            finding.probe: {**finding.figure.as_dict(), "chance": finding.chance, "verdict": finding.verdict}
            for finding in self.audit.findings
            if finding.figure is not None
        }
        return {
            "verdict": self.audit.verdict,
            "sentence": self.audit.sentence,
            "cases": self.audit.cases,
            "probes": figures,
            "best_probe": {"name": self.probe, self.metric: self.reached.as_dict()},
            UNBEATEN: self.unbeaten,
        }


def probe_contest(
    audit: Audit,
    cases: CaseSet,
    names: Sequence[str],
    systems: Sequence[SystemRanks],
    params: Params,
    *,
    main: bool = True,
) -> ProbeContest:
    """Put the audit's leak probes to the cases that the systems ranked; `names` are the audited cases' example ids.

    The best probe is the one with the highest registry.metric on them: the gate's, for what it refuses must agree.
    Raises RecalignError when a system ranked a case that was not audited.
    """
    metric, resamples, seed = params.registry.metric, params.evaluate.resamples, params.seed
    first = systems[0]
    row = {name: place for place, name in enumerate(names)}
    missing = next((example for example in first.example_ids if example not in row), None)
    if missing is not None:
        raise RecalignError(f"example {missing} was ranked but is no case any more; run 'dvc repro' to evaluate anew")
    rows = [row[example] for example in first.example_ids]
    places, lots = cases.places[rows], draw_lots(first.example_ids, cases.candidates[rows])
    probes = []
    for name, scores in audit.scores.items():
        ranks, own = target_ranks(scores[rows], places, lots), scores[rows, places]
        probes.append(in_case_order(name, first.cases, ranks, own))
    best = max(probes, key=lambda probe: float(metric_values(metric, probe.ranks).mean()))
    gains = {s.system: paired_difference(s, best, metric, resamples, seed) for s in systems}
    return ProbeContest(audit, metric, best.system, metric_interval(best, metric, resamples, seed), gains, main)
