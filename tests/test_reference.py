"""The store of reference log-probs: exact, keyed by what it depends on, and computed only where missing."""

import re
from pathlib import Path

import pytest
import torch

from recalign.artifacts import file_digest
from recalign.errors import RecalignError
from recalign.llm.base import load_language_model
from recalign.llm.scoring import naive_logprobs
from recalign.training.examples import PreferenceExample, read_preference_examples
from recalign.training.reference import (
    Logprob,
    keys_of,
    missing_examples,
    read_store,
    reference_sums,
    response_key,
)
from training_world import World, all_examples, make_params, make_world, write_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("world"))
    made.sft(make_params())
    made.reference(make_params())
    return made


def counts(text: str) -> tuple[int, int]:
    """(read, computed) of the stage's last line."""
    found = re.findall(r"reference log-probs: (\d+) read, (\d+) computed", text)
    return int(found[-1][0]), int(found[-1][1])


def test_stored_log_probs_are_those_of_the_sft_model_scored_naively(world):
    params = make_params()
    lm = load_language_model(world.root / "base", params.base, adapter=world.root / "sft")
    examples = read_preference_examples(params, world.root / "prepared", world.root / "pairs", lm.tokenizer)["train"]
    stored = reference_sums(read_store(world.root / "reference"), lm.digest, examples)
    for example in examples[:6]:
        with torch.no_grad():
            naive = naive_logprobs(lm.model, [example.prompt], [example.responses])
        assert stored[example.example_id] == pytest.approx(naive.sums[0].tolist(), rel=1e-4)
        store = read_store(world.root / "reference")
        assert [store[key].length for key in keys_of(lm.digest, example)] == [len(r) for r in example.responses]


def test_a_second_run_computes_nothing_and_changes_no_byte(world, caplog):
    before = file_digest(world.root / "reference" / "reference.parquet")
    with caplog.at_level("INFO"):
        world.reference(make_params())
    read, computed = counts(caplog.text)
    assert (read > 0, computed) == (True, 0)
    assert file_digest(world.root / "reference" / "reference.parquet") == before


def test_only_missing_log_probs_are_computed_and_unneeded_ones_go(world, caplog):
    write_pairs(world.root / "fewer", all_examples()[:60], negatives=2)
    with caplog.at_level("INFO"):
        small = read_store(world.reference(make_params(), pairs="fewer", name="growing"))
        fresh = counts(caplog.text)
        grown = read_store(world.reference(make_params(), pairs="pairs", name="growing"))
    read, computed = counts(caplog.text)
    assert fresh == (0, len(small))
    assert (read, computed) == (len(small.keys() & grown.keys()), len(grown.keys() - small.keys()))
    assert min(read, computed) > 0
    whole = read_store(world.root / "reference")
    assert grown.keys() == whole.keys()
    for key, value in grown.items():
        assert value.sum == pytest.approx(whole[key].sum, rel=1e-5)


def test_the_key_depends_on_model_prompt_and_response():
    keys = {
        response_key(model, prompt, response)
        for model in ("a", "b")
        for prompt in ([1, 2], [1], [2, 1])
        for response in ([3], [2, 3])
    }
    assert len(keys) == 12


def test_missing_examples_hold_the_missing_responses_only():
    example = PreferenceExample("1-2", "1", [1, 2], [[3, 9], [4, 9], [5, 9]])
    store = {response_key("m", [1, 2], [4, 9]): Logprob(-1.0, 2)}
    assert missing_examples(store, "m", [example]) == [PreferenceExample("1-2", "1", [1, 2], [[3, 9], [5, 9]])]
    assert missing_examples({}, "m", []) == []


def test_a_store_of_another_model_is_refused_by_example():
    example = PreferenceExample("1-2", "1", [1, 2], [[3, 9], [4, 9]])
    with pytest.raises(RecalignError, match=r"lacks 2 log-probs of example 1-2.*dvc repro reference"):
        reference_sums({}, "m", [example])


def test_no_store_yet_is_an_empty_one(tmp_path: Path):
    assert read_store(tmp_path) == {}
