"""The ranks that the gate compares: the challenger's, popularity's, and those of champions on the very same cases.

And what the guards compare: of the challenger what the project measured, of the champion what its run keeps of it.

The champion is scored again where its ranks on the present cases are not kept. What earlier versions did not keep is
missing, and its guard is not judged.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from recalign.audit.audit import AUDIT, UNBEATEN
from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.evaluation.generation import Answer, read_answers, write_answers
from recalign.evaluation.injection import INJECTION_LIFT, Lift
from recalign.evaluation.ranks import SAMPLED, SystemRanks, read_system_ranks
from recalign.evaluation.systems import SYSTEMS, read_systems
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import profile_texts
from recalign.preferences.profiles.selection import profiled_views
from recalign.project import PREPARED, PROFILES, RANKS, REPORTS
from recalign.ranking.measured import ANSWERS
from recalign.ranking.package import Settings, read_settings
from recalign.ranking.trial import Trial, rank_sampled, read_trial
from recalign.registry.guards import VIEWS, Measured
from recalign.registry.log import Package, log_ranks, log_version, ranks_file
from recalign.registry.promotion import download_package, run_of
from recalign.registry.serving import find_base, load_recommender

log = logging.getLogger(__name__)
MANIFEST = "uniform"  # the papers' protocol, on which every system is ranked


def evaluated_ranks(root: Path, system: str, view: str = c.WARM) -> SystemRanks:
    """A system's ranks of a view on the uniform manifest as evaluate wrote them.

    Raises RecalignError when it has none.
    """
    found = evaluated_views(root, system)
    if view not in found:
        raise RecalignError(f"{RANKS / 'ranks.parquet'} has no ranks of {system}; run 'dvc repro' to evaluate it")
    return found[view]


def evaluated_views(root: Path, system: str) -> dict[str, SystemRanks]:
    """A system's ranks on the uniform manifest by view, as evaluate wrote them."""
    digests = read_json(root / RANKS / "cases.json")["manifests"]
    return {
        ranks.view: ranks
        for ranks in read_system_ranks(root / RANKS / "ranks.parquet", digests)
        if (ranks.system, ranks.protocol, ranks.manifest) == (system, SAMPLED, MANIFEST)
    }


def unbeaten_probe(root: Path, system: str) -> str:
    """Why a system may not be champion: it does not beat what the candidate lists give away; "" where it does.

    Raises RecalignError where metrics.json was written without an audit.
    """
    path = root / REPORTS / "metrics.json"
    metrics = read_json(path)
    if AUDIT not in metrics:
        raise RecalignError(f"{path} holds no audit of the candidate lists; run 'dvc repro' to make it")
    return str(metrics[AUDIT][UNBEATEN].get(system, ""))


def read_cases(params: Params, settings: Settings, root: Path, view: str = c.WARM) -> Trial:
    """The test cases of a view of the project at `root` as a system of these settings meets them, profiles and all."""
    shown = settings.prompt.profile and view in profiled_views(root / PREPARED)
    texts = profile_texts(root / PROFILES, settings.profile_engine, c.TEST) if shown else {}
    limit = params.evaluate.test_cases if view == c.WARM else params.evaluate.cold_cases
    return read_trial(root / PREPARED, c.TEST, MANIFEST, limit, params.seed, texts, view=view)


def cases_digest(trial: Trial, catalogue: Items) -> str:
    """One value for all that a system is shown of its cases: histories, times, profiles, candidates, targets, titles.

    A manifest's own digest is part of it. Equal values: ranks of before are those of now.
    """
    rows = [
        [*key, request.history, request.cutoff, request.profile, case.candidates, case.target_index]
        for key, request, case in zip(trial.keys, trial.requests, trial.cases, strict=True)
    ]
    titles = [[item, catalogue.titles[item]] for item in catalogue.ids]
    return digest_of([trial.digest, sorted(rows, key=lambda row: str(row[0])), titles])


def check_ranked(trial: Trial, ranks: SystemRanks) -> None:
    """Raise RecalignError where ranks are of other cases than the project's present ones."""
    if trial.digest != ranks.digest or tuple(sorted(key[0] for key in trial.keys)) != ranks.example_ids:
        raise RecalignError(
            f"{RANKS / 'ranks.parquet'} was made on other cases than those in {PREPARED}; run 'dvc repro' to evaluate"
        )


class UnscorableError(RecalignError):
    """A registered version that cannot rank the present cases: whatever its own fault, the project is not to blame."""


def version_ranks(
    client: MlflowClient, params: Params, version: str, root: Path, home: Path, view: str = c.WARM
) -> SystemRanks:
    """A registered version's ranks on the project's present cases of a view: scored anew, and kept with its run.

    What is kept is taken only where every byte of the cases that it was shown is the same. Raises UnscorableError for a
    version that recalign did not register, whose files or base are gone or damaged, or that gives no finite scores.
    """
    name, catalogue = params.registry.model, Items.read(root / PREPARED)
    with _blamed():
        run_id, package = run_of(client, name, version), download_package(f"models:/{name}/{version}", home)
        settings = read_settings(package)
    trial = read_cases(params, settings, root, view)
    digest = cases_digest(trial, catalogue)
    kept = _kept_ranks(client, run_id, digest, trial)
    if kept is not None:
        log.info("version %s: ranks on these very cases (%s) are known", version, digest[:12])
        return kept
    log.info("version %s: scored again on the newest cases (%s)", version, digest[:12])
    with _blamed():
        recommender = load_recommender(package, find_base(settings, root), catalogue, batch=params.evaluate.batch)
        ranks = rank_sampled(recommender, trial)
    log_ranks(client, run_id, ranks, digest)
    return ranks


@contextmanager
def _blamed() -> Iterator[None]:
    """Turn what goes wrong with a version into one line; a registry that is away is another matter."""
    try:
        yield
    except (MlflowException, MemoryError):
        raise
    except Exception as error:  # a foreign model fails in ways of its own
        raise UnscorableError(" ".join(str(error).split())[:300] or type(error).__name__) from None


def _kept_ranks(client: MlflowClient, run_id: str, digest: str, trial: Trial) -> SystemRanks | None:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = client.download_artifacts(run_id, ranks_file(digest), temporary)
        except (MlflowException, OSError):
            return None
        (kept,) = read_system_ranks(Path(path), {MANIFEST: trial.digest})
    return kept if kept.view == trial.view else None


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

    return log_version(client, params, Package(own.chosen, own.settings, own.digest), warm, log_evidence, root)


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
