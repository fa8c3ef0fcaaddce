"""recalign from Python, and --json: what programs read, on a small registered project."""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pages import ROOT, blocks
from project import run
from registry_project import TITLES, USERS, empty_registry, small_params, write_project

import recalign
from recalign import project as layout
from recalign.api import Loaded
from recalign.cli import main
from recalign.commands.register import register
from recalign.common.artifacts import folder, write_json, write_parquet
from recalign.common.errors import RecalignError
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import Engine, make_profile, profiles_table

USER_IDS = {user: str(user) for user in range(1, USERS)} | {USERS: "A4WSJ"}
ITEM_IDS = {item: f"tt{item}" for item in range(1, len(TITLES) + 1)}
CHAMPION = "models:/recalign@champion"


@pytest.fixture(scope="module")
def params() -> Params:
    return small_params()


@pytest.fixture(scope="module")
def made(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose S-DPO adapter is champion, with text ids, every user's events, profiles and figures."""
    root = tmp_path_factory.mktemp("made") / "project"
    write_project(params, ROOT / "params.yaml", root)
    with folder(root / layout.INTERACTIONS) as partial:
        write_parquet(partial / "items.parquet", _ids("item_id", ITEM_IDS))
        write_parquet(partial / "users.parquet", _ids("user_id", USER_IDS))
    _add(root / layout.PREPARED, "events.parquet", [
        {"user_id": user, "item_id": item, "timestamp": datetime(2020, 1, place + 1), "position": place}
        for user in USER_IDS for place, item in enumerate((user % 6 + 1, (user + 2) % 6 + 1))
    ])  # fmt: skip
    with folder(root / layout.PROFILES) as partial:
        profile = make_profile(Engine("counting"), "test", USERS, [1, 2], [], text="Likes crime films.")
        write_parquet(partial / "profiles.parquet", profiles_table([profile]))
    figures = [
        _figure("llm-sdpo", "ndcg_at_10", 1.0),
        _figure("popularity", "ndcg_at_10", 0.5),
        _figure("popularity", "ndcg_at_10", 0.9) | {"slice": "genre: crime"},
        _figure("llm-sdpo minus popularity", "ndcg_at_10", 0.5) | {"p": 0.01},
    ]
    for metric in ("hr_at_1", "hr_at_5", "mrr"):
        figures += [_figure(name, metric, 0.25) for name in ("llm-sdpo", "popularity")]
    about = {"manifests": {"uniform": {"warm": "first"}}}
    write_json(root / layout.REPORTS / "scorecard.json", {"about": about, "figures": figures})
    shutil.copy(empty_registry(), root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root)
        assert "is champion" in register(params)
    return root


def _ids(column: str, raw: dict[int, str]) -> pa.Table:
    return pa.table({column: list(raw), "raw_id": list(raw.values())})


def _add(place: Path, name: str, rows: list[dict]) -> None:
    """One more file of a folder that has its manifest."""
    files = {path.name: path.read_bytes() for path in place.iterdir() if path.name != "manifest.json"}
    with folder(place) as partial:
        for other, content in files.items():
            (partial / other).write_bytes(content)
        write_parquet(partial / name, pa.Table.from_pylist(rows))


def _figure(system: str, metric: str, value: float) -> dict:
    about = {"view": "warm", "protocol": "sampled-20", "manifest": "uniform", "candidate_digest": "f" * 64, "n": 20}
    shared = {"slice": "all", "p": None, "users": 10, "source": "simulated", "split": "test", "data_digest": "d"}
    return {"system": system, "metric": metric, "value": value, "low": value, "high": value, **about, **shared}


@pytest.fixture(scope="module")
def champion(made: Path) -> Loaded:
    """Loaded once, as a program would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("RECALIGN_BASE", raising=False)
        return recalign.load(CHAMPION, project=made)


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is read only here, so that all share it; also the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RECALIGN_BASE", raising=False)
    monkeypatch.chdir(made)
    return made


def test_importing_the_package_imports_nothing_heavy():
    """Its two names are there all the same, and no others."""
    code = (
        "import sys, recalign\n"
        "print([name for name in ('pandas', 'torch', 'mlflow', 'pyarrow', 'pydantic') if name in sys.modules])\n"
        "print({'load', 'Project'} <= set(dir(recalign)), hasattr(recalign, 'lode'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nTrue False\n"


def test_users_get_lists_by_their_own_ids(champion):
    """A text id and a number; what a user had is not recommended again."""
    frame = champion.recommend(users=["A4WSJ", 3], k=4)
    assert list(frame.columns) == ["user", "rank", "item", "title", "score", "reason", "version"]
    assert frame["user"].tolist() == ["A4WSJ"] * 4 + [3] * 4
    assert frame["rank"].tolist() == [1, 2, 3, 4] * 2
    assert set(frame["version"]) == {"1"}
    had = {f"tt{USERS % 6 + 1}", f"tt{(USERS + 2) % 6 + 1}"}
    assert not had & set(frame["item"][frame["user"] == "A4WSJ"])
    assert frame["title"].tolist() == [TITLES[int(item.removeprefix("tt")) - 1] for item in frame["item"]]
    assert frame["score"][:4].is_monotonic_decreasing
    assert frame["reason"].str.len().gt(0).all()


def test_a_user_gets_the_same_list_alone_as_among_others_and_as_by_the_command(project, champion, capsys):
    """One model, three ways to ask it."""
    alone, among = champion.recommend(users=[7], k=5), champion.recommend(users=[3, 7, "A4WSJ"], k=5)
    among = among[among["user"] == 7]
    assert alone["item"].tolist() == among["item"].tolist()
    assert alone["score"].tolist() == pytest.approx(among["score"].tolist(), rel=1e-4, abs=1e-5)
    assert main(["recommend", "--user", "7", "-k", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [item["item_id"] for item in told["items"]] == alone["item"].tolist()


def test_titles_and_item_ids_stand_for_a_person_without_a_log(champion):
    frame = champion.recommend(titles=["the house of night", "tt3", "Heat"], k=3)
    assert frame["user"].isna().all()
    assert len(frame) == 3
    assert not {"tt1", "tt3"} & set(frame["item"])


def test_without_a_project_the_registered_catalogue_answers_and_users_are_refused(project, tmp_path, monkeypatch):
    """As in a service, where MLFLOW_TRACKING_URI and RECALIGN_BASE are all there is."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    monkeypatch.setenv("RECALIGN_BASE", str(project / layout.BASE))
    champion = recalign.load(CHAMPION, project=tmp_path)
    assert len(champion.recommend(titles=["tt1"], k=3)) == 3
    with pytest.raises(RecalignError, match="there is no log to find their histories in"):
        champion.recommend(users=[3])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, r"give recommend\(users=\[…\]\) or recommend\(titles=\[…\]\), one of the two"),
        ({"users": [3], "titles": ["Heat"]}, "one of the two"),
        ({"users": []}, r"users is \[\]; a list with one entry or more is allowed"),
        ({"titles": []}, r"titles is \[\]; a list"),
        ({"users": "A4WSJ"}, "users is 'A4WSJ'; a list"),
        ({"titles": "Heat"}, "titles is 'Heat'; a list"),
        ({"users": ["nobody"]}, "is nobody, whom the prepared log does not hold"),
        ({"users": [3], "k": 0}, "k: Input should be greater than or equal to 1"),
        ({"users": [3], "k": 1001}, "k: Input should be less than or equal to 1000"),
        ({"titles": ["Heat"], "k": "5"}, "k: Input should be a valid integer"),
        ({"titles": [999]}, "history has item 999, which is not in the catalogue"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_in_one_line(champion, asked, said):
    with pytest.raises(RecalignError, match=said) as refused:
        champion.recommend(**asked)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("recalign@champion", "model is 'recalign@champion'; allowed are models:/NAME@ALIAS"),
        ("data/models/align/sdpo", "allowed are models:/NAME@ALIAS and models:/NAME/VERSION"),
        ("models:/recalign/99", "models:/recalign/99 is not in the registry"),
        ("models:/recalign@nobody", "models:/recalign@nobody is not in the registry"),
    ],
)
def test_a_model_that_is_not_registered_is_refused(project, model, said):
    with pytest.raises(RecalignError, match=said):
        recalign.load(model)


