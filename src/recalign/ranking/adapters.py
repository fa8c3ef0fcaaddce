"""What is measured of language models: one pass for the raw scores, then the rule that ranks by them.

Adapters that other runs trained, perhaps on another source: found in data/models/other, measured as they are.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.common.progress import PER_THOUSAND
from recalign.common.run_log import noted_costs
from recalign.data.prepared import Prepared
from recalign.evaluation.generation import Answer
from recalign.evaluation.injection import POSITIONS
from recalign.evaluation.metrics import Floats
from recalign.evaluation.ranking_rule import (
    LogprobScores,
    RankingRule,
    catalogue_rule,
    choose_rule,
    ranking_scores,
    rules_to_try,
)
from recalign.evaluation.ranks import FULL, SystemRanks
from recalign.evaluation.systems import (
    LLM,
    TRANSFERRED,
    TUNED,
    UNTRAINED,
    System,
    adapter_of,
    llara_name,
    per_thousand,
    system_of,
    total,
    weights_mb,
)
from recalign.llm.model.adapters import CONFIG, adapter_digest, check_adapter, find_adapter
from recalign.params.load import Params
from recalign.project import Project
from recalign.ranking.fused import catalogue_ranks
from recalign.ranking.injected import attack, reading_twins
from recalign.ranking.measured import (
    ADAPTER,
    NEW_VALIDATION,
    REFERENCE,
    VALIDATION,
    Measured,
    injected_key,
    language_model_artifacts,
    name_of,
    read_measured,
)
from recalign.ranking.trial import Trial, Trials, digests_of, kind_of, mean_metrics, sampled_ranks

if TYPE_CHECKING:
    from recalign.ranking.language_model import LanguageModelRecommender


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transferred:
    """folder: the adapter's; facts: its training.json, what the run that trained it says of it, empty where missing."""

    folder: Path
    facts: dict[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What system.json holds beside the ranking rule.

        trained_as: the system that it was at home; trained_on: the source that it learned from; None: not told.
        """
        stage = self.facts.get("stage")
        return {
            "kind": TRANSFERRED,
            "trained_as": system_of(stage.removeprefix("align@")) if stage else None,
            "trained_on": self.facts.get("data", {}).get("source"),
            "adapter_digest": adapter_digest(self.folder),
        }


def transferred(params: Params, name: str, project: Project) -> Transferred:
    """The adapter of data/models/other/`name`, which `evaluate.adapters` names, checked before anything is scored.

    Raises RecalignError where the folder holds no adapter, where the name is that of a model trained here, and where
    the adapter belongs to another base or to another form of prompt.
    """
    identity, data = read_json(project.base / "base.json"), Prepared(project.prepared)
    if system_of(name) in {UNTRAINED, TUNED, *map(system_of, params.align.settings)}:
        raise RecalignError(f"evaluate.adapters has '{name}', which names a model of this run; rename its folder")
    own = _read(name, project.other / name)
    check_adapter(own.folder, identity)
    _check_data(name, own.facts.get("data", {}), data, params.prompt.form)
    return own


def _read(name: str, place: Path) -> Transferred:
    folder = find_adapter(place)
    if folder is None:
        raise RecalignError(
            f"evaluate.adapters has '{name}', but {place} holds no adapter ({CONFIG}); bring one there, as "
            "'dvc import <its project> data/models/align/dmpo -o "
            f"{place}' does, or take the name out"
        )
    told = folder / "training.json"
    return Transferred(folder, read_json(told) if told.is_file() else {})


def _check_data(name: str, trained: Mapping[str, str], data: Prepared, form: str) -> None:
    """Refuse prompts that the adapter never saw; warn where its training may hold this run's test events."""
    if trained.get("form", form) != form:
        raise RecalignError(
            f"evaluate.adapters has '{name}', which learned prompts of the form '{trained['form']}', but prompt.form "
            f"is '{form}'; set it to '{trained['form']}' or take the name out"
        )
    if trained.get("source") == data.source and trained.get("data_digest") != data.data_digest:
        log.warning(
            "%s was trained on another state of %s: if that is the newer one, it may have learned from this run's "
            "test events, and its figure means nothing", system_of(name), data.source,
        )  # fmt: skip


def language_models(params: Params, project: Project) -> dict[str, Path | None]:
    """The systems that are language models trained here: name -> adapter folder, None for the untrained base."""
    aligned = {system_of(objective): project.align / objective for objective in params.align.objectives}
    names = [llara_name(teacher) for teacher in params.hybrid.teachers]
    hybrid = {system_of(name): project.hybrid / name for name in names}
    return {UNTRAINED: None, TUNED: project.sft, **aligned, **hybrid}


def measure_language_model(name: str, params: Params, project: Project, trials: Trials) -> Measured:
    """Score the validation and test cases in one pass, choose on validation what ranks, then rank by it.

    The SFT model, which is ranked before, is the aligned ones' reference. Raises RecalignError where an adapter is
    missing, damaged or of another base.
    """
    adapter, own = _adapter(name, params, project)
    artifacts = language_model_artifacts(project.base, adapter)
    recommender = open_language_model(name, adapter, params, project, trials)
    raw, spent = _raw_scores(recommender, params, trials)
    raw |= _injected_scores(recommender, params, project, trials)
    answers = _answers(recommender, trials.main, params)
    digest = recommender.language_model.digest
    del recommender  # the model leaves the memory before another one is loaded
    reference = _reference(name, params, project, trials)
    told = {key: _with_reference(scores, reference, key) for key, scores in raw.items()}
    rules = rules_to_try(params.evaluate.score, params.evaluate.prior_weights, reference is not None)
    choice = choose_rule(rules, told[VALIDATION], trials.validation.target_index, trials.validation.lots)
    validation = ranking_scores(choice.rule, told[VALIDATION])
    chosen = sampled_ranks(name, trials.validation, validation)
    log.info("%s is ranked by %s, chosen on %d validation cases", name, choice.rule.sentence, len(chosen.ranks))
    rewarded = choice.rule.kind == "reward" and reference is not None
    if rewarded and reference and reference.system.artifacts:
        artifacts |= {REFERENCE: reference.system.artifacts[ADAPTER]}
        spent = total([spent, noted_costs(project.scores / TUNED, project.costs).get(PER_THOUSAND)])
    system = System(
        kind=LLM,
        **choice.as_dict(),
        catalogue_ranked_by=catalogue_rule(params.evaluate.score, choice.rule).kind,
        cases=len(trials.main.cases),
        validation=mean_metrics(chosen),
        model_digest=digest,
        artifacts=artifacts,
        megabytes=weights_mb(project.base, *filter(None, (adapter, project.sft if rewarded else None))),
        digests=digests_of(trials),
    )
    if own:
        system = system.model_copy(update=own.about)
    scores = {kind_of(trial): ranking_scores(choice.rule, told[_key(trial)]) for trial in trials.tested(params)}
    ranks = [sampled_ranks(name, trial, scores[kind_of(trial)]) for trial in trials.tested(params)]
    ranks += _in_whole_catalogue(name, system, params, project, trials)
    fresh = ranking_scores(choice.rule, told[NEW_VALIDATION]) if NEW_VALIDATION in told else None
    logprobs = {key: values.logprob for key, values in raw.items()}
    injected = {place: injected_key(place) for place in POSITIONS if injected_key(place) in told}
    return Measured(
        ranks, system, scores, validation, logprobs=logprobs, answers=answers, per_thousand=spent, new_validation=fresh,
        injected={place: ranking_scores(choice.rule, told[key]) for place, key in injected.items()},
    )  # fmt: skip


def open_language_model(
    name: str, adapter: Path | None, params: Params, project: Project, trials: Trials,
    rule: RankingRule | None = None, reference: Path | None = None,
) -> "LanguageModelRecommender":  # fmt: skip
    """The base under an adapter as a recommender; reference: the adapter that the rule "reward" needs too."""
    from recalign.ranking.language_model import Setting, open_recommender

    summary = Prepared(project.prepared)
    setting = Setting(
        params.base, params.prompt, summary.noun, summary.clock, params.seed, params.threads, ranked_by=rule
    )
    store, batch = project.logprobs, params.evaluate.batch
    return open_recommender(
        name, project.base, adapter, setting, trials.catalogue, reference=reference, batch=batch, store=store
    )


def open_as_ranked(
    name: str, system: System, params: Params, project: Project, trials: Trials
) -> "LanguageModelRecommender":
    """A language model under the rule that ranks the whole catalogue by it."""
    rule = system.rule(FULL)
    reference = project.sft if rule.kind == "reward" else None
    return open_language_model(name, _adapter(name, params, project)[0], params, project, trials, rule, reference)


def _adapter(name: str, params: Params, project: Project) -> tuple[Path | None, Transferred | None]:
    """Where a system's adapter lies (None: the untrained base), and what is known of one that was trained elsewhere."""
    trained = language_models(params, project)
    if name in trained:
        return trained[name], None
    own = transferred(params, adapter_of(name), project)
    return own.folder, own


def _raw_scores(
    recommender: "LanguageModelRecommender", params: Params, trials: Trials
) -> tuple[dict[str, LogprobScores], float | None]:
    """Raw scores of the validation cases, those on hidden items too, and of each tested trial; also seconds of ranking
    a thousand test cases, None where scores were stored by an earlier run."""

    raw = {VALIDATION: _scored(recommender, trials.validation)}
    if trials.new_validation:
        raw[NEW_VALIDATION] = _scored(recommender, trials.new_validation)
    begun, stored = time.monotonic(), recommender.stored
    raw[_key(trials.main)] = _scored(recommender, trials.main)
    took = per_thousand(time.monotonic() - begun, len(trials.main.cases)) if recommender.stored == stored else None
    others = [trial for trial in trials.tested(params) if trial is not trials.main]
    return raw | {_key(trial): _scored(recommender, trial) for trial in others}, took


def _scored(recommender: "LanguageModelRecommender", trial: Trial) -> LogprobScores:
    return LogprobScores(recommender.logprobs(trial.requests, trial.candidates), recommender.priors(trial.candidates))


def _injected_scores(
    recommender: "LanguageModelRecommender", params: Params, project: Project, trials: Trials
) -> dict[str, LogprobScores]:
    """Raw scores of the first test cases with a text in a title, by key; none where evaluate.injection_cases is 0."""
    few = params.evaluate.injection_cases
    if not few:
        return {}
    summary = Prepared(project.prepared)
    own = attack(trials.main.part(0, few), trials.catalogue, params.seed)
    reader = reading_twins(recommender, own, params.prompt, summary.noun, clock=summary.clock)
    return {injected_key(position): _scored(reader, trial) for position, trial in own.poisoned.items()}


def _key(trial: Trial) -> str:
    return name_of(kind_of(trial))


def _reference(name: str, params: Params, project: Project, trials: Trials) -> Measured | None:
    """The SFT model as it was ranked, for those that were trained from it; None for those that were not."""
    if adapter_of(name) not in params.align.objectives or params.align.start != "sft":
        return None
    return read_measured(project.scores / TUNED, digests_of(trials))


def _with_reference(own: LogprobScores, reference: Measured | None, key: str) -> LogprobScores:
    told: Mapping[str, Floats] = reference.logprobs if reference else {}
    return replace(own, reference=told[key]) if key in told else own


def _in_whole_catalogue(
    name: str, system: System, params: Params, project: Project, trials: Trials
) -> list[SystemRanks]:
    """Ranks on the few cases for which language models rank the whole catalogue too.

    The model is loaded again for it: its rule is not known while it scores the sampled cases.
    """
    if not trials.whole:
        return []
    recommender = open_as_ranked(name, system, params, project, trials)
    return [catalogue_ranks(recommender, trial, trials.depth) for trial in trials.whole]


def _answers(recommender: "LanguageModelRecommender", trial: Trial, params: Params) -> list[Answer]:
    from recalign.ranking.generated import answers

    few = params.evaluate.generation_cases
    asked = trial.part(0, few)
    return answers(recommender, asked, params.prompt.max_title_tokens, params.evaluate.beams) if few else []
