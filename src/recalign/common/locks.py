"""Locks that end with their owner: the kernel frees such a file when its process ends, however it ends.

A number kept on a server outlives both the process that took it and, unlike the process, a restart of the server.
What is written in the file only tells people who holds it.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from recalign.common.errors import RecalignError

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Owner:
    """Who took a lock: a run's name, and the process by its number, its start and the machine's boot."""

    run: str
    pid: int
    since: str
    process_start: str
    boot: str

    def __str__(self) -> str:
        state = "" if self.lives() else ", which has ended and left a child that keeps it"
        return f"{self.run} (process {self.pid} since {self.since} UTC{state})"

    def lives(self) -> bool:
        """Whether this very process runs still; another one that got its number does not count."""
        return self.boot == _boot() and self.process_start == _process_start(self.pid) and _exists(self.pid)


def this_process(run: str) -> Owner:
    """This process as the owner of a lock, for a run."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return Owner(run, os.getpid(), now, _process_start(os.getpid()), _boot())


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _process_start(pid: int) -> str:
    """Clock ticks from boot to the start of a process; "" where there is none, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _boot() -> str:
    """An id of the machine's boot; "" where there is no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def try_lock(path: Path, run: str) -> int | None:
    """Take a lock; its open file, which frees it when closed, or None where another process has it.

    Raises RecalignError where the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise RecalignError(f"{path} cannot be locked ({error.strerror}); put the project on a local disk") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(this_process(run))).encode(), 0)
    return descriptor


def owner(path: Path) -> Owner | None:
    """Who took a lock last; None where that is not written there, for it is being taken or freed."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_left_over(path: Path) -> bool:
    """Whether the lock's owner has ended without removing it. False where there is no such lock."""
    last = owner(path)
    if last is not None and last.lives():  # asked first: the lock may be a copy, in a copy of the project
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def held(path: Path, run: str, wait_seconds: float, fix: str, on_wait: Callable[[str], None] = print) -> Iterator[None]:
    """Hold a lock, after waiting for whoever has it; `on_wait` is told once who that is.

    Raises RecalignError, which names the holder and ends with `fix`, where it was not free in time.
    """
    end, waiting = time.monotonic() + wait_seconds, False
    while (descriptor := try_lock(path, run)) is None:
        holder = owner(path) or "another process"
        if time.monotonic() >= end:
            raise RecalignError(f"{run} waited {wait_seconds / 60:g} minutes for {holder}; {fix}")
        if not waiting:
            on_wait(f"{run} waits for {holder}")
            waiting = True
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)
