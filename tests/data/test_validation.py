"""Validation: each bad row goes to quarantine with its rule; the good ones stay; a bad log stops the run."""

import json
import re
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flat_project import flat_project

from conftest import ROOT
from recalign.common.artifacts import read_json, verify, write_json
from recalign.common.errors import RecalignError
from recalign.data.sources.reading import INTERACTIONS, ITEMS, QUARANTINE, USERS
from recalign.data.titles import safe_title
from recalign.data.validation.rules import Rule
from recalign.data.validation.tables import broken_rows
from recalign.params.load import Params, parse_params
from recalign.project import Project
from recalign.stages.ingest import ingest
from recalign.stages.validate import validate

NOON = datetime(2024, 5, 1, 12)
TITLES = {item: f"Title {item}" for item in range(1, 11)}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch files of a test lie in its own folder."""
    monkeypatch.chdir(tmp_path)


def params_of(tree: dict[str, Any], **rules: Any) -> Params:
    """Lenient bounds, so that a test breaks only the rule that it is about."""
    lenient = {"max_rejected": 1.0, "min_rows": 1, "max_rows_per_user": 1.0}
    tree["validate"] |= lenient | rules
    return parse_params(tree)


def event(user: int | None, item: int | None, time: datetime | None = NOON, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "rating": None, "timestamp": time, "position": None, **more}


def good_events(count: int = 40) -> list[dict[str, Any]]:
    """Distinct events of five users over ten items, an hour apart."""
    return [event(1 + n % 5, 1 + n % 10, NOON + timedelta(hours=n)) for n in range(count)]


def write_ingested(
    events: list[dict[str, Any]],
    items: list[tuple[int | None, str | None]] | None = None,
    source: str = "table",
    malformed: list[dict[str, Any]] | None = None,
) -> Path:
    """Write tables as ingest does; line numbers start at 2."""
    folder = Path("interactions")
    folder.mkdir(exist_ok=True)
    catalogue = list(TITLES.items()) if items is None else items
    events = [{**row, "file": "log.csv", "line": line} for line, row in enumerate(events, 2)]
    described = [
        {
            "item_id": item,
            "title": title,
            "attributes": [],
            "available_from": None,
            "raw_id": str(item),
            "file": "items.csv",
            "line": line,
        }
        for line, (item, title) in enumerate(catalogue, 2)
    ]
    pq.write_table(pa.Table.from_pylist(events, INTERACTIONS), folder / "interactions.parquet")
    pq.write_table(pa.Table.from_pylist(described, ITEMS), folder / "items.parquet")
    pq.write_table(pa.Table.from_pylist([], USERS), folder / "users.parquet")
    pq.write_table(pa.Table.from_pylist(malformed or [], QUARANTINE), folder / "malformed.parquet")
    clock = any(row["timestamp"] for row in events)
    write_json(folder / "source.json", {"source": source, "noun": "items", "clock": clock, "min_rating": None})
    return folder


def run(params: Params, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Validate; returns the quarantine's rows and the summary."""
    validate(params, flat_project(Path()).moved(interactions=folder))
    verify(Path("validated"))
    return pq.read_table("validated/quarantine.parquet").to_pylist(), read_json(Path("validated/summary.json"))


def failed(summary: dict[str, Any]) -> dict[str, int]:
    return {rule["rule"]: rule["failed"] for rule in summary["rules"] if rule["failed"]}


FUTURE = datetime.now() + timedelta(days=3)


BAD_EVENTS = [
    (event(None, 1), "missing user", None),
    (event(1, None), "missing item", None),
    (event(1, 1, rating=float("nan")), "rating out of range", "nan"),
    (event(1, 1, rating=float("-inf")), "rating out of range", "-inf"),
    (event(1, 1, None), "missing time", None),
    (event(1, 1, datetime(1970, 1, 1)), "time before 1990", "1970-01-01 00:00:00"),
    (event(1, 1, FUTURE), "time in the future", str(FUTURE)),
    (event(1, 1, NOON), "exact copy", "1"),
    (event(1, 1, NOON, rating=3.0), "duplicate event", "1"),
    (event(1, 1, NOON, rating=3.0), "exact copy", "1"),
    (event(1, 99), "unknown item", "99"),
]


