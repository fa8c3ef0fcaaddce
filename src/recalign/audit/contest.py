"""Systems against the leak probes: a figure that knowing nobody's taste reaches as well says nothing about a system."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recalign.audit.audit import Audit
from recalign.audit.cases import CaseSet
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import LABELS, draw_lots, metric_values, target_ranks
from recalign.evaluation.ranks import SystemRanks, in_case_order
from recalign.evaluation.significance import Interval, metric_interval, paired_difference, signed
from recalign.params.load import Params

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
        """What stands under the table: the audit's verdict, the probe to beat, and who does not beat it."""
        known = f"the best leak probe, '{self.probe}', reaches {LABELS[self.metric]} {self.reached.value:.3f}"
        lines = [f"Audit of the candidate lists: {self.audit.sentence} Without any taste, {known}."]
        if self.unbeaten:
            lines.append(f"{MARK} does not beat that probe by its interval{self.bars}.")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """What metrics.json holds under `audit`: verdict, each probe's figure, the probe to beat and who does not."""
        figures: dict[str, dict[str, Any]] = {
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
