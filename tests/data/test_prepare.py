"""Preparation: what becomes an example, in which order, and that nothing later or met before slips in."""

import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from flat_project import flat_project
from validated_log import START, Row, random_log, rows_of, small_params, write_log

from recalign.common.artifacts import read_json, verify
from recalign.common.errors import RecalignError
from recalign.data.preparation.tables import unique_titles
from recalign.params.load import Params, parse_params
from recalign.stages.prepare import prepare

FILES = ("events", "items", "met", "examples", "candidates")


def prepared(folder: Path, rows: list[Row], params: Params, **log: Any) -> Path:
    """Write a log, prepare it, and return the folder of results."""
    write_log(folder / "validated", rows, **log)
    prepare(params, flat_project(folder))
    return folder / "prepared"


def k_core(rows: list[Row], core: int) -> set[tuple[int, int]]:
    """The slow way: throw out rare users and items until nothing changes."""
    pairs = {(row[0], row[1]) for row in rows}
    while True:
        users, items = Counter(user for user, _ in pairs), Counter(item for _, item in pairs)
        kept = {(user, item) for user, item in pairs if users[user] >= core and items[item] >= core}
        if kept == pairs:
            return kept
        pairs = kept


def test_the_folder_holds_the_columns_of_the_contract_and_a_manifest_that_verifies(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    out = prepared(tmp_path, random_log(), small_params(tree))

    verify(out)
    columns = {name: pq.read_schema(out / f"{name}.parquet").names for name in FILES}
    assert columns == {
        "events": ["user_id", "item_id", "timestamp", "position", "split"],
        "items": ["item_id", "title", "attributes", "train_events", "popularity", "available_from", "hidden"],
        "met": ["user_id", "item_id", "timestamp", "liked"],
        "examples": ["example_id", "user_id", "split", "view", "cutoff", "history", "target"],
        "candidates": ["manifest", "example_id", "user_id", "candidates", "target_index"],
    }
    summary = read_json(out / "summary.json")
    assert (summary["source"], summary["noun"], summary["clock"]) == ("table", "items", True)
    assert summary["counts"]["examples"] == dict(Counter(row["split"] for row in rows_of(out / "examples.parquet")))
    assert set(summary["manifests"]) == {"uniform", "popularity"}
    assert not (tmp_path / "cache" / "spill").exists()


@pytest.mark.parametrize("clock", [True, False])
def test_bytes_depend_neither_on_the_order_of_the_rows_nor_on_threads_or_chunks(
    tmp_path: Path, tree: dict[str, Any], clock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_log(clock=clock)
    once = prepared(tmp_path / "once", rows, small_params(tree))
    random.Random(1).shuffle(rows)
    monkeypatch.setattr("recalign.data.preparation.tables.CHUNK_EVENTS", 50)
    again = prepared(tmp_path / "again", rows, small_params(tree | {"threads": 1}))

    assert read_json(once / "manifest.json") == read_json(again / "manifest.json")


@pytest.mark.parametrize("core", [1, 3, 5, 8])
def test_training_reads_the_core_of_the_train_likes_and_the_rest_of_the_log_stays(
    tmp_path: Path, tree: dict[str, Any], core: int
) -> None:
    rng = random.Random(core)
    rows: list[Row] = [
        (user, item, rng.randrange(500), None)
        for user in range(40)
        for item in range(60)
        if rng.random() < 6 / (3 + user / 2 + item / 4)
    ]
    out = prepared(tmp_path, rows, small_params(tree, core=core, min_history=1))

    events = rows_of(out / "events.parquet")
    assert {(row["user_id"], row["item_id"]) for row in events} == {(row[0], row[1]) for row in rows}
    cutoff = read_json(out / "summary.json")["cutoffs"]["validation"]
    before = [(row["user_id"], row["item_id"], 0, None) for row in events if row["timestamp"].isoformat() < cutoff]
    trained = {(row["user_id"], row["item_id"]) for row in events if row["split"] == "train"}
    assert trained == k_core(before, core)
    assert 0 < len(trained) <= len(before)
    outside = {(row["user_id"], row["item_id"]) for row in events if row["split"] == "outside"}
    assert outside == {row[:2] for row in before} - trained


def test_what_is_tested_does_not_depend_on_the_core(tmp_path: Path, tree: dict[str, Any]) -> None:
    one, five = (prepared(tmp_path / str(n), random_log(), small_params(tree, core=n)) for n in (1, 5))

    def asked(out: Path) -> set[str]:
        return {row["example_id"] for row in rows_of(out / "examples.parquet") if row["split"] != "train"}

    assert asked(one) == asked(five)


def test_training_does_not_change_when_later_likes_do(tmp_path: Path, tree: dict[str, Any]) -> None:
    """The k-core and the counts read no like of validation or test: whether the future likes an item says nothing."""
    rows = random_log(users=60)
    cutoff = sorted(row[2] or 0 for row in rows)[int(len(rows) * 0.8)]
    other = [row if (row[2] or 0) < cutoff else (row[0], row[1] + 30, row[2], None) for row in rows]
    before, after = (
        prepared(tmp_path / name, own, small_params(tree, core=7), titles={n: f"Film {n}" for n in range(1, 61)})
        for name, own in (("before", rows), ("after", other[: len(other) // 2] + rows[len(other) // 2 :]))
    )

    def trained(out: Path) -> list[tuple[int, int]]:
        return [(r["user_id"], r["item_id"]) for r in rows_of(out / "events.parquet") if r["split"] == "train"]

    assert len(trained(before)) < sum((row[2] or 0) < cutoff for row in rows)  # the core leaves some out
    assert trained(before) == trained(after)


def test_only_the_first_like_counts_and_a_low_rating_is_none(tmp_path: Path, tree: dict[str, Any]) -> None:
    rows: list[Row] = [(*row[:3], 5.0) for row in random_log()]
    user, item, hours, _ = rows[0]
    rows += [(user, item, (hours or 0) + 500, 4.0), (user, item, 0, 2.0)]
    disliked = next(i for i in range(1, 31) if i not in {row[1] for row in rows if row[0] == user})
    rows.append((user, disliked, 3, 3.5))
    out = prepared(tmp_path, rows, small_params(tree), min_rating=4)

    events = {(row["user_id"], row["item_id"]): row for row in rows_of(out / "events.parquet")}
    assert (events[user, item]["timestamp"] - START).total_seconds() == 3600 * (hours or 0)
    assert (user, disliked) not in events


def test_params_min_rating_wins_over_the_sources(tmp_path: Path, tree: dict[str, Any]) -> None:
    rows: list[Row] = [(*row[:3], float(3 + index % 2)) for index, row in enumerate(random_log())]
    out = prepared(tmp_path, rows, small_params(tree, min_rating=3.0), min_rating=4)

    assert len(rows_of(out / "events.parquet")) == len(rows)


def test_each_history_is_the_latest_likes_before_the_target(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = prepared(tmp_path, random_log(), small_params(tree))

    events = rows_of(out / "events.parquet")
    sequences: dict[int, list[int]] = {}
    for row in events:
        assert row["position"] == len(sequences.setdefault(row["user_id"], []))
        sequences[row["user_id"]].append(row["item_id"])
    times = {(row["user_id"], row["item_id"]): row["timestamp"] for row in events}
    examples = rows_of(out / "examples.parquet")
    for row in examples:
        place = sequences[row["user_id"]].index(row["target"])
        assert row["example_id"] == f"{row['user_id']}-{row['target']}"
        assert row["history"] == sequences[row["user_id"]][max(0, place - 6) : place]
        assert len(row["history"]) >= 2
        assert row["cutoff"] == times[row["user_id"], row["target"]]
        assert all(times[row["user_id"], item] <= row["cutoff"] for item in row["history"])
    assert len(examples) > 50


def test_one_clock_parts_train_validation_and_test_by_eighty_ten_ten(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = prepared(tmp_path, random_log(users=80), small_params(tree))

    cutoffs = read_json(out / "summary.json")["cutoffs"]
    events = rows_of(out / "events.parquet")
    for row in events:
        time = row["timestamp"].isoformat()
        late = (time >= cutoffs["validation"]) + (time >= cutoffs["test"])
        assert row["split"] == ("train", "validation", "test")[late]
    shares = {split: count / len(events) for split, count in Counter(row["split"] for row in events).items()}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.02)
    train_targets = [row for row in rows_of(out / "examples.parquet") if row["split"] == "train"]
    assert train_targets
    assert all(row["cutoff"].isoformat() >= cutoffs["train"] for row in train_targets)
    before = sum(row["timestamp"].isoformat() < cutoffs["train"] for row in events) / len(events)
    assert before == pytest.approx(0.4, abs=0.02)


def test_no_user_has_more_cases_than_allowed(tmp_path: Path, tree: dict[str, Any]) -> None:
    limits = small_params(tree, cases_per_user=1, train_examples_per_user=2)
    out = prepared(tmp_path, random_log(each=20), limits)

    counts = Counter((row["split"], row["user_id"]) for row in rows_of(out / "examples.parquet"))
    most = {split: max(n for (s, _), n in counts.items() if s == split) for split in ("train", "validation", "test")}
    assert most == {"train": 2, "validation": 1, "test": 1}


def test_popularity_counts_train_events_alone(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = prepared(tmp_path, random_log(), small_params(tree))

    counts = Counter(row["item_id"] for row in rows_of(out / "events.parquet") if row["split"] == "train")
    popularity = {row["item_id"]: row["popularity"] for row in rows_of(out / "items.parquet")}
    assert len(counts) > 20
    assert popularity == {item: counts[item] for item in popularity}
    assert counts.keys() <= popularity.keys()


@pytest.mark.parametrize("clock", [True, False])
def test_wrong_candidates_are_items_that_the_user_never_met_before_or_after(
    tmp_path: Path, tree: dict[str, Any], clock: bool
) -> None:
    rows: list[Row] = [(*row[:3], 5.0) for row in random_log(clock=clock)]
    rows += [(user, item, 7 if clock else None, 1.0) for user, item in ((1, 29), (1, 30), (2, 28), (3, 30))]
    out = prepared(tmp_path, rows, small_params(tree), min_rating=4)

    met = {(row[0], row[1]) for row in rows}
    targets = {row["example_id"]: row for row in rows_of(out / "examples.parquet")}
    lists = rows_of(out / "candidates.parquet")
    for row in lists:
        target = targets[row["example_id"]]["target"]
        assert len(set(row["candidates"])) == 5
        assert row["candidates"][row["target_index"]] == target
        assert all((row["user_id"], item) not in met for item in row["candidates"] if item != target)
    cases = {example for example, row in targets.items() if row["split"] != "train"}
    assert cases
    for manifest in ("uniform", "popularity"):
        assert [row["example_id"] for row in lists if row["manifest"] == manifest] == [e for e in targets if e in cases]


def test_the_popularity_manifest_holds_more_popular_wrong_items(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = prepared(tmp_path, random_log(users=60), small_params(tree))

    popularity = {row["item_id"]: row["popularity"] for row in rows_of(out / "items.parquet")}
    total = Counter[str]()
    for row in rows_of(out / "candidates.parquet"):
        wrong = [item for place, item in enumerate(row["candidates"]) if place != row["target_index"]]
        total[row["manifest"]] += sum(popularity[item] for item in wrong)
    assert total["popularity"] > 1.2 * total["uniform"]


def test_another_seed_draws_other_candidates_for_the_same_examples(tmp_path: Path, tree: dict[str, Any]) -> None:
    one = prepared(tmp_path / "one", random_log(), small_params(tree))
    other = prepared(tmp_path / "other", random_log(), small_params(tree | {"seed": 1}))

    assert rows_of(one / "examples.parquet") == rows_of(other / "examples.parquet")
    assert read_json(one / "summary.json")["manifests"] != read_json(other / "summary.json")["manifests"]


def test_without_a_clock_whole_users_are_split_and_no_target_is_in_a_history(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    out = prepared(tmp_path, random_log(users=100, clock=False), small_params(tree))

    examples = rows_of(out / "examples.parquet")
    splits: dict[int, set[str]] = {}
    targets: dict[int, set[int]] = {}
    for row in examples:
        splits.setdefault(row["user_id"], set()).add(row["split"])
        targets.setdefault(row["user_id"], set()).add(row["target"])
    assert all(len(of_user) == 1 for of_user in splits.values())
    assert {split for of_user in splits.values() for split in of_user} == {"train", "validation", "test"}
    for row in examples:
        assert not targets[row["user_id"]] & set(row["history"])
        assert row["cutoff"] is None
    orders = {tuple(row["history"]) for row in examples if row["user_id"] == examples[0]["user_id"]}
    assert len(orders) > 1  # a set, shuffled anew for each example
    assert set(read_json(out / "summary.json")["cutoffs"].values()) == {None}


def test_a_user_keeps_its_split_when_others_join(tmp_path: Path, tree: dict[str, Any]) -> None:
    rows = random_log(users=100, clock=False)
    few = prepared(tmp_path / "few", [row for row in rows if row[0] <= 60], small_params(tree))
    many = prepared(tmp_path / "many", rows, small_params(tree))

    before, after = ({row["user_id"]: row["split"] for row in rows_of(out / "events.parquet")} for out in (few, many))
    assert before.items() <= after.items()


def test_leave_one_out_takes_each_users_last_likes_and_says_that_it_leaks(
    tmp_path: Path, tree: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        out = prepared(tmp_path, random_log(), small_params(tree, split="leave-one-out"))

    assert "leaks" in caplog.text
    splits: dict[int, list[str]] = {}
    for row in rows_of(out / "events.parquet"):
        splits.setdefault(row["user_id"], []).append(row["split"])
    assert splits
    assert all(of_user[-2:] == ["validation", "test"] for of_user in splits.values())
    assert all(set(of_user[:-2]) == {"train"} for of_user in splits.values())


def test_twins_get_their_year_or_their_id_and_others_keep_their_title() -> None:
    rows = [
        {"item_id": 1, "title": "Crash", "attributes": [("year", ["1996"])]},
        {"item_id": 2, "title": "Crash", "attributes": [("year", ["2004"])]},
        {"item_id": 3, "title": "Alone", "attributes": [("year", ["2020"])]},
        {"item_id": 4, "title": "Same (1997)", "attributes": [("year", ["1997"])]},
        {"item_id": 5, "title": "Same (1997)", "attributes": [("year", ["1997"])]},
        {"item_id": 6, "title": "Bare", "attributes": None},
        {"item_id": 7, "title": "Bare", "attributes": []},
        {"item_id": 8, "title": "Bare [7]", "attributes": []},
    ]
    assert unique_titles(rows) == {
        1: "Crash (1996)",
        2: "Crash (2004)",
        3: "Alone",
        4: "Same (1997) [4]",
        5: "Same (1997) [5]",
        6: "Bare [6]",
        7: "Bare [7] [7]",
        8: "Bare [7] [8]",
    }


@pytest.mark.parametrize(
    ("prepare_params", "log", "message"),
    [
        ({"core": 99}, {}, r"prepare.core is 99 and leaves none of 383 train likes \(the longest history has 12"),
        ({"hidden_items": 0.99}, {}, "prepare.hidden_items is 0.99 and hides every liked item; lower it"),
        (
            {"hidden_items": 0.9, "core": 9},
            {},
            r"core is 9 .*, or lower prepare.hidden_items \(0.9\), which leaves training so few",
        ),
        ({"min_rating": 6.0}, {}, "holds no rating of at least 6.*prepare.min_rating"),
        ({"candidates": 30}, {}, "candidates is 30, which needs at least 31 items with 1 or more train events"),
        ({"min_history": 12}, {}, "no train example is left: none of 40 users .*has 12 likes.*min_history = 12"),
    ],
)
def test_too_little_data_is_one_line_that_names_the_key_and_the_numbers(
    tmp_path: Path, tree: dict[str, Any], prepare_params: dict[str, Any], log: dict[str, Any], message: str
) -> None:
    rows: list[Row] = [(*row[:3], 5.0) for row in random_log()]
    with pytest.raises(RecalignError, match=message) as caught:
        prepared(tmp_path, rows, small_params(tree, **prepare_params), **log)
    assert "\n" not in str(caught.value)
    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"validated"}


def test_a_failure_leaves_the_last_result_as_it_was(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = prepared(tmp_path, random_log(), small_params(tree))
    before = read_json(out / "manifest.json")
    with pytest.raises(RecalignError):
        prepared(tmp_path, random_log(), small_params(tree, core=99))

    verify(out)
    assert read_json(out / "manifest.json") == before


def test_users_who_met_nearly_everything_are_no_cases_and_are_counted(
    tmp_path: Path, tree: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows = random_log()
    rows += [(1, item, 190 + item % 3, None) for item in range(1, 31) if item not in {r[1] for r in rows if r[0] == 1}]
    out = prepared(tmp_path, rows, small_params(tree))

    assert "1 users met so many items that too few are left" in caplog.text
    asked = {row["user_id"] for row in rows_of(out / "candidates.parquet")}
    assert (len(asked) > 1, 1 in asked) == (True, False)
    assert any(row["user_id"] == 1 for row in rows_of(out / "events.parquet"))


def test_movielens_100k_is_prepared_with_unique_titles(tmp_path: Path, tree: dict[str, Any], shared_data: Path) -> None:
    lines = (shared_data / "ml-100k" / "u.data").read_text().splitlines()
    numbers = [tuple(map(int, line.split("\t"))) for line in lines]
    rows: list[Row] = [(user, item, time // 3600, float(rating)) for user, item, rating, time in numbers]
    films = (shared_data / "ml-100k" / "u.item").read_text(encoding="latin-1").splitlines()
    titles = {int(line.split("|")[0]): line.split("|")[1] for line in films}
    tree["prepare"]["core"] = 1
    out = prepared(tmp_path, rows, parse_params(tree), titles=titles, min_rating=4)

    kept = [row["title"] for row in rows_of(out / "items.parquet")]
    assert len(kept) == len(set(kept)) == 1682
    assert len(rows_of(out / "events.parquet")) == 55375
    assert {len(row["candidates"]) for row in rows_of(out / "candidates.parquet")} == {20}
