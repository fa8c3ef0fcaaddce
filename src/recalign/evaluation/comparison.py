"""Two runs side by side: paired differences of what both ranked, or the field that forbids it.

Where the truth is known (simulated data), also how much of what the oracle gains over chance each system reaches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recalign.common.errors import RecalignError
from recalign.evaluation.generation import Answer, by_mode, valid_and_hit
from recalign.evaluation.metrics import METRICS, Floats, chance, metric_values
from recalign.evaluation.protocol_agreement import MOST_USERS, aligned, resampled_taus, tau_b
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.ranks import UNKNOWN, SystemRanks, histories_unknown
from recalign.evaluation.scorecard import MATCHING, Comparison
from recalign.evaluation.significance import (
    Gain,
    Interval,
    degrees_of_freedom,
    gain_of,
    holm,
    paired_gains,
    percentile_interval,
    resampled_means,
)
from recalign.evaluation.systems import LLM, ORACLE, System, best_by_validation

FIELDS = ("source", "split", "data_digest", "matching_rule")  # beside those that SystemRanks compares


@dataclass(frozen=True)
class Run:
    """Ranks of a run on one view and manifest, by system; about: what all its figures share; best: its best language
    model.

    full: ranks in the whole catalogue; answers: generated titles; both empty where the run did not keep them.
    """

    name: str
    about: Mapping[str, str]
    systems: Mapping[str, SystemRanks]
    best: str | None
    full: Mapping[str, SystemRanks] = field(default_factory=dict)
    answers: Sequence[Answer] = ()


@dataclass(frozen=True)
class Compared:
    """One system of the first run minus one of the second, by metric; p values are Holm's over the whole table."""

    first: str
    second: str
    metrics: dict[str, Comparison]


def run_of(name: str, about: Mapping[str, Any], systems: Mapping[str, SystemRanks], kinds: Mapping[str, System]) -> Run:
    """A run from what cases.json or scorecard.json say it is about; kinds: what each system is, for the best LLM."""
    best = next(iter(systems)) if len(systems) == 1 else best_by_validation(
        kinds, [system for system in systems if kinds[system].kind == LLM]
    )  # fmt: skip
    told = {"matching_rule": MATCHING} | dict(about)  # cases.json is of this version, whose rule is this one
    shared = {field: str(told.get(field, "")) for field in FIELDS}
    return Run(name, shared, systems, best)


def compare_runs(first: Run, second: Run, resamples: int, seed: int) -> list[Compared]:
    """Every system that both runs hold, and the best language models where these differ in name.

    Raises RecalignError where a run is from before digests covered histories, naming the field in which the runs
    differ (source, split, data_digest, view, protocol, manifest, digest, example_id, user_id), or when they have no
    system to compare.
    """
    for run in (first, second):
        if any(ranks.view == UNKNOWN for ranks in run.systems.values()):
            raise RecalignError(histories_unknown(run.name))
    for name in FIELDS:
        if first.about[name] != second.about[name]:
            raise RecalignError(
                f"{first.name} and {second.name} cannot be compared: {name} is '{first.about[name]}' for the one and "
                f"'{second.about[name]}' for the other; evaluate both on the same data"
            )
    pairs = compared_systems(first, second)
    ranked = [(first.systems[a], second.systems[b]) for a, b in pairs]
    gains = {metric: paired_gains(ranked, metric, resamples, seed) for metric in METRICS}
    return _corrected(pairs, gains)


def compared_systems(first: Run, second: Run) -> list[tuple[str, str]]:
    """A name of the first run with one of the second. Raises RecalignError where there is none."""
    pairs = [(name, name) for name in first.systems if name in second.systems]
    if first.best and second.best and first.best != second.best:
        pairs.append((first.best, second.best))
    if not pairs:
        raise RecalignError(
            f"{first.name} and {second.name} share no system: {', '.join(first.systems)} against "
            f"{', '.join(second.systems)}; give two runs of which one holds the other's system"
        )
    return pairs


def _corrected(pairs: list[tuple[str, str]], gains: Mapping[str, list[Gain]]) -> list[Compared]:
    adjusted = iter(holm([gain.p for own in gains.values() for gain in own]))
    by_metric = {
        metric: [Comparison(*pair, gain.interval, next(adjusted)) for pair, gain in zip(pairs, own, strict=True)]
        for metric, own in gains.items()
    }
    return [
        Compared(*pair, {metric: own[place] for metric, own in by_metric.items()}) for place, pair in enumerate(pairs)
    ]


ANSWERED = "valid_ratio", "hit_over_all", "hit_over_valid"


@dataclass(frozen=True)
class ComparedAnswers:
    """What one system's generated titles count as, minus another's, by metric; p values are Holm's over all of them.

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
    """Kendall's tau-b of sampled and full ranks, first minus second, of the systems that have both in both runs.

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


def oracle_shares(
    systems: Sequence[SystemRanks], candidates: int, resamples: int, seed: int, metric: str = CHOSEN_BY
) -> dict[str, Interval]:
    """System -> (its metric - chance) / (the oracle's - chance), with an interval over users; empty without an oracle.

    chance is what a random order of `candidates` items expects: 0 is no better than that, 1 as good as knowing the true
    probabilities. Numerator and denominator are resampled together. Raises RecalignError when the cases differ.
    """
    by_name = {system.system: system for system in systems}
    if ORACLE not in by_name:
        return {}
    for system in systems:
        by_name[ORACLE].check_comparable(system)
    gains = np.stack([metric_values(metric, system.ranks) for system in by_name.values()], axis=1)
    gains -= chance(metric, candidates)
    means = resampled_means(gains, systems[0].user_ids, resamples, seed)
    best = list(by_name).index(ORACLE)
    shares = gains.mean(axis=0) / gains[:, best].mean()
    users = systems[0].user_ids
    degrees = degrees_of_freedom(gains - shares * gains[:, [best]], users)  # of the ratio, to first order
    count = len(set(users))
    return {
        name: percentile_interval(float(shares[m]), means[:, m] / means[:, best], count, float(degrees[m]))
        for m, name in enumerate(by_name)
        if name != ORACLE
    }
