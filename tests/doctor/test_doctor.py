"""`recalign doctor` names what is wrong and the fix, knows people's tables, and measures speed."""

import csv
import json
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from registry_project import empty_registry
from ruamel.yaml import YAML

from conftest import ROOT
from recalign import project as layout
from recalign.cli import main
from recalign.commands.doctor import check_all
from recalign.commands.simulate import simulate
from recalign.common.errors import RecalignError
from recalign.doctor import speed
from recalign.doctor.findings import Finding, from_error, worst
from recalign.doctor.own_table import examine, params_block
from recalign.llm.model.base import fetch_base
from recalign.params.load import Params, load_params, parse_params
from recalign.project import Project
from recalign.registry.tracking import connect
from recalign.stages.ingest import ingest

Table = dict[str, list[Any]]


SMALL_WORLD = {"users": 100, "days": 300}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw log of a small world: simulated once, copied into each project."""
    raw = tmp_path_factory.mktemp("raw") / "simulated"
    params = load_params(ROOT / "params.yaml")
    simulate(params.model_copy(update={"simulator": params.simulator.model_copy(update=SMALL_WORLD)}), raw)
    return raw


@pytest.fixture
def project(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: dict[str, Any]) -> Path:
    """A small project at budget smoke with simulated data and no model yet, worked in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".dvc").mkdir()
    set_params(tree, budget="smoke", threads=1, simulator=tree["simulator"] | SMALL_WORLD)
    shutil.copytree(simulated, tmp_path / "data/raw/simulated")
    return tmp_path


def set_params(tree: dict[str, Any], **changes: Any) -> None:
    """Write params.yaml with these changes."""
    tree |= changes
    with Path("params.yaml").open("w", encoding="utf-8") as handle:
        YAML().dump(tree, handle)


def finding(name: str, findings: list[Finding]) -> Finding:
    return next(f for f in findings if f.name == name)


def log(rows: int = 400, **names: str) -> Table:
    """A log of 40 users with 40 items under the columns' usual names, or others."""
    drawn = random.Random(0)
    users = [f"u{row % 40}" for row in range(rows)]
    return {
        names.get("user", "user_id"): users,
        names.get("item", "item_id"): [f"i{drawn.randrange(40)}" for _ in users],
        names.get("time", "timestamp"): [1_700_000_000 + 1000 * row for row in range(rows)],
        names.get("rating", "rating"): [drawn.randint(4, 5) if row else 1 for row in range(rows)],
    }


def write(path: Path, table: Table, delimiter: str = ",") -> Path:
    """Write a table as CSV, or as Parquet by its name."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
        return path
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter=delimiter)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


@pytest.fixture
def params(tree: dict[str, Any]) -> Params:
    return parse_params(tree | {"threads": 1})


def test_a_sound_project_has_nothing_to_mend(project, capsys):
    """Exit code 0; every check has a line; the JSON says the same."""
    assert main(["doctor", "--json", "doctor.json"]) == 0
    screen, told = capsys.readouterr(), json.loads(Path("doctor.json").read_text())
    names = [f["name"] for f in told["findings"]]
    assert names == [
        "machine", "memory", "disk", "python", "packages", "repository", "params",
        "data", "validation", "preparation", "threads", "model", "device", "endpoint", "schedule", "registry",
    ]  # fmt: skip
    assert all(name in screen.out for name in names)
    assert "To fix" not in screen.out
    assert screen.err == ""
    assert told["verdict"] in ("ok", "warn")  # a busy machine is something to know
    assert " rows of " in next(f["found"] for f in told["findings"] if f["name"] == "data")


def test_a_missing_log_is_told_with_the_command_that_brings_it(project, capsys):
    """Exit code 1, and the fix is below the table."""
    for file in (layout.RAW / "simulated").iterdir():
        file.unlink()
    assert main(["doctor"]) == 1
    screen = capsys.readouterr().out
    assert "To fix:\n  data: fetch it with 'dvc pull data/raw/films.dvc', or make it with 'recalign simulate'" in screen


def test_a_typo_in_the_params_is_one_finding_among_others(project, tree):
    """The machine is checked all the same; what needs params is left out."""
    set_params(tree, sed=1)
    findings = check_all()
    assert finding("params", findings) == Finding(
        "params", "fail", "params.yaml: unknown key 'sed'", "the nearest valid key is 'seed'"
    )
    assert [f.name for f in findings][-1] == "params"


def test_outside_of_a_project_the_mend_is_to_go_there(tmp_path, monkeypatch):
    """No git, no params: each says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    findings = check_all()
    assert finding("repository", findings).fix == "run recalign in a clone, or 'git init' here"
    assert finding("params", findings).fix == "run recalign in the project's root, where params.yaml lies"


