"""Run a command that must not outlive whoever asked for it: `python keeper.py <command>…`, with a pipe as its input.

The pipe closes when the asking process ends, even by a kill, on any system that has pipes. The command and all that it
started are then stopped: an interrupt first, as Ctrl-C would, then a kill. Only the standard library, for its start
has to cost nothing.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 10.0  # between the request to stop and the kill: DVC removes its locks in it


def main(command: list[str]) -> int:
    """Run the command; its exit code. To be the leader of a process group of its own."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the command gets them too, and its end is waited for
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_with_asker, daemon=True).start()
    code = process.wait()
    if code < 0:  # killed alone, as a machine out of memory does: what it had started runs still
        os.killpg(0, signal.SIGKILL)
    return code


def _stop_with_asker() -> None:
    os.read(0, 1)  # nothing is ever written: this returns when the other end is closed
    os.killpg(0, signal.SIGINT)
    time.sleep(GRACE_SECONDS)  # the process ends before, where the command does
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
