"""What the arms of a plan reached on one list of frozen cases, a run a seed: figures and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recalign.evaluation.metrics import Floats, metric_values, target_ranks
from recalign.evaluation.significance import bootstrap_interval, gains_of, holm, plain, signed
from recalign.ranking.trial import UNIFORM, Trial

METRIC, ALSO = "ndcg_at_10", "hr_at_1"  # the first is what is compared; the other is shown beside it
RESAMPLES = 2000


class Reached:
    """The values of every arm on the cases of `trial`; intervals are bootstraps over `clusters` (default: users)."""

    def __init__(self, trial: Trial, clusters: Sequence[int] | None = None) -> None:
        self.trial = trial
        self.clusters = trial.users if clusters is None else clusters
        self._runs: dict[str, dict[str, list[Floats]]] = {METRIC: {}, ALSO: {}}

    def keep(self, arm: str, scores: Floats) -> float:
        """One more run of an arm, by its [B, C] scores; its METRIC."""
        ranks = target_ranks(scores, self.trial.target_index, self.trial.lots)
        for metric, runs in self._runs.items():
            runs.setdefault(arm, []).append(metric_values(metric, ranks))
        return float(self._runs[METRIC][arm][-1].mean())

    def told(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Protocol, each arm's figures (means over the seeds of each case) and the differences that are asked for."""
        means = {metric: self.means(metric) for metric in self._runs}
        shown = {
            arm: {metric: plain(bootstrap_interval(own[arm], self.clusters, RESAMPLES, 0))
                  for metric, own in means.items()}
            | {"runs": [round(float(run.mean()), 4) for run in runs]}
            for arm, runs in self._runs[METRIC].items()
        }  # fmt: skip
        users = self.trial.users
        return {
            "protocol": f"{len(users)} {self.trial.view} test cases of {len(set(users))} users, "
                        f"20 candidates ({UNIFORM}), log-prob",
            "manifest": self.trial.digest,
            "figures": shown,
            "differences": differences(means[METRIC], pairs, self.clusters),
        }  # fmt: skip

    def means(self, metric: str = METRIC) -> dict[str, Floats]:
        """[B] values of each arm, mean over its seeds."""
        return {arm: np.mean(runs, axis=0) for arm, runs in self._runs[metric].items()}


def differences(
    means: Mapping[str, Floats], pairs: Sequence[tuple[str, str]], clusters: Sequence[int]
) -> dict[str, str]:
    """The values of each pair's first arm minus those of its second, in words; Holm's correction over all pairs."""
    if not pairs:
        return {}
    apart = np.stack([means[own] - means[other] for own, other in pairs], axis=1)
    gains = gains_of(apart, clusters, RESAMPLES, 0)
    corrected = holm([gain.p for gain in gains])
    return {
        f"{own} − {other}": f"{signed(gain.interval)}, p {p:.3f}"
        for (own, other), gain, p in zip(pairs, gains, corrected, strict=True)
    }


def show(told: Mapping[str, Any]) -> None:
    """What `told` says, on the terminal."""
    print(told["protocol"])
    for arm, figures in told["figures"].items():
        print(f"  {arm:16} {figures[METRIC]}, HR@1 {figures[ALSO]}, runs {figures['runs']}")
    for pair, difference in told["differences"].items():
        print(f"  {pair:32} {difference}")
