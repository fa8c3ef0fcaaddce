"""What the guards compare: of the challenger what the project measured, of the champion what its run keeps of it.

The champion is scored again where its ranks on the present cases are not kept. What earlier versions did not keep is
missing, and its guard is not judged.
"""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.data.records import Items
from recalign.evaluation.generation import Answer, read_answers, write_answers
from recalign.evaluation.injection import INJECTION_LIFT, Lift
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.systems import SYSTEMS, read_systems
from recalign.params.load import Params
from recalign.project import RANKS, REPORTS
from recalign.ranking.measured import ANSWERS
from recalign.ranking.package import Settings
from recalign.ranking.trial import Trial
from recalign.registry.contest import (
    UnscorableError,
    cases_digest,
    check_ranked,
    evaluated_views,
    read_cases,
    version_ranks,
)
from recalign.registry.guards import VIEWS, Measured
from recalign.registry.log import log_ranks, log_version
from recalign.registry.promotion import run_of

log = logging.getLogger(__name__)
KEPT_ANSWERS = "answers"  # folder of a run


@dataclass(frozen=True)
class Challenger:
    """What is registered, with all that was measured of it; trials: by view, the cases that its ranks are of."""

    chosen: str
    settings: Settings
    measured: Measured
    trials: Mapping[str, Trial]
    catalogue: Items
    digest: str
    cases: str

    @property
    def ranks(self) -> SystemRanks:
        """Its warm ranks, which the gate compares."""
        return self.measured.ranks[c.WARM]


def challenger_measured(
    params: Params, settings: Settings, warm: tuple[Trial, SystemRanks], root: Path
) -> tuple[Measured, dict[str, Trial]]:
    """Of the system of these settings, as the project at `root` evaluated it; and the cases of each view.

    warm: its warm cases and ranks.
    """
    system = settings.system
    trials, views = {c.WARM: warm[0]}, {c.WARM: warm[1]}
    evaluated = evaluated_views(root, system)
    for view in (own for own in VIEWS.values() if own in evaluated):
        trials[view] = read_cases(params, settings, root, view)
        check_ranked(trials[view], evaluated[view])
        views[view] = evaluated[view]
    answers = [own for own in _answers(root / RANKS / ANSWERS) if own.system == system]
    about = read_systems(root / RANKS / SYSTEMS).get(system)
    megabytes = about.megabytes if about else None
    return Measured(system, views, answers, (), megabytes, _injection(root / REPORTS / "metrics.json", system)), trials


def log_challenger(client: MlflowClient, params: Params, challenger: Challenger, root: Path) -> str:
    """Register it as a new version, with what its guards will be asked for once it is champion."""
    own = challenger
    warm = own.ranks

    def log_evidence(run_id: str) -> None:
        for of in (warm.digest, own.cases):  # for comparisons by manifest, and for the gate by whole cases
            log_ranks(client, run_id, warm, of)
        for view, trial in own.trials.items():
            if view != c.WARM:
                log_ranks(client, run_id, own.measured.ranks[view], cases_digest(trial, own.catalogue))
        if own.measured.answers:
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / f"{own.cases[:16]}.parquet"
                write_answers(path, own.measured.answers)
                client.log_artifact(run_id, str(path), KEPT_ANSWERS)

    return log_version(client, params, own.chosen, own.settings, own.digest, warm, log_evidence, root)


def champion_measured(
    client: MlflowClient,
    params: Params,
    version: str,
    ranks: SystemRanks,
    challenger: Challenger,
    root: Path,
    home: Path,
) -> Measured:
    """Of the present champion, on the challenger's cases; ranks: its warm ones."""
    run_id = run_of(client, params.registry.model, version)
    views = {c.WARM: ranks}
    for view in challenger.trials:
        if view != c.WARM:
            try:
                views[view] = version_ranks(client, params, version, root, home, view)
            except UnscorableError as error:
                log.info("version %s: its cases of view %s are not judged (%s)", version, view, error)
    with tempfile.TemporaryDirectory() as temporary:
        kept = f"{KEPT_ANSWERS}/{challenger.cases[:16]}.parquet"
        answers = _answers(_kept(client, run_id, kept, temporary))
        systems, metrics = (_kept(client, run_id, name, temporary) for name in (SYSTEMS, "metrics.json"))
        about = read_systems(systems).get(ranks.system) if systems else None
        injection = _injection(metrics, ranks.system)
    return Measured(f"version {version}", views, answers, (), about.megabytes if about else None, injection)


def _kept(client: MlflowClient, run_id: str, path: str, folder: str) -> Path | None:
    try:
        return Path(client.download_artifacts(run_id, path, folder))
    except (MlflowException, OSError):
        return None


def _answers(path: Path | None) -> list[Answer]:
    return read_answers(path) if path and path.is_file() else []


def _injection(path: Path | None, system: str) -> dict[str, Lift]:
    """Of metrics.json, by position; empty where it was not measured."""
    told = read_json(path).get(INJECTION_LIFT, {}) if path and path.is_file() else {}
    return {position: Lift.read(own) for position, own in told.get(system, {}).items()}
