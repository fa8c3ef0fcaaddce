"""Whatever a person's file is, every line of it is read, set aside or refused, and an id has one number for ever."""

import bz2
import codecs
import gzip
import io
import json
import logging
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recalign.common.errors import RecalignError
from recalign.data import ids
from recalign.data.database import database
from recalign.data.sources import reading
from recalign.data.sources.files import drawn_in
from recalign.doctor.own_table import by_name, describe
from recalign.params.load import parse_params
from recalign.project import Project
from recalign.stages.ingest import ingest

Rows = list[dict[str, Any]]
FORMATS = ("csv", "tsv", "jsonl", "parquet")
ANN, ZOE = 5797818779817140, 7265675419065215  # 2^52 and 52 bits of the sha256 of "ann" and "zoe"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raw").mkdir()


@pytest.fixture
def read(tree: dict[str, Any]) -> Callable[..., dict[str, Rows]]:
    """Ingest raw/<log> without an items file, user and item its first columns, and read the tables back."""

    def ingested(log: str, **table: Any) -> dict[str, Rows]:
        usual = {"interactions": log, "items": None, "title": "item_id", "timestamp": None}
        params = tree | {"source": "table", "threads": 1, "table": tree["table"] | usual | table}
        ingest(parse_params(params), Project().moved(interactions=Path("out")), raw=Path("raw"))
        names = ("interactions", "items", "users", "malformed")
        return {name: pq.read_table(f"out/{name}.parquet").to_pylist() for name in names}

    return ingested


