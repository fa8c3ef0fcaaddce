"""A flow's run as a process: one at a time in a project, known by name while it lives, reported when it was killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from locks import guarded, lock_folder
from recalign.common.artifacts import read_json
from recalign.common.locks import held, is_left_over, owner, try_lock
from recalign.params.load import Params
from recalign.params.schedule import ScheduleParams
from recalign.project import REPORTS
from subprocesses import end_with_parent

SLOT = "slot.lock"
RECORD = "run-{}.lock"  # by the run's id on the Prefect server


@contextmanager
def only_run(root: Path, name: str, schedule: ScheduleParams) -> Iterator[None]:
    """Make the flow run of this process the only one that works in the project; it waits for the others.

    Runs that were killed are reported to the server first. Raises RecalignError, which names the run that works, where
    that one does not end within schedule.wait_minutes.
    """
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # started by serve.py or a worker, not by a person's own Python
        end_with_parent()
    run_log = get_run_logger()
    with _recorded(root, name):
        for closed in close_dead_runs(root):
            run_log.warning(closed)
        fix = "stop that run, or raise schedule.wait_minutes in params.yaml"
        with held(lock_folder(root) / SLOT, name, schedule.wait_minutes * 60, fix, run_log.info):
            yield


def name_run(name: str, params: Params, objective: str | None) -> None:
    """Call the run of this process by what it works on, and tag it so: lists of runs are searched by that.

    objective: None where params choose it.
    """
    asked = objective or params.registry.system
    told = {"objective": asked, "source": params.source, "budget": params.budget}
    tags = {*flow_run.tags, *(f"{key}:{value}" for key, value in told.items())}
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), name=f"{name} on {params.source}, {params.budget}", tags=sorted(tags))


def show_verdict(root: Path) -> None:
    """Keep what the report of a project says as an artifact of the run, the answer first; nothing without a report."""
    file = root / REPORTS / "scorecard.json"
    about = read_json(file).get("about", {}) if file.is_file() else {}
    said = [sentence for sentence in (about.get("answer"), *about.get("verdict", [])) if sentence]
    if said:
        create_markdown_artifact("\n\n".join(said), key="verdict", description=f"the verdict of {root / REPORTS}")


@contextmanager
def _recorded(root: Path, name: str) -> Iterator[None]:
    """Keep a lock under the run's id, by which others see whether its process lives."""
    path = lock_folder(root) / RECORD.format(flow_run.id)
    with guarded(root, name):
        descriptor = try_lock(path, name)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def close_dead_runs(root: Path) -> list[str]:
    """Tell the server which runs of the project have no process any more; a sentence for each.

    A run whose process was killed together with its parent is "Running" on the server for ever otherwise.
    """
    said = []
    with guarded(root, "looking for killed runs"):
        for path in sorted(lock_folder(root).glob(RECORD.format("*"))):
            if not is_left_over(path):
                continue
            last, run_id = owner(path), UUID(path.stem.removeprefix("run-"))
            was = f"{last.run if last else 'a run'} (process {last.pid if last else 'unknown'})"
            try:
                if _close(run_id, was):
                    said.append(f"{was} was killed; its run {run_id} is now Crashed")
            except Exception as error:  # a server that is away, or another one: the next start asks again
                said.append(f"{was} was killed, but its run {run_id} cannot be closed now ({type(error).__name__})")
            else:
                path.unlink()
    return said


def _close(run_id: UUID, was: str) -> bool:
    """Set a run that has not ended, and its tasks, to Crashed. False where it had ended, or is unknown."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(run_id)
        except ObjectNotFound:
            return False
        if run.state is None or run.state.is_final():
            return False
        message = f"{was} was killed; start the run again, it goes on from the last finished stage or checkpoint"
        _close_tasks(client, run_id, message)
        client.set_flow_run_state(run_id, Crashed(message=message), force=True)
        return True


def _close_tasks(client: SyncPrefectClient, run_id: UUID, message: str) -> None:
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))):
        if task_run.state is not None and not task_run.state.is_final():
            client.set_task_run_state(task_run.id, Crashed(message=message), force=True)