def test_a_project_gives_its_ranks_figures_and_profiles_with_the_logs_ids(project):
    """As docs/contracts.md has their columns."""
    found = recalign.Project(project)
    ranks = found.ranks()
    assert len(ranks) == 40
    assert set(ranks["user_id"]) == {*range(1, USERS), "A4WSJ"}
    assert ranks.groupby("system")["rank"].unique().map(list).to_dict() == {"llm-sdpo": [1], "popularity": [3]}
    assert ranks["top"].isna().all()
    card = found.scorecard()
    assert card[(card["system"] == "popularity") & (card["slice"] == "all")]["value"].tolist() == [
        0.5,
        0.25,
        0.25,
        0.25,
    ]
    (row,) = found.profiles().to_dict("records")
    assert (row["user_id"], row["text"], row["claims"], row["evidence"]) == ("A4WSJ", "Likes crime films.", [], [])


def test_what_is_no_project_or_has_not_run_is_named(tmp_path, tree):
    with pytest.raises(RecalignError, match=r"is no project: it has no params\.yaml"):
        recalign.Project(tmp_path)
    (tmp_path / "params.yaml").touch()
    for read in ("ranks", "scorecard", "profiles"):
        with pytest.raises(RecalignError, match=r"is missing; run 'dvc repro' to make it"):
            getattr(recalign.Project(tmp_path), read)()


