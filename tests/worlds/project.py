"""A copy of this project in a folder of its own, as a user's clone, and commands run in it as a user types them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
FEW = ["popularity", "item_knn"]  # the others are tested one by one


def copy_project(place: Path, **changes: object) -> Path:
    """Copy what git would track to `place`, change params.yaml (dotted keys with '__'), commit, and return `place`."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    set_params(place, **changes)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a user's project"]):
        run(place, "git", "-c", "user.name=user", "-c", "user.email=user@localhost", *command)
    return place


def set_params(project: Path, **changes: object) -> None:
    """Set keys of a project's params.yaml; `sft__epochs=2` sets sft.epochs."""
    yaml = YAML()
    path = project / "params.yaml"
    tree = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *sections, name = key.split("__")
        part = tree
        for section in sections:
            part = part[section]
        part[name] = value
    with path.open("w", encoding="utf-8") as handle:
        yaml.dump(tree, handle)


def run(
    project: Path, *command: str, check: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the project with this environment's programs first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, **(env or {})}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env=variables)
    said = f"{' '.join(command)} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not check or done.returncode == 0, said
    return done
