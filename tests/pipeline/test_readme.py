"""The README's and the tutorial's blocks run as they stand there, at budget smoke; the long ones with -m slow.

Left out, and why: `pip install` and `pytest` (this is an environment where both happened); `dvc import-url` and
`cp …/items.csv` (they need the network, or files of your own); the three terminals of a schedule and `mlflow models
serve` (servers: test_flows.py and test_served_model.py run them); a GPU and a Hub model.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pages import README, ROOT, blocks, command_lines
from project import copy_project, run, set_params
from ruamel.yaml import YAML

TUTORIAL, HOW_TO, MEASURED = (ROOT / "docs" / f"{page}.md" for page in ("tutorial", "how-to", "measured"))
NEEDS_MORE = ("pip ", "pytest", "dvc import-url", "prefect ", "python flows/serve.py", "mlflow models serve")


@pytest.fixture(scope="module")
def made_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the tutorial's log was made: one for all tests, which copy it."""
    project = copy_project(tmp_path_factory.mktemp("library") / "project")
    (program,) = blocks(TUTORIAL, "python")
    run(project, "python", "-c", program)
    return project


@pytest.fixture
def library(made_library: Path, tmp_path: Path) -> Path:
    """A copy of that clone."""
    return shutil.copytree(made_library, tmp_path / "project", symlinks=True)


def block_with(page: Path, text: str) -> list[str]:
    """The commands of the one block of a page that holds a text."""
    (found,) = [block for block in blocks(page) if text in block]
    return command_lines(found)


def typed(project: Path, line: str, env: Mapping[str, str] | None = None) -> str:
    """Run a line of a document in a project; returns what it printed."""
    return run(project, *shlex.split(line), env=dict(env or {})).stdout


def fill_in(project: Path, changes: Mapping[str, Any]) -> None:
    """Put a params block into params.yaml, as the tutorial says: in place of the keys of the same name."""
    set_params(project, **changes)


def test_the_first_block_is_what_the_smoke_run_ran(smoke):
    """Pull the simulated log, then repro: nothing else is needed in a clone."""
    first = command_lines(blocks(README)[0])
    assert first == ["pip install -e .", "dvc pull data/raw/films.dvc", "dvc repro"]
    assert (smoke / "reports/report.html").is_file()


def test_the_page_of_figures_shows_the_screen_that_a_run_ends_with(smoke):
    """Same systems, columns and next commands; the figures are those of another budget."""
    (shown,) = [block for block in blocks(MEASURED, "text") if "system" in block]
    screen = (smoke / "repro.log").read_text(encoding="utf-8")
    columns = next(line for line in shown.splitlines() if line.split()[:1] == ["system"])
    assert re.split(r" {2,}", columns.strip()) == re.split(
        r" {2,}", next(line for line in screen.splitlines() if line.split()[:1] == ["system"]).strip()
    )
    for line in shown.splitlines():
        if re.match(r"^  (llm-|popularity|item_knn|oracle)", line):
            assert re.search(rf"^  {line.split()[0]} ", screen, re.MULTILINE), f"no {line.split()[0]} on the screen"
    for command in ("recalign recommend --user", "dvc exp run -S source=lastfm"):
        assert command in shown
        assert command in screen
    assert "recalign register" in shown
    assert "dvc exp run -S budget=demo" in screen  # first, after a random model


def test_the_screen_has_a_line_a_stage_before_the_table(smoke):
    """Seconds, rows and digest of all stages, then the table, then three commands."""
    screen = (smoke / "repro.log").read_text(encoding="utf-8")
    closing = screen[screen.index("  stage ") :]
    for stage in (
        "ingest",
        "validate",
        "prepare",
        "profiles",
        "pairs",
        "sft",
        "reference",
        "align@sdpo",
        "rank@llm-sdpo",
        "fuse",
    ):
        (line,) = re.findall(rf"^  {stage} .*$", closing, re.MULTILINE)
        assert re.search(r" [\d,]+\.\d +[\d,]+ +[\d,]+ [a-z-]+ +[0-9a-f]{12}", line), line
    assert closing.index("  fuse ") < closing.index("HR@1") < closing.index("Next:")
    assert len(closing[closing.index("Next:") :].split("\n  ")) >= 4


def test_a_recommendation_answers_before_anything_is_registered(smoke):
    """The README's two ways to ask, with a person of this log."""
    ask = next(
        line
        for line in block_with(README, "recalign recommend --titles")
        if line.startswith("recalign recommend --titles")
    )
    assert len(re.findall(r"^ +\d+ ", typed(smoke, ask), re.MULTILINE)) == 10


def test_the_doctor_reads_the_tutorials_log_as_the_tutorial_says(library):
    """The printed params block, character by character."""
    (line,) = block_with(TUTORIAL, "recalign doctor loans.csv")
    screen = typed(library, line)
    (shown,) = blocks(TUTORIAL, "yaml")
    assert "".join(f"  {row}\n" for row in shown.splitlines()) in screen
    for command in block_with(TUTORIAL, "dvc add"):
        assert command in screen


