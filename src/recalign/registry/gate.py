"""The gate: may a new adapter become the champion? A paired lower bound on the same cases, and no guard broken.

Every try against a champion costs a part of one error budget, so that many tries do not make a champion by luck.
"""

from dataclasses import asdict, dataclass
from typing import Any

from recalign.evaluation.metrics import LABELS
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import Interval, paired_difference, paired_lower_bound, with_sign
from recalign.params.load import Params
from recalign.registry.guards import Guard, broken

BAR = "popularity"  # what the first champion must beat
DECAY = 1.6  # of the shares of the budget: the first try then errs about as rarely as one 95 % interval (2.2 %)


@dataclass(frozen=True)
class Opponent:
    """What a challenger must beat: "popularity" or "version 3", and its ranks."""

    name: str
    ranks: SystemRanks


@dataclass(frozen=True)
class Gain:
    """The challenger's metric minus an opponent's: with its 95 % bounds, and the lower bound that decides this try."""

    bar: str
    interval: Interval
    bound: float

    def as_dict(self) -> dict[str, float | str]:
        """What gate.json holds of it."""
        return {"bar": self.bar, **self.interval.as_dict(), "bound": round(self.bound, 6)}


@dataclass(frozen=True)
class Verdict:
    """What was compared, on which cases, and what followed.

    gain: over the bar ("popularity", or the present champion as "version 3"); anchor: over the last champion that won
    outright, None where that is the bar. margin: how far below zero the bounds may lie (exclusive). attempt: which try
    against this bar it is, 0 where none was spent; chance: what this try may err with. barred: why it may not be
    champion whatever it gained, "" where it may; guards: what it must not lose (`registry.guards`).
    """

    accepted: bool
    challenger: str
    metric: str
    gain: Gain
    anchor: Gain | None
    margin: float
    attempt: int
    chance: float
    protocol: str
    manifest: str
    manifest_digest: str
    cases: int
    users: int
    barred: str = ""
    guards: tuple[Guard, ...] = ()

    @property
    def bar(self) -> str:
        """What the present bar is called."""
        return self.gain.bar

    @property
    def outright(self) -> bool:
        """Whether it is above every opponent, not only within the margin of one."""
        return self.accepted and all(gain.bound > 0.0 for gain in self._gains)

    @property
    def reason(self) -> str:
        """The verdict in one sentence."""
        gain = self.gain.interval
        of = f"{LABELS[self.metric]} minus that of {self.bar} is {with_sign(gain.value)} [{with_sign(gain.low)}, "
        of += f"{with_sign(gain.high)}] on {self.cases} cases of {self.users} users"
        if self.barred:
            return f"{of}; {self.barred}"
        worst = min(self._gains, key=lambda gain: gain.bound)
        bound = "zero" if self.margin == 0 else f"−{self.margin:g}"
        says = "above" if worst.bound > -self.margin else "not above"
        against = "" if worst is self.gain else f" against {worst.bar}, the last champion that won outright,"
        refused = "; ".join(guard.sentence for guard in broken(self.guards))
        return (
            f"{of}; the lower end for try {self.attempt} (which may err with {self.chance:.2%}){against} is "
            f"{with_sign(worst.bound)}, {says} {bound}" + (f"; refused by a guard: {refused}" if refused else "")
        )

    @property
    def _gains(self) -> list[Gain]:
        return [self.gain] if self.anchor is None else [self.gain, self.anchor]

    def as_dict(self) -> dict[str, Any]:
        """What gate.json holds."""
        return {
            **asdict(self),
            "bar": self.bar,
            "gain": self.gain.as_dict(),
            "anchor": None if self.anchor is None else self.anchor.as_dict(),
            "guards": [guard.as_dict() for guard in self.guards],
            "decision": "champion" if self.accepted else "challenger",
            "outright": self.outright,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class NotJudged:
    """Why nothing was compared: `bar` ("version 3") could not be scored on the present cases. No try is spent."""

    bar: str
    why: str

    @property
    def reason(self) -> str:
        """What happened and what to do, in one sentence."""
        return (
            f"not judged, since {self.bar}, which it must beat, cannot be scored ({self.why}); choose another champion "
            "('recalign rollback --reason …', or 'recalign promote VERSION --reason …'), or bring back what is "
            "missing, then 'recalign register' judges this one"
        )


@dataclass(frozen=True)
class Silent:
    """Why no alias was moved: the logged package did not answer a request in a fresh process."""

    why: str

    @property
    def reason(self) -> str:
        """What happened and what to do, in one sentence."""
        return (
            f"not judged, since its logged package did not answer a request in a fresh process ({self.why}); no alias "
            "was moved; bring back what is missing, then 'recalign register' judges it"
        )


def share_of_error(error: float, attempt: int) -> float:
    """What the try of this number (from 1) against one champion may err with: error · t^−1.6 / ζ(1.6).

    The shares of all tries, however many come, add up to `error`. So the chance that any of them passes a model that is
    no better is at most `error` whatever the dependence between tries, as cases that overlap and models that resemble
    each other make it (alpha-spending: Foster and Stine 2008, J. R. Stat. Soc. B 70(2); for the familywise error: Tian
    and Ramdas 2021, Stat. Methods Med. Res. 30(4)). Rules that spend more, such as LORD or a group-sequential boundary,
    need independent tries or one and the same model. The decay is ours: slower than their t^−2, it leaves the later
    tries of a year more (benchmarks/gate.py).
    """
    from scipy.special import zeta

    return float(error * attempt**-DECAY / zeta(DECAY))


def few_users(params: Params, ranks: SystemRanks) -> str:
    """Why these cases cannot decide: they are of too few users; "" where they can."""
    users, needed = len(set(ranks.user_ids)), params.registry.min_users
    if users >= needed:
        return ""
    return (
        f"{users} users are too few to decide: registry.min_users is {needed}; evaluate more cases "
        "(evaluate.test_cases) or a larger log"
    )


@dataclass(frozen=True)
class Bar:
    """What a challenger is compared with: the champion and, of a later one, the anchor of the margin.

    first: whether this would be the first champion, which popularity is the bar for; attempt: how many tries the
    present champion has met, this one included.
    """

    champion: Opponent
    first: bool
    attempt: int
    anchor: Opponent | None = None


def judge(
    params: Params, challenger: SystemRanks, bar: Bar, *, barred: str = "", guards: tuple[Guard, ...] = ()
) -> Verdict:
    """Compare ranks on the same cases by registry.metric; a broken guard refuses too.

    The first champion must beat popularity outright; a later one the present champion and the anchor, both within
    registry.margin, in this attempt's share of registry.error. `barred` refuses either, with the reason.
    Raises RecalignError naming the field in which the cases differ.
    """
    metric, margin = params.registry.metric, 0.0 if bar.first else params.registry.margin
    chance = share_of_error(params.registry.error, max(1, bar.attempt))

    def gain(opponent: Opponent) -> Gain:
        interval = paired_difference(challenger, opponent.ranks, metric, params.evaluate.resamples, params.seed)
        return Gain(opponent.name, interval, paired_lower_bound(challenger, opponent.ranks, metric, chance))

    gains = [gain(opponent) for opponent in (bar.champion, bar.anchor) if opponent is not None]
    return Verdict(
        accepted=all(gain.bound > -margin for gain in gains) and not barred and not broken(guards),
        challenger=challenger.system,
        metric=metric,
        gain=gains[0],
        anchor=gains[1] if len(gains) > 1 else None,
        margin=margin,
        attempt=bar.attempt,
        chance=chance,
        protocol=challenger.protocol,
        manifest=challenger.manifest,
        manifest_digest=challenger.digest,
        cases=len(challenger.ranks),
        users=len(set(challenger.user_ids)),
        barred=barred,
        guards=guards,
    )
