"""`recalign batch`: the best items for everyone, from a log of text ids through the real chain to the file."""

import math
import random
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from project import ROOT, set_params
from pyarrow import csv
from registry_project import small_params, write_adapter, write_base

from recalign.cli import main
from recalign.commands.batch import _first_stage
from recalign.common.artifacts import folder, folder_digest
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.evaluation.systems import System, read_system, read_systems, write_systems
from recalign.llm.model.adapters import adapter_digest
from recalign.params.load import load_params
from recalign.project import ALIGN, BASE, Project
from recalign.ranking import batch as core
from recalign.ranking.fusion import FittedFusion, Part
from recalign.ranking.measured import language_model_artifacts
from recalign.ranking.reasons import REASONS, RERANKED, explainer
from recalign.recommenders.recommender import Request, top
from recalign.recommenders.roster import ROSTER, fit, load_fitted
from recalign.stages.baselines import baselines
from recalign.stages.ingest import ingest
from recalign.stages.prepare import prepare
from recalign.stages.rank import rank
from recalign.stages.validate import validate

ITEMS = 30
LATE = 30  # item B30 can be recommended from 2099 on
SYSTEMS = ("popularity", "item_knn", "ease")
COLUMNS = ["user", "rank", "item", "title", "score", "reason", "version", "made_at"]
PARAMS = {
    "source": "table", "threads": 1, "table__rating": "stars", "table__min_rating": 4, "table__attributes": ["genre"],
    "table__available_from": "since", "prepare__core": 2, "prepare__min_history": 2, "prepare__candidates": 5,
    "prepare__cases_per_user": 3, "recommenders__systems": list(SYSTEMS),
}  # fmt: skip