def written(form: str, columns: dict[str, list[Any]]) -> str:
    """Write raw/log.<form>; text columns stay text in every format."""
    path = Path(f"raw/log.{form}")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if form == "parquet":
        pq.write_table(pa.table(columns), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        mark = "," if form == "csv" else "\t"
        lines = [mark.join(columns), *(mark.join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name


@pytest.mark.parametrize("form", FORMATS)
def test_floats_markers_and_text_among_integers_leave_every_other_id_alone(read, form, caplog):
    """12.0 is 12; a marker is missing; one text id has a number of its own, and says so."""
    caplog.set_level(logging.INFO)
    users = ["12.0", "7", "\\N", "NULL", "NaN", "ann", "18446744073709551615", "7"]
    tables = read(written(form, {"user_id": users, "item_id": [str(n) for n in range(8)]}))
    found = [row["user_id"] for row in tables["interactions"]]
    assert found == [12, 7, None, None, None, ANN, 5292715619497180, 7]
    raw = {row["user_id"]: row["raw_id"] for row in tables["users"]}
    assert raw == {7: "7", 12: "12", ANN: "ann", 5292715619497180: "18446744073709551615"}
    assert "users: 2 of 4 ids are no integers below 2^52" in caplog.text


@pytest.mark.parametrize("form", FORMATS)
def test_no_number_moves_when_an_item_is_added(read, form):
    """The numbers of a log of text ids are those of the log with one more item, first in order."""
    before = read(written(form, {"user_id": ["ann", "zoe"], "item_id": ["b", "c"]}))
    after = read(written(form, {"user_id": ["ann", "zoe", "zoe"], "item_id": ["b", "c", "a"]}))
    numbers = {row["raw_id"]: row["item_id"] for row in after["items"]}
    assert {row["raw_id"]: row["item_id"] for row in before["items"]} == {raw: numbers[raw] for raw in ("b", "c")}
    assert [row["user_id"] for row in after["interactions"]] == [ANN, ZOE, ZOE]
    assert all(2**52 <= number < 2**53 for number in numbers.values())


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_ids_whose_last_digits_a_float_lost_are_set_aside(read, form):
    """1.2e+17 and floats beyond 2^53 stand for many ids."""
    tables = read(written(form, {"user_id": ["1", "1.2345e+17", "76000000000000008.0"], "item_id": ["1", "2", "3"]}))
    assert [row["user_id"] for row in tables["interactions"]] == [1]
    assert {row["rule"] for row in tables["malformed"]} == {"user_id is a number whose last digits are lost"}


CELLS = (
    "17", "17.0", "17.", "-3.00", "-0.0", "007", "007.0", "1.50", " 12\u200b", "\ufeff9", "\u00a0", "", "NULL", " NaN ",
    "None", "A+1", "1.2e+17", "1e+5", "1e5", "9007199254740992.0", "9007199254740993.0", "9" * 60 + ".0", "x.0", "-",
    "#N/A", "nil", "a|b", " a | |\u3000b\u2003|", "a|NaN", "\ta |b\t", "|", "a\u200b|b",
)  # fmt: skip


def sql(expression: str) -> list[Any]:
    """What an expression makes of each of CELLS."""
    connection = duckdb.connect()
    connection.register("cells", pa.table({"n": range(len(CELLS)), "cell": list(CELLS)}))
    return [value for (value,) in connection.table("cells").order("n").project(expression).fetchall()]


def test_python_reads_a_cell_as_ingest_does_in_sql():
    """Of the id, the title and the attributes of an item."""
    text = sql(ids.unmarked(reading.filled("cell")))
    lost = [own is not None and value is None for own, value in zip(text, sql_ids(), strict=True)]
    found = [ids.read_id(cell) for cell in CELLS]
    assert [own is None for own in found] == lost
    assert [own or None for own in found] == sql_ids()
    assert [ids.read_text(cell, ids.TITLE_MARKERS) or None for cell in CELLS] == sql(reading.title_text("cell"))
    told = sql(reading.attributes({"a": reading.title_text("cell")}))
    assert [{"a": own} if (own := ids.read_values(cell)) else {} for cell in CELLS] == told


def sql_ids() -> list[Any]:
    parsed = reading.any_id("cell")
    return sql(parsed.value.replace("{text}", f"({ids.unmarked(parsed.text, parsed.missing)})"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            pa.array([{"id": 1}, {"id": 2}]),
            r"'user_id' \(table\.user\) has the type STRUCT\(id BIGINT\), which is no id",
        ),
        (pa.array([[1], [2]]), r"'user_id' \(table\.user\) has the type BIGINT\[\], which is no id"),
        (pa.array([b"1", b"2"]), r"'user_id' \(table\.user\) has the type BLOB, which is no id"),
        (pa.array([True, False]), r"has the type BOOLEAN, which is no id"),
        (pa.array([7.6e16, 1.0]), r"holds ids as floats \(DOUBLE\) up to 76000000000000000, beyond 9007199254740992"),
        (pa.array([3e7, 1.0], pa.float32()), r"holds ids as floats \(FLOAT\) up to 30000000, beyond 16777216"),
    ],
)
def test_what_cannot_be_an_id_in_parquet_is_refused_by_its_type(read, values, said):
    pq.write_table(pa.table({"user_id": values, "item_id": [1, 2]}), "raw/log.parquet")
    with pytest.raises(RecalignError, match=said):
        read("log.parquet")


@pytest.mark.parametrize("value", [{"id": 1}, [1], True])
def test_what_cannot_be_an_id_in_json_is_refused_with_its_row(read, value):
    Path("raw/log.jsonl").write_text(
        '{"user_id": 1, "item_id": 1}\n' + json.dumps({"user_id": value, "item_id": 1}) + "\n"
    )
    with pytest.raises(
        RecalignError, match=r"log\.jsonl, row 2: 'user_id' \(table\.user\) is (object|array|boolean), which"
    ):
        read("log.jsonl")


def test_two_texts_of_one_hash_get_two_numbers(tmp_path, monkeypatch):
    """With numbers of 4 bits, 12 texts collide; all numbers differ, and come again."""
    monkeypatch.setattr(ids, "DIGITS", 1)
    found = []
    for _ in range(2):
        with database(tmp_path / "spill", "200MB", 1) as connection:
            assert ids.number_ids(connection, "items", "select 'item ' || i as raw_id from range(12) t(i)")
            found.append(connection.execute("select number, raw_id from items_ids order by raw_id").fetchall())
    assert found[0] == found[1]
    assert len({number for number, _ in found[0]}) == 12


def stray(mark: str, *, quoted: bool, rows: int = 400) -> str:
    """A log without quotes (or with some that are needed) and two titles that begin with one."""
    lines = [mark.join(("user_id", "item_id", "title"))]
    for n in range(rows):
        title = '"Heroes' if n in (20, 350) else (f'"Earth{mark} Wind"' if quoted and n % 5 == 0 else f"Title {n % 7}")
        lines.append(mark.join((str(n % 30), str(n % 7), title)))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_quotes_that_nobody_closes_cost_no_row(read, mark, caplog):
    """Where no value needs quotes they are characters like others."""
    Path("raw/log.txt").write_text(stray(mark, quoted=False))
    tables = read("log.txt", title="title")
    assert len(tables["interactions"]) == 400
    assert tables["malformed"] == []
    assert 'its values are not in quotes, so a " in it is read as it is written' in caplog.text


@pytest.mark.parametrize("mark", [",", "\t"])
def test_an_open_quote_among_needed_ones_stops_with_its_line(read, mark):
    """Rows and unreadable lines are counted against the file's lines."""
    Path("raw/log.txt").write_text(stray(mark, quoted=True))
    with pytest.raises(
        RecalignError,
        match=r"log\.txt: \d+ rows and \d+ unreadable ones are fewer than its 400 lines, for a "
        r"quotation mark in line 22 is not closed there",
    ):
        read("log.txt", title="title")


def test_a_quote_that_another_line_closes_by_chance_is_found(read):
    """A value of many lines that are rows themselves is no value."""
    lines = [f'{n},{n % 7},"T, {n}"' for n in range(60)]
    lines[10], lines[30] = '10,3,"Heroes', '30,2,Heroes"'
    lines[11:30] = [f"{n},{n % 7},T" for n in range(11, 30)]
    Path("raw/log.csv").write_text("user_id,item_id,title\n" + "\n".join(lines) + "\n")
    with pytest.raises(
        RecalignError, match=r"are fewer than its 60 lines, for a quotation mark in line 12 is not closed"
    ):
        read("log.csv", title="title")


def test_text_of_several_lines_in_quotes_stays_one_value(read):
    """Reviews hold line breaks, blank lines and commas, and swallow nothing."""
    review = '"Good, and so on\n\nI liked it, really, and more\nthan once"'
    Path("raw/log.csv").write_text("user_id,item_id,title\n" + "".join(f"{n},{n},{review}\n" for n in range(40)))
    tables = read("log.csv", title="title")
    assert len(tables["interactions"]) == 40
    assert drawn_in(["7", "8", "Good, and so on\n\nI liked it, really\nthan once"], ",") == 0
    assert drawn_in(["7", "8", "Heroes\n9,1,x\n10,2,y"], ",") == 2


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "mixed"])
def test_every_way_to_end_a_line_is_read(read, ends):
    lines = ["user_id,item_id", "1,2", "3,4", "5,6"]
    text = "1,2".join(["user_id,item_id\r\n", "\n3,4\r\n5,6\n"]) if ends == "mixed" else ends.join(lines) + ends
    Path("raw/log.csv").write_bytes(text.encode())
    assert [row["user_id"] for row in read("log.csv")["interactions"]] == [1, 3, 5]


