"""What ranks a language model's candidates: the log-prob, the log-prob minus the title's prior, or the reward.

The rule is chosen on validation cases, never on test, and is named beside every figure.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats, Lots, metric_values, target_ranks

Kind = Literal["logprob", "logprob_less_prior", "reward"]
CHOSEN_BY = "ndcg_at_10"


@dataclass(frozen=True)
class RankingRule:
    """kind, and the weight of the prior (0 for the other kinds)."""

    kind: Kind = "logprob"
    prior_weight: float = 0.0

    @property
    def sentence(self) -> str:
        """The rule in the words of the table."""
        return {
            "logprob": "log-prob",
            "logprob_less_prior": f"log-prob − {self.prior_weight:g} × prior",
            "reward": "implicit reward (policy − reference)",
        }[self.kind]


@dataclass(frozen=True)
class LogprobScores:
    """Raw scores of a set of cases, from which every rule follows without another pass of the model.

    logprob [B, C]: log π(title | prompt); prior [B, C]: log π(title | prompt without a history);
    reference [B, C]: the reference model's log-probs of the same titles, None for a model without a reference.
    """

    logprob: Floats
    prior: Floats
    reference: Floats | None = None


@dataclass(frozen=True)
class Choice:
    """The chosen rule, and what each tried one reached on the validation cases (NDCG@10)."""

    rule: RankingRule
    tried: tuple[tuple[RankingRule, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """What systems.json holds."""
        return {
            "ranked_by": self.rule.kind,
            "prior_weight": self.rule.prior_weight,
            "tried": [{**asdict(rule), CHOSEN_BY: round(value, 6)} for rule, value in self.tried],
        }


def ranking_scores(rule: RankingRule, scores: LogprobScores) -> Floats:
    """Scores [B, C] under a rule; higher is better, comparable within a case only.

    The prior's part is that of a pointwise mutual information (weight 1: log π(y | x) − log π(y)); the reward is DPO's
    implicit one without β, which ranks alike (Rafailov et al. 2023, equation 5).
    Raises RecalignError for the reward of a model without a reference.
    """
    if rule.kind == "logprob":
        return scores.logprob
    if rule.kind == "logprob_less_prior":
        return scores.logprob - rule.prior_weight * scores.prior
    if scores.reference is None:
        raise RecalignError("evaluate.score is 'reward', which needs a reference; a model without one takes 'logprob'")
    return scores.logprob - scores.reference


def rules_to_try(score: str, prior_weights: Sequence[float], has_reference: bool) -> list[RankingRule]:
    """The rules that `evaluate.score` allows, simplest first. Where only the reward is asked for and there is no
    reference (the untrained and the SFT model), the log-prob stands in."""
    priors = [RankingRule("logprob_less_prior", weight) for weight in prior_weights]
    rewards = [RankingRule("reward")] if has_reference else []
    if score == "auto":
        return [RankingRule(), *priors, *rewards]
    if score == "logprob_less_prior" and not priors:
        raise RecalignError("evaluate.prior_weights is empty, but evaluate.score is 'logprob_less_prior'; add a weight")
    return {"logprob_less_prior": priors, "reward": rewards}.get(score) or [RankingRule()]


def catalogue_rule(score: str, chosen: RankingRule) -> RankingRule:
    """What ranks the whole catalogue: what `evaluate.score` names, and by "auto" the log-prob.

    A rule that was chosen among 20 candidates is not therefore the best among thousands, where subtracting the prior
    puts the least expected titles first (docs/protocol.md has the figures), and only the log-prob is searched quickly.
    """
    return RankingRule() if score == "auto" else chosen


def choose_rule(rules: Sequence[RankingRule], scores: LogprobScores, target_index: Sequence[int], lots: Lots) -> Choice:
    """The first, so the simplest, rule within one standard error of the best NDCG@10 on validation cases [B, C].

    The error is that of the paired difference to the best. The best itself would be the luckiest of half a dozen rules
    on few cases (the one-standard-error rule: Breiman et al. 1984, Classification and Regression Trees, 3.4.3).
    """
    reached = np.stack(
        [metric_values(CHOSEN_BY, target_ranks(ranking_scores(rule, scores), target_index, lots)) for rule in rules]
    )
    means = reached.mean(axis=1)
    shortfall = reached[means.argmax()] - reached
    cases = reached.shape[1]
    error = shortfall.std(axis=1, ddof=1) / np.sqrt(cases) if cases > 1 else np.zeros(len(rules))
    place = int(np.argmax(shortfall.mean(axis=1) <= error + 1e-12))
    return Choice(rules[place], tuple(zip(rules, means.tolist(), strict=True)))
