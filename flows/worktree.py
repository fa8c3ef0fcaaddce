"""A second checkout for retraining: the user's own is never touched, DVC's cache is shared, the result is a branch.

While it works, the branch is `retrain-in-work/<UTC time>`; once the result is registered, `retrain/<UTC time>`. So a
retraining that was killed in between is no start for the next one, which then sees the data as new.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from locks import guarded, lock_folder
from recalign.common.errors import RecalignError
from recalign.common.locks import is_left_over, owner, try_lock
from recalign.project import CACHE, PARAMS, RAW, REPORTS
from subprocesses import captured

BRANCHES, IN_WORK = "retrain", "retrain-in-work"
AUTHOR = ("-c", "user.name=recalign retrain", "-c", "user.email=retrain@recalign.invalid")

log = logging.getLogger("recalign.flows")


def needs_git(main: Path) -> None:
    """Raises RecalignError where `main` is in no git repository with a commit."""
    if shutil.which("git") is None:
        raise RecalignError("retrain needs git, which is not on PATH; install it, or run align/<objective> without git")
    code, _, _ = captured(["git", "rev-parse", "--verify", "--quiet", "HEAD"], main)
    if code != 0:
        raise RecalignError(
            f"retrain needs git, for its result is a branch, and {main} has no commit; run 'git init' and commit the "
            "project, or run align/<objective>, which needs no git"
        )


def git(root: Path, *arguments: str) -> str:
    """Run git in `root`; its output without the final newline. Raises RecalignError with git's own last line."""
    return output(["git", *arguments], root)


def dvc(root: Path, *arguments: str) -> str:
    """Run dvc in `root`; its output. Raises RecalignError with DVC's own last line."""
    return output([sys.executable, "-m", "dvc", *arguments], root)


def output(command: list[str], root: Path) -> str:
    """Run a command in `root`; its output. Raises RecalignError with the command's own last line."""
    code, printed, errors = captured(command, root)
    if code != 0:
        said = [line for line in (printed + errors).splitlines() if line.strip()]
        name = " ".join(command).removeprefix(f"{sys.executable} -m ")
        raise RecalignError(f"'{name}' failed in {root}: {said[-1] if said else 'no output'}")
    return printed.rstrip("\n")


@contextmanager
def retrain_worktree(main: Path, say: Callable[[str], None] = log.warning) -> Iterator[Path]:
    """Yield a checkout of a new branch in work; the checkout is removed at the end, and a branch that was not kept too.

    It starts from the newest retraining that holds all of HEAD, else from HEAD, so that weeks build on one another
    until a person merges one. Outputs come from the shared DVC cache; partial work (data/cache) is shared too.
    What killed retrainings left is removed, which `say` is told; the checkouts of living ones stay.
    """
    with guarded(main, "retrain"):
        for sentence in sweep(main):
            say(sentence)
        stamp, descriptor = _claim(main)
    path = _place(main, stamp)
    try:
        start = git(main, "rev-parse", _newest_start(main))
        git(main, "worktree", "add", "--quiet", "-b", f"{IN_WORK}/{stamp}", str(path), start)
        _share_caches(main, path)
        yield path
    finally:
        with guarded(main, "retrain"):
            _remove(main, stamp)
            os.close(descriptor)


def keep_result(worktree: Path) -> str:
    """Mark the worktree's result as registered: its branch gets its final name, from which the next one starts."""
    stamp = git(worktree, "rev-parse", "--abbrev-ref", "HEAD").removeprefix(f"{IN_WORK}/")
    git(worktree, "branch", "-m", f"{IN_WORK}/{stamp}", f"{BRANCHES}/{stamp}")
    return f"{BRANCHES}/{stamp}"


def commit_result(worktree: Path, message: str) -> str:
    """Commit what a retraining changed (params, raw data's .dvc files, dvc.lock, metrics); the commit's id."""
    paths = [str(path) for path in (PARAMS, "dvc.lock", RAW, REPORTS) if (worktree / path).exists()]
    git(worktree, "add", "--all", "--", *paths)
    git(worktree, *AUTHOR, "commit", "--quiet", "--no-verify", "--message", message)
    return git(worktree, "rev-parse", "HEAD")


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


def sweep(main: Path) -> list[str]:
    """Remove the checkouts and branches of retrainings that were killed; a sentence for each, and for each that lives.

    To be called under the guard, so that no retraining is seen half made.
    """
    said = []
    for stamp in sorted(_stamps(main)):
        lock = _lock(main, stamp)
        if not lock.exists() or is_left_over(lock):
            _remove(main, stamp)
            said.append(f"retraining {stamp} was killed; its checkout was removed, DVC's cache has its finished stages")
        else:
            said.append(f"retraining {stamp} is at work: {owner(lock) or 'another process'}")
    return said


def _claim(main: Path) -> tuple[str, int]:
    """A time stamp that no other retraining has, and its lock."""
    first = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    taken = _stamps(main) | {name.removeprefix(f"{BRANCHES}/") for name in _branches(main, BRANCHES)}
    stamp = next(name for name in (first, *(f"{first}-{n}" for n in range(2, 1000))) if name not in taken)
    descriptor = try_lock(_lock(main, stamp), f"retrain in {_place(main, stamp).name}")
    assert descriptor is not None, "two retrainings were made under one guard"
    return stamp, descriptor


def _stamps(main: Path) -> set[str]:
    """Every retraining that is at work, or was when it was killed."""
    places = {path.name.removeprefix(f"{BRANCHES}-") for path in (main / ".dvc" / "tmp").glob(f"{BRANCHES}-*")}
    return places | {name.removeprefix(f"{IN_WORK}/") for name in _branches(main, IN_WORK)}


def _branches(main: Path, kind: str) -> list[str]:
    return git(main, "branch", "--list", f"{kind}/*", "--format=%(refname:short)").splitlines()


def _place(main: Path, stamp: str) -> Path:
    return main / ".dvc" / "tmp" / f"{BRANCHES}-{stamp}"


def _lock(main: Path, stamp: str) -> Path:
    return lock_folder(main) / f"{BRANCHES}-{stamp}.lock"


def _remove(main: Path, stamp: str) -> None:
    """Remove a retraining's checkout, its branch in work and its lock, whichever there are."""
    path = _place(main, stamp)
    try:
        git(main, "worktree", "remove", "--force", str(path))
    except RecalignError:  # killed before git knew it
        shutil.rmtree(path, ignore_errors=True)
        git(main, "worktree", "prune")
    if f"{IN_WORK}/{stamp}" in _branches(main, IN_WORK):
        git(main, "branch", "--quiet", "-D", f"{IN_WORK}/{stamp}")
    _lock(main, stamp).unlink(missing_ok=True)