def test_without_git_a_project_is_sound_where_dvc_was_told_so(tmp_path, monkeypatch):
    """core.no_scm is a choice; where nobody made it, the fix is to make a repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".dvc").mkdir()
    assert finding("repository", check_all()).state == "fail"
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    told = finding("repository", check_all())
    assert told.state == "ok"
    assert told.found == "no git repository here, and DVC works without (core.no_scm); only retrain needs git"


def test_the_next_retraining_is_told_and_what_keeps_it_from_starting(project, tree, monkeypatch):
    """The day shows what the cron line means; an address that was set has to answer."""
    set_params(tree, schedule=tree["schedule"] | {"cron": "0 3 1 1 *", "timezone": "Europe/Berlin"})
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    told = finding("schedule", check_all())
    assert (told.state, told.fix) == ("warn", "run 'prefect server start' first, else no run starts")
    next_run = r"retrain/weekly by '0 3 1 1 \*' next on \w{3} \d{4}-01-01 03:00 Europe/Berlin"
    assert re.match(f"{next_run}; no Prefect server at", told.found)


def test_a_cron_line_with_another_meaning_fails_the_params(project, tree):
    """Before any clock reads it."""
    set_params(tree, schedule=tree["schedule"] | {"cron": "0 0 3 * * 1"})
    told = finding("params", check_all())
    assert (told.state, told.found) == ("fail", "params.yaml: schedule.cron is '0 0 3 * * 1'")
    assert "'0 3 * * 1' where its first field counts seconds" in told.fix


def test_a_log_that_the_run_would_refuse_is_a_failed_check_of_the_project(project, tree, capsys):
    """With the very words of the run."""
    set_params(tree, validate=tree["validate"] | {"min_rows": 10_000_000})
    assert main(["doctor"]) == 1
    assert "validation: fix the rows, or set validate.min_rows: " in capsys.readouterr().out


def test_more_threads_than_cores_are_told(project, tree):
    """They slow each other down."""
    set_params(tree, threads=4096)
    told = finding("threads", check_all())
    assert (told.state, told.found.startswith("threads: 4096 on ")) == ("warn", True)


def test_a_hub_model_needs_a_revision(project, tree):
    """A name alone may mean other weights tomorrow."""
    set_params(tree, base=tree["base"] | {"model": "owner/name"})
    told = finding("model", check_all())
    assert (told.state, told.fix) == (
        "fail",
        "set base.revision to the commit (40 hex digits) shown on the model's page",
    )


def test_a_branch_of_the_hub_is_no_revision(project, tree):
    """It moves; the stage base refuses it for the same reason."""
    set_params(tree, base=tree["base"] | {"model": "owner/name", "revision": "main"})
    told = finding("model", check_all())
    assert (told.state, told.found) == ("fail", "base.revision main is a branch or tag, which can move")


def test_a_folder_that_the_stage_base_would_refuse_is_no_whole_model(project, tree, tmp_path):
    """The doctor asks what the stage asks: here, of a clone without Git LFS."""
    fetch_base(parse_params(tree).base, tmp_path / "clone")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"
    (tmp_path / "clone" / "model.safetensors").write_text(pointer)
    set_params(tree, base=tree["base"] | {"model": str(tmp_path / "clone")})
    told = finding("model", check_all())
    assert told.state == "fail"
    assert "model.safetensors is a Git LFS pointer" in told.found


def test_a_changed_weight_file_is_found(project, tree):
    """The model's folder is checked against its manifest."""
    base = parse_params(tree).base
    fetch_base(base, layout.BASE)
    assert finding("model", check_all()).found == "tiny-random, revision 1, its files are whole"
    with (layout.BASE / "model.safetensors").open("ab") as handle:
        handle.write(b"\0")
    told = finding("model", check_all())
    assert (told.state, told.fix) == ("fail", "'dvc checkout' restores it")


