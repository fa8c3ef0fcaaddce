"""The flows, run for real: a Prefect server of the test's own, small DVC projects, git worktrees."""

import io
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from project import FEW, copy_project, run
from registry_project import as_evaluated, empty_registry, write_adapter, write_project
from ruamel.yaml import YAML

from recalign.commands.simulate import simulate
from recalign.common.errors import RecalignError
from recalign.common.locks import held, owner
from recalign.params.load import load_params

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "flows"))  # as `python flows/serve.py` has it

import locks  # noqa: E402
import reproduce  # noqa: E402
import runs  # noqa: E402
import serve  # noqa: E402
import subprocesses  # noqa: E402
from align import align  # noqa: E402
from dpo4rec import dpo4rec  # noqa: E402
from graph import planned_stages  # noqa: E402
from refresh import refresh  # noqa: E402
from retrain import NOTHING_NEW, retrain, retrain_in  # noqa: E402
from worktree import commit_result, dvc, git, keep_result, output, retrain_worktree  # noqa: E402

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


READY_MADE = """
stages:
  all:
    cmd: cp -r {made}/data {made}/reports .
    deps: [data/raw/table]
    outs: [data/interactions, data/models, data/prepared, data/ranks, reports/scorecard.json]
    metrics:
      - reports/metrics.json:
          cache: false
"""


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A Prefect server with a database of its own, for the tests of this file that run a flow."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
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
def project(server: None, committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed project, and the working directory; flows run against `server`."""
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


OPTIONAL = """
stages:
  dpo4rec:
    wdir: ..
    cmd: mkdir -p data/dpo4rec && cp doubled.txt data/dpo4rec/report.md
    deps: [doubled.txt]
    outs: [data/dpo4rec]
"""


def test_texts_have_a_flow_of_their_own_that_the_default_run_passes_by(project):
    """align/dpo4rec brings the stages before it up to date and leaves the others alone; a failure is its own words."""
    (project / "optional").mkdir()
    (project / "optional/dvc.yaml").write_text(OPTIONAL, encoding="utf-8")
    assert [stage.name for stage in planned_stages(project)] == ["double", "last"]
    state = dpo4rec(return_state=True)
    assert state.is_completed(), state.message
    assert (project / "data/dpo4rec/report.md").read_text() == "user_id,item_id\n1,2\n" * 2
    assert not (project / "last.txt").exists()
    (project / "optional/dvc.yaml").write_text(OPTIONAL.replace("cp doubled", "cp nothing"), encoding="utf-8")
    failed = dpo4rec(return_state=True)
    assert failed.is_failed()
    assert "nothing.txt" in failed.message


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


@pytest.mark.parametrize("half", ["", '{"data/one": {"wri'])
def test_a_list_of_locks_that_a_kill_cut_in_half_stops_no_later_run(project, half):
    """DVC itself refuses such a file in every run; one that is whole is left alone."""
    set_params(project, source="table", schedule={"retries": 0})
    listed = project / ".dvc" / "tmp" / "rwlock"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text(half, encoding="utf-8")
    assert walk(project).is_completed()
    listed.write_text("{}", encoding="utf-8")
    reproduce.mend_locks(project)
    assert listed.read_text(encoding="utf-8") == "{}"


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


def test_what_cannot_be_an_objectives_name_is_refused_by_the_deployments_own_schema():
    """So `prefect deployment run` refuses it before anything starts; which names there are, params.yaml says."""
    pattern = align.parameters.model_dump()["properties"]["objective"]["pattern"]
    assert re.match(pattern, "robust_sdpo")
    assert not any(re.match(pattern, name) for name in ("", "S-DPO", "../sdpo"))


def test_a_deployment_an_objective_and_the_scheduled_retraining(project):
    """Names, parameters and the cron line come from params.yaml."""
    set_params(project, align={"objectives": ["sdpo", "dmpo"]}, schedule={"timezone": "Europe/Berlin"})
    served = serve.deployments(load_params())
    assert [(d.flow_name, d.name, d.parameters) for d in served] == [
        ("align", "sdpo", {"objective": "sdpo"}),
        ("align", "dmpo", {"objective": "dmpo"}),
        ("align", "dpo4rec", {}),
        ("retrain", "weekly", {}),
    ]
    (schedule,) = served[-1].schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * 1", "Europe/Berlin")


@pytest.mark.parametrize("schedule", [{"cron": "0 0 3 * * 1"}, {"timezone": "Middle/Earth"}])
def test_a_schedule_that_no_clock_can_keep_is_not_served(project, schedule, capsys):
    """One line that names the key, and exit code 2."""
    set_params(project, schedule=schedule)
    assert serve.main() == 2
    said = capsys.readouterr().err
    ((key, value),) = schedule.items()
    assert said.startswith(f"flows/serve.py: params.yaml: schedule.{key} is {value!r}; ")
    assert said.count("\n") == 1


def test_a_run_waits_for_the_one_at_work_and_says_for_whom_it_waited_in_vain(project):
    """Whoever works, and whichever server it reports to; schedule.wait_minutes bounds the wait."""
    set_params(project, source="table", schedule={"retries": 0, "wait_minutes": 0})
    with held(locks.lock_folder(project) / "slot.lock", "retrain/weekly", 0, ""):
        state = align("sdpo", return_state=True)
    assert state.is_failed()
    assert state.message.startswith(f"align/sdpo waited 0 minutes for retrain/weekly (process {os.getpid()} since ")
    assert state.message.endswith("; stop that run, or raise schedule.wait_minutes in params.yaml")


def test_serve_tells_a_server_that_went_away_from_other_errors():
    """Prefect raises the transport's error, its own after some tries, either in a group, or one while deploying."""
    away = httpx.ConnectError("All connection attempts failed")
    gave_up = RuntimeError("Service exceeded error threshold.")
    deploying = RuntimeError("Error while applying deployment: All connection attempts failed")
    deploying.__context__ = away
    for error in (away, gave_up, ExceptionGroup("unhandled errors in a TaskGroup", [gave_up]), deploying):
        assert serve.server_went_away(error)
    for error in (RuntimeError("Error while applying deployment: 422"), ValueError("no such flow")):
        assert not serve.server_went_away(error)


KILLED_RUN = """
import os, sys
from pathlib import Path
from typing import Any
from recalign.common.locks import try_lock
try_lock(Path(sys.argv[1]), "align/sdpo")
os._exit(9)
"""


def flow_process(root: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script that imports the flows' modules in a project, as a process of its own."""
    variables = subprocesses.environment(root)
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT / "flows"), str(ROOT / "src")])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=False)