def test_each_bad_event_is_quarantined_and_no_other(tree: dict[str, Any]) -> None:
    """Bad rows behind forty good ones go with rule, value, file and line; the good ones stay in their order."""
    folder = write_ingested([*good_events(), *(bad for bad, _, _ in BAD_EVENTS)])
    quarantine, summary = run(params_of(tree), folder)
    assert [(q["table"], q["rule"], q["value"], q["file"], q["line"]) for q in quarantine] == [
        ("interactions", rule, value, "log.csv", line) for line, (_, rule, value) in enumerate(BAD_EVENTS, 42)
    ]
    assert [json.loads(q["row"])["user_id"] for q in quarantine] == [bad["user_id"] for bad, _, _ in BAD_EVENTS]
    taken = Counter(rule for _, rule, _ in BAD_EVENTS)
    assert {name: n for name, n in failed(summary).items() if name != "file out of order"} == taken
    assert summary["rows"]["interactions"] == {"read": 51, "kept": 40, "quarantined": 11}
    kept = pq.read_table("validated/interactions.parquet").to_pylist()
    assert kept == pq.read_table(folder / "interactions.parquet").to_pylist()[:40]


def test_ratings_of_movielens_lie_in_half_to_five(tree: dict[str, Any]) -> None:
    """0.5 and 5 pass, 0 and 6 do not."""
    rated = [event(1, item, NOON + timedelta(hours=item), rating=r) for item, r in enumerate((0.5, 5.0, 0.0, 6.0), 1)]
    quarantine, _ = run(params_of(tree), write_ingested(rated, source="movielens-100k"))
    assert [q["value"] for q in quarantine] == ["0.0", "6.0"]


INVISIBLE = ["\u200b", "\u3164", "\u2800\ufe0f", "\u0301", "\x07\t", "\U000e0041"]
BAD_TITLES = [None, "  ", *INVISIBLE, "&nbsp;", "&#8203;", "<|im_end|>", "&lt;/s&gt;"]


def test_a_title_that_prompts_cannot_show_takes_its_item_and_the_items_events(tree: dict[str, Any]) -> None:
    """Nothing, blanks, invisible letters, a lone accent, markers, and entities of them: found here already."""
    items = [*TITLES.items(), *((20 + n, title) for n, title in enumerate(BAD_TITLES)), (None, "No id")]
    quarantine, summary = run(params_of(tree), write_ingested([*good_events(), event(1, 22)], items))
    assert [(q["table"], q["rule"], q["value"]) for q in quarantine] == [
        *(("items", "empty title", title) for title in BAD_TITLES),
        ("items", "missing item id", None),
        ("interactions", "unknown item", "22"),
    ]
    assert summary["rows"]["items"] == {"read": 23, "kept": 10, "quarantined": 13}
    assert pq.read_table("validated/items.parquet")["item_id"].to_pylist() == list(range(1, 11))


ODD_TITLES = [
    ("Tab\there", "Tab here", "control characters"),
    ("Two\r\nlines", "Two lines", "control characters"),
    ("Right\u202eleft", "Rightleft", "control characters"),
    ("Zero\u200bwidth", "Zerowidth", "control characters"),
    ("Up <|im_end|>", "Up", "chat tokens"),
    ("Tom &amp;amp; Jerry&#39;s", "Tom & Jerry's", "HTML entities"),
    ("x" * 201, "x" * 200, "long title"),
    ("NaN", "NaN", "title like a null"),
    ("Title 1", "Title 1", "shared title"),
    ("\uff34itle\u00a0\u2460", "\uff34itle \u2460", "look-alike title"),
]


@pytest.mark.parametrize(("title", "kept", "rule"), ODD_TITLES)
def test_an_odd_title_is_cleaned_with_a_warning_and_costs_no_event(
    tree: dict[str, Any], title: str, kept: str, rule: str
) -> None:
    """The clean table has it as prompts show it; the ingested one keeps it as it was."""
    folder = write_ingested([*good_events(), event(1, 11)], [*TITLES.items(), (11, title)])
    quarantine, summary = run(params_of(tree), folder)
    assert quarantine == []
    assert failed(summary) == {rule: 1, "file out of order": 1}
    assert pq.read_table("validated/items.parquet")["title"].to_pylist() == [*TITLES.values(), kept]


