"""Serve the deployments align/<objective> and retrain/weekly: `python flows/serve.py` in the project's root."""

import sys

import httpx
from prefect import serve
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron
from prefect.settings import get_current_settings

from align import GPU, align
from recalign.errors import RecalignError
from recalign.params import Params, load_params
from retrain import retrain


def deployments(params: Params) -> list[RunnerDeployment]:
    """align/<objective> for each of align.objectives, and retrain/weekly by the cron line of `schedule`."""
    try:
        weekly = Cron(params.schedule.cron, timezone=params.schedule.timezone)
        scheduled = retrain.to_deployment(name="weekly", schedule=weekly)
    except ValueError as error:
        raise RecalignError(
            f"params.yaml: schedule is cron {params.schedule.cron!r}, timezone {params.schedule.timezone!r}; give five "
            f"cron fields and an IANA zone ({' '.join(str(error).split())})"
        ) from None
    served = [align.to_deployment(name=name, parameters={"objective": name}) for name in params.align.objectives]
    return [*served, scheduled]


def create_slot() -> None:
    """Create the one GPU slot on the server where it is missing; a person's own number of slots is kept."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))


def main() -> int:
    """Serve until interrupted; returns the exit code."""
    try:
        served = deployments(load_params())
        create_slot()
    except RecalignError as error:
        print(f"flows/serve.py: {error}", file=sys.stderr)
        return 2
    except (httpx.HTTPError, RuntimeError) as error:
        url = get_current_settings().api.url
        print(
            f"flows/serve.py: no Prefect server at {url} ({error}); run 'prefect server start' first", file=sys.stderr
        )
        return 2
    serve(*served)
    return 0


if __name__ == "__main__":
    sys.exit(main())