def test_backslashes_before_quotes_are_read(read):
    """As in the dump of Book-Crossing."""
    lines = [
        '"user_id";"item_id";"title"',
        *(f'"{n}";"{n}";"A; B"' for n in range(9)),
        '"9";"9";"The \\"Blue\\"; River"',
    ]
    Path("raw/log.csv").write_text("\n".join(lines) + "\n")
    tables = read("log.csv", title="title")
    assert [row["title"] for row in tables["items"]][-1] == 'The "Blue"; River'
    assert tables["malformed"] == []


def test_an_unreadable_line_is_kept_whole(read):
    """Also where it is longer than the 10,000 bytes that DuckDB keeps."""
    long = "x" * 30_000
    Path("raw/log.csv").write_text(f"user_id,item_id\n1,2\n3,4,{long}\n5,6\n")
    [row] = read("log.csv")["malformed"]
    assert json.loads(row["row"]) == {"text": f"3,4,{long}"}
    assert row["line"] == 3


def test_lines_of_a_json_file_that_are_no_objects_are_counted(read):
    Path("raw/log.jsonl").write_text('{"user_id": 1, "item_id": 2}\n\nnot json\n[1]\n{"item_id": 3, "user_id": 4}\n')
    tables = read("log.jsonl")
    assert [(row["user_id"], row["line"]) for row in tables["interactions"]] == [(1, 1), (4, 5)]
    assert [(row["value"], row["line"]) for row in tables["malformed"]] == [
        ("no JSON object", 3),
        ("no JSON object", 4),
    ]


