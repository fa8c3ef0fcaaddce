"""Serve align/<objective>, align/dpo4rec and retrain/weekly: `python flows/serve.py` in the project's root."""

import sys
import time
from pathlib import Path

import httpx
from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.settings import get_current_settings

from align import align
from dpo4rec import dpo4rec as align_texts
from locks import guarded
from recalign.common.errors import RecalignError
from recalign.doctor.prefect_server import server_fault
from recalign.params.load import Params, load_params
from retrain import retrain
from runs import close_dead_runs
from worktree import needs_git, sweep

SERVER_SECONDS = 5.0  # between two looks for a server that went away


def deployments(params: Params) -> list[RunnerDeployment]:
    """align/<objective> for each of align.objectives, align/dpo4rec, and retrain/weekly by `schedule`."""
    weekly = Cron(params.schedule.cron, timezone=params.schedule.timezone)
    served = [align.to_deployment(name=name, parameters={"objective": name}) for name in params.align.objectives]
    texts = align_texts.to_deployment(name="dpo4rec")  # a flow of its own, though its name begins alike
    return [*served, texts, retrain.to_deployment(name="weekly", schedule=weekly)]


def check_server() -> None:
    """Raises RecalignError, with the address to set where one can be told, unless Prefect's server answers."""
    fault = server_fault(get_current_settings().api.url)
    if fault is not None:
        raise RecalignError(f"{fault.found}; {fault.fix}")


def clean(root: Path) -> list[str]:
    """Report and remove what killed runs left in the project; a sentence for each, and for retrainings at work."""
    said = close_dead_runs(root)
    try:
        needs_git(root)
    except RecalignError as error:
        return [*said, str(error)]  # align is served, and retrain would say the same
    with guarded(root, "serve.py"):
        return [*said, *sweep(root)]


def main() -> int:
    """Serve until interrupted, also over an absence of the server; returns the exit code."""
    root = Path.cwd()
    try:
        served = deployments(load_params())
        check_server()
        while True:
            for sentence in clean(root):
                print(f"flows/serve.py: {sentence}", file=sys.stderr)
            try:
                serve(*served)
                return 0
            except Exception as error:
                if not server_went_away(error):
                    raise
                print("flows/serve.py: the Prefect server went away; waiting for it", file=sys.stderr)
                _wait_for_server()
    except RecalignError as error:
        print(f"flows/serve.py: {error}", file=sys.stderr)
        return 2


def server_went_away(error: BaseException) -> bool:
    """Whether an error of Prefect's, which comes in several wrappings, is that its server does not answer any more."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(server_went_away, error.exceptions))
    if isinstance(error, httpx.TransportError) or "exceeded error threshold" in str(error):
        return True
    return error.__context__ is not None and server_went_away(error.__context__)


def _wait_for_server() -> None:
    while (fault := server_fault(get_current_settings().api.url)) is not None:
        if not fault.away:
            raise RecalignError(f"{fault.found}; {fault.fix}")
        time.sleep(SERVER_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
