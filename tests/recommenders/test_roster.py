"""The roster: one line a recommender. A new one is a file, a line and its docs, and every check takes it from there."""

import re
import shutil
import sys

import pytest
from project import ROOT, run, set_params
from validated_log import random_log, small_params, write_log

from recalign.cli import main
from recalign.common.errors import RecalignError
from recalign.evaluation.systems import FUSION, ORACLE
from recalign.project import Project
from recalign.recommenders.roster import ROSTER, check_systems
from recalign.stages.prepare import prepare

RAREST = '''"""Rarest first: everybody gets what train liked least."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recalign.data.records import Items
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recommender import Fitting, Request
from recalign.recommenders.store import load_state, same_for_all, save_state


class Rarest:
    """Scores an item by minus its number of train events."""

    name = "rarest"

    def __init__(self, catalogue: Items, scored: np.ndarray) -> None:
        self.catalogue, self.scored = catalogue, scored

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] of the candidates, or [B, items] of the whole catalogue."""
        return same_for_all(self.scored, self.catalogue, requests, candidates)

    def save(self, path: Path) -> None:
        """Write the scores into the folder `path`."""
        save_state(path, self.name, self.catalogue, {"scored": self.scored}, {})


def fit(log: Fitting) -> tuple[Rarest, dict[str, Any]]:
    """Count the train events."""
    counts = Popularity.fit(log.catalogue, log.events).counts
    return Rarest(log.catalogue, -counts.astype(np.float64)), {"chosen": {}, "tried": []}


def load(name: str, path: Path, catalogue: Items) -> Rarest:
    """Read what `save` wrote."""
    return Rarest(catalogue, load_state(path, name, catalogue)[0]["scored"])
'''
LINE = '    "rarest": Entry("recalign.recommenders.rarest", "train events, fewest first"),\n'


def test_every_recommender_has_a_row_in_its_page():
    """What it is and what it needs; docs/reference.md has the roster itself."""
    page = (ROOT / "docs" / "recommenders.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| .+ \| (.*)\|$", page, re.MULTILINE))
    assert list(rows)[: len(ROSTER)] == list(ROSTER)
    assert [name for name, entry in ROSTER.items() if entry.clock != ("a clock" in rows[name])] == []


def test_names_can_stand_beside_those_of_all_other_systems():
    """In one table, and as folders."""
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in ROSTER)
    assert ROSTER.keys().isdisjoint({FUSION, ORACLE})


@pytest.mark.parametrize(
    ("systems", "said"),
    [
        (
            ["popularity", "svd"],
            r"recommenders\.systems\.1 is 'svd'; input should be one of 'popularity', .*'dreamrec'",
        ),
        (["popularity", "item_knn", "sasrek"], r"recommenders\.systems\.2 is 'sasrek'.*\(did you mean sasrec\?\)"),
    ],
)
def test_an_unknown_recommender_is_named_before_any_stage_runs(tmp_path, monkeypatch, capsys, systems, said):
    """By every stage, the first one too, with the nearest name."""
    with pytest.raises(RecalignError, match=said):
        check_systems(systems)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, recommenders__systems=["popularity", "item_knn", systems[-1]])
    monkeypatch.chdir(tmp_path)
    assert main(["ingest"]) == 2
    assert f"is '{systems[-1]}'; input should be one of" in capsys.readouterr().err


def test_a_new_recommender_is_one_file_one_line_and_its_docs(tmp_path, tree):
    """As docs/contributing.md says: the stage fits it, the contract tests take it up, dvc.yaml follows by a command."""
    for part in ("src", "tests", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    source = tmp_path / "src" / "recalign" / "recommenders"
    (source / "rarest.py").write_text(RAREST, encoding="utf-8")
    roster = (source / "roster.py").read_text(encoding="utf-8")
    (source / "roster.py").write_text(roster.replace("\n}\nREFUSED", f"\n{LINE}}}\nREFUSED"), encoding="utf-8")
    page = tmp_path / "docs" / "recommenders.md"
    told = page.read_text(encoding="utf-8")
    row = "| `rarest` | the number of train events, fewest first | |\n"
    page.write_text(re.sub(r"(\| `content_prior` \| .*\n)", rf"\1{row}", told), encoding="utf-8")
    set_params(tmp_path, recommenders__systems=["popularity", "item_knn", "rarest"])
    write_log(tmp_path / "data" / "validated", random_log())
    prepare(small_params(tree), Project(tmp_path))

    own = {"PYTHONPATH": str(tmp_path / "src")}
    recalign = (sys.executable, "-m", "recalign")
    run(tmp_path, *recalign, "baselines", "--system", "rarest", env=own)
    assert (tmp_path / "data" / "baselines" / "rarest" / "model.safetensors").is_file()
    written = run(tmp_path, *recalign, "graph", "--write", env=own).stdout
    assert "baselines:\n  + src/recalign/recommenders/rarest.py" in written
    tests = ("tests/recommenders/test_contract.py", "tests/recommenders/test_roster.py")
    checked = run(tmp_path, sys.executable, "-m", "pytest", "-q", *tests, "-k", "rarest or row or names", env=own)
    assert re.search(r"\b8 passed", checked.stdout), checked.stdout
