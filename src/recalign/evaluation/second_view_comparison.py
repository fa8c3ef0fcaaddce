"""The second views of two runs side by side: generated titles, and the agreement of sampled with full ranking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recalign.errors import RecalignError
from recalign.evaluation.comparison import Run, compared_systems
from recalign.evaluation.generation import Answer, by_mode, valid_and_hit
from recalign.evaluation.protocol_agreement import MOST_USERS, aligned, resampled_taus, tau_b
from recalign.evaluation.ranking import Floats
from recalign.evaluation.scorecard import Comparison
from recalign.evaluation.significance import Gain, degrees_of_freedom, gain_of, holm, resampled_means

ANSWERED = "valid_ratio", "hit_over_all", "hit_over_valid"


@dataclass(frozen=True)
class ComparedAnswers:
    """What one system's generated titles count as, less another's, by metric; p values are Holm's over all of them.

    A metric is None where it has no value: no answer of the one or of the other is valid.
    """

    first: str
    second: str
    mode: str
    matching: str
    cases: int
    metrics: Mapping[str, Comparison | None]


def compare_answers(first: Run, second: Run, resamples: int, seed: int) -> list[ComparedAnswers]:
    """The generated titles of the systems that `compare_runs` compares, in the modes that both wrote in; else nothing.

    Raises RecalignError naming the case that one of them alone answered.
    """
    mine, theirs = by_mode(first.answers), by_mode(second.answers)
    found: list[tuple[tuple[str, str, str, str, int], dict[str, Gain | None]]] = []
    for one, other in compared_systems(first, second):
        for system, mode, matching in mine:
            if system == one and (other, mode, matching) in theirs:
                own, rival = _in_order(mine[system, mode, matching]), _in_order(theirs[other, mode, matching])
                _check_cases(first, second, own, rival)
                users = [answer.user_id for answer in own]
                gains = _gains(valid_and_hit(own), valid_and_hit(rival), users, resamples, seed)
                found.append(((one, other, mode, matching, len(own)), gains))
    adjusted = iter(holm([gain.p for _, gains in found for gain in gains.values() if gain]))
    return [
        ComparedAnswers(
            *about,
            {m: Comparison(*about[:2], gain.interval, next(adjusted)) if gain else None for m, gain in gains.items()},
        )
        for about, gains in found
    ]


def _in_order(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: answer.example_id)


def _check_cases(first: Run, second: Run, own: Sequence[Answer], rival: Sequence[Answer]) -> None:
    mine, theirs = ({(answer.example_id, answer.user_id) for answer in answers} for answers in (own, rival))
    if mine != theirs:
        raise RecalignError(
            f"generated titles of {first.name} and {second.name} cannot be compared: example_id "
            f"{min(mine ^ theirs)[0]} was answered by one of them only ({len(own)} and {len(rival)} answers); "
            "evaluate both with the same evaluate.generation_cases"
        )


def _gains(own: Floats, rival: Floats, users: Sequence[int], resamples: int, seed: int) -> dict[str, Gain | None]:
    """own, rival [B, 2]: valid and hit of the same cases. Hits over valid answers are a ratio of two means."""
    both = np.hstack([own, rival])
    twins, mean, count = resampled_means(both, users, resamples, seed), both.mean(axis=0), len(set(users))
    apart = own - rival
    degrees = degrees_of_freedom(apart, users)
    gains: dict[str, Gain | None] = {
        metric: gain_of(float(mean[m] - mean[m + 2]), twins[:, m] - twins[:, m + 2], count, float(degrees[m]))
        for m, metric in enumerate(ANSWERED[:2])
    }
    gains[ANSWERED[2]] = None
    if mean[0] > 0.0 and mean[2] > 0.0:
        kept = twins[(twins[:, 0] > 0.0) & (twins[:, 2] > 0.0)]
        ratios = mean[1] / mean[0], mean[3] / mean[2]
        linear = (own[:, 1] - ratios[0] * own[:, 0]) / mean[0] - (rival[:, 1] - ratios[1] * rival[:, 0]) / mean[2]
        freedom = float(degrees_of_freedom(linear[:, None], users)[0])
        drawn = kept[:, 1] / kept[:, 0] - kept[:, 3] / kept[:, 2]
        gains[ANSWERED[2]] = gain_of(float(ratios[0] - ratios[1]), drawn, count, freedom)
    return gains


def compare_agreements(first: Run, second: Run, resamples: int, seed: int) -> list[Comparison]:
    """Kendall's tau-b of sampled and full ranks, first less second, of the systems that have both in both runs.

    Raises RecalignError naming the field in which their cases differ.
    """
    gains: list[tuple[tuple[str, str], Gain]] = []
    for one, other in compared_systems(first, second):
        if one in first.full and other in second.full:
            first.systems[one].check_comparable(second.systems[other])
            first.full[one].check_comparable(second.full[other])
            gain = _agreement_gain(first, second, one, other, resamples, seed)
            gains += [((one, other), gain)] if gain else []
    adjusted = holm([gain.p for _, gain in gains])
    return [Comparison(*pair, gain.interval, p) for (pair, gain), p in zip(gains, adjusted, strict=True)]


def _agreement_gain(first: Run, second: Run, one: str, other: str, resamples: int, seed: int) -> Gain | None:
    """None where a tau has no value, or where there are more users than MOST_USERS."""
    mine, theirs = aligned(first.systems[one], first.full[one]), aligned(second.systems[other], second.full[other])
    taus = [tau_b(own.one, own.other) for own in (mine, theirs)]
    count = len(set(mine.users))
    if taus[0] is None or taus[1] is None or count > MOST_USERS:
        return None
    twins = [resampled_taus(own.one, own.other, own.users, resamples, seed) for own in (mine, theirs)]
    drawn = twins[0] - twins[1]
    return gain_of(taus[0] - taus[1], drawn[~np.isnan(drawn)], count, max(1.0, count - 1.0))