def test_header_lines_of_joined_files_are_no_users(read):
    Path("raw/log.csv").write_text("user_id,item_id\n1,2\nuser_id,item_id\n3,4\n")
    tables = read("log.csv")
    assert [row["user_id"] for row in tables["interactions"]] == [1, 3]
    assert [(row["value"], row["line"]) for row in tables["malformed"]] == [("the header once more", 3)]


CSV = b"user_id,item_id,title\n1,2,Caf\xc3\xa9\n3,4,Bar\n"


def zipped(*names: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in names:
            archive.writestr(name, CSV)
    return sink.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(CSV, mtime=0), bz2.compress(CSV), zipped("log.csv"), zipped("log.csv", "__MACOSX/._log.csv"),
        b"\xef\xbb\xbf" + CSV,
        CSV.decode().replace(",", "\t").encode("utf-16"), codecs.BOM_UTF16_BE + CSV.decode().encode("utf-16-be"),
        CSV.decode().encode("utf-16-le"), gzip.compress(CSV.decode().encode("utf-16"), mtime=0),
        b'[{"user_id": 1, "item_id": 2, "title": "Caf\xc3\xa9"},\n {"user_id": 3, "item_id": 4, "title": "Bar"}]',
        b'{"user_id": 1,\n "item_id": 2, "title": "Caf\xc3\xa9"}\n{"user_id": 3,\n "item_id": 4, "title": "Bar"}\n',
    ],
)  # fmt: skip
def test_a_file_is_what_its_bytes_are_whatever_its_name(read, content):
    name = "l[o]g*.parquet"
    (Path("raw") / name).write_bytes(content)
    Path("raw/log.parquet").write_text("another file, which the name as a pattern would find")
    tables = read(name, title="title")
    assert [(row["user_id"], row["item_id"]) for row in tables["interactions"]] == [(1, 2), (3, 4)]
    assert [row["title"] for row in tables["items"]] == ["Café", "Bar"]
    assert tables["interactions"][0]["file"] == name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not the file itself; fetch it"),  # noqa: E501
        (b"outs:\n- md5: 0\n", "is a DVC pointer"),
        (zipped("a.csv", "b.csv"), r"is a zip of 2 files \(a\.csv, b\.csv\); unpack it"),
        (zipped("xl/workbook.xml"), "is an Excel workbook; save the sheet as 'CSV UTF-8'"),
        (gzip.compress(CSV, mtime=0)[:-9], "cannot be unpacked as gzip .* fetch it again"),
        (b"<!DOCTYPE html><html>", "is a web page or XML, not a table"),
        (b"SQLite format 3\0", "is an SQLite database; export its table"),
        (b"\x80\x04\x95", "is a Python pickle"),
        (b"{'user_id': 1, 'item_id': 2}\n", "holds Python's .* which is no JSON; convert it: python -c"),
        (b"user_id,item_id\n1,\x00\n", r"is no text \(byte 18 is zero\)"),
        ("user_id,item_id\n1,Привет мир\n".encode("cp1251"), "convert the file from the encoding it was written in"),
        ("user_id,item_id\n1,“caf鬔\n".encode("cp1252", "ignore"), "iconv -f cp1252 -t utf-8 log.csv"),
        ("user_id,item_id\n1,é\n".encode() + b"2,\xe9\n", "but the text before it is; correct that line"),
        (b"sep=;\nuser_id;item_id\n", "begins with Excel's line 'sep=;'; remove that line"),
        (b"Item_ID,item_id,user_id\n1,2,3\n", "columns 'Item_ID' and 'item_id', which differ in case alone"),
        (b"1,20,5,881250949\n2,21,5,881250950\n", r"its first line \(1, 20, 5, 881250949\) is data, .* table\.columns"),
        (b"1::20::5\n2::21::5\n", r"its first line \(1, 20, 5\) is data"),
        (b"user_id,item_id\n", "holds no row below its header"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_called_by_its_own_name(read, content, said):
    Path("raw/log.csv").write_bytes(content)
    with pytest.raises(RecalignError, match=said) as error:
        read("log.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("parts", r"raw/parts is a folder \(a\.csv\); join its files"),
        ("../log.csv", r"table\.interactions is \.\./log\.csv, outside of raw"),
        ("link.csv", r"raw/link\.csv is a link to gone\.csv, which is not there"),
        ("Log.csv", r"raw/Log\.csv is missing; .*\('log\.csv' is there\)"),
        ("big.csv", "raw/big.csv is missing; fetch it with 'dvc pull'"),
    ],
)
def test_the_file_that_is_named_is_the_one_that_is_read_or_none(read, name, said):
    Path("raw/parts").mkdir()
    for file in ("raw/parts/a.csv", "raw/log.csv", "log.csv", "raw/big.csv.dvc"):
        Path(file).write_bytes(CSV)
    Path("raw/link.csv").symlink_to("gone.csv")
    with pytest.raises(RecalignError, match=said):
        read(name)
    with pytest.raises(RecalignError, match=r"table\.items names the log itself"):
        read("log.csv", items="log.csv")


