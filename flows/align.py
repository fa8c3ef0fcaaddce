"""The flow behind align/sdpo, align/dmpo, …: bring every stage of dvc.yaml up to date, then register the adapter."""

import logging
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from recalign.common.errors import RecalignError
from recalign.params.align import ObjectiveName
from recalign.params.load import Params, load_params
from recalign.project import PARAMS
from reproduce import passed_on, reproduce
from runs import name_run, only_run, show_verdict


@task(name="register", cache_policy=NO_CACHE, persist_result=False)
def register_adapter(params: Params, objective: ObjectiveName | None, root: Path, home: Path) -> State:
    """Log an adapter of the project at `root` in the registry of `home` and let the gate judge it; None: the best one.

    Registering the same adapter again changes nothing.
    """
    from recalign.commands.register import register

    logging.getLogger("recalign").setLevel(logging.INFO)  # as on the command line
    try:
        return Completed(message=register(params, objective, root=root, home=home))
    except RecalignError as error:
        return Failed(message=f"register failed: {error}")


def align_in(root: Path, objective: ObjectiveName) -> State:
    """Walk the stages of the project at `root` and register the objective's adapter; the last state."""
    params = load_params(root / PARAMS)
    if objective not in params.align.objectives:
        allowed = ", ".join(params.align.objectives)
        raise RecalignError(f"objective is {objective}; align.objectives in {PARAMS} has {allowed}: add it there")
    name_run(f"align/{objective}", params, objective)
    stages = reproduce(root, params.schedule)
    if not stages.is_completed():
        return stages
    show_verdict(root)
    return passed_on(register_adapter(params, objective, root, home=root, return_state=True))


@flow(persist_result=False)
def align(objective: ObjectiveName = "sdpo") -> State:
    """Align one objective in the working directory. Everything but the objective is read from params.yaml."""
    try:
        with only_run(Path.cwd(), f"align/{objective}", load_params().schedule):
            return align_in(Path.cwd(), objective)
    except RecalignError as error:  # one line for a person, not a stack trace
        return Failed(message=str(error))
