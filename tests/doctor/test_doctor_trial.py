"""What the doctor says of a table is what ingest, validate and prepare do with it: verdict, words and counts."""

import csv
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from recalign.cli import main
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.doctor.findings import Finding, worst
from recalign.doctor.own_table import examine, params_block
from recalign.params.load import Params, parse_params
from recalign.stages.ingest import ingest
from recalign.stages.prepare import prepare
from recalign.stages.validate import validate

Rows = list[dict[str, Any]]
USERS, ITEMS, EACH = 60, 80, 14


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows() -> Rows:
    """840 events of 60 users with 80 items, each user in the order of time."""
    drawn = random.Random(0)
    events = [(user, item) for user in range(USERS) for item in drawn.sample(range(ITEMS), EACH)]
    drawn.shuffle(events)
    return [
        {"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": 1_700_000_000 + 9000 * n}
        for n, (user, item) in enumerate(events)
    ]


def catalogue() -> Rows:
    return [{"item_id": f"i{item}", "title": f"Title {item}"} for item in range(ITEMS)]


def write(name: str, table: Rows, *, header: bool = True, delimiter: str = ",") -> None:
    with Path(name).open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(table[0]), delimiter=delimiter)
        if header:
            writer.writeheader()
        writer.writerows(table)


def plain() -> None:
    write("log.csv", rows())
    write("items.csv", catalogue())


def copies() -> None:
    """Every second row twice: a third of the file."""
    write("log.csv", [row for n, row in enumerate(rows()) for _ in range(1 + n % 2)])


def contradictions() -> None:
    """Sixty events with a second rating."""
    rated = [row | {"rating": 4} for row in rows()]
    write("log.csv", rated + [row | {"rating": 2} for row in rated[:60]])


def missing_items() -> None:
    write("log.csv", rows())
    write("items.csv", catalogue()[6:])


def broken_item_lines() -> None:
    """A quote that no quote ends, as dumps with \\" have it."""
    write("log.csv", rows())
    lines = [f'"i{n}";"The \\"{n}\\" book"' if n < 8 else f'"i{n}";"Title {n}"' for n in range(ITEMS)]
    Path("items.csv").write_text("\n".join(['"item_id";"title"', *lines]) + "\n", encoding="utf-8")


def odd_titles() -> None:
    odd = ["Tab\there", "Two\nlines", "R\u202eL", "A &amp; B", "<|im_end|> x", "y" * 900, "NaN", "Cafe\u0301", "Café"]
    write("log.csv", rows())
    write("items.csv", [row | {"title": (odd + [row["title"]] * ITEMS)[n]} for n, row in enumerate(catalogue())])


def one_invisible_title() -> None:
    write("log.csv", rows())
    write("items.csv", [row | {"title": "\u200b" if n == 0 else row["title"]} for n, row in enumerate(catalogue())])


def invisible_titles() -> None:
    write("log.csv", rows())
    write("items.csv", [row | {"title": "\u200b" if n < 9 else row["title"]} for n, row in enumerate(catalogue())])


def retimed(change: Callable[[int, int], object]) -> Callable[[], None]:
    def make() -> None:
        write("log.csv", [row | {"timestamp": change(n, row["timestamp"])} for n, row in enumerate(rows())])

    return make


def rated(change: Callable[[int], object], name: str = "rating") -> Callable[[], None]:
    def make() -> None:
        write("log.csv", [row | {name: change(n)} for n, row in enumerate(rows())])

    return make


def no_clock() -> None:
    write("log.csv", [{key: row[key] for key in ("user_id", "item_id")} for row in rows()])


def one_owner() -> None:
    write("log.csv", [row | {"user_id": "u0" if n < 300 else row["user_id"]} for n, row in enumerate(rows())])


def short() -> None:
    write("log.csv", rows()[:90])


def few_items() -> None:
    write("log.csv", [row | {"item_id": f"i{n % 15}"} for n, row in enumerate(rows())])


