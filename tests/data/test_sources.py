"""Every source becomes the tables of the contract, with file and line of each row; bad files end in one line."""

import json
import shutil
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recalign.commands.simulate import simulate
from recalign.common.artifacts import read_json, verify
from recalign.common.errors import RecalignError
from recalign.params.load import parse_params
from recalign.project import Project
from recalign.stages.ingest import ingest

Rows = list[dict[str, Any]]
COLUMNS = {
    "interactions": ["user_id", "item_id", "rating", "timestamp", "position", "file", "line"],
    "items": ["item_id", "title", "attributes", "available_from", "raw_id", "file", "line"],
    "users": ["user_id", "raw_id"],
    "malformed": ["table", "row", "rule", "value", "file", "line"],
}


@pytest.fixture(autouse=True)
def _spill_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch files of a test lie in its own folder."""
    monkeypatch.chdir(tmp_path)


def ingested(tree: dict[str, Any], source: str, raw: Path, **table: Any) -> dict[str, Rows]:
    """Ingest `raw` as `source` and read the tables back."""
    tree |= {"source": source, "table": tree["table"] | table}
    ingest(parse_params(tree), Project().moved(interactions=Path("out")), raw=raw)
    verify(Path("out"))
    tables = {name: pq.read_table(f"out/{name}.parquet") for name in COLUMNS}
    assert {name: table.column_names for name, table in tables.items()} == COLUMNS
    return {name: table.to_pylist() for name, table in tables.items()}


def folder(files: dict[str, str | bytes], name: str = "raw") -> Path:
    """Write a raw folder."""
    path = Path(name)
    path.mkdir(exist_ok=True)
    for file, text in files.items():
        (path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_movielens_100k_titles_genres_and_times(tree: dict[str, Any]) -> None:
    """Latin-1, years and articles put right, genre flags read, "unknown" no genre, times in UTC."""
    flags = ["0"] * 19
    comedy, unknown = flags.copy(), flags.copy()
    comedy[5] = comedy[14] = "1"
    unknown[0] = "1"
    lines = [
        "1|Usual Suspects, The (1995)|14-Aug-1995||http://x|" + "|".join(comedy),
        "2|Double vie de Véronique, La (Double Life of Veronique, The) (1991)|01-Jan-1991||x|" + "|".join(flags),
        "3|Enfer, L' (1994)|01-Jan-1994||x|" + "|".join(flags),
        "4|unknown||||" + "|".join(unknown),
        "5|Land Before Time III (1995) (V)|01-Jan-1995||x|" + "|".join(flags),
    ]
    raw = folder({"u.data": "7\t1\t4\t881250949\n7\t4\t3\t881250950\n", "u.item": "\n".join(lines).encode("latin-1")})
    tables = ingested(tree, "movielens-100k", raw)
    assert tables["interactions"][0] == {
        "user_id": 7, "item_id": 1, "rating": 4.0, "timestamp": datetime(1997, 12, 4, 15, 55, 49), "position": None,
        "file": "u.data", "line": 1,
    }  # fmt: skip
    assert [row["title"] for row in tables["items"]] == [
        "The Usual Suspects", "La Double vie de Véronique (The Double Life of Veronique)", "L'Enfer", "unknown",
        "Land Before Time III",
    ]  # fmt: skip
    assert [dict(row["attributes"]) for row in tables["items"][:4]] == [
        {"genre": ["Comedy", "Romance"], "year": ["1995"]}, {"year": ["1991"]}, {"year": ["1994"]}, {},
    ]  # fmt: skip
    source = read_json(Path("out/source.json"))
    assert (source["source"], source["noun"], source["clock"], source["min_rating"]) == (
        "movielens-100k", "movies", True, 4.0,
    )  # fmt: skip
    assert "GroupLens" in source["terms"]
    assert sorted(source["files"]) == ["u.data", "u.item"]


def test_movielens_1m_from_its_zip_with_an_unreadable_line(tree: dict[str, Any]) -> None:
    """The archive as it comes; a short line goes to malformed with its number, later lines keep theirs."""
    raw = folder({})
    with zipfile.ZipFile(raw / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::10::5::978300760\n1::11\n2::10::x::978300761\n2::11::3::978300762\n")
        movies = '10::Amélie (2001)::Comedy|Romance\n11::B "q (1999)::Drama\n'
        archive.writestr("ml-1m/movies.dat", movies.encode("latin-1"))
    tables = ingested(tree, "movielens-1m", raw)
    assert [(r["user_id"], r["item_id"], r["line"]) for r in tables["interactions"]] == [(1, 10, 1), (2, 11, 4)]
    assert [(r["table"], r["rule"], r["line"]) for r in tables["malformed"]] == [
        ("interactions", "unparsable line", 2), ("interactions", "rating is no number", 3),
    ]  # fmt: skip
    assert json.loads(tables["malformed"][0]["row"]) == {"text": "1::11"}
    assert tables["malformed"][1]["value"] == "x"
    assert [r["title"] for r in tables["items"]] == ["Amélie", 'B "q']


def test_lastfm_is_a_set_and_its_answers_stay_closed(tree: dict[str, Any]) -> None:
    """source_order is not read, val_interactions.csv not opened, quoted titles are whole."""
    raw = folder({
        "train_interactions.csv": "user_id,item_id,source_order\n0,5,0\n0,6,1\n",
        "items.csv": 'item_id,title\n5,"Earth, Wind & Fire"\n6,M83\n',
        "val_interactions.csv": b"\xff not even text",
    })  # fmt: skip
    tables = ingested(tree, "lastfm", raw)
    assert [(r["item_id"], r["timestamp"], r["position"], r["rating"]) for r in tables["interactions"]] == [
        (5, None, None, None), (6, None, None, None),
    ]  # fmt: skip
    assert tables["items"][0]["title"] == "Earth, Wind & Fire"
    source = read_json(Path("out/source.json"))
    assert (source["noun"], source["clock"]) == ("artists", False)
    assert "val_interactions.csv" not in source["files"]


def test_simulated_brings_order_truth_and_attributes(tree: dict[str, Any], tmp_path: Path) -> None:
    """position counts a user's events; truth.parquet holds each planted taste."""
    tree["simulator"] = {"users": 100, "days": 60, "seed": 3}
    simulate(parse_params(tree), tmp_path / "raw")
    tables = ingested(tree, "simulated", tmp_path / "raw")
    first = [r for r in tables["interactions"] if r["user_id"] == 1]
    assert [r["position"] for r in first] == list(range(1, len(first) + 1))
    assert [r["line"] for r in tables["interactions"]] == list(range(2, len(tables["interactions"]) + 2))
    assert dict(tables["items"][0]["attributes"]) == {
        "genre": ["Crime", "Drama"], "director": ["Sidney Lumet"], "year": ["1957"],
    }  # fmt: skip
    truth = pq.read_table("out/truth.parquet").to_pylist()
    assert [row["user_id"] for row in truth] == [row["user_id"] for row in tables["users"]]
    assert set(json.loads(truth[0]["taste"])) >= {"genres", "directors", "decade"}


