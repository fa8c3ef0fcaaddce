"""What runs of one project have to themselves, and what is left when they are killed: real processes, real kills."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recalign.common.errors import RecalignError

FLOWS = Path(__file__).parents[2] / "flows"
sys.path.insert(0, str(FLOWS))  # as `python flows/serve.py` has it

import subprocesses  # noqa: E402
from locks import lock_folder  # noqa: E402
from recalign.common.locks import held, is_left_over, owner, this_process, try_lock  # noqa: E402

HOLDER = """
import sys, time
from pathlib import Path
from recalign.common.locks import held
with held(Path(sys.argv[1]), "align/sdpo", 0, ""):
    print("held", flush=True)
    time.sleep(120)
"""
RUNNER = """
import sys
from pathlib import Path
import subprocesses
subprocesses.run(["sh", "-c", sys.argv[1]], Path.cwd(), 600, lambda line: print(line, flush=True))
"""
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""
CHILD = """
import time, subprocesses
subprocesses.end_with_parent()
print("watches", flush=True)
time.sleep(120)
"""


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process beside this one, of which the first line was read."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FLOWS), str(FLOWS.parent / "src")])}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def soon(holds: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether something comes to hold."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def runs(argument: str) -> bool:
    """Whether any process has this in its command line."""
    return subprocess.run(["pgrep", "-f", "--", argument], capture_output=True).returncode == 0


def test_a_run_that_waits_in_vain_is_told_who_works_and_gets_the_slot_when_that_one_is_killed(tmp_path):
    """No server has to notice: the kernel frees the file, and the next one has it at once."""
    slot, told = tmp_path / "slot.lock", []
    holder = python(HOLDER, slot)
    with (
        pytest.raises(RecalignError) as refused,
        held(slot, "align/dmpo", 0.6, "raise schedule.wait_minutes", told.append),
    ):
        pass
    holding = f"align/sdpo (process {holder.pid} since 20"
    assert str(refused.value).startswith(f"align/dmpo waited 0.01 minutes for {holding}")
    assert str(refused.value).endswith(" UTC); raise schedule.wait_minutes")
    assert [line.split(" since")[0] for line in told] == [f"align/dmpo waits for align/sdpo (process {holder.pid}"]
    holder.kill()
    holder.wait()
    with held(slot, "align/dmpo", 0, ""):
        assert owner(slot).run == "align/dmpo"
    assert owner(slot) is None  # and nobody is named who has left


def test_an_owner_is_known_by_more_than_a_number_that_others_get():
    """Another start or another boot is another process."""
    this = this_process("align/sdpo")
    assert this.lives()
    assert not replace(this, process_start="1").lives()
    assert not replace(this, boot="before the power cut").lives()
    assert not replace(this, pid=2**22 + 1).lives()


def test_a_lock_is_left_over_once_its_owner_was_killed_and_not_before(tmp_path):
    """Nor where the lock is a copy, in a copy of the project, of one whose owner lives."""
    lock, copy = tmp_path / "run.lock", tmp_path / "copy.lock"
    holder = python(HOLDER, lock)
    copy.write_bytes(lock.read_bytes())
    assert (is_left_over(lock), is_left_over(copy), is_left_over(tmp_path / "none.lock")) == (False, False, False)
    holder.kill()
    holder.wait()
    assert (is_left_over(lock), is_left_over(copy)) == (True, True)


def test_a_lock_is_one_at_a_time_also_in_one_process(tmp_path):
    """Prefect may run two flows as threads of one process."""
    descriptor = try_lock(tmp_path / "a.lock", "first")
    assert try_lock(tmp_path / "a.lock", "second") is None
    os.close(descriptor)
    os.close(try_lock(tmp_path / "a.lock", "second"))


def test_outside_of_a_project_no_lock_is_made(tmp_path):
    """A folder .dvc would make it look like one."""
    with pytest.raises(RecalignError, match="has no \\.dvc; run in the project's root"):
        lock_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_takes_its_stage_and_all_that_it_started_with_it():
    """Though nothing in the killed process had a chance to stop them."""
    runner = python(RUNNER, "sleep 7731 & echo started; sleep 7732")
    assert runs("sleep 7731")
    runner.kill()
    runner.wait()
    assert soon(lambda: not runs("sleep 773[12]"))


def test_a_stage_that_is_killed_alone_leaves_nothing_it_had_started():
    """As by the kernel of a machine that is out of memory; the exit code says that it was a kill."""
    code, timed_out = subprocesses.run(["sh", "-c", "sleep 7733 & kill -9 $$"], Path.cwd(), 60, lambda _: None)
    assert (code, timed_out) == (-signal.SIGKILL, False)
    assert not runs("sleep 7733")


def test_output_and_errors_of_a_command_are_told_apart():
    """And its exit code is its own."""
    assert subprocesses.captured(["sh", "-c", "echo out; echo err >&2; exit 3"], Path.cwd()) == (3, "out\n", "err\n")


def test_a_run_ends_with_the_process_that_started_it():
    """A killed serve.py, or worker, cannot tell its runs to end."""
    parent = python(PARENT, CHILD)
    assert runs("subprocesses.end_with_parent")
    parent.kill()
    parent.wait()
    assert soon(lambda: not runs("subprocesses.end_with_parent"))
