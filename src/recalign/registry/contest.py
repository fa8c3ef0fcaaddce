"""The ranks that the gate compares: the challenger's, popularity's, and the champion's on the very same cases."""

import logging
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from recalign import columns as c
from recalign.artifacts import read_json
from recalign.data.records import Items
from recalign.errors import RecalignError
from recalign.evaluation.probe_contest import AUDIT, UNBEATEN
from recalign.evaluation.system_ranks import SAMPLED, SystemRanks, read_system_ranks
from recalign.layout import PREPARED, PROFILES, RANKS, REPORTS
from recalign.params import Params
from recalign.preferences.profiles import profile_texts
from recalign.recommenders.trial import rank_sampled, read_trial
from recalign.registry.log import log_ranks, ranks_file
from recalign.registry.package import Settings, read_settings
from recalign.registry.promotion import download_package, run_of
from recalign.registry.serving import find_base, load_recommender

log = logging.getLogger(__name__)
MANIFEST = "uniform"  # the papers' protocol, on which every system is ranked


def evaluated_ranks(root: Path, system: str) -> SystemRanks:
    """A system's warm ranks on the uniform manifest as evaluate wrote them. Raises RecalignError when it has none."""
    digests = read_json(root / RANKS / "cases.json")["manifests"]
    for ranks in read_system_ranks(root / RANKS / "ranks.parquet", digests):
        if (ranks.system, ranks.view, ranks.protocol, ranks.manifest) == (system, c.WARM, SAMPLED, MANIFEST):
            return ranks
    raise RecalignError(f"{RANKS / 'ranks.parquet'} has no ranks of {system}; run 'dvc repro' to evaluate it")


def unbeaten_probe(root: Path, system: str) -> str:
    """Why a system may not be champion: it does not beat what the candidate lists give away; "" where it does.

    Raises RecalignError where metrics.json was written without an audit.
    """
    path = root / REPORTS / "metrics.json"
    metrics = read_json(path)
    if AUDIT not in metrics:
        raise RecalignError(f"{path} holds no audit of the candidate lists; run 'dvc repro' to make it")
    return str(metrics[AUDIT][UNBEATEN].get(system, ""))


def champion_ranks(
    client: MlflowClient, params: Params, version: str, challenger: SystemRanks, root: Path, home: Path
) -> SystemRanks:
    """The champion's ranks on the challenger's cases: those kept with its run, else scored anew and kept there."""
    run_id = run_of(client, params.registry.model, version)
    kept = _kept_ranks(client, run_id, challenger)
    if kept is not None:
        log.info("champion version %s: ranks on manifest %s are known", version, challenger.digest[:12])
        return kept
    log.info("champion version %s: scored anew on manifest %s", version, challenger.digest[:12])
    ranks = _scored_anew(params, download_package(f"models:/{params.registry.model}/{version}", home), root)
    log_ranks(client, run_id, ranks)
    return ranks


def _kept_ranks(client: MlflowClient, run_id: str, challenger: SystemRanks) -> SystemRanks | None:
    """Ranks kept with a run, where they are of the same cases; a budget may have changed how many there are."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = client.download_artifacts(run_id, ranks_file(challenger.digest), temporary)
        except (MlflowException, OSError):
            return None
        (kept,) = read_system_ranks(Path(path), {MANIFEST: challenger.digest})
    same = (kept.view, kept.example_ids) == (challenger.view, challenger.example_ids)
    return kept if same else None


def _scored_anew(params: Params, package: Path, root: Path) -> SystemRanks:
    settings = read_settings(package)
    prepared = root / PREPARED
    trial = read_trial(
        prepared, c.TEST, MANIFEST, params.evaluate.test_cases, params.seed, _profile_texts(settings, root / PROFILES)
    )
    recommender = load_recommender(
        package, find_base(settings, root), Items.read(prepared), batch=params.evaluate.batch
    )
    return rank_sampled(recommender, trial)


def _profile_texts(settings: Settings, profiles: Path) -> dict[int, str]:
    """What the champion's prompts show of each user: the present profiles of the engine that it was measured with."""
    if not settings.prompt.profile:
        return {}
    return profile_texts(profiles, settings.profile_engine, c.TEST)
