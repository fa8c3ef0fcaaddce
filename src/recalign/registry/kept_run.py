"""The ranks and the provenance that were kept with a registered version, for comparing it with another run."""

import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.evaluation.comparison import Run, run_of
from recalign.evaluation.ranks import read_system_ranks
from recalign.evaluation.systems import read_systems
from recalign.project import RANKS, REGISTRY_SCHEME, REPORTS
from recalign.ranking.package import check_kept
from recalign.registry import promotion
from recalign.registry.log import ranks_file
from recalign.registry.tracking import answering_soon, connect, redacted

SCORECARD, SYSTEMS = REPORTS / "scorecard.json", RANKS / "systems.json"


def version_run(uri: str, manifest: str, home: Path) -> Run:
    """The run of `models:/<name>/<version>` or `models:/<name>@<alias>` on a manifest.

    Raises RecalignError where there is no such version, where it was registered without a scorecard, or where its
    package is not what made the ranks that were kept.
    """
    name, version = _parsed(uri)
    client = connect(home)
    try:
        with answering_soon():
            if "@" in uri:
                version = str(client.get_model_version_by_alias(name, version).version)
            run_id = promotion.run_of(client, name, version)
    except MlflowException as error:
        said = redacted(" ".join(str(error).split()))[:200]
        raise RecalignError(f"{uri} is not in the registry ({said}); 'recalign register' adds a version") from None
    with tempfile.TemporaryDirectory() as temporary:
        about = read_json(_download(client, run_id, SCORECARD.name, temporary, uri))["about"]
        told = about["manifests"][manifest]
        digest = told if isinstance(told, str) else told[c.WARM]  # a string before views were
        ranks = read_system_ranks(_download(client, run_id, ranks_file(digest), temporary, uri), {manifest: digest})
        kept = {file.path for file in client.list_artifacts(run_id)}
        systems = read_systems(_download(client, run_id, SYSTEMS.name, temporary, uri)) if SYSTEMS.name in kept else {}
    check_kept(promotion.download_package(uri, home), systems)
    return run_of(uri, about, {system.system: system for system in ranks}, {})


def _parsed(uri: str) -> tuple[str, str]:
    name, _, version = uri.removeprefix(REGISTRY_SCHEME).replace("@", "/").partition("/")
    if not name or not version:
        raise RecalignError(f"{uri!r} names no version; write models:/recalign/3 or models:/recalign@champion")
    return name, version


def _download(client: MlflowClient, run_id: str, path: str, folder: str, uri: str) -> Path:
    try:
        return Path(client.download_artifacts(run_id, path, folder))
    except (MlflowException, OSError):
        raise RecalignError(f"the run of {uri} holds no {path}; register it again to compare it") from None