@pytest.mark.parametrize("mark", [",", "\t", "::"])
def test_a_file_without_a_header_is_read_by_the_names_in_params(read, mark):
    Path("raw/ratings.dat").write_text("".join(mark.join(row) + "\n" for row in (("1", "20", "5"), ("2", "21", "4"))))
    names = ["user_id", "item_id", "stars"]
    tables = read("ratings.dat", columns=names, rating="stars")
    assert [(row["user_id"], row["rating"], row["line"]) for row in tables["interactions"]] == [
        (1, 5.0, 1),
        (2, 4.0, 2),
    ]
    with pytest.raises(RecalignError, match=r"table\.columns names 2 columns .* but its lines have 3"):
        read("ratings.dat", columns=names[:2])


def test_columns_called_file_and_line_are_the_persons_own(read):
    Path("raw/log.csv").write_text("file,line\n5,20\n6,21\n")
    tables = read("log.csv", user="file", item="line", title="line")
    assert [(row["user_id"], row["item_id"], row["file"], row["line"]) for row in tables["interactions"]] == [
        (5, 20, "log.csv", 2), (6, 21, "log.csv", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("time", "found"),
    [
        ("1609855845", datetime(2021, 1, 5, 14, 10, 45)), ("1609855845000", datetime(2021, 1, 5, 14, 10, 45)),
        ("1609855845000000", datetime(2021, 1, 5, 14, 10, 45)), ("1609855845000000000", datetime(2021, 1, 5, 14, 10, 45)),  # noqa: E501
        ("20210105", datetime(2021, 1, 5)), ("2021010514", datetime(2021, 1, 5, 14)),
        ("202101051410", datetime(2021, 1, 5, 14, 10)), ("20210105141045", datetime(2021, 1, 5, 14, 10, 45)),
        ("2021-01-05T15:10:45+01:00", datetime(2021, 1, 5, 14, 10, 45)),
    ],
)  # fmt: skip
def test_a_time_is_read_in_the_unit_or_form_it_has(read, form, time, found):
    tables = read(written(form, {"user_id": ["1", "2"], "item_id": ["1", "2"], "at": [time, "NA"]}), timestamp="at")
    assert [row["timestamp"] for row in tables["interactions"]] == [found, None]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["1609855845000"] * 3 + ["1609855845"], "mixes units: most times are milliseconds, but 1 of 4 are seconds, first in line 5"),  # noqa: E501
        (["1609855845"] * 3 + ["1609855845000000"], "most times are seconds, but 1 of 4 are microseconds, first in line 5"),  # noqa: E501
        (["2019", "2020", "2021", "2021"], "holds years alone"),
        (["44200.5"] * 4, "counts days .* as Excel stores dates"),
    ],
)  # fmt: skip
def test_times_that_mean_two_things_are_refused(read, times, said):
    with pytest.raises(RecalignError, match=said):
        read(written("csv", {"user_id": [1, 2, 3, 4], "item_id": [1, 2, 3, 4], "at": times}), timestamp="at")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("ratings", "found"),
    [
        (["4", "NA", "2.5"], [4.0, None, 2.5]), (["4,5", "0,5", "3"], [4.5, 0.5, 3.0]),
        (["True", "false", ""], [1.0, 0.0, None]), (["thumbs up", "down", "NULL"], [1.0, 0.0, None]),
    ],
)  # fmt: skip
def test_a_rating_is_a_number_or_a_word_for_yes_or_no(read, form, ratings, found):
    if form == "csv":
        ratings = [f'"{rating}"' for rating in ratings]
    tables = read(written(form, {"user_id": ["1", "2", "3"], "item_id": ["1", "2", "3"], "r": ratings}), rating="r")
    assert [row["rating"] for row in tables["interactions"]] == found
    words = 0.0 in found
    assert json.loads(Path("out/source.json").read_text())["min_rating"] == (1.0 if words else None)


