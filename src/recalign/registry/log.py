"""A registered version: an MLflow run with everything that explains the adapter, and the model that serves it.

It says where the adapter comes from: git revision, dvc.lock, and that params.yaml is still what DVC ran with.

The ranks and the provenance that were kept with a registered version, for comparing it with another run.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from ruamel.yaml import YAML

from recalign import __version__
from recalign.common import columns as c
from recalign.common.artifacts import file_digest, read_json
from recalign.common.errors import RecalignError
from recalign.common.origin import git, git_revision
from recalign.data.ids import RawIds
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.evaluation.comparison import Run, run_of
from recalign.evaluation.metrics import METRICS, metric_values
from recalign.evaluation.ranks import SystemRanks, read_system_ranks, write_system_ranks
from recalign.evaluation.systems import MEANINGLESS, read_systems
from recalign.params.load import Params
from recalign.project import PARAMS, PREPARED, RANKS, REGISTRY_SCHEME, REPORTS
from recalign.ranking.package import Settings, check_kept, write_package
from recalign.registry import promotion, served_model
from recalign.registry.tracking import answering_soon, connect, experiment, redacted

if TYPE_CHECKING:
    from mlflow.data import Dataset

DATA_DIGITS = 16  # of a data set's digest, of which MLflow takes 36
DIGEST = "adapter_digest"  # tag of a version; equal digests are the same version
RANDOM = "random_model"  # tag of a run and of its version: "true" where the figures mean nothing
LOCK, PIPELINE = Path("dvc.lock"), Path("dvc.yaml")
IN_PARAMS = re.compile(r"\$\{([\w.]+)\}")  # "${align.objectives}" of dvc.yaml
EVIDENCE = (
    PARAMS,
    LOCK,
    REPORTS / "metrics.json",
    REPORTS / "scorecard.json",
    REPORTS / "report.html",
    RANKS / "systems.json",
)
LONGEST_PARAM = 6000  # characters that MLflow takes


def find_version(client: MlflowClient, name: str, digest: str) -> str | None:
    """The version that was registered with a package digest, as a string; None where there is none."""
    found = client.search_model_versions(f"name = '{name}' and tag.{DIGEST} = '{digest}'")
    return max((str(version.version) for version in found), key=int, default=None)


@dataclass(frozen=True)
class Package:
    """What is registered: the objective's name, the settings of its package, and the package's digest."""

    objective: str
    settings: Settings
    digest: str


def log_version(
    client: MlflowClient,
    params: Params,
    package: Package,
    ranks: SystemRanks,
    log_more: Callable[[str], None],
    root: Path,
) -> str:
    """Log a run and register its model; the new version.

    The run holds params, metrics, report, dvc.lock, lineage and what `log_more` adds under the run's id; the model the
    package. The version comes last: after a kill there is none, or one whose run has everything.
    """
    import mlflow

    name, settings, digest = params.registry.model, package.settings, package.digest
    described = description(settings, root)
    about = {**lineage(root), DIGEST: digest, "source": settings.source, "objective": package.objective}
    about |= {"budget": params.budget, RANDOM: str(settings.random_model).lower()}
    named = f"{settings.system} on {settings.source}, {params.budget}"
    in_experiment = experiment(client, name).experiment_id
    with mlflow.start_run(experiment_id=in_experiment, run_name=named, description=described, tags=about) as run:
        mlflow.log_params(flat_params(params))
        mlflow.log_metrics(own_metrics(ranks) | headline(read_json(root / REPORTS / "metrics.json"), settings.system))
        for dataset, use in _data(settings, ranks, root):
            mlflow.log_input(dataset, context=use)
        for path in EVIDENCE:
            if (root / path).is_file():
                mlflow.log_artifact(str(root / path))
        log_more(run.info.run_id)
        uri = _log_model(settings, root)
        tags = {DIGEST: digest, "objective": package.objective, RANDOM: about[RANDOM]}
        return str(mlflow.register_model(uri, name, tags=tags).version)


def _data(settings: Settings, ranks: SystemRanks, root: Path) -> "Iterator[tuple[Dataset, str]]":
    """The log and the test cases as MLflow shows data sets: a name and a digest, which comparisons go by."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    where = CodeDatasetSource({"made by": "dvc repro"})
    log = Prepared(root / PREPARED)
    yield MetaDataset(where, name=log.source, digest=log.data_digest[:DATA_DIGITS]), "training"  # type: ignore[abstract]
    cases = f"{settings.source}, {ranks.view} test cases, {ranks.manifest}"
    yield MetaDataset(where, name=cases, digest=ranks.digest[:DATA_DIGITS]), "evaluation"  # type: ignore[abstract]


