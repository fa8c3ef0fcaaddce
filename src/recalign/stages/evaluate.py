"""Stage evaluate: every system ranks the same frozen test cases; ranks.parquet is the only source of every figure."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from recalign.common import columns as c
from recalign.common.artifacts import folder, read_json, write_json
from recalign.common.machine import machine
from recalign.common.run_log import COSTS, note_costs
from recalign.evaluation.costs import weights_mb
from recalign.evaluation.generation import write_answers
from recalign.evaluation.metrics import best_items
from recalign.evaluation.ranks import write_system_ranks
from recalign.evaluation.scorecard import FUSION, TUNED
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import profile_texts
from recalign.preferences.profiles.shares import case_shares, shares_sentence
from recalign.project import ALIGN, BASE, BASELINES, CACHE, INTERACTIONS, OTHER, PREPARED, PROFILES, RANKS, SFT
from recalign.ranking.adapters import language_models, rank_language_model, score_language_model
from recalign.ranking.recommenders import fitted_fusion, fuse, id_recommenders, measure_id_recommender
from recalign.ranking.transferred import transferred
from recalign.ranking.trial import Trial
from recalign.ranking.trials import Measured, Trials, kind_of, read_trials
from recalign.ranking.whole_catalogue import rank_whole_catalogue
from recalign.recommenders.roster import refusals

log = logging.getLogger(__name__)

EXAMPLES = 3  # users shown in the report
SHOWN = 5  # of their ranked titles


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
    other: Path = OTHER,
    notes: Path = COSTS,
) -> None:
    """Rank the test cases with every system and write `out`: ranks.parquet and what explains it in JSON.

    Reads the folders of the earlier stages as docs/contracts.md draws them; `store` keeps log-probs between runs,
    and `notes` the seconds that ranking took.
    Raises RecalignError when an input is missing, an adapter belongs to another base, or prompts show profiles and too
    many of those that could be made are missing.
    """
    trials = read_trials(params, prepared, profiles)
    shares = _profile_shares(params, prepared, profiles, trials)
    elsewhere = transferred(params, other, base, prepared)
    adapters = language_models(params, sft, align) | {name: own.folder for name, own in elsewhere.items()}
    measured: dict[str, Measured] = {}
    for recommender in id_recommenders(params, trials.catalogue, baselines, interactions):
        measured[recommender.name] = measure_id_recommender(recommender, trials, baselines)
    raw = {
        name: score_language_model(name, adapter, params, base, prepared, trials, store)
        for name, adapter in adapters.items()
    }
    for name in raw:
        measured[name] = rank_language_model(name, raw, params, trials)
        measured[name].about["megabytes"] = weights_mb(base, *_loaded(name, measured[name].about, adapters))
    for name, own in elsewhere.items():
        measured[name] = replace(measured[name], about=measured[name].about | own.about)
    fitted = None
    if params.evaluate.fusion:
        measured[FUSION], fusion = fuse(measured, trials)
        fitted = fitted_fusion(fusion, trials, baselines, adapters)
    rank_whole_catalogue(measured, adapters, params, base, prepared, trials, store, fitted, baselines)
    texts = profile_texts(profiles, params.profiles.engine, c.TEST)
    with folder(out) as partial:
        write_system_ranks(partial / "ranks.parquet", [ranks for system in measured.values() for ranks in system.ranks])
        write_json(partial / "systems.json", {name: system.about for name, system in measured.items()})
        about = _about_cases(trials, prepared) | {"not_fitted": refusals(params.recommenders.systems, baselines)}
        write_json(partial / "cases.json", about | shares)
        if fitted:
            fitted.write(partial)
        if params.evaluate.generation_cases:
            write_answers(partial / "generations.parquet", [answer for own in raw.values() for answer in own.answers])
        write_json(partial / "examples.json", _examples(trials, measured, texts))
    note_costs(out, {name: system.per_thousand for name, system in measured.items()}, notes)
    counted = ", ".join(f"{len(trial.cases)} {trial.view}" for trial in trials.uniform)
    log.info("evaluate: %d systems on %s cases -> %s", len(measured), counted, out)


def _loaded(name: str, about: Mapping[str, Any], adapters: Mapping[str, Path | None]) -> list[Path]:
    """The adapters that a language model needs to rank: its own, and the reference where it ranks by the reward."""
    needed = [adapters[name], adapters[TUNED] if about["ranked_by"] == "reward" else None]
    return [folder for folder in needed if folder]


def _about_cases(trials: Trials, prepared: Path) -> dict[str, Any]:
    """What every figure carries: where the cases come from, and how many there are; the counts are of the warm view."""
    summary = read_json(prepared / "summary.json")
    cases = trials.main.cases
    return {
        "source": summary["source"],
        "noun": summary["noun"],
        "clock": summary["clock"],
        "data_digest": summary["data_digest"],
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


def _profile_shares(params: Params, prepared: Path, profiles: Path, trials: Trials) -> dict[str, Any]:
    """How many test cases of each view show a profile, for cases.json; nothing where prompts show none."""
    if not params.prompt.profile:
        return {}
    prompts = {trial.view: [(own.user_id or 0, own.profile) for own in trial.requests] for trial in trials.uniform}
    shares = case_shares(params, prepared, profiles, c.TEST, prompts)
    log.info("evaluate: profiles %s", shares_sentence(params.profiles.engine, shares))
    return {"profiles": shares}


def _left_out(trials: Trials, summary: Mapping[str, Any]) -> dict[str, str]:
    """Why a view is in no table: preparation's reasons, and evaluate.cold_cases where that is 0."""
    shown = {trial.view for trial in trials.uniform}
    reasons = dict.fromkeys(c.VIEWS, "evaluate.cold_cases is 0") | summary["views_left_out"]
    return {view: why for view, why in reasons.items() if view not in shown}


def _users(trial: Trial) -> int:
    return len({case.example.user_id for case in trial.cases})


def _digests(trials: Iterable[Trial]) -> dict[str, dict[str, str]]:
    """By manifest, then view."""
    found: dict[str, dict[str, str]] = {}
    for trial in trials:
        found.setdefault(trial.manifest, {})[trial.view] = trial.digest
    return found


def _examples(trials: Trials, measured: dict[str, Measured], profiles: dict[int, str]) -> list[dict[str, Any]]:
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
