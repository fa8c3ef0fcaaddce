"""The ranks that the gate compares: the challenger's, popularity's, and those of champions on the very same cases."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from recalign.audit.contest import AUDIT, UNBEATEN
from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.evaluation.ranks import SAMPLED, SystemRanks, read_system_ranks
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import profile_texts
from recalign.preferences.profiles.selection import profiled_views
from recalign.project import PREPARED, PROFILES, RANKS, REPORTS
from recalign.ranking.package import Settings, read_settings
from recalign.ranking.trial import Trial, rank_sampled, read_trial
from recalign.registry.log import log_ranks, ranks_file
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
