"""Where the truth is known (simulated data): how much of what the oracle gains over chance each system reaches."""

from collections.abc import Sequence

import numpy as np

from recalign.evaluation.metrics import chance, metric_values
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import Interval, degrees_of_freedom, percentile_interval, resampled_means
from recalign.evaluation.systems import ORACLE


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
