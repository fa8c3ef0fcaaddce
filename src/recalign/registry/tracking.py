"""Where MLflow keeps runs and versions: a database in the project, or the server that the environment names."""

import logging
import os
import warnings
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from recalign.errors import RecalignError

URI = "MLFLOW_TRACKING_URI"
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
SQLITE = "sqlite:///"


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite database of the checkout `home`.

    The path is absolute, so that runs from a worktree or another folder meet the same registry.
    """
    return os.environ.get(URI) or f"{SQLITE}{home.resolve() / DATABASE}"


def connect(home: Path) -> MlflowClient:
    """A client of the registry, which MLflow's module-level functions use from now on too.

    Raises RecalignError naming the address where it does not answer.
    """
    import mlflow

    uri, named = tracking_uri(home), URI in os.environ
    _quieten()
    mlflow.set_tracking_uri(uri)
    if not named:
        os.environ.pop(URI, None)  # MLflow exports it, and the next checkout would take this one's registry for its own
    client = MlflowClient()
    try:
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        said = " ".join(str(error).split())[:200]
        raise RecalignError(f"{URI} is {uri}, which does not answer ({said}); start that server or unset it") from None
    return client


def experiment(client: MlflowClient, name: str) -> Experiment:
    """The experiment `name`, made when it is missing; beside a local database its files lie in mlartifacts/."""
    found = client.get_experiment_by_name(name)
    if found is None:
        made = client.create_experiment(name, artifact_location=_artifact_location(client, name))
        found = client.get_experiment(made)
    return found


def _artifact_location(client: MlflowClient, name: str) -> str | None:
    if not client.tracking_uri.startswith(SQLITE):
        return None  # a server chooses
    database = Path(client.tracking_uri.removeprefix(SQLITE))
    return (database.resolve().parent / ARTIFACTS / name).as_uri()


def _quieten() -> None:
    """MLflow reports each migration of its database and each download; a person wants to read the verdict."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # an example would make MLflow load the base model just to log an adapter; `Query` checks what MLflow's types cannot
    warnings.filterwarnings("ignore", message=".*(An input example was not provided|Add type hints to the `predict`)")
