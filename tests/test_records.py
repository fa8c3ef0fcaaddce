"""Samples of examples are spread over users."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recalign.data.records import longest_histories, read_examples, unread_first


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