def write_raw(raw: Path) -> None:
    """60 users u01 … u60 who like items of even or of odd number; "cold, so far" has only disliked B01."""
    raw.mkdir(parents=True)
    rng, lines = random.Random(1), ["user_id,item_id,timestamp,stars"]
    for user in range(1, 61):
        own = [item for item in range(1, ITEMS + 1) if item % 2 == user % 2]
        times = sorted(rng.randrange(1000) for _ in range(9))
        for item, hours in zip(rng.sample(own, 9), times, strict=True):
            time = datetime(2024, 1, 1) + timedelta(hours=hours)
            lines.append(f"u{user:02},B{item:02},{time.isoformat()},{5 if rng.random() < 0.9 else 1}")
    lines.append('"cold, so far",B01,2024-01-05T00:00:00,1')
    (raw / "interactions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    items = ["item_id,title,genre,since"]
    for item in range(1, ITEMS + 1):
        genre = "Drama" if item <= 10 else "Comedy|Drama" if item <= 12 else "Comedy"
        since = "2099-01-01" if item == LATE else "2023-01-01"
        items.append(f"B{item:02},Film {item},{genre},{since}")
    (raw / "items.csv").write_text("\n".join(items) + "\n", encoding="utf-8")


def write_fusion(project: Project, knn: float = 0.75) -> None:
    """fusion.json, as stage fuse would leave it."""
    parts = {name: Part(weight=weight, digest=folder_digest(project.baselines / name))
             for name, weight in (("item_knn", knn), ("ease", 0.25 if knn else 0.0))}  # fmt: skip
    language_model = {"llm-sdpo": Part(weight=1.0, digest="0")}
    FittedFusion(
        parts=parts | language_model, language_model="llm-sdpo", manifest="uniform", manifest_digest="", cases=1,
        recommender_cases=1,
    ).write(project.ranks)  # fmt: skip


def write_weights(project: Project, known: dict[str, float], new: dict[str, float]) -> None:
    """fusion.json of item-kNN, EASE and a language model with weights of their own for new items."""
    parts = {
        name: Part(
            weight=known.get(name, 0.0), new_weight=new.get(name, 0.0),
            digest="0" if name == "llm-sdpo" else folder_digest(project.baselines / name),
        )
        for name in ("item_knn", "ease", "llm-sdpo")
    }  # fmt: skip
    FittedFusion(
        parts=parts, language_model="llm-sdpo", manifest="uniform", manifest_digest="", cases=1, recommender_cases=1,
        cold_events=1,
    ).write(project.ranks)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose log went through ingest, validate, prepare, baselines and rank."""
    root = tmp_path_factory.mktemp("batch")
    write_raw(root / "data/raw/table")
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    set_params(root, **PARAMS)
    project = Project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        params = load_params()
        ingest(params)
        validate(params)
        prepare(params)
        for name in SYSTEMS:
            baselines(params, name)
            rank(params, name)
        found = {name: read_system(project.scores / name / "system.json") for name in SYSTEMS}
        write_systems(project.ranks / "systems.json", found)
        write_fusion(project)
    return root


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Project:
    """The project, worked in; what a test writes goes to `tmp_path`."""
    monkeypatch.chdir(made)
    return Project(made)


def batch(tmp_path: Path, *options: str, out: str = "top.parquet") -> pa.Table:
    """The file that the command writes."""
    assert main(["batch", "--out", str(tmp_path / out), *options]) == 0
    return pq.read_table(tmp_path / out) if out.endswith("parquet") else csv.read_csv(tmp_path / out)


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line that the command says when it ends with 2."""
    assert main(["batch", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def file(tmp_path: Path, *lines: str) -> str:
    (tmp_path / "ids.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(tmp_path / "ids.txt")


def lists_of(table: pa.Table) -> dict[str, list[str]]:
    """The listed items of each user, best first."""
    found: dict[str, list[str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["user"], []).append(row["item"])
        assert row["rank"] == len(found[row["user"]])
    return found


def met_by(made: Path) -> dict[str, set[str]]:
    """What each user has met, liked or not, by the raw file."""
    rows = csv.read_csv(made / "data/raw/table/interactions.csv").to_pylist()
    return {user: {r["item_id"] for r in rows if r["user_id"] == user} for user in {r["user_id"] for r in rows}}


def test_everybody_gets_the_best_items_that_are_new_to_them_by_their_own_ids(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = batch(tmp_path, "--k", "3")
    assert table.column_names == COLUMNS
    lists, met = lists_of(table), met_by(project.root)
    assert sorted(lists) == sorted(["cold, so far", *(f"u{user:02}" for user in range(1, 61))])
    assert all(len(items) == 3 and not met[user] & set(items) for user, items in lists.items())
    likes_even = [user for user in lists if user[0] == "u" and int(user[1:]) % 2 == 0]
    assert {int(item[1:]) % 2 for user in likes_even for item in lists[user]} == {0}
    assert "B30" not in {item for items in lists.values() for item in items}  # can be recommended from 2099 on
    assert set(table["version"].to_pylist()) == {f"ease@{folder_digest(project.baselines / 'ease')[:12]}"}
    assert len(set(table["made_at"].to_pylist())) == 1
    assert capsys.readouterr().out.splitlines() == [
        "Ranked by ease, the best ID recommender on validation (NDCG@10 0.837): 61 users, 29 of 30 items",
        "Without a like that the system knows, so with the popular items: 1 user",
        f"183 rows for 61 users -> {tmp_path / 'top.parquet'}",
    ]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_lists_are_those_of_the_recommender_itself(project: Project, tmp_path: Path, system: str) -> None:
    """Sorted one by one, without blocks."""
    table = batch(tmp_path, "--k", "5", "--system", system)
    catalogue = Items.read(project.prepared)
    users, items = RawIds.of_users(project.interactions), RawIds.of_items(project.interactions)
    model, met = load_fitted(system, project.baselines / system, catalogue), met_by(project.root)
    events = pq.read_table(project.prepared / "events.parquet")
    for user in ("u01", "u02", "u33"):
        own = events.filter(pc.equal(events["user_id"], users.number(user)))
        history = tuple(own.sort_by("position")["item_id"].to_pylist())
        (best,) = top(model, catalogue, [Request(None, history)], 30)
        expected = [items.shown(scored.item_id) for scored in best]
        expected = [item for item in expected if item not in met[user] and item != "B30"][:5]
        assert lists_of(table)[user] == expected


def test_any_number_of_shards_gives_the_same_rows(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of any size; every user is in one shard."""
    rows = {}
    for count, people, cells in ((1, 8192, 2**22), (2, 7, 90), (7, 3, 1)):
        monkeypatch.setattr(core, "PEOPLE", people)
        monkeypatch.setattr(core, "CELLS", cells)
        tables = [batch(tmp_path, "--system", "fusion", "--shard", f"{n}/{count}") for n in range(1, count + 1)]
        owners = [set(table["user"].to_pylist()) for table in tables]
        assert sum(map(len, owners)) == 61 == len(set().union(*owners))
        whole = pa.concat_tables(tables).drop(["made_at"]).sort_by([("user", "ascending"), ("rank", "ascending")])
        rows[count] = whole.to_pylist()
    assert rows[1] == rows[2] == rows[7]


@pytest.fixture
def reranker(project: Project) -> Project:
    """The project with a small random language model, whose adapter is its own best."""
    if not (project.root / ALIGN / "sdpo").is_dir():
        params = small_params()
        write_base(params, project.root)
        write_adapter(params, project.root, project.root / ALIGN / "sdpo", seed=2)
        artifacts = language_model_artifacts(project.root / BASE, project.root / ALIGN / "sdpo")
        own = System(kind="llm", ranked_by="logprob", validation={"ndcg_at_10": 0.3}, artifacts=artifacts)
        table = project.ranks / "systems.json"
        write_systems(table, read_systems(table) | {"llm-sdpo": own})
    return project


def test_the_language_model_orders_the_first_stages_best_for_whom_it_is_asked(
    reranker: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It adds nothing to them; everybody else gets the first stage's list; the estimate is said before it ranks."""
    few = tmp_path / "few.txt"
    few.write_text("u01\nu02\nu33\n", encoding="utf-8")
    depth = 8
    options = ["--rerank-users", str(few), "--rerank-depth", str(depth)]
    before, deep = batch(tmp_path, "--k", "3"), lists_of(batch(tmp_path, "--k", str(depth)))
    capsys.readouterr()
    after = batch(tmp_path, "--k", "3", *options)
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith(f"Estimate of reranking with llm-sdpo: 3 people, {depth} titles each")
    assert told[-1].startswith("183 rows for 61 users")
    rows = after.drop(["made_at"]).to_pylist()
    first = [row for row in before.drop(["made_at"]).to_pylist() if row["user"] not in ("u01", "u02", "u33")]
    assert [row for row in rows if row["user"] not in ("u01", "u02", "u33")] == first
    again = [row for row in rows if row["user"] in ("u01", "u02", "u33")]
    assert len(again) == 9
    version = f"data/models/align/sdpo@{adapter_digest(reranker.root / ALIGN / 'sdpo')[:12]}"
    assert {(row["reason"], row["version"]) for row in again} == {(RERANKED, version)}
    for user in ("u01", "u02", "u33"):
        own = [row for row in again if row["user"] == user]
        assert {row["item"] for row in own} <= set(deep[user])
        assert [row["score"] for row in own] == sorted((row["score"] for row in own), reverse=True)
    assert any(lists_of(after)[user] != lists_of(before)[user] for user in ("u01", "u02", "u33"))


def test_any_number_of_shards_gives_the_same_reranked_rows(reranker: Project, tmp_path: Path) -> None:
    """Scores within what fp32 rounds by: who shares a forward pass differs."""
    few = tmp_path / "few.txt"
    few.write_text("u01\nu02\nu33\nu34\n", encoding="utf-8")
    options, rows, scores = ["--k", "3", "--rerank-users", str(few), "--rerank-depth", "8"], {}, {}
    for count in (1, 2, 7):
        tables = [batch(tmp_path, *options, "--shard", f"{n}/{count}") for n in range(1, count + 1)]
        whole = pa.concat_tables(tables).drop(["made_at"]).sort_by([("user", "ascending"), ("rank", "ascending")])
        rows[count], scores[count] = whole.drop(["score"]).to_pylist(), whole["score"].to_pylist()
    assert rows[1] == rows[2] == rows[7]
    assert scores[2] == pytest.approx(scores[1], abs=1e-4)
    assert scores[7] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize(
    ("known", "new", "said"),
    [
        ({"item_knn": 3.0, "llm-sdpo": 1.0}, {"ease": 0.5}, "1.00 item_knn; new items: 1.00 ease"),
        ({"item_knn": 3.0, "ease": 1.0}, {"llm-sdpo": 1.0}, "0.75 item_knn + 0.25 ease; new items: read by none of it"),
    ],
)
def test_what_ranks_new_items_is_told_beside_what_ranks_known_ones(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], known, new, said
) -> None:
    copy_of = shutil.copytree(project.root, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy_of)
        write_weights(Project(), known, new)
        batch(tmp_path, "--system", "fusion", "--users", file(tmp_path, "u01"))
    assert capsys.readouterr().out.startswith(f"Ranked by the fusion's ID part ({said}): 1 user")


@pytest.mark.parametrize("known", [{"llm-sdpo": 1.0}, {}])
def test_a_fusion_that_weighs_no_id_recommender_among_known_items_is_refused(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], known
) -> None:
    """Otherwise all known items would tie, and be listed by id."""
    copy_of = shutil.copytree(project.root, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy_of)
        write_weights(Project(), known, {"ease": 1.0})
        assert "whose ID recommenders have no weight among known items" in refused(capsys, "--system", "fusion")


def test_a_shard_has_a_file_of_its_own(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "--shard", "2/7"]) == 0
    assert capsys.readouterr().out.endswith("users -> data/batch/top-2-of-7.parquet\n")
    assert main(["batch"]) == 0
    assert sorted(path.name for path in Path("data/batch").iterdir()) == ["top-2-of-7.parquet", "top.parquet"]
    shutil.rmtree("data/batch")


def test_whoever_likes_nothing_known_gets_the_popular_items(project: Project, tmp_path: Path) -> None:
    """ "cold, so far" has met B01 and disliked it; B27 has 20 train events, B19 18, B02 and B11 16."""
    table = batch(tmp_path, "--k", "3", "--users", file(tmp_path, "cold, so far"))
    found = [(row["item"], row["score"], row["reason"]) for row in table.to_pylist()]
    why = "popular; nothing is known of this person's taste"
    assert found == [("B27", 20.0, why), ("B19", 18.0, why), ("B02", 16.0, why)]


def test_csv_holds_the_same_rows_as_parquet(project: Project, tmp_path: Path) -> None:
    users = file(tmp_path, "u01", "cold, so far", "u01", "", "u02")
    first, second = batch(tmp_path, "--users", users), batch(tmp_path, "--users", users, out="top.csv")
    assert set(first["user"].to_pylist()) == {"u01", "u02", "cold, so far"}
    assert first.drop(["made_at"]).to_pylist() == second.drop(["made_at"]).to_pylist()


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--where", "genre=drama"], range(1, 13)),
        (["--where", "genre=Drama", "--not-where", "genre=Comedy"], range(1, 11)),
        (["--where", "genre=Drama", "--where", "genre=Comedy"], range(1, 30)),
        (["--allow", "1 2 30"], [1, 2]),
        (["--deny", "1 2"], range(3, 30)),
        (["--allow", "1 11 12 13", "--where", "genre=Drama"], [1, 11, 12]),
    ],
)
def test_filters_take_items_out_and_reorder_nothing(
    project: Project, tmp_path: Path, options: list[str], left: range | list[int]
) -> None:
    for place, option in enumerate(options):
        if option in ("--allow", "--deny"):
            ids = [f"B{int(number):02}" for number in options[place + 1].split()]
            options = [*options[: place + 1], file(tmp_path, *ids), *options[place + 2 :]]
    allowed = {f"B{number:02}" for number in left}
    for system in ("item_knn", "fusion"):
        whole = lists_of(batch(tmp_path, "--k", "30", "--system", system))
        found = lists_of(batch(tmp_path, "--k", "30", "--system", system, *options))
        expected = {user: [item for item in items if item in allowed] for user, items in whole.items()}
        assert found == {user: items for user, items in expected.items() if items}


def test_a_reason_names_the_likes_that_add_most_to_the_score(project: Project, tmp_path: Path) -> None:
    """Taking a named item out of the history costs more of the score than taking any other."""
    catalogue = Items.read(project.prepared)
    for name in ("item_knn", "ease"):
        model = load_fitted(name, project.baselines / name, catalogue)
        history = tuple(item for item in catalogue.ids if catalogue.titles[item] in {f"Film {n}" for n in (2, 4, 6, 8)})
        listed = [item for item in catalogue.ids if catalogue.titles[item] in ("Film 10", "Film 12")]
        (reasons,) = explainer(model, catalogue)([history], [listed])
        for item, reason in zip(listed, reasons, strict=True):
            terms = {like: float(model.scores([Request(None, (like,))], [[item]])) for like in history}
            recency = getattr(getattr(model, "recommender", model).settings, "recency", None)
            if recency:
                terms = {like: terms[like] * math.exp(-back / recency) for back, like in enumerate(reversed(history))}
            first, second = sorted(history, key=lambda like: -terms[like])[:2]
            assert reason == f"because of {catalogue.titles[first]} and {catalogue.titles[second]}"


@pytest.mark.parametrize("text", ["none", "delta"])
def test_whose_likes_are_of_new_items_is_known_to_what_reads_their_text(
    project: Project, tmp_path: Path, text: str
) -> None:
    """SASRec that reads text was fitted on the whole catalogue, and ranks by a like that train does not know."""
    whole, events = Items.read(project.prepared), pq.read_table(project.prepared / "events.parquet")
    new = whole.ids[0]
    catalogue = replace(whole, popularity=whole.popularity | {new: 0})
    params = load_params()
    quick = params.recommenders.next_item.model_copy(
        update={"text": text, "text_encoder": "attributes", "dimension": 8, "epochs": 1}
    )
    params = params.model_copy(update={"recommenders": params.recommenders.model_copy(update={"next_item": quick})})
    train = events.filter(pc.and_(pc.equal(events["split"], "train"), pc.not_equal(events["item_id"], new)))
    elsewhere = Project(tmp_path)
    with folder(elsewhere.baselines / "sasrec") as partial:
        fit("sasrec", catalogue, train, True, params)[0].save(partial)
    stage, _ = _first_stage("sasrec", elsewhere, catalogue)
    assert (new in stage.knows) == (text == "delta")
    assert stage.knows >= set(whole.ids[1:])


def test_where_no_like_speaks_for_an_item_the_reason_says_so(project: Project, tmp_path: Path) -> None:
    """Nobody likes even and odd films, so an odd one is on the list of u02 for its popularity alone."""
    table = batch(tmp_path, "--k", "30", "--system", "item_knn", "--users", file(tmp_path, "u02"))
    reasons = {int(row["item"][1:]) % 2: set() for row in table.to_pylist()}
    for row in table.to_pylist():
        reasons[int(row["item"][1:]) % 2].add(row["reason"])
    assert reasons[1] == {"popular; nothing that this person liked points to it"}
    assert all(reason.startswith("because of Film ") for reason in reasons[0])


def test_every_recommender_of_the_roster_has_its_reason() -> None:
    assert set(REASONS) == {*ROSTER, "fusion"}


def test_whoever_has_met_nearly_everything_gets_a_shorter_list_and_that_is_said(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = batch(tmp_path, "--k", "30", "--users", file(tmp_path, "u01", "cold, so far"))
    assert {user: len(items) for user, items in lists_of(table).items()} == {"u01": 20, "cold, so far": 28}
    assert "With fewer than 30 items, since they have met all others: 2 users" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--k", "0"], "--k is 0; 1 or more is allowed"),
        (["--k", "31"], "--k is 31; the catalogue has 30 items, which is the most allowed"),
        (["--shard", "3/2"], "--shard is '3/2'; I/N is needed, with I from 1 to N: 1/7, 2/7, … 7/7 are all of seven"),
        (["--shard", "0/2"], "--shard is '0/2'; I/N is needed"),
        (["--shard", "half"], "--shard is 'half'; I/N is needed"),
        (["--system", "itemknn"], "(did you mean item_knn?); a language model ranks for --rerank-users alone"),
        (["--system", "llm-sdpo"], "a language model ranks for --rerank-users alone"),
        (["--system", "sasrec"], "--system is sasrec, which is not fitted in this project"),
        (["--out", "top.xlsx"], "--out is top.xlsx; a name that ends in .parquet or .csv is needed"),
        (["--out", "params.yaml/top.csv"], "--out is params.yaml/top.csv, which cannot be written"),
        (["--out", "data.csv"], "--out is data.csv, which is a folder; name a file in it"),
        (["--where", "genre"], "--where is 'genre'; ATTRIBUTE=VALUE is needed, such as genre=Drama"),
        (["--where", "gener=Drama"], "no item has the attribute 'gener'; it has genre (did you mean genre?)"),
        (["--not-where", "genre=Dramma"], "no item has that value (did you mean Drama?)"),
        (["--not-where", "genre=Drama", "--not-where", "genre=Comedy"], "leave none of 30 items to recommend"),
        (["--users", "none.txt"], "--users is none.txt, which cannot be read (No such file or directory)"),
        (["--users", "empty.txt"], "--users is empty.txt, which holds no id; write one id a line"),
        (["--deny", "latin.txt"], "--deny is latin.txt, which is no text in UTF-8"),
        (["--adapter", "data/models/sft"], "--adapter names what reranks, and needs --rerank-users"),
        (["--rerank-users", "empty.txt", "--rerank-depth", "3"], "--rerank-depth is 3; --k (20) or more is allowed"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line_and_leaves_no_file(
    project: Project, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("data.csv").mkdir(exist_ok=True)
    before = sorted(Path().rglob("*"))
    assert said in refused(capsys, *options)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--users", "names 2 users of 3 who are not among the 61 users of the log, the first 'user_id'"),
        ("--rerank-users", "names 2 users of 3 who are not among the 61 users asked for, the first 'user_id'"),
        ("--allow", "names 3 items that the catalogue does not hold, the first 'user_id'"),
        ("--deny", "names 3 items that the catalogue does not hold, the first 'user_id'"),
    ],
)
def test_unknown_ids_are_counted_and_the_first_is_named(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    """A line of names is no id either."""
    line = refused(capsys, option, file(tmp_path, "user_id", "u01", "4503599627370497"))
    assert said in line


def test_without_prepared_data_the_command_says_what_to_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(made / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert refused(capsys).endswith("data/prepared/items.parquet is missing; run 'dvc repro' to make it")


def test_without_ranks_the_best_system_is_not_guessed(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of = shutil.copytree(project.root, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy_of)
        shutil.rmtree("data/ranks")
        assert "so the best ID recommender is not known; name one with --system" in refused(capsys)
        assert "data/ranks/fusion.json is missing" in refused(capsys, "--system", "fusion")


def test_a_recommender_that_was_fitted_again_is_no_longer_the_best_on_validation(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of = shutil.copytree(project.root, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy_of)
        shutil.rmtree("data/baselines/ease")
        shutil.copytree("data/baselines/item_knn", "data/baselines/ease")
        assert "the ranks of ease were made by" in refused(capsys)
        assert "the ranks of fusion were made by" in refused(capsys, "--system", "fusion")
        write_fusion(Project(), knn=0.0)
        assert "whose ID recommenders have no weight" in refused(capsys, "--system", "fusion")
