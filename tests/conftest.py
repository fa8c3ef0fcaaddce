"""What all tests share: the params of the repository, the smoke run, and how `pytest -n 2 --dist loadgroup` divides the tests."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' matrices are tiny: a second thread only waits for the first

from project import FEW, copy_project, run

import recalign  # noqa: F401  sets how idle threads wait before any test imports torch

ROOT = Path(__file__).parent.parent
_TREE = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))


FIRST = ("smoke", "test_flows", "test_training", "test_registry", "test_report")  # the longest groups


def pytest_configure(config: pytest.Config) -> None:
    """With `--dist loadgroup` groups start in the order below, not by their number of tests: few of them take long."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: a module, whose tests share fixtures, or all tests of the smoke run; the longest first."""
    if not hasattr(config, "workerinput"):
        return
    groups = {}
    for item in items:
        groups[item] = "smoke" if "smoke" in getattr(item, "fixturenames", ()) else item.path.stem
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    items.sort(key=lambda item: FIRST.index(groups[item]) if groups[item] in FIRST else len(FIRST))


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