def test_a_run_that_was_killed_is_crashed_at_the_next_start_and_a_living_one_is_left_alone(project):
    """With the tasks in it, and what to do; what had ended keeps its state."""
    from prefect.client.orchestration import get_client
    from prefect.states import Completed, Running

    with get_client(sync_client=True) as client:
        killed, living, ended = (
            client.create_flow_run(align, parameters={"objective": "sdpo"}, state=state)
            for state in (Running(), Running(), Completed())
        )
        folder = locks.lock_folder(project)
        for run in (killed, ended):
            flow_process(project, KILLED_RUN, folder / f"run-{run.id}.lock")
        with held(folder / f"run-{living.id}.lock", "align/sdpo", 0, ""):
            (said,) = runs.close_dead_runs(project)
        assert re.fullmatch(rf"align/sdpo \(process \d+\) was killed; its run {killed.id} is now Crashed", said)
        states = [client.read_flow_run(run.id).state for run in (killed, living, ended)]
        assert [state.name for state in states] == ["Crashed", "Running", "Completed"]
        assert "start the run again, it goes on from the last finished stage or checkpoint" in states[0].message
    assert sorted(path.name for path in folder.glob("run-*")) == [f"run-{living.id}.lock"]


def test_an_address_that_is_no_api_is_answered_with_the_one_that_is(server, monkeypatch):
    """Without /api, with the dashboard's path, another path, the other scheme, or none; and where no server is."""
    from prefect.settings import get_current_settings

    from recalign.doctor.prefect_server import server_fault

    api = str(get_current_settings().api.url)
    assert api.endswith("/api")
    origin = api.removesuffix("/api")
    assert server_fault(api) is None
    assert server_fault(f"{api}/") is None
    bare = server_fault(origin)
    assert (bare.found.split(" (")[0], bare.fix) == (
        f"no Prefect API at {origin}", f"set PREFECT_API_URL to {api}: add /api"
    )  # fmt: skip
    encrypted = origin.replace("http", "https")
    for wrong in (f"{origin}/dashboard", f"{origin}/dashboard/", f"{api}/api", f"{api}/docs", encrypted):
        assert server_fault(wrong).fix.startswith(f"set PREFECT_API_URL to {api}"), wrong
    assert server_fault(origin.removeprefix("http://")).fix.startswith(f"set it to {origin}")
    for empty in (None, "", " "):
        assert server_fault(empty).fix == "unset it, or set it to http://127.0.0.1:4200/api"
    nobody = server_fault(f"http://user:secret@127.0.0.1:{free_port()}/api")
    assert (nobody.away, nobody.fix, "secret" in nobody.found) == (True, "run 'prefect server start' first", False)


