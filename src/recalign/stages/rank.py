"""Stage rank: one system ranks the frozen test cases; its ranks and scores are the only source of its figures."""

import logging

from recalign.common.artifacts import folder
from recalign.common.errors import RecalignError, did_you_mean
from recalign.common.progress import PER_THOUSAND, WEIGHTS_MB, ranking_forecast
from recalign.common.run_log import note_costs
from recalign.evaluation.injection import IN_PROFILE, POSITIONS
from recalign.evaluation.systems import ORACLE, system_of, weights_mb
from recalign.params.load import Params
from recalign.project import Project
from recalign.ranking.adapters import language_models, measure_language_model
from recalign.ranking.measured import Measured, write_measured
from recalign.ranking.recommenders import measure_recommender, open_recommender
from recalign.ranking.trial import UNIFORM, Trials, read_trials
from recalign.recommenders.roster import ROSTER, refusal, write_refusal

log = logging.getLogger(__name__)
SIMULATED_ONLY = "only a simulated log tells the probabilities that it was drawn from"


def rank(params: Params, system: str, project: Project = Project()) -> None:
    """Rank the test cases with one system and write data/scores/<system>: ranks, scores and system.json.

    What could not be fitted on this log leaves only the reason there. Raises RecalignError for a system that params do
    not name, when an input is missing, or where an adapter belongs to another base.
    """
    known = [*ROSTER, ORACLE, *language_models(params, project), *map(system_of, params.evaluate.adapters)]
    if system not in known:
        hint, allowed = did_you_mean(system, known), ", ".join(known)
        raise RecalignError(f"system is '{system}'; allowed are {allowed}{hint}")
    place = project.scores / system
    why = _refused(system, params, project)
    if why is not None:
        with folder(place) as partial:
            write_refusal(partial, why)
        log.info("%s is left out: %s", system, why)
        return
    trials = read_trials(params, project.prepared, project.profiles)
    own = _measured(system, params, project, trials)
    with folder(place) as partial:
        write_measured(partial, own)
    note_costs(place, {PER_THOUSAND: own.per_thousand, WEIGHTS_MB: weights_mb(project.base)}, project.costs)
    counted = ", ".join(f"{len(trial.cases)} {trial.view}" for trial in trials.uniform)
    log.info("%s: %s cases -> %s", system, counted, place)


def _refused(system: str, params: Params, project: Project) -> str | None:
    if system == ORACLE and params.source != "simulated":
        return SIMULATED_ONLY
    return refusal(project.baselines / system)


def _measured(system: str, params: Params, project: Project, trials: Trials) -> Measured:
    if system == ORACLE or system in ROSTER:
        recommender = open_recommender(system, project, trials.catalogue)
        return measure_recommender(recommender, trials, project.baselines)
    log.info(_forecast(system, params, project, trials))
    return measure_language_model(system, params, project, trials)


def _forecast(system: str, params: Params, project: Project, trials: Trials) -> str:
    """What a language model will rank, and what that takes where it was timed here: stored log-probs make it faster."""
    cases = {"validation": len(trials.validation.cases)}
    if trials.new_validation:
        cases["validation on hidden items"] = len(trials.new_validation.cases)
    for trial in trials.tested(params):
        name = trial.view if trial.manifest == UNIFORM else f"{trial.view} by {trial.manifest}"
        cases[name] = len(trial.cases)
    if few := params.evaluate.injection_cases:
        places = [own for own in POSITIONS if own != IN_PROFILE or params.prompt.profile]
        cases["with a text in a title"] = len(places) * min(few, len(trials.main.cases))
    searched = sum(len(trial.cases) for trial in trials.whole)
    return ranking_forecast(system, cases, searched, weights_mb(project.base), project.costs)
