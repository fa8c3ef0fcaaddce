"""Register an adapter or the fusion in MLflow, and let the gate judge it; no stage, for its effect lies outside."""

import logging
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from recalign import project as layout
from recalign.common.artifacts import write_text
from recalign.common.columns import WARM
from recalign.common.errors import RecalignError
from recalign.common.locks import held
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.evaluation.systems import FUSION, MEANINGLESS, RANDOM_BASE, SYSTEMS, read_systems
from recalign.params.load import Params
from recalign.ranking.package import Settings, best_objective, check_ranks, package_digest, settings_of
from recalign.registry.contest import (
    Challenger,
    UnscorableError,
    cases_digest,
    challenger_measured,
    champion_measured,
    check_ranked,
    evaluated_ranks,
    log_challenger,
    read_cases,
    unbeaten_probe,
    version_ranks,
)
from recalign.registry.first_answer import Request, first_answers, requests_of
from recalign.registry.gate import BAR, Bar, NotJudged, Opponent, Silent, Verdict, few_users, judge
from recalign.registry.guards import guards
from recalign.registry.log import check_params_ran, description, end_killed_runs, find_version
from recalign.registry.promotion import PAGE, bars, gate_page, is_judged, leave_silent, leave_unjudged, settle
from recalign.registry.records import count_try
from recalign.registry.tracking import connect, reached

log = logging.getLogger(__name__)
SPARE = 10  # requests beside those that a guard needs: one that a version refuses is not timed


def register(params: Params, objective: str | None = None, *, root: Path = Path(), home: Path | None = None) -> str:
    """Register the adapter of `objective`, or the "fusion"; the outcome in a sentence.

    None: what registry.system names, the best adapter by registry.metric on validation or the fusion.

    root: the project whose outputs are registered; home: the checkout whose registry it is, where that is another one.
    A version becomes `challenger`, and `champion` where the gate accepts it. The same adapter again changes nothing, so
    that a roll-back is not undone, and is no new try. Raises RecalignError where an output is missing, where
    params.yaml has changed since, for a run with hidden items, and for a random base where registry.allow_random is
    false. A champion that cannot be scored is no error: the
    version is challenger, not judged, and the next call judges it.
    """
    check_params_ran(root)
    _check_nothing_hidden(root)
    chosen = objective or _candidate(params, root)
    settings = settings_of(params, chosen, root)
    _check_trained(params, settings)
    ranks = evaluated_ranks(root, settings.system)
    check_ranks(root, [BAR])  # whose ranks the first champion must beat
    trial = read_cases(params, settings, root)
    check_ranked(trial, ranks)
    probe = unbeaten_probe(root, settings.system)
    measured, trials = challenger_measured(params, settings, (trial, ranks), root)
    catalogue = Items.read(root / layout.PREPARED)
    digest, cases = package_digest(settings, root), cases_digest(trial, catalogue)
    home = home or root
    challenger = Challenger(chosen, settings, measured, trials, catalogue, digest, cases)
    with one_at_a_time(home, params), reached(home):
        return _registered(params, challenger, probe, root, home)


def one_at_a_time(home: Path, params: Params) -> AbstractContextManager[None]:
    """Wait for another registration of the checkout `home`: of two with one digest, the second one finds the first."""
    lock = home / layout.CACHE / "register.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    fix = "run it again when that one has ended, or raise schedule.wait_minutes"
    return held(lock, "recalign register", params.schedule.wait_minutes * 60, fix, on_wait=log.info)


def _registered(params: Params, challenger: Challenger, probe: str, root: Path, home: Path) -> str:
    """Log a version of what was checked, or find the one that is there, and let the gate judge it."""
    name, chosen = params.registry.model, challenger.chosen
    client = connect(home)  # after all that may be missing: a failed registration leaves no empty registry
    version = find_version(client, name, challenger.digest)
    if version is not None and is_judged(client, name, version):
        this = chosen if chosen == FUSION else f"adapter ({chosen})"
        return _say(f"{name}: this {this} is version {version} already; nothing was moved")
    end_killed_runs(client, name, challenger.digest, version)
    version = version or log_challenger(client, params, challenger, root)
    client.update_model_version(name, version, description(challenger.settings, root))
    held = bars(client, name)
    answers = first_answers(name, [version, *held[:1]], _requests(params, challenger), root, home)
    if answers.silent:
        silent = Silent(answers.silent)
        leave_silent(client, name, version, silent)
        _show(home, name, version, silent)
        return _say(f"{name}: version {version} ({chosen}): {silent.reason}")
    opponents = []
    for bar in held:
        try:
            opponents.append(Opponent(f"version {bar}", version_ranks(client, params, bar, root, home)))
        except UnscorableError as error:
            unjudged = NotJudged(f"version {bar}", str(error))
            leave_unjudged(client, name, version, unjudged)
            _show(home, name, version, unjudged)
            return _say(f"{name}: version {version} ({chosen}) stays challenger: {unjudged.reason}")
    new, old = challenger.measured, None
    if held:
        old = champion_measured(client, params, held[0], opponents[0].ranks, challenger, root, home)
        new, old = (replace(own, seconds=took) for own, took in zip((new, old), answers.pair, strict=True))
    told = guards(params, new, old, challenger.catalogue, probe)
    barred = probe or few_users(params, challenger.ranks)
    against = Bar(
        champion=opponents[0] if held else Opponent(BAR, evaluated_ranks(root, BAR)),
        first=not held,
        attempt=0 if barred else count_try(client, name, challenger.digest, challenger.cases),  # before the comparison
        anchor=opponents[1] if len(held) > 1 else None,
    )
    verdict = judge(params, challenger.ranks, against, barred=barred, guards=told)
    settle(client, name, version, verdict)
    _show(home, name, version, verdict)
    for guard in verdict.guards:
        log.info("guard: %s", guard.sentence)
    stays = "is champion" if verdict.accepted else "stays challenger"
    return _say(f"{name}: version {version} ({chosen}) {stays}: {verdict.reason}")


def _requests(params: Params, challenger: Challenger) -> list[Request]:
    """What both versions are asked in a fresh process: a request a user, as many as a guard needs."""
    return requests_of(challenger.trials[WARM], challenger.catalogue, params.registry.min_users + SPARE)


def _show(home: Path, name: str, version: str, verdict: Verdict | NotJudged | Silent) -> None:
    """The last verdict as a page of the checkout whose registry it is: the report was written before it was known."""
    page = home / layout.REPORTS / PAGE
    write_text(page, gate_page(f"{name}, version {version}", verdict))
    log.info("the gate's page: %s", page)


def _check_nothing_hidden(root: Path) -> None:
    hidden = Prepared(root / layout.PREPARED).hidden_items
    if hidden:
        raise RecalignError(
            f"prepare.hidden_items was {hidden:g} in this run: a model that was kept from items is for evaluation, and "
            "cannot be registered; set it to 0.0 and run 'dvc repro'"
        )


def _check_trained(params: Params, settings: Settings) -> None:
    if settings.identity.id == RANDOM_BASE and not params.registry.allow_random:
        raise RecalignError(
            f"base.model is {RANDOM_BASE} ({MEANINGLESS}), which is not registered; run 'dvc exp run -S budget=demo' "
            "for a model that was trained, or set registry.allow_random to true to try the registry alone"
        )


def _candidate(params: Params, root: Path) -> str:
    if params.registry.system == FUSION:
        return FUSION
    return best_objective(params, read_systems(root / layout.RANKS / SYSTEMS))


def _say(outcome: str) -> str:
    log.info(outcome)
    return outcome