def retrained(project: Path):
    """`retrain_in` a fresh worktree, in a flow without the wait for a slot; the final state."""
    from prefect import flow

    @flow(name="retrained", persist_result=False)
    def run():
        with retrain_worktree(project) as worktree:
            return retrain_in(project, worktree)

    return run(return_state=True)


def test_retraining_without_new_data_ends_with_nothing_new_and_leaves_nothing(project):
    """No branch, no worktree, no change in the checkout."""
    assert retrained(project).name == NOTHING_NEW
    assert git(project, "branch", "--list", "retrain/*") == ""
    assert git(project, "worktree", "list").count("\n") == 0
    assert git(project, "status", "--porcelain") == ""


KILLED_RETRAINING = """
import os, sys
from pathlib import Path
from typing import Any
from worktree import commit_result, retrain_worktree
with retrain_worktree(Path.cwd()) as worktree:
    (worktree / "params.yaml").write_text((worktree / "params.yaml").read_text() + "# retrained\\n")
    commit_result(worktree, "Retrain")
    print(worktree.name, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_retraining_that_is_killed_before_it_is_registered_is_no_start_for_the_next(project, caplog):
    """What it left is removed; one that lives keeps its checkout, and what was registered is the next start."""
    start = git(project, "rev-parse", "HEAD")
    done = flow_process(project, KILLED_RETRAINING)
    assert done.returncode == -signal.SIGKILL
    killed = done.stdout.strip()
    assert (project / ".dvc/tmp" / killed).is_dir()
    with retrain_worktree(project) as living:
        assert not (project / ".dvc/tmp" / killed).exists()
        stamp = killed.removeprefix("retrain-")
        said = f"retraining {stamp} was killed; its checkout was removed, DVC's cache has its finished stages"
        assert said in caplog.messages
        assert git(living, "rev-parse", "HEAD") == start
        with retrain_worktree(project) as second:
            assert (living.is_dir(), second != living) == (True, True)
            (second / "params.yaml").write_text((second / "params.yaml").read_text() + "# retrained\n")
            registered = commit_result(second, "Retrain")
            kept = keep_result(second)
        assert (living.is_dir(), second.exists()) == (True, False)
    assert git(project, "branch", "--list", "retrain*", "--format=%(refname:short)") == kept
    with retrain_worktree(project) as third:
        assert git(third, "rev-parse", "HEAD") == registered


def test_without_git_the_stages_are_walked_and_only_retraining_is_refused(project):
    """DVC itself was told so by core.no_scm."""
    shutil.rmtree(project / ".git")
    dvc(project, "config", "core.no_scm", "true")
    assert [stage.name for stage in planned_stages(project)] == ["double", "last"]
    aligned, retrained = align("sdpo", return_state=True), retrain(return_state=True)
    assert (project / "last.txt").exists()
    assert aligned.message.startswith("register failed")  # as this small project has nothing to register
    assert retrained.message.startswith("retrain needs git, for its result is a branch, and ")
    assert retrained.message.endswith("or run align/<objective>, which needs no git")
    assert serve.clean(project) == [retrained.message]


@pytest.mark.slow
def test_retraining_that_cannot_register_touches_nothing_of_the_user_and_leaves_no_branch(project):
    """So the next one tries again instead of finding nothing new."""
    (project / "data/raw/table/log.csv").write_text("user_id,item_id\n1,2\n1,3\n", encoding="utf-8")
    before = git(project, "status", "--porcelain")
    state = retrained(project)  # this small project has no adapter to register
    assert (state.type.value, state.message.split(":")[0]) == ("FAILED", "register failed")
    assert git(project, "branch", "--list", "retrain/*") == ""
    assert (git(project, "status", "--porcelain"), (project / "last.txt").exists()) == (before, False)


def test_a_source_that_dvc_does_not_track_cannot_be_retrained(project):
    """The message says what to type."""
    set_params(project, source="lastfm", schedule={"retries": 0})
    commit(project, "Another source")
    assert "run 'dvc add data/raw/lastfm'" in retrained(project).message


@pytest.mark.slow
def test_an_import_is_fetched_again(project, tmp_path):
    """`dvc update` sees the newer file at its address; the same file is nothing new."""
    (tmp_path / "published").mkdir()
    (tmp_path / "published/u.data").write_text("1\t2\n", encoding="utf-8")
    dvc(project, "import-url", "--quiet", str(tmp_path / "published"), "data/raw/movielens-100k")
    set_params(project, source="movielens-100k")
    commit(project, "An imported source")
    with retrain_worktree(project) as worktree:
        assert refresh(project, worktree) == []
        (tmp_path / "published/u.data").write_text("1\t2\n1\t3\n", encoding="utf-8")
        assert refresh(project, worktree) == ["data/raw/movielens-100k.dvc"]
        assert (worktree / "data/raw/movielens-100k/u.data").read_text() == "1\t2\n1\t3\n"


@pytest.mark.slow
def test_the_simulated_log_grows_by_seven_days_and_keeps_its_params_comments(project):
    """Its earlier days stay as they are; the days are kept in the worktree's params.yaml."""
    set_params(project, source="simulated", simulator={"users": 12, "days": 90})
    output([sys.executable, "-m", "recalign", "simulate"], project)
    dvc(project, "add", "--quiet", "data/raw/simulated")
    commit(project, "A small world")
    with retrain_worktree(project) as worktree:
        assert refresh(project, worktree) == ["data/raw/simulated.dvc"]
        assert load_params(worktree / "params.yaml").simulator.days == 97
        assert "# laptop, 2 cores" in (worktree / "params.yaml").read_text()
        before, after = ((root / "data/raw/simulated/events.csv").read_text() for root in (project, worktree))
    assert after.startswith(before)
    assert load_params(project / "params.yaml").simulator.days == 90


