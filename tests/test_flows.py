"""The flows, run for real: a Prefect server of the test's own, small DVC projects, git worktrees."""

import io
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from recalign.errors import RecalignError
from recalign.params import load_params

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "flows"))  # as `python flows/serve.py` has it

import reproduce  # noqa: E402
import serve  # noqa: E402
import subprocesses  # noqa: E402
from align import align  # noqa: E402
from graph import planned_stages  # noqa: E402
from retrain import NOTHING_NEW, retrain_in  # noqa: E402
from worktree import git, retrain_worktree  # noqa: E402

PIPELINE = """
stages:
  last:
    cmd: cp doubled.txt last.txt
    deps: [doubled.txt]
    outs: [last.txt]
  double:
    cmd: cat data/raw/table/log.csv data/raw/table/log.csv > doubled.txt
    deps: [data/raw/table]
    outs: [doubled.txt]
"""


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """A Prefect server with a database of its own, for all tests of this file."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness():
        yield


def set_params(root: Path, **sections: object) -> None:
    """Copy params.yaml into `root` with some keys changed; a dict changes keys of a section."""
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, value in sections.items():
        if isinstance(value, dict):
            params[name].update(value)
        else:
            params[name] = value
    text = io.StringIO()
    yaml.dump(params, text)
    (root / "params.yaml").write_text(text.getvalue(), encoding="utf-8")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed project of two stages on the user's own table."""
    root = tmp_path_factory.mktemp("committed") / "project"
    (root / "data/raw/table").mkdir(parents=True)
    (root / "data/raw/table/log.csv").write_text("user_id,item_id\n1,2\n", encoding="utf-8")
    (root / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    set_params(root, source="table", schedule={"retries": 0})
    git(root, "init", "--quiet", "--initial-branch=main")
    for command in (["init", "--quiet"], ["add", "--quiet", "data/raw/table"]):
        subprocess.run(
            [sys.executable, "-m", "dvc", *command], cwd=root, check=True, env=subprocesses.environment(root)
        )
    commit(root, "Start")
    return root


@pytest.fixture
def project(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed project, and the working directory."""
    root = shutil.copytree(committed, tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def commit(root: Path, message: str) -> None:
    """Commit everything that git sees in `root`."""
    git(root, "add", "--all")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", message)


def walk(root: Path):
    """`reproduce` in a flow of its own; the final state."""
    from prefect import flow

    @flow(name="walk", persist_result=False)
    def walked():
        return reproduce.reproduce(root, load_params(root / "params.yaml").schedule)

    return walked(return_state=True)


def test_stages_come_after_what_they_need_whatever_the_order_in_the_file(project):
    """The plan is DVC's graph; raw data are no stage."""
    assert [(stage.name, stage.needs) for stage in planned_stages(project)] == [("double", ()), ("last", ("double",))]


def test_a_broken_dvc_yaml_is_one_line(project):
    """DVC's reason, without a stack trace."""
    (project / "dvc.yaml").write_text("stages: {a: {outs: [x]}}", encoding="utf-8")
    with pytest.raises(RecalignError, match=r"dvc\.yaml' validation failed; 'dvc stage list'"):
        planned_stages(project)


def test_stages_are_reproduced_then_unchanged_then_restored_from_the_cache(project):
    """What is fresh is DVC's decision, and its state is the task's."""
    first = walk(project)
    assert (first.name, (project / "last.txt").read_text()) == ("Reproduced", "user_id,item_id\n1,2\n" * 2)
    assert walk(project).name == "Unchanged"
    (project / "dvc.lock").unlink()
    assert walk(project).message == "2 of 2 stages changed: double, last"
    assert (project / "last.txt").read_text() == "user_id,item_id\n1,2\n" * 2


def test_a_failed_stage_fails_the_run_with_its_own_message_and_stops_the_rest(project):
    """The last words are those of the stage, not of DVC."""
    pipeline = PIPELINE.replace(
        "cmd: cat data/raw/table/log.csv data/raw/table/log.csv > doubled.txt",
        "cmd: echo 'recalign double; line 7 of log.csv is empty' && exit 2",
    )
    (project / "dvc.yaml").write_text(pipeline, encoding="utf-8")
    state = align("sdpo", return_state=True)
    assert state.is_failed()
    assert state.message == "stage double failed: recalign double; line 7 of log.csv is empty"
    assert not (project / "last.txt").exists()


def test_a_stage_that_fails_once_is_retried(project, monkeypatch):
    """schedule.retries counts attempts after the first."""
    monkeypatch.setattr(reproduce.reproduce_stage, "retry_delay_seconds", 0)
    set_params(project, source="table", schedule={"retries": 1})
    pipeline = PIPELINE.replace("cmd: cp", "cmd: mkdir once || cp")
    (project / "dvc.yaml").write_text(pipeline.replace("mkdir once ||", "test -d once || (mkdir once && false) &&"))
    assert walk(project).name == "Reproduced"


def test_a_stage_past_its_time_is_stopped_with_all_it_started(project):
    """Nothing keeps running, DVC's lock is free again, and the message names the key."""
    started = time.monotonic()
    set_params(project, source="table", schedule={"retries": 0, "timeout_minutes": 0.05})
    (project / "dvc.yaml").write_text(PIPELINE.replace("cmd: cat", "cmd: sleep 61.5; cat"), encoding="utf-8")
    state = walk(project)
    assert state.is_failed()
    assert "schedule.timeout_minutes (0.05)" in state.message
    assert time.monotonic() - started < 30
    assert subprocess.run(["pgrep", "-f", "sleep 61.5"], capture_output=True).returncode == 1
    (project / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    set_params(project, source="table", schedule={"retries": 0})
    assert walk(project).is_completed()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ["Running stage 'a':", "> recalign a", "recalign a: bad", "ERROR: failed to reproduce 'a'"],
            "recalign a: bad",
        ),
        (["ERROR: failed to reproduce 'a': missing data 'source': data/raw"],) * 2,
        (["Running stage 'a':", "> false", "ERROR: failed to reproduce 'a'"], "ERROR: failed to reproduce 'a'"),
        ([], "no output"),
    ],
)
def test_last_words(lines, words):
    """The stage's own, else DVC's."""
    assert reproduce.last_words(lines) == (words if isinstance(words, str) else words[-1])