@pytest.fixture
def endpoint() -> Iterator[str]:
    """An endpoint that serves the model `tiny` to whoever has the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "tiny"}]}).encode()
            self.send_response(200 if self.headers.get("Authorization") == "Bearer open" else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("key", "model", "state", "fix"),
    [
        ("open", "tiny", "ok", ""),
        ("open", "huge", "fail", "set profiles.endpoint_model to one of: tiny"),
        ("wrong", "tiny", "fail", "set the environment variable RECALIGN_API_KEY"),
    ],
)
def test_the_endpoint_is_asked_for_its_models(project, tree, endpoint, monkeypatch, key, model, state, fix):
    """Key and model are checked before a run is an hour old; the key is not shown."""
    monkeypatch.setenv("RECALIGN_API_KEY", key)
    set_params(tree, profiles=tree["profiles"] | {"engine": "endpoint", "url": endpoint, "endpoint_model": model})
    told = finding("endpoint", check_all())
    assert (told.state, told.fix) == (state, fix)
    assert "open" not in told.found


def test_an_endpoint_that_is_not_there_is_told(project, tree):
    """Nobody listens on port 9 of this machine."""
    url = "http://127.0.0.1:9/v1"
    set_params(tree, profiles=tree["profiles"] | {"engine": "endpoint", "url": url})
    told = finding("endpoint", check_all())
    assert (told.state, told.fix) == ("fail", "start the endpoint, or set profiles.engine to statements")


def test_a_registrys_password_is_not_shown(project, monkeypatch):
    """A database's address may hold one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db.example/mlflow")
    assert finding("registry", check_all()).found == "model recalign in db.example/mlflow"


def test_a_servers_password_is_not_shown_where_it_does_not_answer(project, monkeypatch):
    """Nor its user's name; nobody listens on port 9 of this machine."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:s3cret@127.0.0.1:9")
    told = finding("registry", check_all())
    assert (told.state, told.fix) == ("fail", "start that server, or unset the variable")
    assert told.found.startswith("MLFLOW_TRACKING_URI http://…@127.0.0.1:9 does not answer")
    assert not {"anna", "s3cret"} & set(re.findall(r"\w+", f"{told.found} {told.fix}"))


def test_a_deleted_experiment_and_a_folder_of_files_that_cannot_be_written_are_told_before_a_run(project, monkeypatch):
    """As the registration would meet them, hours later."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert finding("registry", check_all()).found == "model recalign in mlflow.db of the project"
    shutil.copy(empty_registry(), project / "mlflow.db")
    client = connect(project)
    made = client.create_experiment("recalign", artifact_location=str(project / "files"))
    assert finding("registry", check_all()).found.endswith("its folder of files can be written")
    client.delete_experiment(made)
    assert "was deleted in MLflow" in finding("registry", check_all()).found
    client.restore_experiment(made)
    shutil.rmtree(project / "files")
    (project / "files").write_text("no folder", encoding="utf-8")
    assert "which this machine cannot write" in finding("registry", check_all()).found