@pytest.mark.slow
def test_align_registers_and_retraining_ends_in_a_branch_with_a_version(project, tmp_path, monkeypatch):
    """A second retraining continues from the first one's branch, and finds nothing new."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    set_params(
        project,
        source="table",
        budget="smoke",
        schedule={"retries": 0},
        registry={"min_users": 10, "allow_random": True},
    )
    write_project(load_params(), project / "params.yaml", tmp_path / "made")
    shutil.copy(empty_registry(), project / "mlflow.db")
    (project / ".gitignore").write_text("/mlflow.db*\n/mlartifacts/\n/data/cache/\n", encoding="utf-8")
    (project / "dvc.yaml").write_text(READY_MADE.format(made=tmp_path / "made"), encoding="utf-8")
    aligned = align("sdpo", return_state=True)
    assert aligned.message.startswith("recalign: version 1 (sdpo) is champion")
    run, verdict = last_run_and_verdict()
    assert run.name == "align/sdpo on table, smoke"
    assert set(run.tags) == {"objective:sdpo", "source:table", "budget:smoke"}
    assert (verdict.flow_run_id, verdict.data) == (run.id, "Should you use the language model? No.")
    commit(project, "First training")
    (project / "data/raw/table/log.csv").write_text("user_id,item_id\n1,2\n1,3\n", encoding="utf-8")
    write_adapter(load_params(), tmp_path / "made", tmp_path / "made/data/models/align/sdpo", seed=9)
    as_evaluated(tmp_path / "made")
    assert retrained(project).message.startswith("recalign: version 2 (sdpo) stays challenger")
    (branch,) = git(project, "branch", "--list", "retrain/*", "--format=%(refname:short)").splitlines()
    changed = set(git(project, "diff", "--name-only", "HEAD", branch).splitlines())
    assert changed == {"data/raw/table.dvc", "dvc.lock"}
    assert retrained(project).name == NOTHING_NEW
    assert git(project, "branch", "--list", "retrain/*", "--format=%(refname:short)") == branch


def last_run_and_verdict() -> tuple[Any, Any]:
    """The newest run on the server, and the newest artifact called verdict."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
        return run, client.read_latest_artifacts(limit=1)[0]