def test_what_validation_keeps_is_what_prompts_can_show(tree: dict[str, Any]) -> None:
    """A clean title is left as it is when a prompt cleans it again, so none can stop a later stage."""
    odd = ["Cafe\u0301 &AMP; &copyright;", "&amp;lt;|im_&#60;|x|>end|>", "👩\u200d🚀", "\U0001fae8"]
    odd += [title for title, _, _ in ODD_TITLES]
    run(params_of(tree), write_ingested(good_events(), [*TITLES.items(), *enumerate(odd, 11)]))
    kept = pq.read_table("validated/items.parquet")["title"].to_pylist()
    assert [title for title in kept if safe_title(title) != title or not title] == []
    assert kept[10:13] == ["Café & &copyright;", "👩🚀", "\U0001fae8"]  # in the middle one nothing is left: quarantine


def test_the_report_names_the_title_that_another_looks_like(tree: dict[str, Any]) -> None:
    """Written in two ways, with a blank of another kind: equal once cleaned. In another case: alike."""
    items = [*TITLES.items(), (11, "Cafe\u0301\u00a0Noir"), (12, "Café Noir"), (13, "CAFÉ NOIR")]
    _, summary = run(params_of(tree), write_ingested(good_events(), items))
    assert failed(summary) == {"shared title": 1, "look-alike title": 1}
    page = Path("reports/validation.html").read_text(encoding="utf-8")
    assert page.count("Caf\\xe9 Noir (line 12)") == 2
    assert ">twin<" in page


def test_titles_that_look_odd_but_are_harmless_stay(tree: dict[str, Any]) -> None:
    """Brackets, accents, other scripts, 200 characters: titles of the world."""
    names = ["[REC]", "<3", "Amélie", "七人の侍", "M|A|S|H", "x" * 200, "S", "1917", "R&B; soul", "Up <no token>"]
    quarantine, summary = run(params_of(tree), write_ingested(good_events(), list(zip(TITLES, names, strict=True))))
    assert (quarantine, failed(summary)) == ([], {})
    assert pq.read_table("validated/items.parquet")["title"].to_pylist() == names


def test_shared_titles_warn_and_stay_while_a_repeated_id_keeps_its_first_row(tree: dict[str, Any]) -> None:
    """Twins are told apart later; the second row of an id goes."""
    items = [*TITLES.items(), (11, "Title 1"), (2, "Title 2, again")]
    quarantine, summary = run(params_of(tree), write_ingested(good_events(), items))
    assert failed(summary) == {"repeated item id": 1, "shared title": 1}
    assert [(q["rule"], q["value"], q["line"]) for q in quarantine] == [("repeated item id", "2", 13)]
    assert pq.read_table("validated/items.parquet")["title"].to_pylist() == [*TITLES.values(), "Title 1"]


def test_exact_copies_are_told_and_cost_nothing_while_rows_that_contradict_count(tree: dict[str, Any]) -> None:
    """Forty rows three times over pass at max_rejected 0; a second rating of one event does not, but for its key."""
    rows = [row | {"rating": 4.0} for row in good_events()]
    quarantine, summary = run(params_of(tree, max_rejected=0.0), write_ingested(rows * 3))
    assert failed(summary) == {"exact copy": 80, "file out of order": 10}
    assert summary["rows"]["interactions"] == {"read": 120, "kept": 40, "quarantined": 80}
    assert len(quarantine) == 80
    assert "80 of them are exact copies" in Path("reports/validation.html").read_text(encoding="utf-8")
    folder = write_ingested([*rows * 3, rows[0] | {"rating": 1.0}])
    with pytest.raises(RecalignError, match=r"0\.0196078 where .*'duplicate event': 1 rows.*max_rejected: 0\.02"):
        run(params_of(tree, max_rejected=0.0), folder)
    run(params_of(tree, max_rejected=0.02), folder)


