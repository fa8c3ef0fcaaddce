"""Where MLflow keeps runs and versions: a database in the project, or the server that the environment names.

Whether the registry answers: a check of the doctor.
"""

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException

from recalign.common.errors import RecalignError
from recalign.params.load import Params
from recalign.project import REGISTRY

URI = "MLFLOW_TRACKING_URI"
ARTIFACTS = "mlartifacts"
SQLITE = "sqlite:///"
ANSWER_SECONDS = 30  # for a server to answer a call
EACH_CALL = {  # three times nine seconds, and three of waiting
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "9",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite database of the checkout `home`.

    The path is absolute, so that runs from a worktree or another folder meet the same registry.
    """
    return os.environ.get(URI) or f"{SQLITE}{home.resolve() / REGISTRY}"


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
        with answering_soon():
            client.search_registered_models(max_results=1)
    except MlflowException as error:
        said = redacted(" ".join(str(error).split()))[:200]
        raise RecalignError(
            f"{URI} is {redacted(uri)}, which does not answer within {ANSWER_SECONDS} s ({said}); "
            "start that server or unset it"
        ) from None
    return client


def redacted(text: str) -> str:
    """A text without the user names and passwords of the addresses in it."""
    return re.sub(r"(?<=://)[^/\s]*@", "…@", text)


@contextmanager
def reached(home: Path) -> Iterator[None]:
    """Give each call of the block ANSWER_SECONDS, as `connect` does the first one.

    Raises RecalignError, in one line without passwords, where the registry stops answering or refuses.
    """
    try:
        with answering_soon():
            yield
    except MlflowException as error:
        said = redacted(" ".join(str(error).split()))[:200]
        raise RecalignError(
            f"the registry at {redacted(tracking_uri(home))} stopped answering (each call has {ANSWER_SECONDS} s) or "
            f"refused: {said}; once it answers, run this again: what was registered is found and not made twice"
        ) from None


@contextmanager
def answering_soon() -> Iterator[None]:
    """Ask a server three times within ANSWER_SECONDS, where MLflow alone would try for minutes; set variables win."""
    with ExitStack() as stack:
        for name, value in EACH_CALL.items():
            if name not in os.environ:
                os.environ[name] = value
                stack.callback(os.environ.pop, name, None)
        yield


def experiment(client: MlflowClient, name: str) -> Experiment:
    """The experiment `name`, made when it is missing; beside a local database its files lie in mlartifacts/.

    Raises RecalignError, before a run is begun, where it was deleted or its files' folder cannot be written.
    """
    found = checked_experiment(client, name)
    if found is None:
        made = client.create_experiment(name, artifact_location=_artifact_location(client, name))
        found = client.get_experiment(made)
        _check_writable(found)
    return found


def checked_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """The experiment `name`, into whose folder something can be written; None where there is none yet.

    Raises RecalignError where it was deleted or its files' folder cannot be written.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return None
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise RecalignError(
            f"experiment {name!r} was deleted in MLflow; 'mlflow experiments restore -x {found.experiment_id}' brings "
            "it back, or choose another registry.model"
        )
    _check_writable(found)
    return found


def _check_writable(found: Experiment) -> None:
    """Try the folder of an experiment's files, where it is one of this machine."""
    location = redacted(found.artifact_location)
    if "://" in location and not location.startswith("file://"):
        return  # a server or a store takes the files
    folder = Path(url2pathname(urlparse(location).path) if location.startswith("file:") else location)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RecalignError(
            f"the files of experiment {found.name!r} belong in {folder}, which this machine cannot write "
            f"({error.strerror}); make it writable, or start the MLflow server with --serve-artifacts and choose "
            "another registry.model, since an experiment keeps its folder"
        ) from None


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


HEALTH_SECONDS = 5.0


def registry_state(params: Params) -> tuple[Literal["ok", "fail"], str, str]:
    """Ask the registry as `register` will, up to a file in the folder of its artifacts; no address shows a password."""
    uri, name = os.environ.get("MLFLOW_TRACKING_URI", ""), params.registry.model
    at_server = uri.startswith(("http://", "https://"))
    if at_server:
        import httpx

        try:
            httpx.get(f"{uri.rstrip('/')}/health", timeout=HEALTH_SECONDS).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = f"MLFLOW_TRACKING_URI {redacted(uri)} does not answer ({redacted(str(error))})"
            return "fail", said, "start that server, or unset the variable"
    place = uri.rpartition("@")[2] or f"{REGISTRY} of the project"  # a database's password stands before the @
    if not at_server and not (uri.startswith("sqlite:") if uri else REGISTRY.is_file()):
        return "ok", f"model {name} in {place}", ""  # made at the first registration, or a database of another machine
    client = connect(Path())
    with reached(Path()):
        found = checked_experiment(client, name)
    files = "its folder of files can be written" if found else "its experiment is made at the first registration"
    return "ok", f"model {name} {'at' if at_server else 'in'} {redacted(place)}; {files}", ""