def test_the_pages_example_runs(project):
    """docs/python.md, as it stands there."""
    names: dict = {}
    for block in blocks(ROOT / "docs" / "python.md", "python"):
        exec(block, names)  # noqa: S102  our own page
    assert names["lists"]["user"].tolist() == [3] * 5 + [7] * 5
    assert len(names["alike"]) == 5
    assert names["hit_rate"].to_dict() == {"llm-sdpo": 1.0, "popularity": 0.0}
    assert names["ndcg"]["system"].tolist() == ["llm-sdpo", "popularity", "llm-sdpo minus popularity"]
    assert isinstance(names["tastes"], pd.DataFrame)


NOTEBOOK = ROOT / "docs" / "first-look.ipynb"


def cells(kind: str) -> list[dict]:
    """The notebook's cells of a kind."""
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_the_notebook_holds_no_output_of_anyones_machine():
    assert [cell["outputs"] for cell in cells("code")] == [[]] * len(cells("code"))
    assert {cell["execution_count"] for cell in cells("code")} == {None}


@pytest.mark.slow
def test_the_notebook_goes_from_a_csv_to_a_picture_and_a_recommendation(tmp_path: Path, monkeypatch):
    """Its cells as one script, in an empty folder: no kernel is needed, since none of them uses IPython's own words."""
    told = 'print(json.dumps({"systems": ndcg["system"].tolist(), "lists": lists.to_dict("list")}, default=str))'
    script = "\n\n".join(["import json", *("".join(cell["source"]) for cell in cells("code")), told])
    (tmp_path / "first_look.py").write_text(script, encoding="utf-8")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = run(tmp_path, sys.executable, "first_look.py", env={"MPLBACKEND": "agg"})
    found = json.loads(done.stdout.splitlines()[-1])
    expected = {"popularity", "item_knn", "ease", "llm-base", "llm-sft", "llm-sdpo", "fusion"}
    assert expected <= set(found["systems"])
    picture = (tmp_path / "first-look" / "reports" / "first-look.svg").read_text(encoding="utf-8")
    assert all(system in picture for system in found["systems"])
    lists = found["lists"]
    assert (lists["rank"], lists["version"]) == ([1, 2, 3, 4, 5], ["1"] * 5)
    assert all(user.startswith("v") for user in lists["user"])
    assert all(item.startswith("tt") for item in lists["item"])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A cases file, its items, a log and where to write, for the commands that read files of anyone's."""
    films = range(1, 9)
    rows = []
    for number in range(24):
        target, other = number % 8 + 1, (number + 3) % 8 + 1
        row = {"case": number, "user_id": number % 6, "history": [(target + 1) % 8 + 1], "target": target}
        rows.append(row | {"candidates": [target, other]})
    (tmp_path / "cases.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{n},Film {n}\n" for n in films))
    log = [f"{user},{item},2020-01-{item:02d}\n" for user in range(6) for item in films]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(log))
    return {name: str(tmp_path / name) for name in ("cases.jsonl", "items.csv", "log.csv", "out")}