def test_zeros_that_mean_not_rated_are_said(read, caplog):
    columns = {"user_id": list(range(10)), "item_id": list(range(10)), "r": [0, 0, 0, 5, 7, 8, 10, 1, 2, 3]}
    read(written("csv", columns), rating="r")
    assert "r: 3 of 10 ratings are 0, which mostly means 'not rated', and count as likes" in caplog.text


def test_an_item_may_say_since_when_it_is_available(read):
    columns = {"user_id": [1, 2], "item_id": [1, 2], "since": ["2021-01-05", ""]}
    tables = read(written("csv", columns), available_from="since")
    assert [row["available_from"] for row in tables["items"]] == [datetime(2021, 1, 5), None]


@pytest.mark.parametrize(
    ("name", "values", "bounds"),
    [
        ("review/score", ["1.0", "5.0"], (1.0, 5.0)), ("User Rating", ["1", "5"], (1.0, 5.0)),
        ("is_recommended", ["True", "False"], (0.0, 1.0)), ("Book-Rating", ["0", "10"], (0.0, 10.0)),
        ("rating:float", ["1", "4,5"], (1.0, 4.5)), ("average_rating", ["1", "5"], None),
    ],
)  # fmt: skip
def test_the_doctor_knows_a_rating_by_more_names(tmp_path, name, values, bounds):
    with database(tmp_path / "look", "200MB", 1) as connection:
        connection.execute(f'create table t ("{name}" varchar)')
        connection.executemany("insert into t values (?)", [[value] for value in values])
        found = by_name("rating", describe(connection, "t", [name]))
    assert (found and (found.low, found.high)) == bounds