def test_an_error_becomes_a_finding_with_its_mend():
    """The fix of every error follows its semicolon."""
    assert from_error("data", RecalignError("a is missing; fetch it; or not")) == Finding(
        "data", "fail", "a is missing", "fetch it; or not"
    )
    assert worst([Finding("a", "ok", ""), Finding("b", "warn", "")]) == "warn"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({}, ("user_id", "item_id", "timestamp", "rating", "items")),
        ({"user": "userId", "item": "movieId"}, ("userId", "movieId", "timestamp", "rating", "movies")),
        (
            {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall"},
            ("reviewerID", "asin", "unixReviewTime", "overall", "items"),
        ),
        (
            {"user": "User ID", "item": "artist name", "time": "played at", "rating": "plays"},
            ("User ID", "artist name", "played at", None, "artists"),
        ),
        ({"user": "wer", "item": "was", "time": "wann", "rating": "Note"}, ("wer", "was", "wann", None, "items")),
    ],
)
def test_columns_are_known_by_names_then_by_values(tmp_path, params, names, expected):
    """MovieLens, Amazon, a player's history, and one in another language."""
    table = examine(write(tmp_path / "log.csv", log(**names)), None, params).table
    assert table is not None
    assert (table.user, table.item, table.timestamp, table.rating, table.noun) == expected


@pytest.mark.parametrize(
    ("name", "delimiter"), [("log.csv", ","), ("log.csv", ";"), ("log.tsv", "\t"), ("log.parquet", "")]
)
def test_the_params_block_reads_the_table(tmp_path, tree, params, monkeypatch, name, delimiter):
    """What is printed, put into params.yaml, ingests every row."""
    monkeypatch.chdir(tmp_path)
    examined = examine(write(tmp_path / name, log(), delimiter), None, params)
    assert worst(examined.findings) != "fail"
    assert examined.table is not None
    changes = YAML(typ="safe").load(params_block(examined.table))
    assert list(changes) == ["source", "table"]
    assert changes["table"]["min_rating"] == 4.0
    ingest(parse_params(tree | changes), Project().moved(interactions=tmp_path / "out"), raw=tmp_path)
    assert pq.read_metadata(tmp_path / "out/interactions.parquet").num_rows == 400


def test_a_table_of_items_brings_titles_and_attributes(tmp_path, params):
    """The two files share the item's column; ids of the log alone are no titles."""
    path = write(tmp_path / "log.csv", log())
    alone = examine(path, None, params)
    assert "--items FILE" in finding("title", alone.findings).fix
    items = {
        "item_id": [f"i{n}" for n in range(40)],
        "name": [f"Title {n}" for n in range(40)],
        "genre": [["Jazz", "Folk"][n % 2] for n in range(40)],
        "pages": list(range(40)),
    }
    both = examine(path, write(tmp_path / "items.csv", items), params)
    assert both.table is not None
    assert (both.table.items, both.table.title, both.table.attributes) == ("items.csv", "name", ("genre",))
    assert finding("preparation", both.findings).state == "warn"  # forty users are few


def test_ratings_that_all_count_are_told_with_a_bound(tmp_path, params):
    """A one-star row is no like."""
    told = finding("rating", examine(write(tmp_path / "log.csv", log()), None, params).findings)
    assert (told.state, told.found) == ("warn", "column 'rating', 1 to 5")
    assert told.fix == "4 and more is taken for a like; where that is not so, set table.min_rating"


def test_a_time_in_an_unknown_format_is_named_and_left_out(tmp_path, params):
    """Day and month cannot be told apart in 03/04/2026; the rest of the table still fits."""
    table = log() | {"timestamp": ["03/04/2026"] * 400}
    examined = examine(write(tmp_path / "log.csv", table), None, params)
    assert "2026-11-21T08:30:00" in finding("timestamp", examined.findings).fix
    assert examined.table is not None
    assert examined.table.timestamp is None
    assert finding("rows", examined.findings).state == "ok"