def test_an_objective_that_params_leave_out_is_refused_by_name(project):
    """Known to recalign, but without a stage in this project."""
    state = align("dpo", return_state=True)
    assert state.message == "objective is dpo; align.objectives in params.yaml has sdpo: add it there"


def test_an_unknown_objective_is_refused_by_the_deployments_own_schema():
    """So `prefect deployment run` refuses it before anything starts."""
    from recalign.params import ObjectiveName

    schema = align.parameters.model_dump()["properties"]["objective"]
    assert schema["enum"] == list(ObjectiveName.__args__)


def test_a_deployment_an_objective_and_the_scheduled_retraining(project):
    """Names, parameters and the cron line come from params.yaml."""
    set_params(project, align={"objectives": ["sdpo", "dmpo"]}, schedule={"timezone": "Europe/Berlin"})
    served = serve.deployments(load_params())
    assert [(d.flow_name, d.name, d.parameters) for d in served] == [
        ("align", "sdpo", {"objective": "sdpo"}),
        ("align", "dmpo", {"objective": "dmpo"}),
        ("retrain", "weekly", {}),
    ]
    (schedule,) = served[-1].schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * 1", "Europe/Berlin")


@pytest.mark.parametrize("schedule", [{"cron": "every monday"}, {"timezone": "Middle/Earth"}])
def test_a_schedule_that_no_clock_can_keep_is_one_line(project, schedule):
    """The keys and both values are named."""
    set_params(project, schedule=schedule)
    with pytest.raises(RecalignError, match=next(iter(schedule.values()))):
        serve.deployments(load_params())


def retrained(project: Path):
    """`retrain_in` a fresh worktree, in a flow; the final state and what the worktree's branch holds."""
    from prefect import flow

    @flow(name="retrained", persist_result=False)
    def run():
        with retrain_worktree(project) as worktree:
            return retrain_in(project, worktree)

    return run(return_state=True)


def test_retraining_without_new_data_ends_with_nothing_new_and_leaves_nothing(project):
    """No branch, no worktree, no change in the checkout."""
    walk(project)
    commit(project, "First training")
    assert retrained(project).name == NOTHING_NEW
    assert git(project, "branch", "--list", "retrain/*") == ""
    assert git(project, "worktree", "list").count("\n") == 0
    assert git(project, "status", "--porcelain") == ""


def test_retraining_sees_the_users_new_rows_and_touches_nothing_of_theirs(project):
    """The stages run in the worktree; what cannot be registered leaves no branch behind."""
    walk(project)
    commit(project, "First training")
    (project / "data/raw/table/log.csv").write_text("user_id,item_id\n1,2\n1,3\n", encoding="utf-8")
    before = (project / "dvc.lock").read_bytes()
    state = retrained(project)
    assert state.is_failed()  # this small project has no adapter to register
    assert state.message.startswith("register failed: ")
    assert git(project, "branch", "--list", "retrain/*") == ""
    assert ((project / "dvc.lock").read_bytes(), (project / "last.txt").read_text()) == (
        before,
        "user_id,item_id\n1,2\n" * 2,
    )


def test_a_source_that_dvc_does_not_track_cannot_be_retrained(project):
    """The message says what to type."""
    set_params(project, source="lastfm", schedule={"retries": 0})
    commit(project, "Another source")
    state = retrained(project)
    assert "run 'dvc add data/raw/lastfm'" in state.message