TABLE_ITEMS = "sku,name,kind\nb,Bolt,metal|small\na,Anchor,\n"


@pytest.mark.parametrize(
    ("times", "read"),
    [
        (["2024-05-01T10:00:00Z", "2024-05-01T12:00:00+02:00"], datetime(2024, 5, 1, 10)),
        (["2024-05-01 10:00", "2024-05-01 10:00:00"], datetime(2024, 5, 1, 10)),
        (["1714557600", "1714557600.0"], datetime(2024, 5, 1, 10)),
        (["1714557600000", "1714557600000"], datetime(2024, 5, 1, 10)),
        (["2024-05-01", "2024-05-01"], datetime(2024, 5, 1)),
    ],
)
def test_your_own_table_in_csv(tree: dict[str, Any], times: list[str], read: datetime) -> None:
    """Columns by their own names, text ids with numbers of their own text, any usual way to write a time."""
    log = f"who;sku;at\nzoe;b;{times[0]}\nann;a;{times[1]}\n"
    raw = folder({"log.csv": log, "things.csv": TABLE_ITEMS})
    tables = ingested(
        tree, "table", raw, interactions="log.csv", items="things.csv", user="who", item="sku", title="name",
        timestamp="at", attributes=["kind"], noun="parts",
    )  # fmt: skip
    events = [(r["user_id"], r["item_id"], r["timestamp"]) for r in tables["interactions"]]
    ann, zoe, a, b = 5797818779817140, 7265675419065215, 8067632497205691, 5596782643905429
    assert events == [(zoe, b, read), (ann, a, read)]
    assert tables["users"] == [{"user_id": ann, "raw_id": "ann"}, {"user_id": zoe, "raw_id": "zoe"}]
    assert [(r["item_id"], r["raw_id"], r["title"], dict(r["attributes"])) for r in tables["items"]] == [
        (b, "b", "Bolt", {"kind": ["metal", "small"]}), (a, "a", "Anchor", {}),
    ]  # fmt: skip


