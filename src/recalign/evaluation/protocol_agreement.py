"""Whether ranking a few sampled candidates says what ranking the whole catalogue says: Kendall's tau.

Sampled metrics may order systems differently from full ones (Krichene and Rendle 2020), so both are compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recalign.evaluation.ranking import Ranks, metric_values
from recalign.evaluation.system_ranks import SystemRanks

METRIC = "ndcg_at_10"


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two orders on so many cases; None where it has no value."""

    system: str
    tau: float | None
    cases: int


def rank_agreement(sampled: SystemRanks, full: SystemRanks) -> Agreement:
    """Of a system's ranks of the targets it ranked both ways; no tau for less than two, or where all ranks are one."""
    both = _common(sampled, full)
    return Agreement(sampled.system, _tau(_of(sampled, both), _of(full, both)), len(both))


def order_agreement(sampled: Sequence[SystemRanks], full: Sequence[SystemRanks]) -> Agreement | None:
    """tau-b between the orders in which the two protocols put the systems by NDCG@10, on the cases that all share.

    None for less than three systems: two agree or not.
    """
    by_name = {system.system: system for system in full}
    pairs = [(system, by_name[system.system]) for system in sampled if system.system in by_name]
    if len(pairs) < 3:
        return None
    shared = set.intersection(*(_common(*pair) for pair in pairs))
    if not shared:
        return None
    means = [[float(metric_values(METRIC, _of(one, shared)).mean()) for one in pair] for pair in pairs]
    return Agreement("order of the systems", _tau(*zip(*means, strict=True)), len(shared))


def _common(one: SystemRanks, other: SystemRanks) -> set[str]:
    return set(one.example_ids) & set(other.example_ids)


def _of(system: SystemRanks, cases: set[str]) -> Ranks:
    """Ranks of the given cases, in ascending example id."""
    return system.ranks[[place for place, example in enumerate(system.example_ids) if example in cases]]


def _tau(one: Sequence[float] | Ranks, other: Sequence[float] | Ranks) -> float | None:
    from scipy.stats import kendalltau

    if len(one) < 2:
        return None
    tau = float(kendalltau(one, other).statistic)
    return None if math.isnan(tau) else tau