COMMANDS = {
    "recommend": "recommend --titles Heat tt3 -k 3 --json",
    "compare": "compare . models:/recalign/1 --json",
    "table": "table --json",
    "rank": "rank --recommender popularity --train log.csv --cases cases.jsonl --items items.csv --out out --json",
    "audit": "audit --cases cases.jsonl --items items.csv --json",
    "doctor": "doctor --json",
    "doctor of a log": "doctor log.csv --items items.csv --json",
}
HOLDS = {
    "recommend": {"items", "history", "asked", "ranked_by"},
    "compare": {"first", "second", "views", "generated", "tau"},
    "table": {"about", "systems"},
    "rank": {"system", "cases", "users", "metrics", "ranks"},
    "audit": {"verdict", "probes", "files"},
    "doctor": {"verdict", "findings"},
    "doctor of a log": {"verdict", "findings", "table", "prepared"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document_and_all_that_stands_on_standard_output(project, files, command, capsys):
    """For every command that prints a table; its exit code is the one without --json, or that of a finding."""
    words = [files.get(word, word) for word in COMMANDS[command].split()]
    assert main(words) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    assert told.keys() >= HOLDS[command]


def test_every_command_that_prints_a_table_has_json():
    """A module of commands/ that prints takes part in the test above."""
    printing = {
        path.stem
        for path in (ROOT / "src/recalign/commands").glob("*.py")
        if "print(" in (text := path.read_text(encoding="utf-8")) or "print_" in text
    }
    without = {"init", "graph", "batch"}  # what they print is no table: lines on what was written or is to be written
    elsewhere = {"explain", "profile", "estimate"}  # their own tests read their documents
    assert printing - without - elsewhere == {command.split()[0] for command in COMMANDS}


def test_the_documents_say_what_the_tables_say(project, capsys):
    assert main(["table", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["system"] for row in told["systems"]] == ["popularity", "llm-sdpo"]
    assert told["systems"][0]["ndcg_at_10"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert main(["table", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "simulated, test split, warm, sampled-20, manifest uniform ffffffffffff, 20 cases of 10 users"
    )
    assert "| popularity | 0.250 [0.250, 0.250] | 0.250 [0.250, 0.250] | 0.500 [0.500, 0.500] |" in printed
    assert main(["table"]) == 0
    assert "llm-sdpo" in capsys.readouterr().out
    assert main(["compare", ".", "models:/recalign/1", "--json"]) == 0
    (view,) = json.loads(capsys.readouterr().out)["views"]
    assert (view["view"], view["cases"], view["users"]) == ("warm", 20, 10)
    assert {pair["first"]: pair["metrics"]["mrr"]["first_is"] for pair in view["systems"]}["llm-sdpo"] == "level with"


def test_titles_of_any_script_come_through_a_pipe_that_knows_ascii_only(project):
    """As escapes, for what stands in a document is data; in a table it is spelled in ASCII."""
    code = "from recalign.common.console import prepare, print_json; prepare(); print_json({'title': 'Amélie — 千と'})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONIOENCODING": "ascii"} | _env(),
    )
    assert json.loads(done.stdout) == {"title": "Amélie — 千と"}


def _env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}


def test_a_figure_that_is_no_number_is_null(capsys):
    """NaN is no JSON."""
    from recalign.common.console import print_json

    print_json({"score": float("nan"), "bounds": (float("-inf"), 1.5)})
    assert json.loads(capsys.readouterr().out) == {"score": None, "bounds": [None, 1.5]}


@pytest.mark.parametrize("command", ["doctor", "audit --cases cases.jsonl"])
def test_json_never_writes_over_a_file_of_another_kind(project, files, command, capsys):
    """`doctor --json log.csv` reads like "the doctor's JSON on log.csv", and the log would be gone."""
    before = Path(files["log.csv"]).read_text()
    words = [files.get(word, word) for word in command.split()]
    assert main([*words, "--json", files["log.csv"]]) == 2
    assert "a file that is no .json and would be overwritten" in capsys.readouterr().err
    assert Path(files["log.csv"]).read_text() == before


def test_what_is_missing_or_wrong_is_told_with_json_too(project, tmp_path, monkeypatch, capsys):
    """One line on standard error, exit code 2, nothing on standard output."""
    assert main(["recommend", "--user", "nobody", "--json"]) == 2
    monkeypatch.chdir(tmp_path)
    assert main(["table", "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "reports/scorecard.json is missing" in told.err.splitlines()[-1]
