"""What all tests share: the params of the repository, and where real data may lie."""

import copy
from pathlib import Path
from typing import Any

import pytest
from project import FEW, copy_project, run
from ruamel.yaml import YAML

import recalign  # noqa: F401  sets how idle threads wait before any test imports torch

ROOT = Path(__file__).parent.parent
_TREE = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def tree() -> dict[str, Any]:
    """params.yaml as plain values, a copy a test."""
    return copy.deepcopy(_TREE)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the README's first commands ran at budget smoke: one run for all tests, which restore it."""
    project = copy_project(tmp_path_factory.mktemp("smoke") / "project", budget="smoke", recommenders__systems=FEW)
    run(project, "dvc", "pull", "data/raw/films.dvc")
    (project / "repro.log").write_text(run(project, "dvc", "repro").stdout, encoding="utf-8")
    return project


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips where it is not."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data (../shared/data) is not beside this checkout")
    return path
