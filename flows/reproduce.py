"""Walk the stages of dvc.yaml: each is a Prefect task around `dvc repro --single-item`, and DVC is the only writer.

What is fresh is DVC's decision (dvc.lock and its cache); Prefect adds retries, a timeout, the log and what a person
watches. Stages run one after another: they write the same dvc.lock and share one machine.
"""

import json
import re
import sys
import time
from collections import deque
from pathlib import Path

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.states import Completed, Failed

from graph import planned_stages
from recalign.params.schedule import ScheduleParams
from subprocesses import run

RETRY_DELAY_SECONDS = 5
WRITTEN_SECONDS = 1.0  # in which DVC has long written its list of locks
UNCHANGED, FROM_CACHE, REPRODUCED = "Unchanged", "FromCache", "Reproduced"
TAIL_LINES = 40  # of a stage's output, kept with the task


@task(retry_delay_seconds=RETRY_DELAY_SECONDS, cache_policy=NO_CACHE, persist_result=False)
def reproduce_stage(name: str, root: Path, timeout_minutes: float, alone: bool = True) -> State:
    """Bring one stage up to date: Completed as Unchanged, FromCache or Reproduced; Failed with its own last words.

    alone: what it needs is up to date already; else DVC sees to that first.
    """
    logger = get_run_logger()
    lines: deque[str] = deque(maxlen=TAIL_LINES)

    def on_line(line: str) -> None:
        lines.append(line)
        logger.info(line)

    start = time.monotonic()
    mend_locks(root)
    command = [sys.executable, "-m", "dvc", "repro", *(["--single-item"] if alone else []), name]
    code, timed_out = run(command, root, timeout_minutes * 60, on_line)
    state = _state(name, list(lines), code, timeout_minutes if timed_out else None)
    _note(
        key=f"stage-{re.sub(r'[^a-z0-9]+', '-', name.lower())}",
        markdown=f"**{state.name}** after {time.monotonic() - start:.1f} s\n\n```\n" + "\n".join(lines) + "\n```\n",
        description=f"stage {name}: its state and the end of its log",
    )
    return state


def mend_locks(root: Path) -> None:
    """Remove DVC's list of who reads and writes what where a kill left half of it: DVC refuses every run over such a
    file, for good. It says nothing that outlives its processes, and a whole one stays as it is."""
    listed = root / ".dvc" / "tmp" / "rwlock"
    for _ in range(2):
        try:
            json.loads(listed.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(WRITTEN_SECONDS)  # another process may be writing it
        else:
            return
    listed.unlink(missing_ok=True)


def reproduce(root: Path, schedule: ScheduleParams) -> State:
    """Bring all stages up to date, in order, up to the first that fails; returns the last state.

    To be called in a flow. The states stand in a table among the run's artifacts, also after a failure. The state is
    Completed as Unchanged where no stage had anything to do.
    """
    states: dict[str, State] = {}
    for planned in planned_stages(root):
        states[planned.name] = state = reproduce_stage.with_options(name=planned.name, retries=schedule.retries)(
            planned.name,
            root,
            schedule.timeout_minutes,
            wait_for=[states[need] for need in planned.needs],
            return_state=True,
        )
        if not state.is_completed():
            break
    _note(key="stages", markdown=_table(states), description="what DVC did with each stage")
    return _summary(states)


def _note(key: str, markdown: str, description: str) -> None:
    """Keep a text with the run; a server that is away for longer than Prefect's retries costs the text, not the run."""
    try:
        create_markdown_artifact(key=key, markdown=markdown, description=description)
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("the Prefect server did not take the artifact %s (%s)", key, type(error).__name__)


def passed_on(state: State) -> State:
    """The state of a task as that of its flow: a state that belongs to a run already would only be counted there."""
    return State(type=state.type, name=state.name, message=state.message)


def _summary(states: dict[str, State]) -> State:
    last = next(reversed(states.values()))
    if not last.is_completed():
        return passed_on(last)
    changed = [name for name, state in states.items() if state.name != UNCHANGED]
    if not changed:
        return Completed(name=UNCHANGED, message=f"all {len(states)} stages are up to date")
    return Completed(name=REPRODUCED, message=f"{len(changed)} of {len(states)} stages changed: {', '.join(changed)}")


def _state(name: str, lines: list[str], code: int, expired_after: float | None) -> State:
    if expired_after is not None:
        return Failed(
            name="TimedOut",
            message=f"stage {name} ran past schedule.timeout_minutes ({expired_after:g}) and was stopped; "
            "raise it in params.yaml or lower the budget",
        )
    if code != 0:
        return Failed(message=f"stage {name} failed: {last_words(lines)}")
    text = "\n".join(lines)
    if "didn't change, skipping" in text:
        return Completed(name=UNCHANGED, message=f"{name} is up to date")
    if "is cached - skipping run" in text:
        return Completed(name=FROM_CACHE, message=f"{name} was run before with the same inputs; outputs restored")
    return Completed(name=REPRODUCED, message=f"{name} was run")


def last_words(lines: list[str]) -> str:
    """The last line that the stage itself wrote; DVC's own where the stage did not start.

    DVC echoes the command as "> …", and ends with "ERROR: failed to reproduce …", which says nothing of the cause
    unless there was no run at all.
    """
    starts = [number for number, line in enumerate(lines) if line.startswith("> ")]
    own = [line for line in lines[starts[-1] + 1 :] if not line.startswith("ERROR: ")] if starts else []
    return (own or lines or ["no output"])[-1]


def _table(states: dict[str, State]) -> str:
    rows = [f"| {name} | {state.name} | {_cell(state.message)} |" for name, state in states.items()]
    return "\n".join(["| stage | state | |", "|---|---|---|", *rows])


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")
