"""Run a command of the project as a person would, and never leave it running behind."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from keeper import GRACE_SECONDS

KEEPER = [sys.executable, "-IS", str(Path(__file__).with_name("keeper.py"))]
PARENT_SECONDS = 1.0  # between two looks at whether the parent lives


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
    its own, which is stopped as a whole then, when the caller is interrupted, and when the caller is killed.
    """
    timed_out = threading.Event()
    with _kept(command, root, subprocess.STDOUT) as process:

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


def captured(command: list[str], root: Path) -> tuple[int, str, str]:
    """Run `command` in `root` as `run` does; its exit code, output and errors."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors, _kept(command, root, errors) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        code = process.wait()
        errors.seek(0)
        return code, output, errors.read()


@contextmanager
def _kept(command: list[str], root: Path, errors: int | IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A command under a keeper, which outlives neither the block nor this process."""
    process = subprocess.Popen(
        [*KEEPER, *command],
        cwd=root,
        env=environment(root),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _stop(process)
        assert process.stdin is not None
        process.stdin.close()


def _stop(process: subprocess.Popen[str]) -> None:
    """End the whole process group, if it still runs: an interrupt first, as Ctrl-C would, then a kill."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # all are gone already
        os.killpg(process.pid, signal.SIGKILL)


def end_with_parent() -> None:
    """Ask this process to end when the one that started it does: SIGTERM, then a kill if that is not heard.

    A killed `flows/serve.py`, or worker, would otherwise leave its runs to themselves, with nobody to report their end.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3 * GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