@pytest.mark.parametrize(
    ("dropped", "role"), [(("user_id",), "user"), (("item_id",), "item"), (("user_id", "item_id"), "user")]
)
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, params, dropped, role):
    """Without users or items there is nothing to learn from, and no block is printed."""
    table = {name: values for name, values in log().items() if name not in (*dropped, "rating")} | {
        "n": list(range(400))
    }
    examined = examine(write(tmp_path / "log.csv", table), None, params)
    told = finding(role, examined.findings)
    assert (told.state, examined.table) == ("fail", None)
    assert f"name it {role}_id, or set table.{role} (it has: {', '.join(table)})" in told.fix


@pytest.mark.parametrize(
    ("change", "name", "fix"),
    [
        ({"core": 50}, "preparation", "lower it, 1 keeps everything"),
        ({"candidates": 60}, "preparation", "lower it"),
    ],
)
def test_what_preparation_would_refuse_is_told_before(tmp_path, tree, change, name, fix):
    """The k-core of the very rows is taken."""
    params = parse_params(tree | {"prepare": tree["prepare"] | change})
    told = finding(name, examine(write(tmp_path / "log.csv", log()), None, params).findings)
    assert told.state == "fail"
    assert fix in told.fix


def test_a_short_log_is_told(tmp_path, params):
    """validate.min_rows rows are needed."""
    told = finding("validation", examine(write(tmp_path / "log.csv", log(rows=60)), None, params).findings)
    assert (told.state, told.fix) == ("fail", "fix the rows, or set validate.min_rows: 60")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("log.csv", b"", "log.csv is empty"),
        ("log.csv", b"user_id,item_id\n", "log.csv holds no row below its header"),
        ("log.csv", b"user_id,title\n1,caf\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        ("log.csv", b",user_id,item_id\n0,1,2\n", "column 1 has no name"),
        ("log.csv", b"user_id,user_id\n1,2\n", "has two columns 'user_id'"),
        ("log.parquet", b"PAR1 was cut off by the network", "is not a readable Parquet file"),
        (None, b"", "log.csv is missing"),
    ],
)
def test_what_is_no_table_is_one_line_and_exit_code_2(project, capsys, name, content, said):
    """The file is named, and what is wrong with it."""
    if name:
        Path(name).write_bytes(content)
    assert main(["doctor", name or "log.csv"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_screen_for_an_own_table_ends_with_what_to_type(project, capsys):
    """Findings, block, commands."""
    write(Path("my.csv"), log())
    assert main(["doctor", "my.csv"]) == 0
    screen = capsys.readouterr().out
    assert "  source: table\n  table:\n    interactions: my.csv\n    items: null\n    user: user_id\n" in screen
    assert screen.endswith(
        "Then:\n  mkdir -p data/raw/table && cp my.csv data/raw/table/\n  dvc add data/raw/table\n  dvc repro\n"
    )


def test_items_without_a_log_are_refused(project, capsys):
    """--items describes the log's items."""
    assert main(["doctor", "--items", "items.csv"]) == 2
    assert "give both: doctor LOG --items ITEMS" in capsys.readouterr().err


def test_speed_is_measured_in_each_precision(project, monkeypatch, capsys):
    """Without a base model the tiny one runs, and the screen says so; the fastest is named."""
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    assert main(["doctor", "--speed", "--json", "speed.json"]) == 0
    told = json.loads(Path("speed.json").read_text())
    assert [s["name"].split()[0] for s in told["speeds"]] == ["fp32", "bf16", "nf4"]
    measured = [s for s in told["speeds"] if not s["reason"]]
    assert len(measured) >= 2
    assert all(s["scoring"] > 0 and s["training"] > 0 for s in measured)
    screen = capsys.readouterr().out
    assert screen.startswith("tiny-random, which tells little")
    best = max(measured, key=lambda s: s["training"])["name"]
    assert f"Fastest in training: {best}." in screen
