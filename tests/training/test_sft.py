"""Reweighting of SFT: golden weights, how they are counted, and a loss that no micro-batch changes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from training_world import make_params, make_world

from recalign.common.artifacts import file_digest, read_json
from recalign.common.errors import RecalignError
from recalign.common.item_groups import group_items
from recalign.data.records import Example, Items
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.params.prompt import PromptParams
from recalign.training.examples import TextExample, text_examples
from recalign.training.loop import micro_batches
from recalign.training.sft import (
    LanguageModelling,
    Position,
    Weights,
    balanced,
    learned_positions,
    position_shares,
    target_weights,
    token_shares,
)

HISTORY, TARGETS = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.3, 0.1])
KINDS = {1: {"kind": ["a"]}, 2: {"kind": ["b"]}, 3: {"kind": ["c"]}, 4: {"kind": ["a", "c"]}}


def weights_of(history: np.ndarray, targets: np.ndarray, bound: float = 5.0) -> Weights:
    grouping = group_items("kind", dict.fromkeys(KINDS, 1), KINDS)
    return Weights(grouping, history, targets, balanced(history, targets, bound))


def test_weights_have_their_golden_numbers() -> None:
    """Methods of IFairLRS: W = histories over targets; an item of two groups has the mean."""
    weights = weights_of(HISTORY, TARGETS)
    assert weights.by_group == pytest.approx([0.8333333333, 1.0, 2.0])
    assert float(TARGETS @ weights.by_group) == pytest.approx(1.0)
    assert weights.of([1, 2, 3, 4]) == pytest.approx([0.8333333333, 1.0, 2.0, 1.4166666667])


def test_the_weighted_loss_weighs_each_target_and_not_the_mean_of_a_micro_batch() -> None:
    """Losses 2, 1, 3 of a target each: Σ wᵢ ℓᵢ / N is 2.8888…; mean weight times mean loss would be 2.5555…"""
    shares = [token_shares([(weight, 2)]) for weight in weights_of(HISTORY, TARGETS).by_group.tolist()]
    losses = [[2.5, 1.5], [0.5, 1.5], [4.0, 2.0]]  # of two tokens a target
    told = sum(np.dot(own, loss) for own, loss in zip(shares, losses, strict=True)) / 3
    assert told == pytest.approx(2.8888888889)
    assert told != pytest.approx(2.5555555556)


def test_weights_are_clipped_and_scaled_back_to_a_mean_of_1() -> None:
    """Raw 0.8333, 1, 2 within 1/1.5 … 1.5: Σ targets · clipped = 0.95, so each is divided by that."""
    weights = balanced(HISTORY, TARGETS, 1.5)
    assert weights == pytest.approx(np.array([0.8333333333, 1.0, 1.5]) / 0.95)
    assert float(TARGETS @ weights) == pytest.approx(1.0)
    assert balanced(HISTORY, TARGETS, 1.0) == pytest.approx([1.0, 1.0, 1.0])


def test_a_group_without_targets_or_without_history_has_a_stated_weight() -> None:
    """Nothing has the first weight; the second is the lower bound, not 0."""
    weights = balanced(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.0, 0.5]), 4.0)
    assert weights == pytest.approx(np.array([1.0, 4.0, 0.25]) / 0.625)
    assert np.isfinite(weights).all()


@pytest.mark.parametrize(
    ("history", "targets", "bound", "said"),
    [
        (np.zeros(2), np.ones(2), 2.0, "one of them is empty"),
        (np.ones(2), np.zeros(2), 2.0, "one of them is empty"),
        (np.ones(2), np.ones(2), 0.5, "the bound of weights is 0.5"),
    ],
)
def test_what_has_no_weights_is_refused(history, targets, bound, said) -> None:
    with pytest.raises(RecalignError, match=said):
        balanced(history, targets, bound)


def test_a_title_before_three_targets_counts_three_times_among_the_histories() -> None:
    """Item 1 is before targets 2, 3 and 4; 2 before 3 and 4; 3 before 4: a has 3, b 2, c 1, of 6."""
    grouping = group_items("kind", dict.fromkeys(KINDS, 1), KINDS)
    history, targets = position_shares([Position((1,), (2, 3, 4))], grouping)
    assert history == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert targets == pytest.approx([0.5 / 3, 1 / 3, 1.5 / 3])


def test_what_repeats_its_history_is_idle_and_what_leaves_it_is_not() -> None:
    assert weights_of(HISTORY, HISTORY).idle
    assert weights_of(HISTORY, np.array([0.49, 0.31, 0.2])).idle
    assert not weights_of(HISTORY, TARGETS).idle


@pytest.fixture(scope="module")
def items() -> Items:
    made = tiny.items(["Red Moon", "A much longer title", "King", "Fall", "Night of Stone", "Glass", "River"])
    kinds = {item: {"kind": ["a" if item < 4 else "b"]} for item in made.ids}
    return Items(made.ids, made.titles, kinds, dict.fromkeys(made.ids, 1))


@pytest.fixture(scope="module")
def builder(items: Items) -> PromptBuilder:
    params = PromptParams(form="history", history=4, training_history=6, profile=False, max_title_tokens=24)
    return PromptBuilder(tiny.tokenizer(), items, params, "films")


EXAMPLES = [
    Example("1", 1, "train", None, (1, 2, 3, 4, 5), 6),
    Example("2", 2, "train", None, (6, 5, 4), 1),
    Example("3", 3, "train", None, (7, 1, 2, 6), 3),
]


def test_the_targets_are_those_that_the_sequence_teaches(items, builder) -> None:
    """The first three titles are the prompt; with one target an example, the last one alone is."""
    every = learned_positions(EXAMPLES, builder, whole_history=True)
    assert [own.targets for own in every] == [(4, 5, 6), (1,), (6, 3)]
    last = learned_positions(EXAMPLES, builder, whole_history=False)
    assert [(own.before, own.targets) for own in last] == [
        ((2, 3, 4, 5), (6,)),
        ((6, 5, 4), (1,)),
        ((7, 1, 2, 6), (3,)),
    ]
    learned = text_examples(EXAMPLES, builder, whole_history=True, weigh=lambda items: [float(i) for i in items])
    assert [[weight for weight, _ in own.weights] for own in learned] == [[4.0, 5.0, 6.0], [1.0], [6.0, 3.0]]
    assert all(sum(tokens for _, tokens in own.weights) == len(own.continuation) for own in learned)
    assert all(own.weights == () for own in text_examples(EXAMPLES, builder, whole_history=True))


def weighted(builder: PromptBuilder) -> list[TextExample]:
    told = {1: 0.5, 2: 1.0, 3: 2.0, 4: 0.25, 5: 3.0, 6: 1.5, 7: 1.0}
    return text_examples(EXAMPLES, builder, whole_history=True, weigh=lambda items: [told[i] for i in items])


def loss_and_gradient(
    model: torch.nn.Module, examples: Sequence[TextExample], budget: int
) -> tuple[float, torch.Tensor]:
    task = LanguageModelling(model, examples, budget)
    parts = micro_batches(examples, budget, task.tokens_at_once)
    model.zero_grad()
    total = 0.0
    for measured in task.losses(parts):
        measured.loss.backward()
        total += measured.loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_weighted_loss_is_equal_for_any_micro_batch_and_to_a_loop_over_targets(builder) -> None:
    """One pass for all, a pass for each, and each target scored on its own after all that is before it."""
    model, examples = tiny.model(), weighted(builder)
    together, apart = (loss_and_gradient(model, examples, budget) for budget in (10_000, 1))
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    assert torch.allclose(together[1], apart[1], rtol=1e-3, atol=1e-6)
    slow, count = 0.0, 0
    for example in examples:
        place = 0
        for weight, tokens in example.weights:
            prompt = example.prompt + example.continuation[:place]
            own = example.continuation[place : place + tokens]
            slow -= weight * response_logprobs(model, [prompt], [[own]]).sums.item() / tokens
            place, count = place + tokens, count + 1
    assert together[0] == pytest.approx(slow / count, rel=1e-5)


@pytest.mark.parametrize("reweighted", [False, True])
def test_attributes_that_no_response_has_are_read_and_not_learned(items, reweighted) -> None:
    """The loss is that of the titles, each scored on its own after all that is before it; a vector moves no place."""
    params = PromptParams(form="history", history=4, training_history=6, profile=False, max_title_tokens=24)
    described = PromptBuilder(tiny.tokenizer(), items, params.model_copy(update={"attributes": ("kind",)}), "films")
    told = {item: 0.5 * item for item in items.ids}
    weigh = (lambda own: [told[item] for item in own]) if reweighted else None
    examples = text_examples(EXAMPLES[:2], described, whole_history=True, weigh=weigh)
    model, slow, tokens = tiny.model(), 0.0, 0
    for example, learned in zip(examples, ([4, 5, 6], [1]), strict=True):
        place = 0
        for item in learned:
            line, title = described.item_line(item), described.title_ids(items.titles[item])
            own = described.response(item) if item == learned[-1] else title
            prompt = example.prompt + example.continuation[:place]
            found = response_logprobs(model, [prompt], [[own]]).sums.item()
            slow -= told[item] * found / len(own) if reweighted else found
            place, tokens = place + len(line), tokens + len(own)
        assert sum(example.mask) == example.learned
    total, _ = loss_and_gradient(model, examples, 10_000)
    assert total == pytest.approx(slow / (4 if reweighted else tokens), rel=1e-5)

    shown = replace(examples[0], continuation=[-1, *examples[0].continuation])
    assert shown.mask == [0.0, *examples[0].mask]
    assert shown.learned == examples[0].learned


def test_token_logprobs_add_up_to_the_sums_in_every_way_of_scoring(builder) -> None:
    from recalign.llm.scoring.ways import naive_logprobs, one_by_one_logprobs, shared_logprobs

    model = tiny.model()
    prompts = [own.prompt for own in weighted(builder)]
    responses = [[builder.response(item) for item in items] for items in ((1, 2), (3,), (4, 5, 2))]
    for way in (one_by_one_logprobs, naive_logprobs, shared_logprobs):
        told = way(model, prompts, responses)
        assert told.tokens.shape[:2] == told.sums.shape
        assert torch.allclose(told.tokens.sum(-1), told.sums, atol=1e-6)
        assert torch.equal(told.tokens != 0, torch.arange(told.tokens.shape[2]) < told.lengths[..., None])


def test_the_log_has_the_table_and_says_when_reweighting_is_idle(items, builder, caplog) -> None:
    caplog.set_level("INFO")
    params = make_params(sft__weights="kind").sft
    even = [Position((1, 4), (1, 4))] * 3
    weights = target_weights(params, items, even)
    assert weights is not None
    assert "histories  targets" in caplog.text
    assert "reweighting is idle" not in caplog.text  # a is before more targets than b
    target_weights(params, items, [Position((1, 4), (1,)), Position((1, 4), (4,))])
    assert "reweighting is idle: every weight is within 5 % of 1" in caplog.text
    assert set(weights.as_dict()["groups"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("by", "said"), [("author", r"sft\.weights: no item has"), ("genre", r"sft\.weights: no item")]
)
def test_a_grouping_that_the_log_lacks_is_told_with_its_key(items, by, said) -> None:
    with pytest.raises(RecalignError, match=said):
        target_weights(make_params(sft__weights=by).sft, items, [Position((1,), (2,))])
    assert target_weights(make_params().sft, items, []) is None


def test_the_defaults_leave_no_trace_in_what_training_keeps() -> None:
    """Equal training keeps equal bytes."""
    assert not {"targets", "weights", "weight_bound"} & make_params().sft.told().keys()
    told = make_params(sft__weights="kind", sft__targets="last").sft.told()
    assert (told["weights"], told["targets"]) == ("kind", "last")
    assert "weight_bound" not in told


def test_the_stage_learns_otherwise_with_weights_and_as_ever_without(tmp_path, caplog) -> None:
    """Spelling out the defaults changes no byte; weights and single targets train other adapters, and say what by."""
    caplog.set_level("INFO")
    world = make_world(tmp_path)
    small = {"sft__examples": 12, "sft__evaluations": 1}
    runs = {
        "plain": {},
        "spelled": {"sft__weights": "none", "sft__targets": "all", "sft__weight_bound": 5.0},
        "popularity": {"sft__weights": "popularity"},
        "last": {"sft__weights": "popularity", "sft__targets": "last"},
    }
    made = {name: world.sft(make_params(**small, **changes), name) for name, changes in runs.items()}
    adapters = {name: file_digest(out / "adapter_model.safetensors") for name, out in made.items()}
    assert file_digest(made["plain"] / "training.json") == file_digest(made["spelled"] / "training.json")
    assert adapters["plain"] == adapters["spelled"]
    assert len(set(adapters.values())) == 3
    told = {name: read_json(out / "training.json").get("weights") for name, out in made.items()}
    assert told["plain"] is None
    assert told["popularity"]["by"] == "popularity"
    assert len(told["popularity"]["groups"]) == 5
    assert told["popularity"] != told["last"]
    assert "weights of targets by group" in caplog.text
    with pytest.raises(RecalignError, match=r"sft\.weights: by 'genre' all items are of one group \(drama\)"):
        world.sft(make_params(**small, sft__weights="genre"), "refused")