def end_killed_runs(client: MlflowClient, name: str, digest: str, version: str | None) -> None:
    """End the runs that killed registrations of a package left open; `version`'s own, if it has one, is finished.

    To be called where no other registration of the package is at work.
    """
    experiment_of = client.get_experiment_by_name(name)
    if experiment_of is None:
        return
    own = client.get_model_version(name, version).run_id if version else None
    open_runs = f"tags.{DIGEST} = '{digest}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_of.experiment_id], open_runs):
        client.set_terminated(run.info.run_id, "FINISHED" if run.info.run_id == own else "KILLED")


class Untried:
    """MLflow's pyfunc flavor, whose logging does not try the example on the model.

    That would load base and adapter, and look for the base in the working directory or the network.
    """

    @staticmethod
    def save_model(*, validate_serving_input: bool, **given: Any) -> None:
        """As `mlflow.pyfunc.save_model`, which does not know `validate_serving_input`: `Model.log` reads it."""
        import mlflow

        mlflow.pyfunc.save_model(**given)


def _log_model(settings: Settings, root: Path) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / served_model.PACKAGE
        write_package(settings, root, package)
        info = Model.log(
            artifact_path=None,
            flavor=Untried,
            name="adapter",
            python_model=served_model.__file__,
            artifacts={served_model.PACKAGE: str(package)},
            signature=served_model.SIGNATURE,
            input_example=_example(package),
            validate_serving_input=False,
            pip_requirements=[f"recalign=={__version__}"],  # given, since MLflow would run the model to guess them
        )
    return str(info.model_uri)


def _example(package: Path) -> pd.DataFrame:
    """A request that the model answers: two items of its catalogue, one by its title and one by its id."""
    catalogue, raw = Items.read(package), RawIds.of_package(package)
    one, other = catalogue.ids[:2]
    return pd.DataFrame([{"history": [catalogue.titles[one], raw.shown(other)], "k": 3}])


def ranks_file(digest: str) -> str:
    """Where a run keeps the ranks under the digest of a candidate manifest, or of whole cases."""
    return f"ranks/{digest[:16]}.parquet"


def log_ranks(client: MlflowClient, run_id: str, ranks: SystemRanks, digest: str) -> None:
    """Keep ranks with a run, under a digest of what was ranked, for comparisons to come."""
    path = Path(ranks_file(digest))
    with tempfile.TemporaryDirectory() as temporary:
        write_system_ranks(Path(temporary) / path.name, [ranks])
        client.log_artifact(run_id, os.fspath(Path(temporary) / path.name), str(path.parent))


def own_metrics(ranks: SystemRanks) -> dict[str, float]:
    """The registered system's metrics by their plain names, for MLflow's tables."""
    return {metric: float(metric_values(metric, ranks.ranks).mean()) for metric in METRICS}


def headline(metrics: Mapping[str, Any], system: str) -> dict[str, float]:
    """The few figures of metrics.json that tell whether a version is worth its cost; all others are in that file.

    NDCG@10's bounds, the best baseline's (by validation) and popularity's NDCG@10, and how many cases they rest on.
    """
    every = metrics.get("systems", {})
    wanted = {
        "ndcg_at_10_low": (system, "low"),
        "ndcg_at_10_high": (system, "high"),
        "baseline_ndcg_at_10": (metrics.get("best", {}).get("baseline"), "value"),
        "popularity_ndcg_at_10": ("popularity", "value"),
    }
    found = {key: every.get(name, {}).get("ndcg_at_10", {}).get(part) for key, (name, part) in wanted.items()}
    found |= {part: metrics.get("about", {}).get(part) for part in ("cases", "users")}
    return {key: float(value) for key, value in found.items() if value is not None}


