"""Stage evaluate: every system ranks the same frozen test cases; ranks.parquet is the only source of every figure."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recalign import columns as c
from recalign.artifacts import folder, read_json, write_json
from recalign.data.records import Items
from recalign.errors import RecalignError
from recalign.evaluation.generation import Answer, write_answers
from recalign.evaluation.machine import machine
from recalign.evaluation.ranking import METRICS, Floats, metric_values
from recalign.evaluation.ranking_rule import LogprobScores, choose_rule, ranking_scores, rules_to_try
from recalign.evaluation.scorecard import FUSION, ID, LLM, ORACLE, TUNED, UNTRAINED, best_by_validation
from recalign.evaluation.system_ranks import CATALOGUE, SystemRanks, write_system_ranks
from recalign.layout import ALIGN, BASE, BASELINES, CACHE, INTERACTIONS, PREPARED, PROFILES, RANKS, SFT
from recalign.params import Params
from recalign.preferences.profiles import profile_texts
from recalign.recommenders.fusion import Fusion
from recalign.recommenders.trial import (
    Ranker,
    Trial,
    catalogue_digest,
    full_ranks,
    rank_catalogue,
    rank_sampled,
    read_trial,
    sampled_ranks,
    whole_catalogue,
)

if TYPE_CHECKING:
    from recalign.recommenders.language_model import LanguageModelRecommender

log = logging.getLogger(__name__)

UNIFORM, POPULARITY = "uniform", "popularity"
EXAMPLES = 3  # users shown in the report
SHOWN = 5  # of their ranked titles
RANKED_BY = {
    "popularity": "train events",
    "recent_popularity": "train events, newest first",
    "item_knn": "co-occurrence",
    "ease": "linear item weights",
    "markov": "transitions",
    "sasrec": "self-attention",
    "gru4rec": "recurrent states",
    "caser": "convolutions",
    "oracle": "true probability",
}


@dataclass(frozen=True)
class Measured:
    """One system: its ranks, what systems.json says of it, and its scores [B, C] of the test and validation cases."""

    ranks: list[SystemRanks]
    about: dict[str, Any]
    scores: Floats
    validation: Floats


@dataclass(frozen=True)
class Trials:
    """What is put to the systems: validation cases to choose on, test cases to measure on."""

    validation: Trial
    uniform: Trial
    popularity: Trial
    catalogue: Items
    whole: Trial | None  # the few test cases for which language models too rank the whole catalogue

    def tested(self, params: Params) -> list[Trial]:
        """The test cases that language models rank: the harder manifest costs as much again, so params decide."""
        harder = [self.popularity] if params.evaluate.popularity_manifest else []
        return [self.uniform, *harder, *([self.whole] if self.whole else [])]


@dataclass(frozen=True)
class RawScores:
    """One language model's raw scores on the validation and test cases, and the seconds that they took."""

    validation: LogprobScores
    tests: dict[str, LogprobScores]  # by manifest
    digest: str
    seconds: float
    answers: list[Answer]  # the titles that it generates


def evaluate(
    params: Params,
    prepared: Path = PREPARED,
    baselines: Path = BASELINES,
    base: Path = BASE,
    sft: Path = SFT,
    align: Path = ALIGN,
    profiles: Path = PROFILES,
    interactions: Path = INTERACTIONS,
    out: Path = RANKS,
    store: Path | None = CACHE / "logprobs",
) -> None:
    """Rank the test cases with every system and write `out`: ranks.parquet, systems.json, cases.json, examples.json.

    Reads the folders of the earlier stages as docs/contracts.md draws them; `store` keeps log-probs between runs.
    Raises RecalignError when an input is missing or an adapter belongs to another base.
    """
    trials = _trials(params, prepared, profiles)
    measured: dict[str, Measured] = {}
    for recommender in _id_recommenders(params, trials.catalogue, baselines, interactions):
        measured[recommender.name] = _measure_id(recommender, trials)
    raw = {
        name: _score_language_model(name, adapter, params, base, prepared, trials, store)
        for name, adapter in language_models(params, sft, align).items()
    }
    for name in raw:
        measured[name] = _rank_language_model(name, raw, params, trials)
    if params.evaluate.fusion:
        measured[FUSION] = _fuse(measured, trials)
    texts = profile_texts(profiles, params.profiles.engine, c.TEST)
    with folder(out) as partial:
        write_system_ranks(partial / "ranks.parquet", [ranks for system in measured.values() for ranks in system.ranks])
        write_json(partial / "systems.json", {name: system.about for name, system in measured.items()})
        write_json(partial / "cases.json", _about_cases(trials, prepared))
        if params.evaluate.generation_cases:
            write_answers(partial / "generations.parquet", [answer for own in raw.values() for answer in own.answers])
        write_json(partial / "examples.json", _examples(trials, measured, texts))
    log.info("evaluate: %d systems on %d cases -> %s", len(measured), len(trials.uniform.cases), out)


