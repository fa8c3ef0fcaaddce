"""Stage fuse: all systems' ranks in one table, and the fusion of ID recommenders with the best language model."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recalign.common import columns as c
from recalign.common.artifacts import folder, read_json, write_json
from recalign.common.origin import machine
from recalign.common.progress import PER_THOUSAND
from recalign.common.run_log import note_costs, noted_costs
from recalign.data.prepared import Prepared
from recalign.data.records import read_met
from recalign.evaluation.generation import write_answers
from recalign.evaluation.injection import INJECTIONS, Injection, write_injections
from recalign.evaluation.metrics import best_items
from recalign.evaluation.ranks import SystemRanks, write_system_ranks
from recalign.evaluation.systems import (
    FUSION,
    ORACLE,
    RANDOM_BASE,
    SYSTEMS,
    Choice,
    fair_name,
    system_of,
    write_choices,
    write_systems,
)
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import profile_texts
from recalign.preferences.profiles.selection import case_shares, shares_sentence
from recalign.project import Project
from recalign.ranking.adapters import language_models, open_as_ranked
from recalign.ranking.exposure import measure_fair
from recalign.ranking.fused import catalogue_ranks, fused_recommender
from recalign.ranking.fusion import FittedFusion
from recalign.ranking.injected import attack, injections
from recalign.ranking.measured import ANSWERS, RANKS, Measured, read_measured
from recalign.ranking.recommenders import fitted_fusion, fuse_systems, open_recommender, whole_catalogue_ranks
from recalign.ranking.trial import Ranker, Trial, Trials, digests_of, kind_of, read_trials, whole_catalogue
from recalign.recommenders.roster import refusal

log = logging.getLogger(__name__)

EXAMPLES = 3  # users shown in the report
SHOWN = 5  # of their ranked titles


def systems(params: Params, project: Project) -> list[str]:
    """Every system that a run ranks, in the order of its tables: ID recommenders, the oracle, language models."""
    oracle = [ORACLE] if params.source == "simulated" else []
    elsewhere = [system_of(name) for name in params.evaluate.adapters]
    return [*params.recommenders.systems, *oracle, *language_models(params, project), *elsewhere]


def fuse(params: Params, project: Project = Project()) -> None:
    """Write data/ranks: ranks.parquet of every system and of their fusion, and what explains it in JSON.

    Raises RecalignError when a system was not ranked, or on other cases, or when prompts show profiles and too many of
    those that could be made are missing.
    """
    trials = read_trials(params, project.prepared, project.profiles)
    shares = _profile_shares(params, project, trials)
    places = {name: project.scores / name for name in systems(params, project)}
    refused = {name: why for name, place in places.items() if (why := refusal(place)) is not None}
    digests = digests_of(trials)
    measured = {name: read_measured(place, digests) for name, place in places.items() if name not in refused}
    spent = {name: noted_costs(places[name], project.costs).get(PER_THOUSAND) for name in measured}
    random_model = read_json(project.base / "base.json")["id"] == RANDOM_BASE
    fitted = None
    if params.evaluate.fusion:
        measured[FUSION], fusion = fuse_systems(
            measured, spent, trials,
            told=params.evaluate.new_item_weights, offset=params.evaluate.new_item_offset,
            random_model=random_model,
        )  # fmt: skip
        fitted = fitted_fusion(fusion, trials, project.baselines, language_models(params, project))
        measured[FUSION].ranks.extend(fusion_in_whole_catalogue(fitted, measured, params, project, trials))
        spent[FUSION] = measured[FUSION].per_thousand
    fair, choices = fair_systems(fitted, measured, params, project, trials)
    measured |= fair
    answers = [answer for own in measured.values() for answer in own.answers]
    texts = profile_texts(project.profiles, params.profiles.engine, c.TEST)
    with folder(project.ranks) as partial:
        write_system_ranks(partial / RANKS, [ranks for own in measured.values() for ranks in own.ranks])
        write_systems(partial / SYSTEMS, {name: own.system for name, own in measured.items()})
        about = _about_cases(trials, project.prepared) | {"not_fitted": refused, "random_model": random_model}
        write_json(partial / "cases.json", about | shares)
        if fitted:
            fitted.write(partial)
        if choices:
            write_choices(partial, choices)
        if params.evaluate.generation_cases:
            write_answers(partial / ANSWERS, answers)
        if params.evaluate.injection_cases:
            write_injections(partial / INJECTIONS, _injections(measured, params, trials))
        write_json(partial / "examples.json", _examples(trials, measured, texts))
    note_costs(project.ranks, spent, project.costs)
    log.info("fuse: %d systems -> %s", len(measured), project.ranks)


def fusion_in_whole_catalogue(
    fusion: FittedFusion, measured: Mapping[str, Measured], params: Params, project: Project, trials: Trials
) -> list[SystemRanks]:
    """The fusion's ranks: beside the language model that it hears, on the cases for which that ranks the catalogue;
    where it hears none as an ID recommender, on all test cases."""
    name = fusion.active_language_model
    if name is None:
        return whole_catalogue_ranks(fused_recommender(fusion, project.baselines, trials.catalogue), trials)
    if not trials.whole:
        return []
    model = open_as_ranked(name, measured[name].system, params, project, trials)
    fused = fused_recommender(fusion, project.baselines, trials.catalogue, model)
    return [catalogue_ranks(fused, trial, trials.depth) for trial in trials.whole]


def fair_systems(
    fusion: FittedFusion | None, measured: Mapping[str, Measured], params: Params, project: Project, trials: Trials
) -> tuple[dict[str, Measured], dict[str, Choice]]:
    """Every system and the fusion as `fair(name)`, with what was chosen for each; nothing where fairness.by is null.

    What only a language model can rank, the whole catalogue by every title, is done where
    evaluate.full_catalogue_cases asks for it, on as many validation cases; else those systems are left out.
    """
    if params.fairness.by is None:
        return {}, {}
    few = params.evaluate.full_catalogue_cases
    many = _validation_catalogue(trials.weighing, None, project, trials)
    reading = _validation_catalogue(trials.validation, few, project, trials) if few else None
    made, choices = {}, {}
    for name, own in measured.items():
        model = fusion.active_language_model if name == FUSION and fusion else name
        by_model = own.system.is_language_model or (name == FUSION and model is not None)
        if own.system.kind == ORACLE:
            continue
        if by_model and reading is None:
            log.info("%s is left out: a language model ranks it; set evaluate.full_catalogue_cases", fair_name(name))
            continue
        lm = open_as_ranked(str(model), measured[str(model)].system, params, project, trials) if by_model else None
        if name == FUSION and fusion:
            inner: Ranker = fused_recommender(fusion, project.baselines, trials.catalogue, lm)
        else:
            inner = lm or open_recommender(name, project, trials.catalogue)
        cases = reading if by_model and reading else many
        fair, choices[name] = measure_fair(inner, own, cases, trials, params, whole=by_model)
        made[fair_name(name)] = fair
    return made, choices


def _injections(measured: Mapping[str, Measured], params: Params, trials: Trials) -> list[Injection]:
    """What each system that a language model ranks, alone or in the fusion, gave the items on trial."""
    own = attack(trials.main.part(0, params.evaluate.injection_cases), trials.catalogue, params.seed)
    return [
        row
        for name, told in measured.items() if told.injected
        for row in injections(name, own, told.scores[kind_of(own.clean)][: len(own.tried)], told.injected)
    ]  # fmt: skip


def _validation_catalogue(trial: Trial, cases: int | None, project: Project, trials: Trials) -> Trial:
    """Validation cases with the whole catalogue."""
    met = read_met(project.prepared, {case.example.user_id for case in trial.cases})
    return whole_catalogue(trial, trials.catalogue, cases, met)


def _about_cases(trials: Trials, prepared: Path) -> dict[str, Any]:
    """What every figure carries: where the cases come from, and how many there are; the counts are of the warm view."""
    summary = Prepared(prepared)
    cases = trials.main.cases
    return {
        "source": summary.source,
        "noun": summary.noun,
        "clock": summary.clock,
        "data_digest": summary.data_digest,
        "split": c.TEST,
        "view": trials.main.view,
        "cases": len(cases),
        "users": _users(trials.main),
        "views": {trial.view: {"cases": len(trial.cases), "users": _users(trial)} for trial in trials.uniform},
        "views_left_out": _left_out(trials, summary),
        "example_user": cases[0].example.user_id,
        "candidates": len(cases[0].candidates),
        "items": len(trials.catalogue.ids),
        "validation_cases": len(trials.validation.cases),
        "machine": machine(),
        "manifests": _digests((*trials.sampled, *trials.full, *trials.whole)),
    }


def _profile_shares(params: Params, project: Project, trials: Trials) -> dict[str, Any]:
    """How many test cases of each view show a profile, for cases.json; nothing where prompts show none."""
    if not params.prompt.profile:
        return {}
    prompts = {trial.view: [(own.user_id or 0, own.profile) for own in trial.requests] for trial in trials.uniform}
    shares = case_shares(params, project.prepared, project.profiles, c.TEST, prompts)
    log.info("fuse: profiles %s", shares_sentence(params.profiles.engine, shares))
    return {"profiles": shares}


def _left_out(trials: Trials, summary: Prepared) -> dict[str, str]:
    """Why a view is in no table: preparation's reasons, and evaluate.cold_cases where that is 0."""
    shown = {trial.view for trial in trials.uniform}
    reasons = dict.fromkeys(c.VIEWS, "evaluate.cold_cases is 0") | summary.views_left_out
    return {view: why for view, why in reasons.items() if view not in shown}


def _users(trial: Trial) -> int:
    return len({case.example.user_id for case in trial.cases})


def _digests(trials: Iterable[Trial]) -> dict[str, dict[str, str]]:
    """By manifest, then view."""
    found: dict[str, dict[str, str]] = {}
    for trial in trials:
        found.setdefault(trial.manifest, {})[trial.view] = trial.digest
    return found


def _examples(trials: Trials, measured: Mapping[str, Measured], profiles: Mapping[int, str]) -> list[dict[str, Any]]:
    """The first cases of three different users, with the best titles of every system: rows a person can judge."""
    titles, lots = trials.catalogue.titles, trials.main.lots
    first: dict[int, int] = {}
    for row, case in enumerate(trials.main.cases):
        first.setdefault(case.example.user_id, row)
    shown = []
    for row in list(first.values())[:EXAMPLES]:
        case = trials.main.cases[row]
        ranked = {}
        for name, system in measured.items():
            (best,) = best_items(system.scores[kind_of(trials.main)][[row]], [case.candidates], lots[[row]], SHOWN)
            ranked[name] = [titles[item] for item in best]
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
