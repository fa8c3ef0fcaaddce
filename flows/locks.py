"""Where the locks of a project lie, and the one that guards its left-overs (a lock: `recalign.common.locks`)."""

import contextlib
from pathlib import Path

from recalign.common.errors import RecalignError
from recalign.common.locks import held

FOLDER = Path(".dvc") / "tmp" / "recalign"  # not in git, and not in what DVC cleans
GUARD_SECONDS = 120.0  # for the short work that two processes may not do at once


def lock_folder(root: Path) -> Path:
    """Where the project keeps its locks. Raises RecalignError where `root` is no project of DVC."""
    if not (root / ".dvc").is_dir():
        raise RecalignError(f"{root} has no .dvc; run in the project's root, or 'dvc init' there")
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    return root / FOLDER


def guarded(root: Path, run: str) -> contextlib.AbstractContextManager[None]:
    """Keep other processes of the project from looking for left-overs, or making what could be taken for one."""
    path = lock_folder(root) / "guard.lock"
    return held(path, run, GUARD_SECONDS, "stop that process if it hangs", on_wait=lambda _: None)