def _trials(params: Params, prepared: Path, profiles: Path) -> Trials:
    limits = {c.VALIDATION: params.evaluate.validation_cases, c.TEST: params.evaluate.test_cases}

    def trial(split: str, manifest: str) -> Trial:
        shown = profile_texts(profiles, params.profiles.engine, split) if params.prompt.profile else None
        return read_trial(prepared, split, manifest, limits[split], params.seed, shown)

    if params.evaluate.full_catalogue_cases and params.prompt.form == "candidates":
        raise RecalignError(
            f"evaluate.full_catalogue_cases is {params.evaluate.full_catalogue_cases}, but prompt.form 'candidates' "
            "cannot rank a whole catalogue; set it to 0, or prompt.form to 'history'"
        )
    catalogue, uniform, few = Items.read(prepared), trial(c.TEST, UNIFORM), params.evaluate.full_catalogue_cases
    whole = whole_catalogue(uniform, catalogue, few) if few else None
    return Trials(trial(c.VALIDATION, UNIFORM), uniform, trial(c.TEST, POPULARITY), catalogue, whole)


def _id_recommenders(params: Params, catalogue: Items, baselines: Path, interactions: Path) -> list[Ranker]:
    from recalign.recommenders.fitted import load_fitted
    from recalign.recommenders.oracle import Oracle

    systems = params.recommenders.systems
    found: list[Ranker] = [load_fitted(name, baselines / name, catalogue) for name in systems]
    if params.source == "simulated":
        found.append(Oracle.read(interactions, catalogue))
    return found


def _measure_id(recommender: Ranker, trials: Trials) -> Measured:
    started = time.monotonic()
    uniform, validation = (
        recommender.scores(list(trial.requests), trial.candidates).double().cpu().numpy()
        for trial in (trials.uniform, trials.validation)
    )
    ranks = [
        sampled_ranks(recommender.name, trials.uniform, uniform),
        rank_sampled(recommender, trials.popularity),
        rank_catalogue(recommender, trials.catalogue, trials.uniform),
    ]
    if trials.whole:
        few = rank_catalogue(recommender, trials.catalogue, trials.whole)
        ranks.append(replace(few, manifest=trials.whole.manifest))
    about = {
        "kind": ORACLE if recommender.name == "oracle" else ID,
        "ranked_by": RANKED_BY[recommender.name],
        "prior_weight": None,
        "cases": len(trials.uniform.cases),
        "seconds": round(time.monotonic() - started, 1),
        "validation": _means(sampled_ranks(recommender.name, trials.validation, validation)),
    }
    return Measured(ranks, about, uniform, validation)


def _fuse(measured: dict[str, Measured], trials: Trials) -> Measured:
    """The best ID recommender and the best trained language model in one ranking; no model scores anything again."""
    kinds = {name: system.about for name, system in measured.items()}
    chosen = [
        best_by_validation(kinds, [name for name in kinds if kinds[name]["kind"] == kind and name != UNTRAINED])
        for kind in (ID, LLM)
    ]
    parts = [name for name in chosen if name is not None]
    fusion = Fusion.fit({name: measured[name].validation for name in parts}, trials.validation.target_index)
    scores = fusion.scores({name: measured[name].scores for name in parts})
    validation = fusion.scores({name: measured[name].validation for name in parts})
    about = {
        "kind": FUSION,
        "ranked_by": fusion.sentence,
        "prior_weight": None,
        "weights": {name: round(weight, 6) for name, weight in fusion.weights.items()},
        "cases": len(trials.uniform.cases),
        "seconds": round(sum(kinds[name]["seconds"] for name in parts), 1),
        "validation": _means(sampled_ranks(FUSION, trials.validation, validation)),  # the weights were fitted on these
    }
    log.info("fusion: %s, fitted on %d validation cases", fusion.sentence, len(trials.validation.cases))
    return Measured([sampled_ranks(FUSION, trials.uniform, scores)], about, scores, validation)


def language_models(params: Params, sft: Path, align: Path) -> dict[str, Path | None]:
    """The systems that are language models: name -> adapter folder, None for the untrained base."""
    aligned = {f"llm-{objective}": align / objective for objective in params.align.objectives}
    return {UNTRAINED: None, TUNED: sft, **aligned}


