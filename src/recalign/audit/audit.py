"""The audit of candidate cases: what can be had from them without knowing anybody's taste.

A leak lets a system score without learning; a warning is a property of honest data that a reader should know.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from recalign.audit.blind import Lookup, count_scores, place_scores, seen_scores
from recalign.audit.cases import CaseSet, Log, joined
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
from recalign.audit.item_order import follow_shares, nearest_after, orders_for
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats

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
        *equal_target_findings(joined(cases, fit)),
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
