"""The store of reference log-probs: exact, keyed by what it depends on, and computed only where missing."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from resealed import resealed
from safetensors.torch import load_file, save_file
from training_world import World, all_examples, make_params, make_world, write_pairs

from recalign.common.artifacts import file_digest, read_json, write_json
from recalign.common.errors import RecalignError
from recalign.llm.model.base import load_language_model
from recalign.llm.model.quantisation import choose_device, choose_dtype
from recalign.llm.scoring.logprobs import naive_logprobs, response_logprobs
from recalign.training.examples import PreferenceExample, read_preference_examples, text_prompts
from recalign.training.preference import START_TOLERANCE
from recalign.training.reference import (
    Logprob,
    compute,
    keys_of,
    missing_examples,
    read_store,
    reference_sums,
    response_key,
)


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
    examples = read_preference_examples(
        params,
        world.root / "prepared",
        world.root / "pairs",
        text_prompts(params, world.root / "prepared", lm.tokenizer),
    )["train"]
    stored = reference_sums(read_store(world.root / "reference"), lm.digest, examples)
    assert len(examples) > 6
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


@pytest.mark.parametrize(("quantiser", "dtype"), [("none", "fp32"), ("none", "bf16"), ("nf4", "fp32"), ("nf4", "bf16")])
def test_stored_log_probs_equal_live_ones_however_they_share_a_row(world, quantiser, dtype):
    """1e-4 (relative) in fp32, also on 4-bit weights. In bf16 rows of other shapes round sums in other orders: what
    training allows at step 0 holds here too."""
    base = make_params().base.model_copy(update={"quantisation": quantiser, "compute": dtype})
    lm = load_language_model(world.root / "base", base, adapter=world.root / "sft")
    examples = read_preference_examples(
        make_params(),
        world.root / "prepared",
        world.root / "pairs",
        text_prompts(make_params(), world.root / "prepared", lm.tokenizer),
    )
    some = examples["train"][:8]
    assert len(some) == 8
    (store,) = compute(lm.model, lm.digest, some, micro_tokens=10_000)
    lm.model.train()
    for example in some:
        with torch.no_grad():
            live = response_logprobs(lm.model, [example.prompt], [example.responses]).sums[0].tolist()
        assert [store[key].sum for key in keys_of(lm.digest, example)] == pytest.approx(
            live, rel=START_TOLERANCE[dtype]
        )


def test_four_more_negatives_cost_four_short_branches(world):
    lm = load_language_model(world.root / "base", make_params().base, adapter=world.root / "sft")
    rng = torch.Generator().manual_seed(0)
    prompt, *titles = (torch.randint(3, 600, (n,), generator=rng).tolist() for n in (30, 4, 5, 6, 3, 5, 4, 6, 3))
    few, many = (PreferenceExample("1-2", prompt, titles[:n]) for n in (4, 8))
    (store,) = compute(lm.model, lm.digest, [few], micro_tokens=10_000)
    read = []
    lm.model.get_base_model().model.layers[0].register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    missing = missing_examples(store, lm.digest, [many])
    (more,) = compute(lm.model, lm.digest, missing, micro_tokens=10_000)
    assert read == [30 + (5 - 1) + (4 - 1) + (6 - 1) + (3 - 1)]
    assert (len(store), len(more), store.keys() & more.keys()) == (4, 4, set())
    assert len(reference_sums(store | more, lm.digest, [many])["1-2"]) == 8


@pytest.mark.parametrize("change", ["base", "adapter", "nf4", "precision"])
def test_a_store_of_another_base_adapter_quantisation_or_precision_is_not_read(world, change, tmp_path, caplog):
    """The stage computes every log-prob anew, and keeps none that the other model left."""
    root = World(tmp_path / "project")
    shutil.copytree(world.root, root.root)
    params = make_params()
    if change == "nf4":
        params = make_params(base=params.base.model_dump() | {"quantisation": "nf4"})
    elif change == "precision":
        chosen = choose_dtype(params.base, choose_device())
        other = "fp32" if chosen == torch.bfloat16 else "bf16"
        params = make_params(base=params.base.model_dump() | {"compute": other})
    else:
        place, name = ("base", "model") if change == "base" else ("sft", "adapter_model")
        moved = root.root / place / f"{name}.safetensors"
        weights = {name: weight * 1.01 for name, weight in load_file(moved).items()}
        with resealed(root.root / place) as out:
            save_file(weights, out / moved.name, metadata={"format": "pt"})
    if change == "base":  # as another model's folder would be: its own digest, and an adapter that was trained on it
        other = read_json(root.root / "base/base.json") | {"sha256": file_digest(moved)}
        identity = read_json(root.root / "sft/recalign.json") | {"base": other}
        for place, name, value in (("base", "base.json", other), ("sft", "recalign.json", identity)):
            with resealed(root.root / place) as out:
                write_json(out / name, value)
    before = read_store(root.root / "reference")
    with caplog.at_level("INFO"):
        root.reference(params)
    after = read_store(root.root / "reference")
    assert counts(caplog.text) == (0, len(before))
    assert before.keys() & after.keys() == set()


def test_the_key_depends_on_model_prompt_and_response():
    keys = {
        response_key(model, prompt, response)
        for model in ("a", "b")
        for prompt in ([1, 2], [1], [2, 1])
        for response in ([3], [2, 3])
    }
    assert len(keys) == 12


def test_missing_examples_hold_the_missing_responses_only():
    example = PreferenceExample("1-2", [1, 2], [[3, 9], [4, 9], [5, 9]])
    store = {response_key("m", [1, 2], [4, 9]): Logprob(-1.0, 2)}
    assert missing_examples(store, "m", [example]) == [PreferenceExample("1-2", [1, 2], [[3, 9], [5, 9]])]
    assert missing_examples({}, "m", []) == []


def test_a_store_of_another_model_is_refused_by_example():
    example = PreferenceExample("1-2", [1, 2], [[3, 9], [4, 9]])
    with pytest.raises(RecalignError, match=r"lacks 2 log-probs of example 1-2.*dvc repro reference"):
        reference_sums({}, "m", [example])


def test_no_store_yet_is_an_empty_one(tmp_path: Path):
    assert read_store(tmp_path) == {}
