"""The three views of a log, what is hidden, and what a user has met: who stands where, and that nothing leaks."""

import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flat_project import flat_project
from test_prepare import prepared
from validated_log import START, Row, random_log, rows_of, small_params, write_log

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items, Met, read_cases, read_examples, read_met
from recalign.recommenders.recommender import Request
from recalign.recommenders.roster import load_fitted
from recalign.stages.baselines import baselines
from recalign.stages.pairs import pairs
from recalign.stages.prepare import prepare
from recalign.stages.profiles import profiles
from recalign.training.examples import read_listing


def counts_of(out: Path) -> Counter[int]:
    """Train events of each item, whether the k-core keeps them or not."""
    return Counter(row["item_id"] for row in rows_of(out / "events.parquet") if row["split"] in ("train", "outside"))


def asked_of(out: Path) -> list[dict[str, Any]]:
    return [row for row in rows_of(out / "examples.parquet") if row["split"] != "train"]


def log_with_newcomers() -> list[Row]:
    """A log whose late part has new users (71 to 75) and new items (31 to 40)."""
    rows = random_log(users=70)
    rows += [(user, 31 + (user + n) % 10, 189 + (user * 3 + n) % 11, None) for user in range(1, 71) for n in range(2)]
    rows += [(user, 1 + (user * 7 + n) % 30, 186 + 4 * n, None) for user in range(71, 76) for n in range(4)]
    return rows


@pytest.mark.parametrize("cold_events", [1, 4])
def test_the_view_of_a_case_follows_from_its_history_and_its_targets_train_events(
    tmp_path: Path, tree: dict[str, Any], cold_events: int
) -> None:
    out = prepared(tmp_path, log_with_newcomers(), small_params(tree, core=3, cold_events=cold_events))

    counts, seen = counts_of(out), set()
    for row in asked_of(out):
        cold_user, cold_item = len(row["history"]) < 2, counts[row["target"]] < cold_events
        assert not (cold_user and cold_item)  # cold on both sides: no view
        expected = "user-cold" if cold_user else "item-cold-natural" if cold_item else "warm"
        assert row["view"] == expected
        seen.add(expected)
    assert seen == {"warm", "user-cold", "item-cold-natural"}
    assert {row["view"] for row in rows_of(out / "examples.parquet") if row["split"] == "train"} == {None}


@pytest.mark.parametrize("cold_events", [1, 4])
def test_training_counts_give_no_target_away(tmp_path: Path, tree: dict[str, Any], cold_events: int) -> None:
    """Item-cold targets stand among items of exactly their own count; warm ones among items that are warm too."""
    out = prepared(tmp_path, log_with_newcomers(), small_params(tree, core=3, cold_events=cold_events))

    counts, views = counts_of(out), {row["example_id"]: row for row in asked_of(out)}
    lists = rows_of(out / "candidates.parquet")
    assert {views[row["example_id"]]["view"] for row in lists} >= {"warm", "item-cold-natural"}
    for row in lists:
        case = views[row["example_id"]]
        if case["view"] == "item-cold-natural":
            assert {counts[item] for item in row["candidates"]} == {counts[case["target"]]}
            assert row["manifest"] == "uniform"
        else:
            assert min(counts[item] for item in row["candidates"]) >= cold_events