def test_a_copy_of_an_items_row_costs_nothing_while_another_row_of_its_id_counts(tree: dict[str, Any]) -> None:
    """The share of 52 rows, the copy left out."""
    folder = write_ingested(good_events(), [*TITLES.items(), (1, "Title 1"), (1, "Other"), (None, "x")])
    _, summary = run(params_of(tree, max_rejected=2 / 52), folder)
    assert failed(summary) == {"exact copy": 1, "repeated item id": 1, "missing item id": 1}


def test_a_rating_that_is_no_number_does_not_cost_the_row_that_repeats_its_event(tree: dict[str, Any]) -> None:
    """It goes by itself, so the other is the first."""
    rows = [event(1, 1, rating=float("nan")), event(1, 1, rating=4.0), event(1, 2, NOON + timedelta(hours=1))]
    quarantine, _ = run(params_of(tree), write_ingested(rows))
    assert [(q["rule"], q["line"]) for q in quarantine] == [("rating out of range", 2)]


def test_times_that_run_backwards_are_a_fault_only_where_the_source_knows_the_order(tree: dict[str, Any]) -> None:
    """With positions the row goes; without them the file's order is no more than a warning."""
    hours = [0, 2, 1, 3]
    rows = [event(1, 1 + n, NOON + timedelta(hours=h)) for n, h in enumerate(hours)]
    _, summary = run(params_of(tree), write_ingested(rows))
    assert failed(summary) == {"file out of order": 1}
    ordered = [{**row, "position": n} for n, row in enumerate(rows)]
    quarantine, summary = run(params_of(tree), write_ingested(ordered))
    assert failed(summary) == {"time runs backwards": 1}
    assert [q["line"] for q in quarantine] == [4]


def test_a_time_of_1970_does_not_blame_its_neighbours(tree: dict[str, Any]) -> None:
    """Only the impossible time is taken, not the event before or after it."""
    times = [NOON, datetime(1970, 1, 1), NOON + timedelta(hours=1)]
    rows = [event(1, 1 + n, time, position=n) for n, time in enumerate(times)]
    quarantine, _ = run(params_of(tree), write_ingested(rows))
    assert [(q["rule"], q["line"]) for q in quarantine] == [("time before 1990", 3)]


def test_without_a_clock_there_are_no_rules_of_time_and_a_pair_stands_once(tree: dict[str, Any]) -> None:
    """A set has each (user, item) once."""
    rows = [event(1, 1, None), event(1, 2, None), event(1, 1, None)]
    quarantine, summary = run(params_of(tree), write_ingested(rows))
    assert [(q["rule"], q["line"]) for q in quarantine] == [("exact copy", 4)]
    assert not [rule for rule in summary["rules"] if "time" in rule["rule"] or "clock" in rule["rule"]]


def test_a_row_that_breaks_two_rules_counts_once_under_the_first(tree: dict[str, Any]) -> None:
    """So the counts of the rules add up to the quarantine."""
    quarantine, summary = run(params_of(tree), write_ingested([*good_events(), event(None, 99, None)]))
    assert failed(summary) == {"missing user": 1}
    assert len(quarantine) == 1


def test_chunks_change_nothing(tree: dict[str, Any]) -> None:
    """Clean rows, quarantine and summary of 2,500 rows are the same in chunks of 1,000 and of a million."""
    rows = [event(1 + n % 40, 1 + n % 10, NOON + timedelta(minutes=n % 2320)) for n in range(2500)]
    rows[700]["item_id"] = rows[1800]["item_id"] = 99
    folder, seen = write_ingested(rows), []
    for chunk_rows in (1000, 1_000_000):
        quarantine, summary = run(params_of(tree, chunk_rows=chunk_rows), folder)
        seen.append((quarantine, summary, pq.read_table("validated/interactions.parquet").to_pylist()))
    assert seen[0] == seen[1]
    assert failed(seen[0][1])["unknown item"] == 2
    assert failed(seen[0][1])["exact copy"] == 180


