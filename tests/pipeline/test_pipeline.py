"""dvc.yaml says what the code does, and the chain runs in a fresh clone."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from project import FEW, copy_project, run, set_params
from ruamel.yaml import YAML

from recalign import project as layout
from recalign.llm.model.adapters import adapter_digest
from recalign.params.load import Params
from recalign.params.recommenders import RecommendersParams
from recalign.pipeline import STAGES, Source, module_of
from recalign.ranking.package import check_ranks

ROOT = Path(__file__).parents[2]
WITHOUT_EFFECT = {"checkpoint_seconds"}  # read by stages, though it changes no byte that they write
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_dvc_and_the_command_line_know_the_same_stages():
    """Every stage of dvc.yaml is a subcommand, in the same order; "rank-sft" is one of `recalign rank`."""
    assert list(dict.fromkeys(name.partition("-")[0] for name in DVC)) == list(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_parameter_it_reads(stage):
    """`params.x` in the modules of stages/ that it runs is among its parameters in dvc.yaml."""
    modules = [file for file in Source(ROOT).closure(module_of(stage, ROOT)) if file.parent.name == "stages"]
    read = {
        node.attr.rstrip("_")
        for module in modules
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    read &= {field.alias or name for name, field in Params.model_fields.items()} - WITHOUT_EFFECT
    listed = {key.split(".")[0] for key in DVC[stage]["params"]}
    assert read <= listed, f"dvc.yaml lacks {sorted(read - listed)} under {stage}.params"


def test_recommenders_are_fitted_again_when_the_settings_of_any_of_them_change():
    """All of `recommenders` but the list of systems, which draws the matrix, stands among the parameters."""
    sections = {f"recommenders.{name}" for name in RecommendersParams.model_fields if name != "systems"}
    assert sections <= set(DVC["baselines"]["params"])


def test_dvc_writes_where_the_code_writes():
    """The outs of dvc.yaml are the places that layout.py names."""
    outs = {str(next(iter(o)) if isinstance(o, dict) else o) for stage in DVC.values() for o in stage.get("outs", [])}
    places = {str(value) for name, value in vars(layout).items() if name.isupper()}
    one_of_many = re.compile(rf"/[\w-]*\$\{{.*|(?<={layout.SCORES})/.*")
    folders = {one_of_many.sub("", out) for out in outs if not out.startswith("reports/")}
    assert folders <= places


def digests(project: Path) -> dict[str, str]:
    """sha256 of every file that a stage wrote, as the manifests of the stages' folders list them."""
    manifests = [path for path in sorted(project.glob("data/**/manifest.json")) if "cache" not in path.parts]
    listed = {str(path.parent.relative_to(project)): json.loads(path.read_text())["sha256"] for path in manifests}
    assert {"data/prepared", "data/pairs", "data/models/sft", "data/models/align/sdpo", "data/ranks"} <= set(listed)
    return {f"{folder}/{name}": digest for folder, files in listed.items() for name, digest in files.items()}


def test_the_chain_ends_with_the_table_the_report_and_what_to_type_next(smoke):
    """The last screen shows every system, the page's path and the next commands."""
    screen = (smoke / "repro.log").read_text(encoding="utf-8")
    systems = ("popularity", "item_knn", "oracle", "llm-base", "llm-sft", "llm-sdpo")
    for expected in (*systems, "HR@1", "HR@5", "NDCG@10", "MRR", "reports/report.html", "budget=demo"):
        assert expected in screen
    metrics = json.loads((smoke / "reports/metrics.json").read_text(encoding="utf-8"))
    assert "ndcg_at_10" in json.dumps(metrics)


def test_a_second_repro_does_nothing_and_says_so(smoke):
    """Nothing changed: every stage is skipped."""
    assert "Data and pipelines are up to date." in run(smoke, "dvc", "repro").stdout


def test_another_interval_between_checkpoints_leaves_every_stage_up_to_date(smoke):
    """It changes what a kill costs and nothing that is written."""
    set_params(smoke, checkpoint_seconds=5)
    assert "Data and pipelines are up to date." in run(smoke, "dvc", "status", "dvc.yaml").stdout
    set_params(smoke, checkpoint_seconds=60)