def ready_made(tmp_path: Path) -> Path:
    """A clone whose one stage copies what the stages would have made, with an empty registry."""
    project = copy_project(
        tmp_path / "project", schedule__retries=0, budget="smoke", registry__min_users=10, registry__allow_random=True
    )
    write_project(load_params(project / "params.yaml"), project / "params.yaml", tmp_path / "made")
    (project / "dvc.yaml").write_text(READY_MADE.format(made=tmp_path / "made").replace("raw/table", "raw/simulated"))
    git(project, "rm", "-r", "--quiet", "data/models", "dvc.lock")  # the one stage owns both here
    dvc(project, "pull", "--quiet", "data/raw/films.dvc")
    shutil.copy(empty_registry(), project / "mlflow.db")
    return project


@pytest.mark.slow
def test_the_readmes_three_commands_run_a_deployment_and_report_its_end(tmp_path):
    """A server, `python flows/serve.py`, `prefect deployment run align/sdpo --watch`: exit 0, or 1 with the reason."""
    project = ready_made(tmp_path)
    port = free_port()
    environment = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(tmp_path / "prefect")}
    with started(project, environment, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)):
        wait_for(f"http://127.0.0.1:{port}/api/health")
        with started(project, environment, "python", "flows/serve.py"):
            command = ["prefect", "deployment", "run", "align/sdpo", "--watch"]
            done = run(project, *command, check=False, env=environment)
            for _ in range(30):  # the deployments are registered in a moment
                if "not found!" not in done.stdout:
                    break
                done = run(project, *command, check=False, env=environment)
            assert (done.returncode, "is champion" in done.stdout) == (0, True), done.stdout
            assert planned_runs(environment["PREFECT_API_URL"]) == {"weekly"}
            unknown = run(project, *command, "--param", "objective=nope", check=False, env=environment)
            assert (unknown.returncode, "objective is nope" in unknown.stdout) == (1, True), unknown.stdout
            (project / "dvc.yaml").write_text("stages: {all: {cmd: echo it is broken && false}}", encoding="utf-8")
            failed = run(project, *command, check=False, env=environment)
            assert (failed.returncode, "stage all failed: it is broken" in failed.stdout) == (1, True), failed.stdout


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_during_a_run_sees_its_end_and_keeps_no_slot(tmp_path):
    """The run goes on without it; the next one starts at once and finds every stage up to date."""
    project = ready_made(tmp_path)
    pipeline = (project / "dvc.yaml").read_text(encoding="utf-8")
    waits = "cmd: touch begun; until test -e go_on; do sleep 0.2; done; cp"
    (project / "dvc.yaml").write_text(pipeline.replace("cmd: cp", waits), encoding="utf-8")
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "prefect")}
    server = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))

    def ended() -> list[tuple[str, str]]:
        runs = httpx.post(f"{api}/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"}).json()
        return [(r["state"]["name"], r["state"]["message"] or "") for r in runs if r["state"]["type"] == "COMPLETED"]

    def asked(*more: str) -> subprocess.CompletedProcess[str]:
        return run(project, "prefect", "deployment", "run", "align/sdpo", *more, check=False, env=environment)

    with started(project, environment, *server) as first:
        wait_for(f"{api}/health")
        with started(project, environment, "python", "flows/serve.py"):
            assert until(lambda: asked().returncode == 0)  # deployments are registered in a moment
            assert until(lambda: (project / "begun").exists())
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
            with started(project, environment, *server):
                wait_for(f"{api}/health")
                (project / "go_on").touch()
                assert until(ended, 600)
                assert "version 1 (sdpo) is champion" in ended()[0][1]
                done = asked("--watch")
                assert (done.returncode, "waits for" in done.stdout) == (0, False), done.stdout
                assert "is version 1 already; nothing was moved" in ended()[1][1]