def _score_language_model(
    name: str, adapter: Path | None, params: Params, base: Path, prepared: Path, trials: Trials, store: Path | None
) -> RawScores:
    """One pass over validation and test; the model leaves the memory before the next one is loaded."""
    from recalign.llm.base import load_language_model
    from recalign.prompts import PromptBuilder
    from recalign.recommenders.language_model import LanguageModelRecommender

    started = time.monotonic()
    model = load_language_model(base, params.base, adapter=adapter, seed=params.seed, threads=params.threads)
    summary = read_json(prepared / "summary.json")
    builder = PromptBuilder(
        model.tokenizer, trials.catalogue, params.prompt, summary["noun"], clock=summary["clock"]
    )
    recommender = LanguageModelRecommender(
        model, builder, trials.catalogue, name, batch=params.evaluate.batch, store=store
    )

    def score(trial: Trial) -> LogprobScores:
        return LogprobScores(
            recommender.logprobs(trial.requests, trial.candidates), recommender.priors(trial.candidates)
        )

    validation = score(trials.validation)
    tests = {trial.manifest: score(trial) for trial in trials.tested(params)}
    seconds = round(time.monotonic() - started, 1)  # of what is ranked: the second view is no part of a system's cost
    return RawScores(validation, tests, model.digest, seconds, _answers(recommender, trials.uniform, params))


def _answers(recommender: "LanguageModelRecommender", trial: Trial, params: Params) -> list[Answer]:
    from recalign.recommenders.generated import answers

    few = params.evaluate.generation_cases
    asked = replace(trial, cases=trial.cases[:few], requests=trial.requests[:few])
    return answers(recommender, asked, params.prompt.max_title_tokens, params.evaluate.beams) if few else []


def _rank_language_model(name: str, raw: dict[str, RawScores], params: Params, trials: Trials) -> Measured:
    """Choose on validation what ranks, then rank the test cases by it; the SFT model is the aligned ones' reference."""
    own = raw[name]
    reference = None if name in (UNTRAINED, TUNED) else raw[TUNED]
    rules = rules_to_try(params.evaluate.score, params.evaluate.prior_weights, reference is not None)
    validation = _with_reference(own.validation, reference.validation if reference else None)
    choice = choose_rule(rules, validation, trials.validation.target_index)
    scores = {
        trial.manifest: ranking_scores(
            choice.rule,
            _with_reference(own.tests[trial.manifest], reference.tests[trial.manifest] if reference else None),
        )
        for trial in trials.tested(params)
    }
    tuning = ranking_scores(choice.rule, validation)
    chosen = sampled_ranks(name, trials.validation, tuning)
    about = {
        "kind": LLM,
        **choice.as_dict(),
        "cases": len(trials.uniform.cases),
        "seconds": own.seconds,
        "validation": _means(chosen),
        "model_digest": own.digest,
    }
    log.info("%s is ranked by %s, chosen on %d validation cases", name, choice.rule.sentence, len(chosen.ranks))
    ranks = [
        (full_ranks if trial is trials.whole else sampled_ranks)(name, trial, scores[trial.manifest])
        for trial in trials.tested(params)
    ]
    return Measured(ranks, about, scores[UNIFORM], tuning)


def _with_reference(own: LogprobScores, reference: LogprobScores | None) -> LogprobScores:
    return own if reference is None else replace(own, reference=reference.logprob)


def _means(ranks: SystemRanks) -> dict[str, float]:
    return {metric: round(float(metric_values(metric, ranks.ranks).mean()), 6) for metric in METRICS}


def _about_cases(trials: Trials, prepared: Path) -> dict[str, Any]:
    """What every figure carries: where the cases come from, and how many there are."""
    summary = read_json(prepared / "summary.json")
    cases = trials.uniform.cases
    return {
        "source": summary["source"],
        "noun": summary["noun"],
        "clock": summary["clock"],
        "data_digest": summary["data_digest"],
        "split": c.TEST,
        "cases": len(cases),
        "users": len({case.example.user_id for case in cases}),
        "example_user": cases[0].example.user_id,
        "candidates": len(cases[0].candidates),
        "items": len(trials.catalogue.ids),
        "validation_cases": len(trials.validation.cases),
        "machine": machine(),
        "manifests": {
            UNIFORM: trials.uniform.digest,
            POPULARITY: trials.popularity.digest,
            CATALOGUE: catalogue_digest(trials.catalogue),
            **({trials.whole.manifest: trials.whole.digest} if trials.whole else {}),
        },
    }


def _examples(trials: Trials, measured: dict[str, Measured], profiles: dict[int, str]) -> list[dict[str, Any]]:
    """The first cases of three different users, with the best titles of every system: rows a person can judge."""
    titles = trials.catalogue.titles
    first: dict[int, int] = {}
    for row, case in enumerate(trials.uniform.cases):
        first.setdefault(case.example.user_id, row)
    shown = []
    for row in list(first.values())[:EXAMPLES]:
        case = trials.uniform.cases[row]
        ranked = {
            name: [titles[case.candidates[place]] for place in np.argsort(-system.scores[row], kind="stable")[:SHOWN]]
            for name, system in measured.items()
        }
        shown.append(
            {
                c.EXAMPLE: case.example.example_id,
                c.USER: case.example.user_id,
                c.HISTORY: [titles[item] for item in case.example.history],
                c.PROFILE: profiles.get(case.example.user_id),
                c.TARGET: titles[case.example.target],
                "ranked": ranked,
            }
        )
    return shown
