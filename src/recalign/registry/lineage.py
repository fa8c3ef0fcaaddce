"""Where a registered adapter comes from: git revision, dvc.lock, and whether params.yaml is still what DVC ran with."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from recalign.common.artifacts import file_digest
from recalign.common.errors import RecalignError
from recalign.common.git import git, git_revision
from recalign.project import PARAMS

LOCK = Path("dvc.lock")


def lineage(root: Path) -> dict[str, str]:
    """Tags of a run: git revision, branch, whether files were changed since, and the sha256 of dvc.lock.

    Empty values where the project is no git repository or was not run by DVC.
    """
    lock = root / LOCK
    return {
        "git_revision": git_revision(root),
        "git_branch": git(root, "rev-parse", "--abbrev-ref", "HEAD"),
        "git_changed": str(bool(git(root, "status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc_lock": file_digest(lock) if lock.is_file() else "",
    }


def check_params_ran(root: Path) -> None:
    """Refuse to register figures of other params than those in params.yaml.

    Raises RecalignError naming the first key whose value in dvc.lock differs from the one in params.yaml.
    """
    if not (root / LOCK).is_file():
        return  # the stages were run by hand
    yaml = YAML(typ="safe")
    ran = yaml.load((root / LOCK).read_text(encoding="utf-8")).get("stages", {})
    now = yaml.load((root / PARAMS).read_text(encoding="utf-8"))
    for stage, locked in ran.items():
        for key, value in locked.get("params", {}).get(str(PARAMS), {}).items():
            if (present := _value(now, key)) != value:
                raise RecalignError(
                    f"{PARAMS}: {key} is {present!r}, but stage {stage} ran with {value!r}; run 'dvc repro' first"
                )


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