def test_prefect_yaml_deploys_both_flows_with_the_schedule_of_params_yaml(project):
    """`prefect deploy --all` against a server with the pool: names, entry points, parameters, cron line and folder."""
    from prefect.settings import get_current_settings

    api = str(get_current_settings().api.url)
    shutil.copy(ROOT / "prefect.yaml", project / "prefect.yaml")
    shutil.copytree(ROOT / "flows", project / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    set_params(project, schedule={"cron": "30 4 * * 2", "timezone": "Europe/Berlin"})
    httpx.post(f"{api}/work_pools/", json={"name": "local", "type": "process"}).raise_for_status()
    variables = {"PREFECT_API_URL": api, "PYTHONPATH": str(ROOT / "src")}
    run(project, "prefect", "--no-prompt", "deploy", "--all", env=variables)
    sdpo, weekly = (
        httpx.get(f"{api}/deployments/name/{name}").raise_for_status().json()
        for name in ("align/sdpo", "retrain/weekly")
    )
    assert (sdpo["entrypoint"], sdpo["parameters"], sdpo["schedules"]) == (
        "flows/align.py:align", {"objective": "sdpo"}, []
    )  # fmt: skip
    assert (weekly["entrypoint"], weekly["parameters"]) == ("flows/retrain.py:retrain", {})
    assert [s["schedule"] for s in weekly["schedules"]] == [
        {"cron": "30 4 * * 2", "timezone": "Europe/Berlin", "day_or": True}
    ]
    for deployed in (sdpo, weekly):
        assert deployed["work_pool_name"] == "local"
        (step,) = deployed["pull_steps"]
        assert step["prefect.deployments.steps.set_working_directory"]["directory"] == str(project.resolve())


def test_prefect_yaml_deploys_what_serve_serves_by_default():
    """The same names and parameters in both."""
    tree = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    default = serve.deployments(load_params(ROOT / "params.yaml"))
    served = {(d.name, d.entrypoint.rpartition("flows/")[2]): d for d in default}
    assert {(d["name"], d["entrypoint"].removeprefix("flows/")) for d in tree["deployments"]} == set(served)
    for deployment in tree["deployments"]:
        key = (deployment["name"], deployment["entrypoint"].removeprefix("flows/"))
        assert deployment.get("parameters", {}) == served[key].parameters


@pytest.mark.slow
def test_a_killed_worker_takes_its_run_with_it_and_the_next_one_ends_well(tmp_path):
    """A work pool by prefect.yaml: what was killed is Crashed on the server, and nothing runs on by itself."""
    project = ready_made(tmp_path)
    pipeline = (project / "dvc.yaml").read_text(encoding="utf-8")
    (project / "dvc.yaml").write_text(pipeline.replace("cmd: cp", "cmd: sleep 7741; cp"), encoding="utf-8")
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "prefect")}
    worker = ("prefect", "worker", "start", "--pool", "local")
    with started(project, environment, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)):
        wait_for(f"{api}/health")
        run(project, "prefect", "work-pool", "create", "local", "--type", "process", env=environment)
        run(project, "prefect", "--no-prompt", "deploy", "--all", env=environment)
        with started(project, environment, *worker) as process:
            run(project, "prefect", "deployment", "run", "align/sdpo", env=environment)
            assert until(lambda: running("sleep 7741"))
            process.kill()
            assert until(lambda: not running("sleep 7741"))
        (project / "dvc.yaml").write_text(pipeline, encoding="utf-8")
        with started(project, environment, *worker):
            done = run(project, "prefect", "deployment", "run", "align/sdpo", "--watch", check=False, env=environment)
            assert (done.returncode, "is champion" in done.stdout) == (0, True), done.stdout
        listed = httpx.post(f"{api}/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"}).json()
        assert next(r["state"]["name"] for r in listed if r["state"]["type"] != "SCHEDULED") == "Crashed"


