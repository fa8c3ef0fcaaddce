"""The scheduled flow: newer raw data, then align and register in a worktree; without newer data it ends at once."""

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from align import register_adapter
from recalign.common.errors import RecalignError
from recalign.params.load import load_params
from recalign.project import PARAMS
from refresh import refresh
from reproduce import passed_on, reproduce
from runs import name_run, only_run, show_verdict
from worktree import commit_result, keep_result, needs_git, retrain_worktree

NOTHING_NEW = "nothing new"
RETRY_DELAY_SECONDS = 30  # a source on the network may be back by then


@task(name="refresh", retry_delay_seconds=RETRY_DELAY_SECONDS, cache_policy=NO_CACHE, persist_result=False)
def refresh_data(main: Path, worktree: Path) -> State:
    """Bring the raw data up to date: Completed as "nothing new" or "Refreshed", or Failed."""
    try:
        changed = refresh(main, worktree)
    except RecalignError as error:
        return Failed(message=f"refresh failed: {error}")
    if not changed:
        return Completed(name=NOTHING_NEW, message="the raw data are those of the last training")
    return Completed(name="Refreshed", message=f"new raw data: {', '.join(changed)}")


def retrain_in(main: Path, worktree: Path) -> State:
    """Refresh, align, commit and register in `worktree`; what could not be registered is not kept, and tried again."""
    schedule = load_params(worktree / PARAMS).schedule
    refreshed = refresh_data.with_options(retries=schedule.retries)(main, worktree, return_state=True)
    if not refreshed.is_completed() or refreshed.name == NOTHING_NEW:
        return passed_on(refreshed)
    params = load_params(worktree / PARAMS)  # the simulated source has grown by some days
    name_run("retrain/weekly", params, None)
    stages = reproduce(worktree, params.schedule)
    if not stages.is_completed():
        return stages
    show_verdict(worktree)
    commit_result(worktree, f"Retrain on newer data: {refreshed.message}; {stages.message}")
    registered = register_adapter(params, None, worktree, home=main, return_state=True)
    if registered.is_completed():
        keep_result(worktree)
    return passed_on(registered)


@flow(persist_result=False)
def retrain() -> State:
    """Retrain on the newest data from the last commit on; the working directory stays as it is.

    The result is a branch retrain/<UTC time> and a judged version in the registry.
    """
    main = Path.cwd()
    try:
        needs_git(main)
        with (
            only_run(main, "retrain/weekly", load_params().schedule),
            retrain_worktree(main, say=get_run_logger().warning) as worktree,
        ):
            return retrain_in(main, worktree)
    except RecalignError as error:  # one line for a person, not a stack trace
        return Failed(message=str(error))
