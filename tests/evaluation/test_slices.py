"""Slices, exposure and the share of the oracle's gain, from ranks and lists made by hand."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recalign.common.artifacts import write_json, write_parquet
from recalign.common.item_groups import popularity_fifths
from recalign.evaluation.comparison import oracle_shares
from recalign.evaluation.metrics import chance
from recalign.evaluation.ranks import CaseList, SystemRanks, in_case_order
from recalign.evaluation.slices import AFTER, BEFORE, LATE, NEVER, CaseFacts, build_slices
from recalign.report.findings import read_starts

FIFTH = "most popular fifth"


def system(name: str, ranks: list[int], top: list[tuple[int, ...]] | None = None) -> SystemRanks:
    cases = [(f"{row:03d}", row // 2) for row in range(len(ranks))]  # two cases a user
    return in_case_order(
        name, CaseList("sampled-20", "uniform", "d", cases), np.array(ranks), np.zeros(len(ranks)), top or ()
    )


def facts(cases: int, **changes: object) -> dict[str, CaseFacts]:
    plain = {"history": 5, "user_events": 50, "target_events": 50, "fifth": FIFTH, "groups": ("Drama",)}
    return {f"{row:03d}": CaseFacts(**(plain | changes)) for row in range(cases)}  # type: ignore[arg-type]


def test_each_slice_has_its_cases_users_and_values() -> None:
    about = facts(4) | {"003": CaseFacts(45, 0, 3, "least popular fifth", ("Drama", "War"))}
    made = build_slices([system("a", [1, 1, 1, 3])], about, "genre", 200, 1)
    assert [(own.dimension, own.label, own.cases, own.users, own.values["a"].value) for own in made] == [
        ("user", "user without train events", 1, 1, 0.5),
        ("user", "known user", 3, 2, 1.0),
        ("item", "10 train events or more", 3, 2, 1.0),
        ("item", "rare item (under 10 train events)", 1, 1, 0.5),
        ("target's popularity", "least popular fifth", 1, 1, 0.5),
        ("target's popularity", FIFTH, 3, 2, 1.0),
        ("history", "0 to 9 items", 3, 2, 1.0),
        ("history", "40 or more", 1, 1, 0.5),
        ("genre", "Drama", 4, 2, 0.875),
        ("genre", "War", 1, 1, 0.5),
    ]


def test_users_and_items_are_sliced_by_when_they_were_first_liked() -> None:
    about = {
        "000": CaseFacts(5, 50, 50, FIFTH, (), (BEFORE, BEFORE)),
        "001": CaseFacts(5, 4, 50, FIFTH, (), (LATE, AFTER)),
        "002": CaseFacts(5, 0, 50, FIFTH, (), (AFTER, NEVER)),
    }
    made = build_slices([system("a", [1, 1, 3])], about, None, 200, 1)
    wanted = ("user", "user's first like", "target's first like")
    assert [(own.dimension, own.label, own.cases) for own in made if own.dimension in wanted] == [
        ("user", "user without train events", 1),
        ("user", "hardly known user (under 5 train events)", 1),
        ("user", "known user", 1),
        ("user's first like", "after train", 1),
        ("user's first like", "in the last tenth of train's time", 1),
        ("user's first like", "earlier in train", 1),
        ("target's first like", "not before the case", 1),
        ("target's first like", "after train", 1),
        ("target's first like", "earlier in train", 1),
    ]
    assert all(own.small for own in made)


def test_a_first_like_counts_as_it_was_known_at_the_case(tmp_path: Path) -> None:
    """Train ends on day 100: its last tenth begins on day 90. Item 5 is first liked by the case itself, on day 120;
    item 6 on day 130, which the case on day 120 cannot know."""
    write_log(tmp_path, [(1, 1, 0), (2, 2, 95), (3, 3, 105), (1, 4, 110), (1, 5, 120), (1, 6, 130)], ends=100)
    write_cases(tmp_path, [("a", 1, 1, 120), ("b", 2, 2, 120), ("c", 3, 4, 120), ("d", 1, 5, 120), ("e", 1, 6, 120)])
    assert read_starts(tmp_path, "test") == {
        "a": (BEFORE, BEFORE), "b": (LATE, LATE), "c": (AFTER, AFTER), "d": (BEFORE, NEVER), "e": (BEFORE, NEVER),
    }  # fmt: skip
    write_log(tmp_path, [(1, 1, 0), (2, 2, 101)], ends=100, split="train")  # every user is split at a time of its own
    assert read_starts(tmp_path, "test") == {}
    write_json(tmp_path / "summary.json", {"cutoffs": {"train": None, "validation": None, "test": None}})
    assert read_starts(tmp_path, "test") == {}


def day(number: int) -> datetime:
    return datetime(2023, 1, 1) + timedelta(days=number)


def write_log(prepared: Path, likes: list[tuple[int, int, int]], ends: int, split: str = "") -> None:
    """events.parquet from (user, item, day), and the cutoff of train."""
    rows = [
        {"user_id": user, "item_id": item, "timestamp": day(at), "split": split or ("train" if at < ends else "test")}
        for user, item, at in likes
    ]
    write_parquet(prepared / "events.parquet", pa.Table.from_pylist(rows))
    write_json(prepared / "summary.json", {"cutoffs": {"validation": day(ends).isoformat()}})


def write_cases(prepared: Path, cases: list[tuple[str, int, int, int]]) -> None:
    """examples.parquet from (example, user, target, day)."""
    rows = [
        {"example_id": example, "user_id": user, "split": "test", "view": "warm", "cutoff": day(at), "target": target}
        for example, user, target, at in cases
    ]
    write_parquet(prepared / "examples.parquet", pa.Table.from_pylist(rows))


def test_a_slice_under_thirty_cases_names_no_best_system_nor_does_a_tie() -> None:
    systems = [system("a", [1] * 30), system("b", [2] * 30)]
    assert build_slices(systems, facts(30), None, 200, 1)[0].best == "a"
    fewer = [system("a", [1] * 29), system("b", [2] * 29)]
    assert build_slices(fewer, facts(29), None, 200, 1)[0].best is None
    assert build_slices([system("a", [1] * 30), system("b", [1] * 30)], facts(30), None, 200, 1)[0].best is None


def test_a_catalogue_falls_into_fifths_and_equals_stay_together() -> None:
    fifths = popularity_fifths({item: item for item in range(10)})
    assert [fifths[item].split()[0] for item in range(10)] == [
        "least", "least", "second", "second", "third", "third", "fourth", "fourth", "most", "most",
    ]  # fmt: skip
    assert set(popularity_fifths(dict.fromkeys(range(7), 3)).values()) == {"least popular fifth"}


def test_the_share_of_the_oracles_gain_is_1_for_its_equal_and_0_for_chance() -> None:
    every = list(range(1, 21))  # each rank once: exactly what a random order expects
    systems = [system("oracle", [1] * 20), system("equal", [1] * 20), system("random", every)]
    shares = oracle_shares(systems, 20, 200, 1)
    assert (shares["equal"].value, shares["equal"].low) == (1.0, 1.0)
    assert shares["random"].value == pytest.approx(0.0, abs=1e-12)
    assert set(shares) == {"equal", "random"}
    assert chance("ndcg_at_10", 20) == pytest.approx(0.227178, abs=1e-6)


def test_without_an_oracle_nothing_is_said_of_its_gain() -> None:
    assert oracle_shares([system("a", [1, 2])], 20, 200, 1) == {}