def start_tutorial(library: Path) -> list[str]:
    """Do what the tutorial says before its run; returns the commands of the run."""
    changes = YAML(typ="safe").load(blocks(TUTORIAL, "yaml")[0])
    fill_in(library, {**changes, "budget": "smoke"})
    copy, *rest = [line for line in block_with(TUTORIAL, "dvc add data/raw/table") if not line.startswith("mkdir")]
    subprocess.run(f"mkdir -p data/raw/table && {copy}", shell=True, cwd=library, check=True)  # noqa: S602  a line of ours
    add, repro = rest
    typed(library, add)
    assert (library / "data/raw/table.dvc").is_file()
    return [repro]


def test_the_tutorials_log_is_prepared_by_its_commands(library):
    """From the doctor's block to examples; the whole run is the slow test below."""
    (repro,) = start_tutorial(library)
    typed(library, f"{repro} prepare")
    summary = (library / "data/prepared/summary.json").read_text(encoding="utf-8")
    assert '"noun": "books"' in summary
    assert '"clock": true' in summary


def test_the_timed_walk_types_what_readme_and_tutorial_type():
    """In their order, from the simulated log to the recommendations; the slow test below runs the tutorial's part."""
    (walk,) = [block for block in blocks(TUTORIAL, "text") if "$ dvc repro" in block]
    lines = [line.removeprefix("$ ") for line in walk.splitlines() if line.startswith("$ ")]
    typed_there = [re.split(r"  +[\d.]+ (?:s|min)\b", line)[0].strip() for line in lines]
    known = [line for block in blocks(TUTORIAL) for line in command_lines(block)]
    left_out = ("pip ", "dvc exp run")
    assert typed_there == [
        *(line for line in command_lines(blocks(README)[0]) if not line.startswith(left_out)),
        *(line for line in known if not line.startswith(left_out)),
    ]


@pytest.mark.slow
def test_the_tutorial_from_a_log_to_a_recommendation(library):
    """Every command of the tutorial, at budget smoke."""
    (repro,) = start_tutorial(library)
    assert "table, test split" in typed(library, repro)
    for line in block_with(TUTORIAL, "recalign recommend"):
        screen = typed(library, line)
        assert len(re.findall(r"^ +\d+ ", screen, re.MULTILINE)) == 10, screen


@pytest.mark.slow
def test_the_readmes_commands_of_use_run_in_their_order(smoke, tmp_path):
    """Register, recommend, promote and roll back, in a copy of the smoke run with a registry of its own."""
    project = tmp_path / "project"
    shutil.copytree(smoke, project, symlinks=True)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    said = {}
    for line in block_with(README, "recalign register   "):
        if not line.startswith(NEEDS_MORE):
            known = (
                line.replace("--user 17", "--user 800")
                .replace("profile 17", "profile 800")
                .replace("promote 3", "promote 1")
            )  # what this run has
            done = run(project, *shlex.split(known), env=environment)
            said[" ".join(line.split()[1:3])] = done.stdout + done.stderr
    assert "version 1 (sdpo) stays challenger" in said["register"]
    assert "version 2 (fusion) is champion" in said["register --objective"]
    assert "guard: leak probes: held" in said["promote 3"]
    assert "version 2 is champion again" in said["rollback --reason"]
    assert "It is champion" in (project / "reports/gate.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_how_tos_request_to_a_served_model_is_answered_as_it_shows(smoke, tmp_path):
    """Registered, promoted, served and asked by the page's lines, at another port; the figures are a smoke run's."""
    project = tmp_path / "project"
    shutil.copytree(smoke, project, symlinks=True)
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db"}
    typed(project, "recalign register --objective fusion", environment)
    promoted = run(project, "recalign", "promote", "1", "--reason", "to be asked", check=False, env=environment)
    assert promoted.returncode == 0 or "is the champion already" in promoted.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (serve,), (ask,) = (block_with(HOW_TO, words) for words in ("mlflow models serve", "/invocations"))
    shown = json.loads(blocks(HOW_TO, "json")[0])["predictions"][0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    server = subprocess.Popen(
        shlex.split(serve.replace("5051", port)), cwd=project, env={**os.environ, **environment, "PATH": path},
        start_new_session=True,
    )  # fmt: skip
    try:
        waits = ("--retry", "300", "--retry-delay", "1", "--retry-connrefused")
        run(project, "curl", "-s", *waits, f"http://127.0.0.1:{port}/ping")
        (answer,) = json.loads(typed(project, ask.replace("5051", port)))["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    of_any_run = ("model", "version", "system", "preference", "inferred_by", "evidence", "unknown")
    assert {name: answer[name] for name in of_any_run} == {name: shown[name] for name in of_any_run}
    assert list(answer) == list(shown)
    assert [list(item) for item in answer["items"]] == [list(item) for item in shown["items"]]


@pytest.mark.slow
def test_the_readmes_other_runs(smoke, tmp_path):
    """More negatives and a second objective, as `dvc exp run -S` sets them, at budget smoke."""
    project = tmp_path / "project"
    shutil.copytree(smoke, project, symlinks=True)
    run(project, "git", "-c", "user.name=user", "-c", "user.email=user@localhost", "commit", "-qam", "a run")
    for line in block_with(README, "pairs.negatives"):
        typed(project, line.replace("budget=few-shot", "budget=smoke"))
    assert (project / "data/models/align/dmpo/training.json").is_file()