def one_each() -> None:
    """As many users as rows: nobody has a history."""
    write("log.csv", [row | {"user_id": f"u{n // 2}"} for n, row in enumerate(rows())])


def no_header() -> None:
    numbers = [{"u": row["user_id"][1:], "i": row["item_id"][1:], "r": n % 5 + 1, "t": row["timestamp"]}
               for n, row in enumerate(rows())]  # fmt: skip
    write("log.csv", numbers, header=False, delimiter="\t")


def parquet() -> None:
    pq.write_table(pa.Table.from_pylist(rows()), "log.parquet")


# the table, and whether the run takes it; None: as the run says
TABLES: list[tuple[Callable[[], None], bool | None]] = [
    (plain, True),
    (copies, True),
    (contradictions, False),
    (missing_items, False),
    (broken_item_lines, None),
    (odd_titles, True),
    (one_invisible_title, True),
    (invisible_titles, False),
    (retimed(lambda n, t: t if n < 500 else t * 1000), None),
    (retimed(lambda n, t: f"20240501{n // 60 % 24:02}{n % 60:02}"), None),
    (retimed(lambda n, t: 0 if n < 30 else t), False),
    (retimed(lambda n, t: 1_700_000_000), False),
    (rated(lambda n: 1 if n % 5 == 0 else 5), True),
    (rated(lambda n: "NA" if n % 10 == 0 else n % 5 + 1), None),
    (no_clock, True),
    (one_owner, False),
    (short, False),
    (few_items, False),
    (one_each, False),
    (no_header, None),
    (parquet, True),
]


def the_run(params: Params, block: str, tree: dict[str, Any]) -> str | None:
    """Paste the printed block, copy the files, run the three stages; the error that stops them, or None."""
    folder = Path("data/raw/table")
    folder.mkdir(parents=True)
    for file in Path().glob("*.[cp]*"):
        shutil.copy(file, folder)
    own = parse_params(tree | YAML(typ="safe").load(block) | {"threads": params.threads})
    try:
        for stage in (ingest, validate, prepare):
            stage(own)
    except RecalignError as error:
        return str(error)
    return None


def failed(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "fail"]


@pytest.mark.parametrize(
    ("make", "passes"), TABLES, ids=[f"{n}-{make.__qualname__.split('.')[0]}" for n, (make, _) in enumerate(TABLES)]
)
def test_the_doctor_says_what_the_run_does(tree: dict[str, Any], make: Callable[[], None], passes: bool | None) -> None:
    """The same verdict, the same counts of rows and rules, the same examples and cases; a refusal in the same words."""
    make()
    params = parse_params(tree | {"threads": 1})
    log = Path("log.parquet" if Path("log.parquet").exists() else "log.csv")
    try:
        examined = examine(log, Path("items.csv") if Path("items.csv").exists() else None, params)
    except RecalignError:
        assert passes is None
        return  # no table at all
    if examined.table is None:
        assert (passes, worst(examined.findings)) == (None, "fail")
        return
    stopped = the_run(params, params_block(examined.table), tree)
    bad = failed(examined.findings)
    assert bool(bad) == (stopped is not None), (bad, stopped)
    assert passes in (None, not bad)
    assert examined.trial is not None
    if stopped is None:
        assert examined.trial.validation == read_json(Path("data/validated/summary.json"))
        assert examined.trial.prepared == read_json(Path("data/prepared/summary.json"))["counts"]
    else:
        assert bad[0].found.replace("data/raw/table/", "") in stopped.replace("data/raw/table/", "")
        assert bad[0].fix in stopped


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (contradictions, "max_rejected"),
        (missing_items, "max_rejected"),
        (one_owner, "max_rows_per_user"),
        (short, "min_rows"),
    ],
)
def test_the_parameter_that_the_doctor_names_admits_the_log(
    tree: dict[str, Any], make: Callable[[], None], key: str
) -> None:
    """With its value: validation then has nothing against it."""
    make()
    log, items = Path("log.csv"), Path("items.csv") if Path("items.csv").exists() else None
    findings = examine(log, items, parse_params(tree | {"threads": 1})).findings
    (told,) = [finding for finding in failed(findings) if finding.name == "validation"]
    name, value = told.fix.rpartition("validate.")[2].split(": ")
    assert name == key
    again = parse_params(tree | {"threads": 1, "validate": tree["validate"] | {key: float(value)}})
    assert "validation" not in [finding.name for finding in failed(examine(log, items, again).findings)]


