"""Samples of examples are spread over users, and a few of many are read without the others."""

import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recalign.commands.recommend import user_history
from recalign.common.artifacts import folder, write_json, write_parquet
from recalign.data.records import longest_histories, read_examples, read_outlines, read_whole, unread_first
from recalign.params.load import parse_params
from recalign.preferences.profiles.selection import nobody, pair_examples, sft_examples


@pytest.fixture
def prepared(tmp_path):
    """Twelve users with four examples each in either split."""
    rows = [
        {"example_id": f"{user}-{n}", "user_id": user, "split": split,
         "view": None if split == "train" else "warm", "cutoff": None,
         "history": list(range(100, 102 + n)), "target": n}
        for split in ("train", "test") for user in range(12) for n in range(4)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "examples.parquet")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_sample_holds_many_users(prepared, split):
    """Intervals are clustered by user, and a batch of one person's examples teaches that person."""
    assert len({example.user_id for example in read_examples(prepared, split, 12)}) > 6


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_larger_sample_holds_a_smaller_one(prepared, split):
    """`limit` cuts one and the same order."""
    assert read_examples(prepared, split, 30)[:7] == read_examples(prepared, split, 7)


def test_another_seed_draws_another_sample(prepared):
    """The order is drawn from the seed and the ids."""
    assert read_examples(prepared, "test", 12, seed=1) != read_examples(prepared, "test", 12, seed=2)


def test_the_longest_history_of_each_user_is_kept(prepared):
    """All other examples of a user repeat parts of it."""
    longest = longest_histories(read_examples(prepared, "train"))
    assert [len(example.history) for example in longest] == [5] * 12


def test_pairs_come_first_from_users_that_sft_did_not_read(prepared):
    """The first five users' histories are SFT's; their examples stand last, the others keep their order."""
    examples = read_examples(prepared, "train")
    read = {example.user_id for example in longest_histories(examples)[:5]}
    order = unread_first(examples, read)
    assert [example.user_id in read for example in order] == [False] * 28 + [True] * 20
    assert [e for e in order if e.user_id not in read] == [e for e in examples if e.user_id not in read]


@pytest.mark.parametrize("split", ["train", "test"])
def test_outlines_stand_for_the_examples_in_their_order(prepared, split):
    """What is chosen by outlines is what would be chosen of the examples."""
    outlines, examples = read_outlines(prepared, split, seed=3), read_examples(prepared, split, seed=3)
    assert [(o.example_id, o.user_id, o.length) for o in outlines] == [
        (e.example_id, e.user_id, len(e.history)) for e in examples
    ]
    assert read_whole(prepared, split, outlines[5:9]) == examples[5:9]
    of_outlines = [outline.example_id for outline in longest_histories(outlines, 3)]
    assert of_outlines == [example.example_id for example in longest_histories(examples, 3)]
    assert read_whole(prepared, split, []) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """60,000 training examples with histories of 50 items each, of 3,000 users; 200,000 events."""
    place = tmp_path_factory.mktemp("large") / "prepared"
    users = [row // 20 for row in range(60_000)]
    examples = {
        "example_id": [f"{user}-{row}" for row, user in enumerate(users)], "user_id": users,
        "split": ["train"] * 59_000 + ["validation"] * 1000, "view": [None] * 59_000 + ["warm"] * 1000,
        "cutoff": pa.array([10**15] * 60_000, pa.timestamp("us")),
        "history": [[row % 97 + n for n in range(50)] for row in range(60_000)], "target": [500] * 60_000,
    }  # fmt: skip
    events = {
        "user_id": pa.array([row % 3000 for row in range(200_000)]),
        "item_id": pa.array([row % 97 for row in range(200_000)]),
        "timestamp": pa.array(list(range(200_000)), pa.timestamp("us")),
        "position": pa.array([row // 3000 for row in range(200_000)]), "split": pa.array(["train"] * 200_000),
    }  # fmt: skip
    with folder(place) as partial:
        write_parquet(partial / "examples.parquet", pa.table(examples))
        write_parquet(partial / "events.parquet", pa.table(events))
        write_json(partial / "summary.json", {"cutoffs": {"train": "1970-01-01T00:00:00.150000+00:00"}, "clock": True})
    return place


class NoNames:
    """Ids of a log whose ids are numbers."""

    def number(self, raw):
        return int(raw)

    def shown(self, number):
        return str(number)


@pytest.mark.parametrize(
    ("what", "count", "most"),
    [
        (lambda params, place: sft_examples(params, place, "train", nobody), 8, 50e6),
        (lambda params, place: pair_examples(params, place, "train", nobody), 9, 50e6),
        (lambda params, place: user_history(place, "7", NoNames()), 67, 5e6),
    ],
    ids=["sft", "pairs", "recommend"],
)
def test_a_few_examples_of_a_large_log_cost_no_copy_of_it(large, tree, what, count, most):
    """Every history as a list of Python numbers, or every event as a row, is what must not be held."""
    tree["sft"]["examples"], tree["pairs"]["examples"] = 8, 9
    params = parse_params(tree)
    tracemalloc.start()
    found = what(params, large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == count
    assert peak < most