def test_unread_lines_count_as_quarantined(tree: dict[str, Any]) -> None:
    """What ingestion could not parse stands first in the quarantine and in the summary."""
    row = {"table": "interactions", "row": '{"text": "1,2"}', "rule": "unparsable line", "value": "?"}
    malformed = [{**row, "file": "log.csv", "line": 7}]
    quarantine, summary = run(params_of(tree), write_ingested(good_events(), malformed=malformed))
    assert quarantine[0]["line"] == 7
    assert failed(summary) == {"unparsable line": 1}
    assert summary["rows"]["interactions"] == {"read": 41, "kept": 40, "quarantined": 1}


@pytest.mark.parametrize(
    ("events", "rules", "message"),
    [
        (good_events(), {"min_rows": 41}, r"too few rows: 40 where at least 41 .*, or set validate\.min_rows: 40"),
        (
            [*good_events(), event(1, 99), event(1, 98)], {"max_rejected": 0.03},
            r"too many rejected: 0\.0384615 where at most 3\.0% .*'unknown item': 2 rows.*max_rejected: 0\.04",
        ),
        (
            good_events(), {"max_rows_per_user": 0.1},
            r"one user owns the log: 0\.2 where no user owns more than 10\.0%.*max_rows_per_user: 0\.2",
        ),
        (
            [event(user, 1) for user in range(5)], {},
            r"no real clock: 0 where times differ .*; fix the rows, or set table\.timestamp: null",
        ),
        ([event(1, 99), event(2, 98)], {}, r"every one of 2 interactions is in quarantine \(most under 'unknown item'"),
    ],
)  # fmt: skip
def test_a_bad_log_stops_the_run_and_leaves_the_report(
    tree: dict[str, Any], events: list[dict[str, Any]], rules: dict[str, Any], message: str
) -> None:
    """One line with figure, bound and key; nothing is written but what helps to look."""
    folder = write_ingested(events)
    with pytest.raises(RecalignError, match=message) as error:
        run(params_of(tree, **rules), folder)
    assert "\n" not in str(error.value)
    assert not Path("validated").exists()
    assert pq.read_schema("reports/quarantine.parquet").names == QUARANTINE.names
    assert "The log was refused." in Path("reports/validation.html").read_text()


def test_the_report_shows_every_rule_and_runs_nothing(tree: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Self-contained, escaped, with level, sentence, count and examples; the terminal shows what each rule took."""
    items = [(item, "<script>alert(1)</script>\x07" if item == 10 else name) for item, name in TITLES.items()]
    _, summary = run(params_of(tree), write_ingested(good_events(), items))
    page = Path("reports/validation.html").read_text()
    assert len(summary["rules"]) > 10
    for rule in summary["rules"]:
        assert rule["rule"] in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x07" in page
    assert not re.search(r"<script|https?://|\x07", page)
    assert "1  warning  items: control characters" in capsys.readouterr().out


def test_an_expectation_that_cannot_be_computed_is_not_called_bad_data() -> None:
    """Great Expectations reports its own failures as success=False; they are told apart."""
    import pandas as pd

    rule = Rule("odd", "items", "row", "", "ExpectColumnValuesToNotBeNull", "absent", "absent")
    with pytest.raises(RecalignError, match="rule 'odd' could not be checked by Great Expectations"):
        broken_rows(pd.DataFrame({"here": [1]}), [rule])


def test_the_shipped_world_is_clean_but_for_the_planted_faults(tree: dict[str, Any]) -> None:
    """The default log passes; its doubled rows and unknown films are found, and nothing else."""
    raw = ROOT / "data" / "raw" / "simulated"
    if not raw.is_dir():
        pytest.skip("data/raw/simulated is not here; 'dvc pull data/raw/films.dvc' fetches it")
    params = parse_params(tree)
    ingest(params, Project().moved(interactions=Path("ingested")), raw=raw)
    _, summary = run(params, Path("ingested"))
    assert failed(summary).keys() == {"exact copy", "unknown item"}
    assert summary["rows"]["interactions"]["quarantined"] < 60
    assert Path("validated/truth.parquet").is_file()
