"""`recalign estimate --curve`: a short learning curve, read on where it leads."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from table_world import smoke_folder, write_log

from recalign.cli import main
from recalign.commands import curve
from recalign.common import columns as c
from recalign.common.artifacts import folder, write_parquet
from recalign.doctor.own_table import examine
from recalign.llm.model.base import fetch_base
from recalign.params.base import BaseParams
from recalign.params.load import Params, load_params
from recalign.preferences.profiles.profiles import COUNTING, Engine, make_profile, profiles_table
from recalign.project import Project
from recalign.ranking.trial import Trial, read_trial
from recalign.stages.prepare import prepare


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, prepared data and a tiny random base, worked in."""
    smoke_folder(tmp_path, monkeypatch)
    log, items = write_log(tmp_path / "raw", fresh=0)
    examine(log, items, load_params(), tmp_path / "data")
    fetch_base(
        BaseParams(model="tiny-random", revision=None, quantisation="none", compute="auto"), Path("data/models/base")
    )
    return tmp_path


def test_the_curve_is_measured_once_and_read_at_all_histories(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["estimate", "--curve", "32", "8", "--csv", "curve.csv", "--json", "told.json"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    told = json.loads(Path("told.json").read_text(encoding="utf-8"))["curve"]
    few, many = told["points"]
    assert [few["histories"], many["histories"]] == [8, 32]
    assert 0 < few["ndcg_at_10"]["low"] <= few["ndcg_at_10"]["value"] <= few["ndcg_at_10"]["high"] <= 1
    step = (many["ndcg_at_10"]["value"] - few["ndcg_at_10"]["value"]) / 2
    (trend,) = told["trends"]
    assert trend["epochs"] == 1
    assert trend["doubling"]["value"] == pytest.approx(step)
    reached = few["ndcg_at_10"]["value"] + step * math.log2(told["every"] / 8)
    assert trend["at_all"]["value"] == pytest.approx(reached)
    assert f"all {told['every']} histories would give {reached:.3f} [" in said
    assert set(told["beside"]) == {"popularity", "item_knn"}

    rows = list(csv.DictReader(Path("curve.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["histories"], row["epochs"]) for row in rows] == [("8", "1"), ("32", "1")]
    assert float(rows[0]["ndcg_at_10"]) == pytest.approx(few["ndcg_at_10"]["value"], abs=1e-6)

    adapters = {path: path.stat().st_mtime_ns for path in Path("data/cache/curve").glob("*/adapter_model.safetensors")}
    assert len(adapters) == 2
    assert main(asked) == 0
    assert json.loads(Path("told.json").read_text(encoding="utf-8"))["curve"]["trends"] == told["trends"]
    assert adapters == {path: path.stat().st_mtime_ns for path in adapters}


def test_each_number_of_epochs_is_a_run_and_a_trend_of_its_own(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["estimate", "--curve", "8", "16", "--epochs", "2", "1", "2", "--csv", "curve.csv", "--json", "told.json"]
    assert main(asked) == 0
    told = json.loads(Path("told.json").read_text(encoding="utf-8"))["curve"]
    assert [(own["epochs"], own["histories"]) for own in told["points"]] == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert [own["epochs"] for own in told["trends"]] == [1, 2]
    for number, trend in zip((0, 2), told["trends"], strict=True):
        few, many = (told["points"][number + place]["ndcg_at_10"]["value"] for place in (0, 1))
        assert trend["doubling"]["value"] == pytest.approx(many - few)
    rows = list(csv.DictReader(Path("curve.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["epochs"], row["histories"]) for row in rows] == [("1", "8"), ("1", "16"), ("2", "8"), ("2", "16")]
    steps = [json.loads(path.read_text())["steps"] for path in Path("data/cache/curve").glob("*/training.json")]
    assert sorted(steps) == [2, 4, 4, 8]  # of four histories: 8, 16 histories once, and twice
    said = capsys.readouterr().out
    assert "\nEpochs 1: 8 histories" in said
    assert "\nEpochs 2: 8 histories" in said


class Stopped(Exception):
    """In place of a training run; it says where that would write."""


def asked_of(params: Params, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Mapping[int, str] | None]:
    """Where a curve would train its first adapter, and the profiles that its cases show."""
    shown: list[Mapping[int, str] | None] = []

    def stop(params: Params, project: Project) -> None:
        raise Stopped(project.sft)

    def read(*args: Any) -> Trial:
        trial = read_trial(*args)
        shown.append({r.user_id: r.profile for r in trial.requests if r.user_id is not None and r.profile} or None)
        return trial

    monkeypatch.setattr(curve, "sft", stop)
    monkeypatch.setattr(curve, "read_trial", read)
    with pytest.raises(Stopped) as stopped:
        curve.learning_curve(params, Project(), [8, 16])
    return stopped.value.args[0], shown[0]


def write_profiles(text: str) -> None:
    """The same one for all users."""
    every = [
        make_profile(Engine(COUNTING), split, user, (), [], text)
        for split in (c.TRAIN, c.VALIDATION)
        for user in range(200)
    ]
    with folder(Project().profiles) as partial:
        write_parquet(partial / "profiles.parquet", profiles_table(every))


def test_an_adapter_of_other_prepared_data_or_other_profiles_is_none_of_the_curve(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings of `prepare` make other data of the same raw files; where prompts show profiles, cases do too."""
    params = load_params()
    first, plain = asked_of(params, monkeypatch)
    again, _ = asked_of(params, monkeypatch)
    told = params.model_copy(update={"prompt": params.prompt.model_copy(update={"profile": True})})
    counting = told.model_copy(update={"profiles": told.profiles.model_copy(update={"engine": COUNTING})})
    write_profiles("Likes rivers.")
    whose, shown = asked_of(counting, monkeypatch)
    write_profiles("Likes roads.")
    others, _ = asked_of(counting, monkeypatch)
    prepare(params.model_copy(update={"prepare": params.prepare.model_copy(update={"cases_per_user": 1})}))
    later, _ = asked_of(params, monkeypatch)

    assert first == again
    assert len({first, whose, others, later}) == 4
    assert plain is None
    assert shown
    assert set(shown.values()) == {"Likes rivers."}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["raw/log.csv", "--curve"], "--curve trains on the project's own data, and raw/log.csv is none of them"),
        (["--csv", "curve.csv"], "--csv is curve.csv, and there is no curve to write; add --curve"),
        (["--curve", "--csv", "raw"], "--csv is raw, a folder; give the name of a file, such as raw/curve.csv"),
        (["--epochs", "2"], "--epochs is 2, and there is no curve to draw; add --curve"),
        (["--curve", "--epochs", "0", "2"], "--epochs is 0 2; give whole numbers from 1 on"),
        (["--curve", "8"], "--curve is 8, and the log has 80 training histories; give two or more different numbers"),
        (["--curve", "900", "1000"], "--curve is 900 1000, and the log has 80 training histories; give two or more"),
        (["--curve", "0", "8"], "give two or more different numbers from 1 on"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], asked: list[str], message: str
) -> None:
    assert main(["estimate", *asked]) == 2
    assert message in capsys.readouterr().err


def test_without_a_base_the_fix_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/models/base/base.json").unlink()
    assert main(["estimate", "--curve"]) == 2
    assert "data/models/base holds no base model; run 'dvc repro base' first" in capsys.readouterr().err
