"""Two runs side by side: paired differences of what both ranked, or the field that forbids it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recalign.errors import RecalignError
from recalign.evaluation.figures import MATCHING
from recalign.evaluation.generation import Answer
from recalign.evaluation.ranking import METRICS
from recalign.evaluation.scorecard import Comparison, best_by_validation
from recalign.evaluation.significance import Gain, holm, paired_gains
from recalign.evaluation.system_ranks import UNKNOWN, SystemRanks, histories_unknown

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
    """One system of the first run less one of the second, by metric; p values are Holm's over the whole table."""

    first: str
    second: str
    metrics: dict[str, Comparison]


def run_of(name: str, about: Mapping[str, Any], systems: Mapping[str, SystemRanks], kinds: Mapping[str, Any]) -> Run:
    """A run from what cases.json or scorecard.json say it is about; kinds is systems.json, for the best LLM."""
    best = next(iter(systems)) if len(systems) == 1 else best_by_validation(
        kinds, [system for system in systems if kinds[system]["kind"] == "llm"]
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
