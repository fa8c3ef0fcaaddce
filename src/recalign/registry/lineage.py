"""Where a registered adapter comes from: git revision, dvc.lock, and whether params.yaml is still what DVC ran with."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from recalign.common.artifacts import file_digest
from recalign.common.errors import RecalignError
from recalign.common.origin import git, git_revision
from recalign.project import PARAMS

LOCK, PIPELINE = Path("dvc.lock"), Path("dvc.yaml")
IN_PARAMS = re.compile(r"\$\{([\w.]+)\}")  # "${align.objectives}" of dvc.yaml


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

    What dvc.lock keeps of a stage that dvc.yaml has no more (an objective or a recommender that was taken out) says
    nothing of the present run: DVC neither checks nor removes it. Raises RecalignError naming the first key whose value
    in dvc.lock differs from the one in params.yaml.
    """
    ran = _stages(root / LOCK)  # none where the stages were run by hand
    now = YAML(typ="safe").load((root / PARAMS).read_text(encoding="utf-8"))
    stages = _stages(root / PIPELINE)
    kept = {stage: locked for stage, locked in ran.items() if not stages or _in_pipeline(stage, stages, now)}
    for stage, locked in kept.items():
        for key, value in locked.get("params", {}).get(str(PARAMS), {}).items():
            if (present := _value(now, key)) != value:
                raise RecalignError(
                    f"{PARAMS}: {key} is {present!r}, but stage {stage} ran with {value!r}; run 'dvc repro' first"
                )


def _stages(file: Path) -> dict[str, Any]:
    """The stages of dvc.yaml or dvc.lock; none where there is no such file."""
    tree = YAML(typ="safe").load(file.read_text(encoding="utf-8")) if file.is_file() else None
    stages: dict[str, Any] = (tree or {}).get("stages") or {}
    return stages


def _in_pipeline(stage: str, stages: Mapping[str, Any], params: Any) -> bool:
    """Whether dvc.yaml still has a stage of dvc.lock; of a matrix ("align@sdpo"), whether params still name its value.

    A matrix over anything but one list of params.yaml counts as having it.
    """
    name, _, value = stage.partition("@")
    if name not in stages:
        return False
    drawn = [str(own) for own in (stages[name].get("matrix") or {}).values()]
    if len(drawn) != 1 or not (key := IN_PARAMS.fullmatch(drawn[0])):
        return True
    values = _value(params, key[1])
    return not isinstance(values, list) or value in map(str, values)


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
