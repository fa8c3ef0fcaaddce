"""A second checkout for retraining: the user's own is never touched, DVC's cache is shared, the result is a branch."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from recalign.errors import RecalignError
from recalign.layout import CACHE, PARAMS, RAW, REPORTS
from subprocesses import environment

BRANCHES = "retrain"
AUTHOR = ("-c", "user.name=recalign retrain", "-c", "user.email=retrain@recalign.invalid")


def git(root: Path, *arguments: str) -> str:
    """Run git in `root`; its output without the final newline. Raises RecalignError with git's own last line."""
    return output(["git", *arguments], root)


def dvc(root: Path, *arguments: str) -> str:
    """Run dvc in `root`; its output. Raises RecalignError with DVC's own last line."""
    return output([sys.executable, "-m", "dvc", *arguments], root)


def output(command: list[str], root: Path) -> str:
    """Run a command in `root`; its output. Raises RecalignError with the command's own last line."""
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        name = " ".join(command).removeprefix(f"{sys.executable} -m ")
        raise RecalignError(f"'{name}' failed in {root}: {said[-1] if said else 'no output'}")
    return done.stdout.rstrip("\n")


@contextmanager
def retrain_worktree(main: Path) -> Iterator[Path]:
    """Yield a checkout of a new branch retrain/<UTC time>; the checkout is removed at the end, and an empty branch too.

    It starts from the newest retraining that holds all of HEAD, else from HEAD, so that weeks build on one another
    until a person merges one. Outputs come from the shared DVC cache; partial work (data/cache) is shared too.
    """
    _sweep(main)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    branch, path = f"{BRANCHES}/{stamp}", main / ".dvc" / "tmp" / f"{BRANCHES}-{stamp}"
    start = git(main, "rev-parse", _newest_start(main))
    git(main, "worktree", "add", "--quiet", "-b", branch, str(path), start)
    try:
        _share_caches(main, path)
        yield path
    finally:
        unchanged = git(main, "rev-parse", branch) == start
        git(main, "worktree", "remove", "--force", str(path))
        if unchanged:
            git(main, "branch", "--quiet", "-D", branch)


def commit_result(worktree: Path, message: str) -> str:
    """Commit what a retraining changed (params, raw data's .dvc files, dvc.lock, metrics); the commit's id."""
    paths = [str(path) for path in (PARAMS, "dvc.lock", RAW, REPORTS) if (worktree / path).exists()]
    git(worktree, "add", "--all", "--", *paths)
    git(worktree, *AUTHOR, "commit", "--quiet", "--no-verify", "--message", message)
    return git(worktree, "rev-parse", "HEAD")


def withdraw_result(worktree: Path) -> None:
    """Take the last commit back: what was not registered is tried again next time."""
    git(worktree, "reset", "--quiet", "--hard", "HEAD~1")


def _newest_start(main: Path) -> str:
    listed = git(main, "branch", "--list", f"{BRANCHES}/*", "--contains", "HEAD", "--sort=-committerdate",
                 "--format=%(refname:short)")  # fmt: skip
    return listed.splitlines()[0] if listed else "HEAD"


def _share_caches(main: Path, worktree: Path) -> None:
    local = main / ".dvc" / "config.local"
    if local.exists():
        shutil.copy(local, worktree / ".dvc" / "config.local")
    dvc(worktree, "config", "--local", "cache.dir", dvc(main, "cache", "dir"))
    (main / CACHE).mkdir(parents=True, exist_ok=True)
    (worktree / CACHE).parent.mkdir(parents=True, exist_ok=True)
    (worktree / CACHE).symlink_to((main / CACHE).resolve())
    dvc(worktree, "checkout", "--quiet", "--allow-missing")


def _sweep(main: Path) -> None:
    """Remove what a killed retraining left behind; only one runs at a time, so none of it is in use."""
    for left_over in (main / ".dvc" / "tmp").glob(f"{BRANCHES}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    git(main, "worktree", "prune")
