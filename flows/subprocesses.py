"""Run a command of the project as a person would, and never leave it running behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

GRACE_SECONDS = 10.0  # between the request to stop and the kill: DVC removes its locks in it


def environment(root: Path) -> dict[str, str]:
    """The environment of a stage: this interpreter's programs first on PATH, the checkout's own code, telemetry off."""
    inherited = dict(os.environ)
    return inherited | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root / "src"), inherited.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",  # progress is watched live
        "DVC_NO_ANALYTICS": "1",
        "OMP_WAIT_POLICY": inherited.get("OMP_WAIT_POLICY", "PASSIVE"),  # spinning threads starve other processes
    }


def run(command: list[str], root: Path, timeout_seconds: float, on_line: Callable[[str], None]) -> tuple[int, bool]:
    """Run `command` in `root`, handing each line of its output to `on_line`.

    Returns its exit code, and whether it was stopped for running past `timeout_seconds`. It runs in a process group of
    its own, which is stopped as a whole then, and also when the caller is interrupted.
    """
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        _stop(process)

    timer = threading.Timer(timeout_seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.rstrip():
                on_line(text)
        return process.wait(), timed_out.is_set()
    finally:
        timer.cancel()
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """End the whole process group, if it still runs: an interrupt first, as Ctrl-C would, then a kill."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # all are gone already
        os.killpg(process.pid, signal.SIGKILL)