def test_a_view_without_cases_is_left_out_and_the_summary_says_why(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = prepared(tmp_path, random_log(), small_params(tree, core=1, min_history=1))

    summary = read_json(out / "summary.json")
    assert summary["views_left_out"]["item-cold-natural"] == (
        "0 items have fewer than 1 train events, and a list takes 5"
    )
    assert summary["views_left_out"]["item-cold-hidden"] == "prepare.hidden_items is 0"
    assert "warm" not in summary["views_left_out"]
    assert "item-cold-natural" not in summary["manifests"]["uniform"]


def test_cases_that_are_cold_on_both_sides_are_counted(tmp_path: Path, tree: dict[str, Any]) -> None:
    rows = [*log_with_newcomers(), (99, 31, 195, None), (99, 32, 196, None)]
    with_both = read_json(prepared(tmp_path / "a", rows, small_params(tree, core=1)) / "summary.json")
    without = read_json(prepared(tmp_path / "b", log_with_newcomers(), small_params(tree, core=1)) / "summary.json")

    assert with_both["counts"]["cold_both"] == without["counts"]["cold_both"] + 2


def test_without_a_clock_a_user_is_shown_cold_by_cutting_its_history(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = prepared(tmp_path, random_log(users=120, clock=False), small_params(tree, min_history=3))

    cold = [row for row in asked_of(out) if row["view"] == "user-cold"]
    asked = Counter((row["user_id"], row["target"]) for row in asked_of(out))
    assert len(cold) == len({row["user_id"] for row in cold}) == len({user for user, _ in asked})  # one a user
    assert {len(row["history"]) for row in cold} == {0, 1, 2}
    for row in cold:
        assert not any((row["user_id"], item) in asked for item in row["history"])


@pytest.mark.parametrize("clock", [True, False])
def test_a_hidden_item_stands_in_its_own_cases_and_nowhere_else(
    tmp_path: Path, tree: dict[str, Any], clock: bool
) -> None:
    rows = random_log(users=150, items=60, each=20, clock=clock)
    out = prepared(tmp_path, rows, small_params(tree, hidden_items=0.4))

    hidden = {row["item_id"]: row["hidden"] for row in rows_of(out / "items.parquet") if row["hidden"]}
    assert set(hidden.values()) == {"validation", "test"}
    assert 12 <= len(hidden) <= 36
    assert not hidden.keys() & {row["item_id"] for row in rows_of(out / "events.parquet")}
    assert {row["popularity"] for row in rows_of(out / "items.parquet") if row["hidden"]} == {0}
    examples = {row["example_id"]: row for row in rows_of(out / "examples.parquet")}
    asked = Counter(row["view"] for row in examples.values())
    assert asked["item-cold-hidden"] > 20
    for row in examples.values():
        assert not hidden.keys() & set(row["history"])
        assert (row["target"] in hidden) == (row["view"] == "item-cold-hidden")
        if row["target"] in hidden:
            assert hidden[row["target"]] == row["split"]  # two disjoint classes
    lists = rows_of(out / "candidates.parquet")
    assert {examples[row["example_id"]]["view"] for row in lists} >= {"warm", "item-cold-hidden"}
    for row in lists:
        case = examples[row["example_id"]]
        own = {hidden.get(item) for item in row["candidates"]}
        assert own == ({case["split"]} if case["view"] == "item-cold-hidden" else {None})


def test_hiding_changes_no_case_that_hides_nothing_but_the_digest_of_the_data(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    rows = random_log(users=100, items=60, each=20)
    whole = read_json(prepared(tmp_path / "a", rows, small_params(tree)) / "summary.json")
    again = read_json(prepared(tmp_path / "b", rows, small_params(tree, hidden_items=0.3)) / "summary.json")
    other = read_json(
        prepared(tmp_path / "c", rows, small_params(tree | {"seed": 5}, hidden_items=0.3)) / "summary.json"
    )

    assert len({s["data_digest"] for s in (whole, again, other)}) == 3
    assert [s["hidden_items"] for s in (whole, again)] == [0.0, 0.3]


def test_the_share_that_is_hidden_is_below_one(tree: dict[str, Any]) -> None:
    with pytest.raises(RecalignError, match=r"prepare\.hidden_items.*1"):
        small_params(tree, hidden_items=1.0)


def test_an_item_that_came_later_is_in_no_earlier_list(tmp_path: Path, tree: dict[str, Any]) -> None:
    validated = write_log(tmp_path / "validated", random_log(users=60))
    items = pq.read_table(validated / "items.parquet")
    first_days = [START + timedelta(hours=185) if item > 20 else None for item in items["item_id"].to_pylist()]
    pq.write_table(
        items.append_column("available_from", pa.array(first_days, pa.timestamp("us"))), validated / "items.parquet"
    )
    prepare(small_params(tree), flat_project(tmp_path))

    examples = {row["example_id"]: row for row in asked_of(tmp_path / "prepared")}
    late = 0
    for row in rows_of(tmp_path / "prepared" / "candidates.parquet"):
        case = examples[row["example_id"]]
        later = [item for item in row["candidates"] if item > 20 and item != case["target"]]
        if case["cutoff"] < START + timedelta(hours=185):
            assert not later
        late += len(later)
    assert late > 0  # once they are there, they are drawn
    assert Items.read(tmp_path / "prepared").available_from[21] == START + timedelta(hours=185)


@pytest.mark.parametrize("change", ["max_history", "titles", "another history", "candidates"])
def test_the_digest_covers_the_whole_case(tmp_path: Path, tree: dict[str, Any], change: str) -> None:
    rows = random_log()
    first = read_json(prepared(tmp_path / "a", rows, small_params(tree)) / "summary.json")["manifests"]["uniform"]
    titles = {1: "Renamed"} if change == "titles" else {}
    options = {"max_history": {"max_history": 3}, "candidates": {"candidates": 6}}.get(change, {})
    if change == "another history":
        user = next(r["user_id"] for r in asked_of(tmp_path / "a" / "prepared") if r["view"] == "warm")
        swapped = next(row for row in rows if row[0] == user)
        rows = [(row[0], row[1], 0, None) if row == swapped else row for row in rows]
    other = prepared(tmp_path / "b", rows, small_params(tree, **options), titles=titles)

    assert read_json(other / "summary.json")["manifests"]["uniform"]["warm"] != first["warm"]


def test_met_is_everything_before_the_case_liked_or_not_far_beyond_the_history(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    rows: list[Row] = [(*row[:3], 5.0 if n % 3 else 1.0) for n, row in enumerate(random_log(users=60, each=20))]
    out = prepared(tmp_path, rows, small_params(tree, max_history=2), min_rating=4)

    cases = read_cases(out, c.TEST, "uniform")
    met = read_met(out, [case.example.user_id for case in cases])
    assert cases
    for case in cases:
        example = case.example
        assert example.cutoff is not None
        own = [row for row in rows if row[0] == example.user_id]
        earlier = {row[1] for row in own if START + timedelta(hours=row[2] or 0) < example.cutoff}
        assert met[example.user_id].before(example) == (earlier | set(example.history)) - {example.target}
    assert max(len(met[case.example.user_id].before(case.example)) for case in cases) > 6
    assert any(m.disliked for m in met.values())


def test_what_is_met_later_or_asked_is_not_met_before() -> None:
    example = Example("1-9", 1, c.TEST, datetime(2024, 1, 5), (3,), 9, c.WARM)
    times = {2: datetime(2024, 1, 4), 3: datetime(2024, 1, 5), 4: datetime(2024, 1, 5), 9: datetime(2024, 1, 1)}
    assert Met(times, frozenset(), frozenset()).before(example) == {2, 3}
    without = Example("1-9", 1, c.TEST, None, (3,), 9, c.WARM)
    assert Met(dict.fromkeys(times), frozenset(), frozenset({9, 4})).before(without) == {2, 3}


def test_the_summary_counts_every_view(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = prepared(tmp_path, log_with_newcomers(), small_params(tree, core=1))

    told = json.loads((out / "summary.json").read_text())["counts"]["views"]
    counted = Counter((row["view"], row["split"]) for row in asked_of(out))
    assert {(view, split): n for view, own in told.items() for split, n in own.items() if n} == counted


def ids_in(value: Any) -> set[int]:
    """Every whole number in a row, however deep."""
    if isinstance(value, dict):
        return ids_in(list(value.values()))
    if isinstance(value, list | tuple):
        return {number for part in value for number in ids_in(part)}
    return {value} if isinstance(value, int) and not isinstance(value, bool) else set()


def test_no_stage_that_training_reads_ever_names_a_hidden_item(tmp_path: Path, tree: dict[str, Any]) -> None:
    """Every table and every fitted recommender is walked: numbers of items are far above all other numbers."""
    far = 1_000_000_000
    rows: list[Row] = [(user, far + item, *rest) for user, item, *rest in random_log(users=120, items=60, each=20)]
    tree["profiles"] |= {"engine": "counting", "users": 40}
    tree["pairs"] |= {"examples": 60, "negatives": 3, "strategy": "mixed"}
    tree["pairs"]["shares"] |= {"uniform": 0.2, "popularity": 0.3, "hard": 0.3, "profile": 0.2}
    tree["prompt"]["form"] = "candidates"
    params = small_params(tree, hidden_items=0.3)
    years = {far + item: str(1950 + item % 7) for item in range(1, 61)}
    write_log(tmp_path / "validated", rows, years=years)
    project = flat_project(tmp_path)
    prepare(params, project)
    for system in ("popularity", "item_knn", "ease"):
        baselines(params, system, project)
    profiles(params, project)
    pairs(params, project)

    items = Items.read(project.prepared)
    hidden = set(items.hidden)
    assert 10 < len(hidden) < 30
    for path in ("profiles/profiles.parquet", "pairs/pairs.parquet", "prepared/events.parquet"):
        named = ids_in(rows_of(tmp_path / path))
        assert any(number > far for number in named)  # it is the items that are walked
        assert not named & hidden, path
    assert not hidden & set(items.trained.ids)
    examples = read_examples(project.prepared, c.TRAIN)
    asked = {c.TRAIN: [example.example_id for example in examples]}
    listing = read_listing(params, project.prepared, items, asked)
    assert listing is not None
    assert examples
    for example in examples:
        assert not hidden & {*example.history, *listing.items(example.example_id, example.target)}
    for system in ("popularity", "item_knn", "ease"):
        fitted = load_fitted(system, project.baselines / system, items)
        (scores,) = fitted.scores([Request(1, tuple(items.trained.ids[:3]))], None).tolist()
        unknown = {score for item, score in zip(items.ids, scores, strict=True) if item in hidden}
        assert len(unknown) == 1  # all alike, and below whatever is known
        known = set(items.trained.ids)
        assert max(unknown) < min(score for item, score in zip(items.ids, scores, strict=True) if item in known)