def test_your_own_table_in_parquet_without_an_items_file_or_a_clock(tree: dict[str, Any]) -> None:
    """Titles come from the interactions, the first one that is there; integer ids are kept."""
    raw = folder({})
    log = {"user_id": [9.0, 9.0, 3.0], "item_id": [20, 10, 20], "title": [None, "Ten", "Twenty"]}
    log |= {"stars": [5.0, None, 1.0]}
    pq.write_table(pa.table(log), raw / "log.parquet")
    tables = ingested(tree, "table", raw, interactions="log.parquet", items=None, timestamp=None, rating="stars")
    assert [(r["user_id"], r["item_id"], r["rating"]) for r in tables["interactions"]] == [
        (9, 20, 5.0), (9, 10, None), (3, 20, 1.0),
    ]  # fmt: skip
    assert [(r["item_id"], r["title"]) for r in tables["items"]] == [(10, "Ten"), (20, "Twenty")]
    assert read_json(Path("out/source.json"))["clock"] is False


def test_lines_keep_their_number_behind_blank_and_broken_ones(tree: dict[str, Any]) -> None:
    """file and line point at the row as an editor shows it."""
    log = "user_id,item_id,timestamp\r\n1,1,2024-01-01\r\n\r\n1,2\r\n1,3,2024-01-02\r\n1,4,soon\r\n1,5,2024-01-03\r\n"
    raw = folder({"interactions.csv": log, "items.csv": "item_id,title\n1,A\n"})
    tables = ingested(tree, "table", raw)
    assert [(r["item_id"], r["line"]) for r in tables["interactions"]] == [(1, 2), (3, 5), (5, 7)]
    assert [(r["line"], r["rule"], r["value"]) for r in tables["malformed"]] == [
        (4, "unparsable line", "Expected Number of Columns: 3 Found: 2"),
        (6, "timestamp is no ISO 8601 time", "soon"),
    ]  # fmt: skip


