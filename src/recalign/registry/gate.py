"""The gate: may a new adapter become the champion? A paired interval on the same cases decides, nothing else."""

from dataclasses import asdict, dataclass
from typing import Any

from recalign.evaluation.ranking import LABELS
from recalign.evaluation.significance import Interval, paired_difference
from recalign.evaluation.system_ranks import SystemRanks
from recalign.params import Params

BAR = "popularity"  # what the first champion must beat


@dataclass(frozen=True)
class Verdict:
    """What was compared, on which cases, and what followed.

    gain: the challenger's metric less the bar's, with its 95 % bounds; margin: how far below zero the lower bound may
    lie (exclusive); bar_system: "popularity", or the present champion as "version 3"; barred: why it may not be
    champion whatever it gained, "" where it may.
    """

    accepted: bool
    challenger: str
    bar: str
    metric: str
    gain: Interval
    margin: float
    protocol: str
    manifest: str
    manifest_digest: str
    cases: int
    users: int
    barred: str = ""

    @property
    def reason(self) -> str:
        """The verdict in one sentence."""
        interval = f"{self.gain.value:+.3f} [{self.gain.low:+.3f}, {self.gain.high:+.3f}]".replace("-", "−")
        bound = "zero" if self.margin == 0 else f"−{self.margin:g}"
        says = "above" if self.gain.low > -self.margin else "not above"
        reason = (
            f"{LABELS[self.metric]} less that of {self.bar} is {interval} on {self.cases} cases of {self.users} users; "
            f"the lower end is {says} {bound}"
        )
        return f"{reason}; {self.barred}" if self.barred else reason

    def as_dict(self) -> dict[str, Any]:
        """What gate.json holds."""
        decision = "champion" if self.accepted else "challenger"
        return {**asdict(self), "gain": self.gain.as_dict(), "decision": decision, "reason": self.reason}


def judge(
    params: Params, challenger: SystemRanks, bar: SystemRanks, bar_name: str, *, first: bool, barred: str = ""
) -> Verdict:
    """Compare ranks on the same cases by registry.metric.

    The first champion must beat popularity outright; a later one the present champion, within registry.margin. `barred`
    refuses either, with the reason.
    Raises RecalignError naming the field in which the cases differ.
    """
    metric, margin = params.registry.metric, 0.0 if first else params.registry.margin
    gain = paired_difference(challenger, bar, metric, params.evaluate.resamples, params.seed)
    return Verdict(
        accepted=gain.low > -margin and not barred,
        challenger=challenger.system,
        bar=bar_name,
        metric=metric,
        gain=gain,
        margin=margin,
        protocol=challenger.protocol,
        manifest=challenger.manifest,
        manifest_digest=challenger.digest,
        cases=len(challenger.ranks),
        users=len(set(challenger.user_ids)),
        barred=barred,
    )