def test_no_artefact_is_a_pickle(smoke):
    """Safetensors, Parquet, JSON, CSV and HTML only."""
    files = [f for f in (smoke / "data").rglob("*") if f.is_file() and "cache" not in f.parts]
    assert files
    assert [f for f in files if f.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib"}] == []
    assert [f for f in files if f.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05")] == []


ONE_PROCESS = """
import shlex, sys
from recalign.cli import main
for line in sys.argv[1:]:
    code = main(shlex.split(line)[1:])
    assert code == 0, f"{line} gave {code}"
"""


def commands(*stages: str) -> list[str]:
    """What dvc.yaml runs for these stages, one command per member of a matrix, with the smoke run's systems."""
    members = {"system": FEW, "objective": ["sdpo"], "adapter": [], "teacher": []}
    typed = []
    for stage in stages:
        line = DVC[stage]["cmd"]
        matrix = list(DVC[stage].get("matrix", {}))
        typed += [line.replace(f"${{item.{key}}}", own) for key in matrix for own in members[key]] if matrix else [line]
    assert typed
    assert not any("${" in line for line in typed)
    return typed


def test_two_fresh_runs_give_the_same_bytes(smoke, tmp_path):
    """Every file that a stage leaves repeats exactly on one machine: no seconds are among them.

    Here one process runs all stages, where DVC starts one per stage: bytes do not depend on what ran before, either.
    """
    again = copy_project(tmp_path / "again", budget="smoke", recommenders__systems=FEW, registry__allow_random=True)
    run(again, "dvc", "pull", "data/raw/films.dvc")
    before_the_report = list(DVC)[: list(DVC).index("report")]
    assert before_the_report[-1] == "fuse"
    run(again, sys.executable, "-c", ONE_PROCESS, *commands(*before_the_report))
    assert digests(again) == digests(smoke)


def wait_for_line(log: Path, wanted: str, process: subprocess.Popen[bytes], seconds: float = 300) -> str:
    """The first line of a growing log that holds a pattern; the process that writes it must still be running."""
    end = time.monotonic() + seconds
    while True:
        ended = process.poll() is not None
        said = log.read_text(encoding="utf-8", errors="replace")
        found = re.search(rf"^.*{wanted}.*$", said, re.MULTILINE)
        assert not ended, f"it ended with {process.returncode} before it could be killed\n{said}"
        if found:
            return found.group()
        assert time.monotonic() < end, f"no line with {wanted!r} came in {seconds:.0f} seconds\n{said}"
        time.sleep(0.02)


def test_a_kill_in_the_middle_is_mended_by_the_next_repro(smoke, tmp_path):
    """SIGKILL while training runs: trained again, and after the next `dvc repro`, every file has the same bytes."""
    before = digests(smoke)
    set_params(smoke, sft__epochs=500, sft__evaluations=500)  # 6 steps per epoch: minutes of training, a line per epoch
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "log").open("w") as log:
        killed = subprocess.Popen(
            ["dvc", "repro"], cwd=smoke, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            line = wait_for_line(tmp_path / "log", r"sft: step [1-9]\d*, validation", killed)
        finally:
            with suppress(ProcessLookupError):  # it ended by itself, which the line above says
                os.killpg(killed.pid, signal.SIGKILL)
            killed.wait()
    assert killed.returncode == -signal.SIGKILL
    assert int(re.findall(r"step (\d+)", line)[0]) < 3000, "training was to be killed among its 3,000 steps"
    assert not (smoke / layout.SFT).exists()  # DVC removed the old adapter, and the new one was not finished
    set_params(smoke, sft__epochs=None, sft__evaluations=2)
    again = run(smoke, "dvc", "repro", "--force", "--single-item", "sft").stdout  # DVC would take it from its cache
    assert re.search(r"^Running stage 'sft':$", again, re.MULTILINE)
    run(smoke, "dvc", "repro")
    assert digests(smoke) == before


def test_a_run_on_a_random_model_says_so_everywhere_and_lets_it_weigh_nothing(smoke):
    """On the screen, in the report, for the registry; what recommends beside it is what the log itself tells."""
    screen = (smoke / "repro.log").read_text(encoding="utf-8")
    page = (smoke / "reports/report.html").read_text(encoding="utf-8")
    for told in (
        "over users; random model: the figures mean nothing",
        "Random model: the figures mean nothing.",
        "Should you use the language model? This run cannot say (random model: the figures mean nothing)",
    ):
        assert told in screen
        assert told in page
    about = json.loads((smoke / "reports/scorecard.json").read_text(encoding="utf-8"))["about"]
    assert about["random_model"] is True
    fusion = json.loads((smoke / layout.RANKS / "fusion.json").read_text(encoding="utf-8"))
    assert fusion["parts"][fusion["language_model"]]["weight"] == 0.0
    assert fusion["parts"]["item_knn"]["weight"] > 0.0
    table = [line for line in screen.splitlines() if line.startswith("  ")]
    assert max(map(len, table[table.index(next(row for row in table if "HR@1" in row)) :])) <= 120


def test_the_ranks_of_every_system_name_the_artifacts_that_made_them(smoke):
    """So that another adapter or recommender is not judged by them; an oracle has none."""
    systems = json.loads((smoke / layout.RANKS / "systems.json").read_text(encoding="utf-8"))
    check_ranks(smoke)
    roles = {name: set(about["artifacts"]) for name, about in systems.items() if "artifacts" in about}
    assert roles["popularity"] == {"recommender"}
    assert roles["llm-base"] == {"base"}
    assert {"adapter", "base"} <= roles["llm-sdpo"] <= {"adapter", "base", "reference"}
    assert set(systems) - set(roles) <= {"fusion"}  # whose parts are in fusion.json
    sdpo = adapter_digest(smoke / layout.ALIGN / "sdpo")
    assert systems["llm-sdpo"]["artifacts"]["adapter"] == sdpo
