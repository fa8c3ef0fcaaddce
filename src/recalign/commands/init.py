"""Command init: a project of a team's own, which runs the installed recalign."""

import os
import shutil
import subprocess
from pathlib import Path

from recalign import __version__
from recalign.common.artifacts import write_text
from recalign.common.errors import RecalignError
from recalign.common.origin import git
from recalign.pipeline import DVC_FILE, OPTIONAL_FILE, VERSION_FILE, pinned, project_pipeline
from recalign.project import PARAMS, shipped

OURS = Path(__file__).parent / "new_project"  # what only a team's project has
COPIED = (PARAMS, Path("prefect.yaml"))  # as the repository has them
STAGES = (DVC_FILE, OPTIONAL_FILE)  # but for what stands for the code
FLOWS = Path("flows")
DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n"
NO_GIT = "    no_scm = true\n"  # DVC refuses to work outside of git without it
DVC_IGNORED = "/config.local\n/tmp\n/cache\n"  # what `dvc init` lists in .dvc/.gitignore


def init(folder: Path) -> None:
    """Write a project into `folder`, which is new or empty (but for .git), and make it a repository of git and DVC.

    Raises RecalignError where the folder holds something, or is a file.
    """
    _check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with_git = _in_git(folder)
    files = project_files(folder.resolve().name, with_git=with_git)
    _write(folder, files)
    print(f"{folder}: {len(files)} files for recalign {__version__}" + ("" if with_git else ", without git"))
    if git(folder, "rev-parse", "--show-prefix"):
        print("It lies inside of another repository: move .github to that one's root, where its workflows run.")
    print("Next:")
    for command in (f"cd {folder}", "recalign simulate && dvc add data/raw/simulated", "dvc repro"):
        print(f"  {command}")
    print("or, in place of the simulated films, your own log: recalign doctor my.csv")


def project_files(name: str, *, with_git: bool) -> dict[str, str]:
    """What a new project holds: the text of each file by its path."""
    flows = {str(FLOWS / path.name): path.read_text(encoding="utf-8") for path in sorted(shipped(FLOWS).glob("*.py"))}
    return {
        **{str(path): shipped(path).read_text(encoding="utf-8") for path in COPIED},
        **flows,
        **{str(path): project_pipeline(shipped(path).read_text(encoding="utf-8")) for path in STAGES},
        str(VERSION_FILE): pinned(__version__),
        "README.md": _own("README.md").replace("PROJECT", name, 1),
        ".gitignore": _own("gitignore"),
        ".github/workflows/smoke.yml": _own("smoke.yml"),
        ".dvc/config": DVC_CONFIG + ("" if with_git else NO_GIT),
        ".dvc/.gitignore": DVC_IGNORED,
        ".dvcignore": "__pycache__/\n",
    }


def _own(name: str) -> str:
    return (OURS / name).read_text(encoding="utf-8")


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RecalignError(f"{folder} is a file; give the name of a new folder, or of an empty one")
    held = sorted(entry.name for entry in folder.iterdir() if entry.name != ".git") if folder.is_dir() else []
    if held:
        shown = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
        raise RecalignError(f"{folder} is not empty (it holds {shown}); give the name of a new folder, or an empty one")


def _in_git(folder: Path) -> bool:
    """Make the folder a repository unless it lies in one; False where there is no git."""
    if git(folder, "rev-parse", "--is-inside-work-tree") == "true":
        return True
    if shutil.which("git") is None:
        return False
    done = subprocess.run(["git", "init", "--quiet"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RecalignError(f"'git init' failed in {folder}: {' '.join(done.stderr.split())}")
    return True


def _write(folder: Path, files: dict[str, str]) -> None:
    """Write all files beside their places, then move them there: a kill leaves no half project."""
    partial = folder / f".init.partial-{os.getpid()}"
    try:
        for name, text in files.items():
            write_text(partial / name, text)
        for entry in sorted(partial.iterdir()):
            entry.replace(folder / entry.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