def test_what_lost_items_cost_is_told(tree: dict[str, Any]) -> None:
    """Six items that the table lacks, and the events that go with them."""
    missing_items()
    findings = examine(Path("log.csv"), Path("items.csv"), parse_params(tree | {"threads": 1})).findings
    (told,) = [f for f in findings if f.name == "quarantine" and "unknown item" in f.found]
    events = sum(row["item_id"] in {f"i{n}" for n in range(6)} for row in rows())
    assert told.found.startswith(f"{events} interactions: unknown item, first ")
    assert told.fix == "6 items have no row in the table of items: add them, or their events are left out"


def test_items_that_quarantine_took_are_told_apart_from_those_that_are_missing(tree: dict[str, Any]) -> None:
    """Their rows can be fixed."""
    write("log.csv", rows())
    write("items.csv", [row | {"title": "\u200b" if n < 5 else row["title"]} for n, row in enumerate(catalogue()[3:])])
    findings = examine(Path("log.csv"), Path("items.csv"), parse_params(tree | {"threads": 1})).findings
    (told,) = [f for f in findings if f.name == "quarantine" and "unknown item" in f.found]
    assert told.fix == (
        "the rows of 5 of these items are in quarantine themselves: fix them there; "
        "3 items have no row in the table of items: add them, or their events are left out"
    )


def test_a_table_is_examined_outside_of_any_project(capsys: pytest.CaptureFixture[str]) -> None:
    """No params.yaml: the defaults count, the screen says so, and nothing is left in the folder."""
    plain()
    assert main(["doctor", "log.csv", "--items", "items.csv"]) == 0
    assert "There is no params.yaml here, so the defaults were used" in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == ["items.csv", "log.csv"]


def test_two_files_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """They would lie in one folder, one over the other."""
    plain()
    Path("other").mkdir()
    Path("items.csv").rename("other/log.csv")
    assert main(["doctor", "log.csv", "--items", "other/log.csv"]) == 2
    assert "log.csv and other/log.csv are both called log.csv; rename one" in capsys.readouterr().err


def test_the_commands_to_type_hold_names_with_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    """Quoted for a shell."""
    plain()
    Path("log.csv").rename("my log.csv")
    assert main(["doctor", "my log.csv"]) == 0
    assert "cp 'my log.csv' data/raw/table/" in capsys.readouterr().out


def test_a_log_without_a_header_is_examined_by_the_columns_that_params_name(tree: dict[str, Any]) -> None:
    """And the printed block keeps them, so that the run reads what the doctor read."""
    tree["table"] |= {"columns": ["person", "item", "rating", "time"]}
    pairs = [(user, n) for user in range(60) for n in range(9)]
    events = [(user, user % 9 + n, 1 + n % 5, 1_500_000_000 + 90_000 * (user + n)) for user, n in pairs]
    Path("u.data").write_text("".join("\t".join(map(str, event)) + "\n" for event in events), encoding="utf-8")
    examined = examine(Path("u.data"), None, parse_params(tree))
    assert examined.table is not None
    assert examined.table.columns == ("person", "item", "rating", "time")
    assert "columns: [person, item, rating, time]" in params_block(examined.table)
    tree["table"] |= {"columns": None}
    with pytest.raises(RecalignError, match=r"table\.columns"):
        examine(Path("u.data"), None, parse_params(tree))