GOOD = {"interactions.csv": "user_id,item_id,timestamp\n1,1,2024-01-01\n", "items.csv": "item_id,title\n1,A\n"}


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("movielens-100k", {}, r"raw/u\.data is missing; get it with 'mkdir -p raw && dvc import-url .*ml-100k\.zip"),
        ("movielens-1m", {"x.zip": "no"}, r"raw/x\.zip is not a zip archive"),
        ("lastfm", {}, r"raw/train_interactions\.csv is missing; copy a folder .*'cp -r lastfm raw'"),
        ("simulated", {}, r"raw/events\.csv is missing; fetch it with 'dvc pull data/raw/films\.dvc'"),
        ("table", {}, r"raw/interactions\.csv is missing; put your file there, or name another in table\.interactions"),
        (
            "table", GOOD | {"interactions.csv": "userid,item_id,timestamp\n1,1,2\n"},
            r"interactions\.csv has no column 'user_id' \(table\.user\); did you mean 'userid'\? It has: userid",
        ),
        (
            "table", GOOD | {"items.csv": b"item_id,title\n1,caf\xe9\n"},
            r"raw/items\.csv, line 2: byte 0xe9 is not UTF-8; convert the file",
        ),
        ("table", GOOD | {"interactions.csv": ""}, r"raw/interactions\.csv is empty"),
        ("table", GOOD | {"interactions.csv": "user_id,item_id,timestamp\n"}, r"holds no row below its header"),
        (
            "table", GOOD | {"interactions.csv": "user_id,item_id,timestamp\n1,2\n3,4\n"},
            r"none of its 2 lines has 3 columns \(user_id, item_id, timestamp\)",
        ),
        (
            "table", GOOD | {"interactions.csv": "user_id,item_id,timestamp\n1,1,soon\n"},
            r"interactions\.csv: no row can be read; timestamp is no ISO 8601 time, first in line 2: 'soon'",
        ),
        (
            "table", GOOD | {"interactions.csv": "User_ID,item_id,timestamp\n1,1,2\n"},
            r"has no column 'user_id' \(table\.user\); did you mean 'User_ID'\?",
        ),
        (
            "table", GOOD | {"interactions.csv": "user_id,item_id,at,at\n1,1,2,3\n"},
            r"raw/interactions\.csv has two columns 'at'; rename one",
        ),
        ("table", GOOD | {"interactions.parquet": "PAR1 no"}, r"is not a readable Parquet file"),
    ],
)  # fmt: skip
def test_a_bad_file_ends_in_one_line_and_writes_nothing(
    tree: dict[str, Any], source: str, files: dict[str, str | bytes], message: str
) -> None:
    """The message names the file, what was found and the fix; an earlier result stays whole."""
    raw = folder(files)
    name = "interactions.parquet" if "interactions.parquet" in files else "interactions.csv"
    with pytest.raises(RecalignError, match=message) as error:
        ingested(tree, source, raw, interactions=name)
    assert "\n" not in str(error.value)
    assert not Path("out").exists()


def test_equal_files_give_equal_bytes(tree: dict[str, Any]) -> None:
    """Two runs write the same manifest, also where ids are text."""
    log = "user_id,item_id,timestamp\n" + "".join(f"u{n % 97},i{n % 31},{1700000000 + n}\n" for n in range(5000))
    raw = folder({"interactions.csv": log, "items.csv": "item_id,title\n" + "".join(f"i{n},T{n}\n" for n in range(31))})
    ingested(tree, "table", raw)
    shutil.move("out", "before")
    ingested(tree, "table", raw)
    assert read_json(Path("out/manifest.json")) == read_json(Path("before/manifest.json"))


def test_the_real_movielens_100k(tree: dict[str, Any], shared_data: Path) -> None:
    """943 users, 1,682 items, 100,000 ratings, every line read."""
    tables = ingested(tree, "movielens-100k", shared_data / "ml-100k")
    assert {name: len(rows) for name, rows in tables.items()} == {
        "interactions": 100_000, "items": 1682, "users": 943, "malformed": 0,
    }  # fmt: skip


def test_the_real_lastfm(tree: dict[str, Any], shared_data: Path) -> None:
    """976 training users, 4,606 artists, 50,800 interactions."""
    tables = ingested(tree, "lastfm", shared_data / "lastfm")
    assert {name: len(rows) for name, rows in tables.items()} == {
        "interactions": 50_800, "items": 4606, "users": 976, "malformed": 0,
    }  # fmt: skip
