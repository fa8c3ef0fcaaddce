"""New raw data for a retraining, by where the data comes from."""

import shutil
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from recalign.common.artifacts import write_text
from recalign.common.errors import RecalignError
from recalign.params.load import load_params
from recalign.project import PARAMS, RAW
from worktree import dvc, git, output

NEW_DAYS = 7  # of the simulated log at each retraining


@dataclass(frozen=True)
class Tracked:
    """A `.dvc` file, relative to the project's root, and whether DVC knows where to fetch newer data from."""

    file: str
    imported: bool


def refresh(main: Path, worktree: Path) -> list[str]:
    """Bring the source's raw data in `worktree` up to date; the `.dvc` files that changed.

    Imports are fetched again (`dvc update`), the simulated log grows by seven days, and any other data are taken as
    they now lie in the `main` checkout. Raises RecalignError where no `.dvc` file tracks the source's folder.
    """
    source = load_params(worktree / PARAMS).source
    for tracked in _tracked(worktree, RAW / source):
        if tracked.imported:
            dvc(worktree, "update", tracked.file)
        elif source == "simulated":
            _simulate_more(worktree)
            dvc(worktree, "commit", "--force", tracked.file)
        else:
            _copy(main / RAW / source, worktree / RAW / source)
            dvc(worktree, "commit", "--force", tracked.file)
    return git(worktree, "diff", "--name-only", "HEAD", "--", str(RAW)).splitlines()


def _tracked(root: Path, raw: Path) -> list[Tracked]:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        found = [
            Tracked(str(Path(stage.path).relative_to(root.resolve())), stage.is_import)
            for stage in repo.index.stages
            if stage.is_data_source and any(_overlap(Path(out.fs_path), root.resolve() / raw) for out in stage.outs)
        ]
    if not found:
        raise RecalignError(
            f"{raw} is tracked by no committed .dvc file, so a retraining cannot see it; "
            f"run 'dvc add {raw}' and commit the file that it writes"
        )
    return sorted(found, key=lambda tracked: tracked.file)


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _simulate_more(worktree: Path) -> None:
    """Seven more days of the simulated log; its earlier days stay as they are."""
    yaml = YAML()  # keeps the comments
    yaml.preserve_quotes = True
    yaml.width = 4096
    text = StringIO()
    params = yaml.load((worktree / PARAMS).read_text(encoding="utf-8"))
    params["simulator"]["days"] += NEW_DAYS
    yaml.dump(params, text)
    write_text(worktree / PARAMS, text.getvalue())
    output([sys.executable, "-m", "recalign", "simulate"], worktree)


def _copy(source: Path, target: Path) -> None:
    """Make the raw folder in the worktree equal to the user's."""
    if not source.is_dir():
        raise RecalignError(f"{source} is missing; put the table there, as source: table in {PARAMS} expects it")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