def with_a_new_week(place: Path) -> Path:
    """A clone at budget smoke on a table of its own, of which the last week is not committed; no stage has run."""
    project = copy_project(
        place,
        budget="smoke",
        source="table",
        table__interactions="events.csv",
        table__items="films.csv",
        table__attributes=["year", "genres"],
        recommenders__systems=FEW,
        registry__allow_random=True,
        registry__min_users=10,
        schedule__retries=0,
    )
    params, table = load_params(project / "params.yaml"), project / "data/raw/table"
    simulate(params, table, days=200)
    dvc(project, "add", "--quiet", "data/raw/table")
    commit(project, "A table")
    simulate(params, table, days=207)
    return project


def versions(project: Path) -> list[tuple[str, str]]:
    """Every version in the project's registry, and what the gate said of it ("" before a verdict)."""
    if not (project / "mlflow.db").is_file():
        return []
    query = (
        "select v.version, coalesce(t.value, '') from model_versions v left join model_version_tags t "
        "on t.name = v.name and t.version = v.version and t.key = 'gate' order by v.version"
    )
    try:
        with closing(sqlite3.connect(f"file:{project / 'mlflow.db'}?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()
    except sqlite3.OperationalError:  # its tables are being made
        return []


@pytest.mark.slow
def test_a_retraining_killed_after_its_commit_and_again_in_its_registration_ends_in_one_version(tmp_path):
    """Real stages, a server and serve.py: the next run registers what the killed ones had learned, and is the last."""
    project = with_a_new_week(tmp_path / "project")
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "prefect")}

    def asked(*more: str) -> subprocess.CompletedProcess[str]:
        return run(project, "prefect", "deployment", "run", "retrain/weekly", *more, check=False, env=environment)

    def branches(kind: str) -> list[str]:
        return git(project, "for-each-ref", "--format=%(subject)", f"refs/heads/{kind}").splitlines()

    def kill_when(holds: Callable[[], Any]) -> None:
        assert until(holds, 1200)
        os.kill(owner(project / ".dvc/tmp/recalign/slot.lock").pid, signal.SIGKILL)

    with started(project, environment, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)):
        wait_for(f"{api}/health")
        with started(project, environment, "python", "flows/serve.py"):
            assert until(lambda: asked().returncode == 0)  # deployments are registered in a moment
            kill_when(lambda: [said for said in branches("retrain-in-work") if said.startswith("Retrain on newer")])
            assert versions(project) == []
            assert asked().returncode == 0
            kill_when(lambda: versions(project))
            assert versions(project) == [(1, "")]
            assert (branches("retrain"), len(branches("retrain-in-work"))) == ([], 1)
            done = asked("--watch")
            assert (done.returncode, "recalign: version 1 (sdpo) " in done.stdout) == (0, True), done.stdout
            assert "was killed; its checkout was removed" in " ".join(done.stdout.split())
            (tmp_path / "watched.txt").write_text(done.stdout, encoding="utf-8")
            again = asked("--watch")
            assert (again.returncode, "nothing new" in again.stdout) == (0, True), again.stdout
    ((version, verdict),) = versions(project)
    assert (version, verdict in ("champion", "challenger")) == (1, True)
    assert (len(branches("retrain")), branches("retrain-in-work")) == (1, [])
    assert git(project, "worktree", "list").count("\n") == 0


