"""What all tests share: the params of the repository, the smoke run, and how two processes divide the tests."""

import copy
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' matrices are tiny: a second thread only waits for the first

from project import FEW, copy_project, run

import recalign  # noqa: F401  sets how idle threads wait before any test imports torch

ROOT = Path(__file__).parent.parent
_TREE = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
FIRST = ("test_pipeline", "test_flows", "test_training", "test_registry", "test_report")  # the longest files


def pytest_configure(config: pytest.Config) -> None:
    """With `--dist loadfile` files start in the order below, not by their number of tests: few of them take long."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the processes of `pytest -n`: the longest files first, so that none is left to one process at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture
def tree() -> dict[str, Any]:
    """params.yaml as plain values, a copy a test."""
    return copy.deepcopy(_TREE)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the README's first commands ran at budget smoke: one run for all tests, which restore it.

    Under `pytest -n` the first process that asks for it makes it, and each works in a copy of its own.
    """
    own = tmp_path_factory.mktemp("smoke") / "project"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return run_smoke(own)
    place = tmp_path_factory.getbasetemp().parent / "smoke.txt"  # in the folder that the processes share
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_file():
            place.write_text(str(run_smoke(tmp_path_factory.mktemp("smoke-made") / "project")), encoding="utf-8")
    return shutil.copytree(place.read_text(encoding="utf-8"), own, symlinks=True)


def run_smoke(place: Path) -> Path:
    """Copy the project to `place` and run it there at budget smoke."""
    project = copy_project(place, budget="smoke", recommenders__systems=FEW, registry__allow_random=True)
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


@pytest.fixture(autouse=True)
def answered_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registering starts a process that loads MLflow, torch and the package: ten seconds that only the tests of it, and
    those that run the command line, spend (mark `fresh_process`)."""
    registers = "registry" in request.path.parts or request.path.name == "test_api.py"
    if registers and not request.node.get_closest_marker("fresh_process"):
        from recalign.registry.first_answer import Answers

        for command in ("register", "champion"):
            monkeypatch.setattr(f"recalign.commands.{command}.first_answers", lambda *_: Answers())
