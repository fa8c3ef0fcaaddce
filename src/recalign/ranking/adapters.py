"""What stage evaluate measures of language models: one pass for the raw scores, then the rule that ranks by them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.artifacts import read_json
from recalign.evaluation.costs import per_thousand, total
from recalign.evaluation.generation import Answer
from recalign.evaluation.ranking_rule import (
    LogprobScores,
    RankingRule,
    catalogue_rule,
    choose_rule,
    ranking_scores,
    rules_to_try,
)
from recalign.evaluation.scorecard import LLM, TUNED, UNTRAINED, adapter_of, system_of
from recalign.params.load import Params
from recalign.ranking.made_by import ADAPTER, ARTIFACTS, REFERENCE, language_model_artifacts
from recalign.ranking.trial import Trial, sampled_ranks
from recalign.ranking.trials import Kind, Measured, Trials, kind_of, mean_metrics

if TYPE_CHECKING:
    from recalign.ranking.language_model import LanguageModelRecommender

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawScores:
    """One language model's raw scores on the validation and test cases.

    per_thousand: seconds a thousand test cases, None where scores were stored by an earlier run; artifacts: digests of
    what scored.
    """

    validation: LogprobScores
    tests: dict[Kind, LogprobScores]
    digest: str
    artifacts: dict[str, str]
    per_thousand: float | None
    answers: list[Answer]  # the titles that it generates


def language_models(params: Params, sft: Path, align: Path) -> dict[str, Path | None]:
    """The systems that are language models: name -> adapter folder, None for the untrained base."""
    aligned = {system_of(objective): align / objective for objective in params.align.objectives}
    return {UNTRAINED: None, TUNED: sft, **aligned}


def score_language_model(
    name: str, adapter: Path | None, params: Params, base: Path, prepared: Path, trials: Trials, store: Path | None
) -> RawScores:
    """One pass over validation and test; the model leaves the memory before the next one is loaded."""
    artifacts = language_model_artifacts(base, adapter)
    recommender = open_language_model(name, adapter, params, base, prepared, trials, store)

    def score(trial: Trial) -> LogprobScores:
        return LogprobScores(
            recommender.logprobs(trial.requests, trial.candidates), recommender.priors(trial.candidates)
        )

    validation = score(trials.validation)
    begun, stored = time.monotonic(), recommender.stored
    tests = {kind_of(trials.main): score(trials.main)}
    took = per_thousand(time.monotonic() - begun, len(trials.main.cases)) if recommender.stored == stored else None
    tests |= {kind_of(trial): score(trial) for trial in trials.tested(params) if trial is not trials.main}
    digest = recommender.language_model.digest
    answers = _answers(recommender, trials.main, params)
    return RawScores(validation, tests, digest, artifacts, took, answers)


def open_language_model(
    name: str, adapter: Path | None, params: Params, base: Path, prepared: Path, trials: Trials, store: Path | None,
    rule: RankingRule | None = None, reference: Path | None = None,
) -> "LanguageModelRecommender":  # fmt: skip
    """The base under an adapter as a recommender; reference: the adapter that the rule "reward" needs too."""
    from recalign.ranking.language_model import Setting, open_recommender

    summary = read_json(prepared / "summary.json")
    setting = Setting(
        params.base, params.prompt, summary["noun"], summary["clock"], params.seed, params.threads, ranked_by=rule
    )
    return open_recommender(
        name, base, adapter, setting, trials.catalogue, reference=reference, batch=params.evaluate.batch, store=store
    )


def rank_language_model(name: str, raw: Mapping[str, RawScores], params: Params, trials: Trials) -> Measured:
    """Choose on validation what ranks, then rank the test cases by it; the SFT model is the aligned ones' reference."""
    own = raw[name]
    reference = raw[TUNED] if adapter_of(name) in params.align.objectives else None
    rules = rules_to_try(params.evaluate.score, params.evaluate.prior_weights, reference is not None)
    validation = _with_reference(own.validation, reference.validation if reference else None)
    choice = choose_rule(rules, validation, trials.validation.target_index, trials.validation.lots)
    scores = {
        kind: ranking_scores(choice.rule, _with_reference(told, reference.tests[kind] if reference else None))
        for kind, told in own.tests.items()
    }
    tuning = ranking_scores(choice.rule, validation)
    needed = _needed(choice.rule, own, reference)
    chosen = sampled_ranks(name, trials.validation, tuning)
    about = {
        "kind": LLM,
        **choice.as_dict(),
        "catalogue_ranked_by": catalogue_rule(params.evaluate.score, choice.rule).kind,
        "cases": len(trials.main.cases),
        "validation": mean_metrics(chosen),
        "model_digest": own.digest,
        ARTIFACTS: own.artifacts | ({REFERENCE: needed[1].artifacts[ADAPTER]} if needed[1:] else {}),
    }
    log.info("%s is ranked by %s, chosen on %d validation cases", name, choice.rule.sentence, len(chosen.ranks))
    ranks = [sampled_ranks(name, trial, scores[kind_of(trial)]) for trial in trials.tested(params)]
    return Measured(ranks, about, scores, tuning, per_thousand=total(raw.per_thousand for raw in needed))


def _needed(rule: RankingRule, own: RawScores, reference: RawScores | None) -> list[RawScores]:
    """The reward takes the reference's scores as well."""
    return [own, reference] if rule.kind == "reward" and reference else [own]


def _with_reference(own: LogprobScores, reference: LogprobScores | None) -> LogprobScores:
    return own if reference is None else replace(own, reference=reference.logprob)


def _answers(recommender: "LanguageModelRecommender", trial: Trial, params: Params) -> list[Answer]:
    from recalign.ranking.generated import answers

    few = params.evaluate.generation_cases
    asked = trial.part(0, few)
    return answers(recommender, asked, params.prompt.max_title_tokens, params.evaluate.beams) if few else []