@pytest.mark.slow
def test_a_registry_that_is_down_fails_the_run_in_one_line_and_costs_nothing_once_it_is_back(tmp_path):
    """An MLflow server that is away, comes, is killed and comes again; each time the same run once more."""
    project = ready_made(tmp_path)
    port, registry = free_port(), free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "MLFLOW_TRACKING_URI": f"http://anna:s3cret@127.0.0.1:{registry}",
    }
    store, files = f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "files")
    shutil.copy(project / "mlflow.db", tmp_path / "store.db")
    mlflow = ("mlflow", "server", "--host", "127.0.0.1", "--port", str(registry), "--workers", "1")
    mlflow += ("--backend-store-uri", store, "--artifacts-destination", files)

    def asked(deployment: str) -> tuple[int, str]:
        done = run(project, "prefect", "deployment", "run", deployment, "--watch", check=False, env=environment)
        return done.returncode, " ".join(done.stdout.split())  # a terminal's lines are broken anywhere

    def refused(deployment: str) -> None:
        code, said = asked(deployment)
        address = f"MLFLOW_TRACKING_URI is http://…@127.0.0.1:{registry}"
        assert (code, f"register failed: {address}, which does not answer within 30 s (" in said) == (1, True), said
        assert ("); start that server or unset it" in said, "s3cret" in said) == (True, False), said

    with started(project, environment, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)):
        wait_for(f"{api}/health")
        with started(project, environment, "python", "flows/serve.py"):
            assert until(lambda: httpx.get(f"{api}/deployments/name/retrain/weekly").is_success)  # the last one served
            refused("align/sdpo")
            with started(project, environment, *mlflow) as first:
                wait_for(f"http://127.0.0.1:{registry}/health")
                code, said = asked("align/sdpo")
                assert (code, "recalign: version 1 (sdpo) is champion" in said) == (0, True), said
                commit(project, "First training")
                params = load_params(project / "params.yaml")
                write_adapter(params, tmp_path / "made", tmp_path / "made/data/models/align/sdpo", seed=9)
                as_evaluated(tmp_path / "made")
                os.killpg(first.pid, signal.SIGKILL)
                first.wait()
            refused("retrain/weekly")
            assert git(project, "branch", "--list", "retrain*") == ""
            with started(project, environment, *mlflow):
                wait_for(f"http://127.0.0.1:{registry}/health")
                code, said = asked("retrain/weekly")
                assert (code, "recalign: version 2 (sdpo) " in said) == (0, True), said
    assert git(project, "branch", "--list", "retrain*").count("retrain/") == 1


def running(argument: str) -> bool:
    """Whether a process has this in its command line."""
    return subprocess.run(["pgrep", "-f", argument], capture_output=True).returncode == 0


def until(holds: Callable[[], bool], seconds: float = 180) -> bool:
    """Whether something comes to hold."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.5)
    return held


def planned_runs(api: str) -> set[str]:
    """The deployments that the server's scheduler has planned runs of."""
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs = httpx.post(f"{api}/flow_runs/filter", json=scheduled).json()
    names = {deployment["id"]: deployment["name"] for deployment in httpx.post(f"{api}/deployments/filter").json()}
    return {names[run["deployment_id"]] for run in runs}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(project: Path, environment: dict[str, str], *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs in the project until the block ends."""
    variables = subprocesses.environment(project) | environment
    process = subprocess.Popen(command, cwd=project, env=variables, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # killed, and its group with it
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # a worker on a busy machine takes its time
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str) -> None:
    """Until the address answers, at most three minutes."""
    end = time.monotonic() + 180
    while True:
        try:
            httpx.get(url, timeout=5).raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(1)
        else:
            return