def description(settings: Settings, root: Path) -> str:
    """What MLflow's first screen says of a run and of its version: should one use it, and why."""
    about = read_json(root / REPORTS / "scorecard.json").get("about", {})
    warned = f"**{MEANINGLESS[:1].upper()}{MEANINGLESS[1:]}.**" if settings.random_model else ""
    said = [warned, about.get("answer", ""), *about.get("verdict", [])[:1], f"Ranked by {settings.sentence}."]
    return "\n\n".join(sentence for sentence in said if sentence)


def flat_params(params: Params) -> dict[str, str]:
    """Every parameter under its path, budget applied; the table of budgets is in params.yaml beside."""
    tree = params.model_dump(by_alias=True, exclude={"budgets"})
    return {path: str(value)[:LONGEST_PARAM] for path, value in _leaves(tree)}


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


SCORECARD, SYSTEMS = REPORTS / "scorecard.json", RANKS / "systems.json"


def version_run(uri: str, manifest: str, home: Path) -> Run:
    """The run of `models:/<name>/<version>` or `models:/<name>@<alias>` on a manifest.

    Raises RecalignError where there is no such version, where it was registered without a scorecard, or where its
    package is not what made the ranks that were kept.
    """
    _parsed(uri)
    name, version = _parsed(promotion.pinned(uri, home))
    client = connect(home)
    try:
        with answering_soon():
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


def lineage(root: Path) -> dict[str, str]:
    """Tags of a run: git revision, branch, whether files were changed since, and the sha256 of dvc.lock.

    Empty values where the project is no git repository or was not run by DVC.
    """
    lock = root / LOCK
    return {
        "git_revision": git_revision(root),
        "git_branch": git(root, "rev-parse", "--abbrev-ref", "HEAD"),
        "git_changed": str(bool(git(root, "status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc_lock": file_digest(lock) if lock.is_file() else "",
    }


def check_params_ran(root: Path) -> None:
    """Refuse to register figures of other params than those in params.yaml.

    What dvc.lock keeps of a stage that dvc.yaml has no more (an objective or a recommender that was taken out) says
    nothing of the present run: DVC neither checks nor removes it. Raises RecalignError naming the first key whose value
    in dvc.lock differs from the one in params.yaml.
    """
    ran = _stages(root / LOCK)  # none where the stages were run by hand
    now = YAML(typ="safe").load((root / PARAMS).read_text(encoding="utf-8"))
    stages = _stages(root / PIPELINE)
    kept = {stage: locked for stage, locked in ran.items() if not stages or _in_pipeline(stage, stages, now)}
    for stage, locked in kept.items():
        for key, value in locked.get("params", {}).get(str(PARAMS), {}).items():
            if (present := _value(now, key)) != value:
                raise RecalignError(
                    f"{PARAMS}: {key} is {present!r}, but stage {stage} ran with {value!r}; run 'dvc repro' first"
                )


def _stages(file: Path) -> dict[str, Any]:
    """The stages of dvc.yaml or dvc.lock; none where there is no such file."""
    tree = YAML(typ="safe").load(file.read_text(encoding="utf-8")) if file.is_file() else None
    stages: dict[str, Any] = (tree or {}).get("stages") or {}
    return stages


def _in_pipeline(stage: str, stages: Mapping[str, Any], params: Any) -> bool:
    """Whether dvc.yaml still has a stage of dvc.lock; of a matrix ("align@sdpo"), whether params still name its value.

    A matrix over anything but one list of params.yaml counts as having it.
    """
    name, _, value = stage.partition("@")
    if name not in stages:
        return False
    drawn = [str(own) for own in (stages[name].get("matrix") or {}).values()]
    if len(drawn) != 1 or not (key := IN_PARAMS.fullmatch(drawn[0])):
        return True
    values = _value(params, key[1])
    return not isinstance(values, list) or value in map(str, values)


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
