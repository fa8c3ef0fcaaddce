"""RecInterpreter on a small world: what is read, what is frozen, and that another's state reads like nobody's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import training_world

from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items
from recalign.evaluation.metrics import target_ranks
from recalign.hybrid.prompts import soft_id
from recalign.hybrid.rec_interpreter import (
    Interpreter,
    Reading,
    StatePrompts,
    averaged,
    nearest_scores,
    probe_scores,
    recovered,
    recovery,
    residual,
    swapped,
)
from recalign.llm.model.base import fetch_base, load_language_model
from recalign.llm.model.random_models import _scale
from recalign.recommenders.neural.sequential import Sequential, Settings, build_encoder

COUNT, WIDTH = 12, 16


def catalogue() -> Items:
    """Twelve items whose titles begin differently."""
    titles = {item: f"{training_world.WORDS[item - 1]} of {item}" for item in range(1, COUNT + 1)}
    counted = dict.fromkeys(titles, 1)
    return Items(tuple(titles), titles, {item: {} for item in titles}, counted, counted)


def recommender() -> Sequential:
    """A recurrent network that was never trained: its states depend on what it read, which is all that is asked."""
    settings = Settings(dimension=WIDTH, dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        encoder = build_encoder("gru4rec", COUNT, settings)
        with torch.no_grad():
            encoder.embedding.weight.mul_(50)
    return Sequential(catalogue(), "gru4rec", encoder.eval(), settings)


def examples(count: int, first: int = 0) -> list[Example]:
    """Histories of four different items each, and a fifth that came next, drawn by the example's number."""
    found = []
    for number in range(first, first + count):
        drawn = np.random.default_rng(number).permutation(COUNT)[:5] + 1
        own, target = tuple(drawn[:4].tolist()), int(drawn[4])
        found.append(Example(f"e{number}", number, "train", None, own, target))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "base"
    fetch_base(training_world.make_params().base, out)
    return out


@torch.no_grad()
def sharpen(model) -> None:
    """Random weights of the size at which layers and logits depend on what is read: else all titles stay alike."""
    _scale(model)
    model.model.norm.weight.fill_(20.0)


def opened(base, question, vectors=WIDTH) -> Interpreter:
    lm = load_language_model(base, training_world.make_params().base)
    sharpen(lm.model)
    prompts = StatePrompts(lm.tokenizer, catalogue(), training_world.make_params().prompt, "films", clock=False)
    return Interpreter(lm, prompts, question, vectors)


def learn(interpreter, readings, held_out, folder, **changes):
    params = training_world.make_params(sft__learning_rate=5e-3, sft__batch=16, sft__epochs=25).sft
    params = params.model_copy(update=changes)
    return interpreter.train(readings, held_out, params, seed=1, checkpoints=folder / "kept", notes=folder / "notes")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    interpreter = opened(base, "residual")
    readings, held_out = residual(recommender(), examples(320)), residual(recommender(), examples(40, 900))
    result = learn(interpreter, readings, held_out, tmp_path_factory.mktemp("residual"))
    return interpreter, readings, held_out, result


def mean_rank(interpreter, readings) -> float:
    """Of the added item among all twelve; 6.5 by chance."""
    lists = [list(catalogue().ids)] * len(readings)
    places = [own.items[0] - 1 for own in readings]
    ranks = target_ranks(interpreter.logprobs(readings, lists), places, np.tile(np.arange(COUNT), (len(places), 1)))
    return float(np.mean(ranks))


def test_residual_prompts_show_two_states_in_a_fixed_order(base):
    interpreter = opened(base, "residual")
    asked = interpreter.prompts.asked("residual", 6)
    assert [token for token in asked if token < 0] == [soft_id(6), soft_id(7)]
    assert sum(token < 0 for token in interpreter.prompts.asked("recovery", 0)) == 1
    (reading,) = residual(recommender(), examples(1))
    own = examples(1)[0]
    torch.testing.assert_close(reading.vectors[0], recommender().last([own.history])[0])
    torch.testing.assert_close(reading.vectors[1], recommender().last([(*own.history, own.target)])[0])


def test_an_adapter_learns_to_read_and_another_persons_state_reads_like_the_mean_one(trained):
    """Read right, the item that was added is near the top; swapped, it is where the mean state has it."""
    interpreter, _, held_out, result = trained
    assert result.best_loss < result.rows[0]["validation_loss"] - 0.5
    own, other, mean = (mean_rank(interpreter, r) for r in (held_out, swapped(held_out), averaged(held_out)))
    assert own < 4.5
    assert mean > own + 1.0
    assert other > own + 1.0
    assert abs(other - mean) < 1.5


def test_the_language_model_is_frozen(trained):
    """No weight of it has a gradient, or asks for one; what trains is the adapter alone."""
    interpreter, *_ = trained
    names = [name for name, weight in interpreter.lm.model.named_parameters() if weight.requires_grad]
    assert names
    assert all(".vectors.adapter." in name for name in names)
    frozen = [weight for weight in interpreter.lm.model.parameters() if not weight.requires_grad]
    assert all(weight.grad is None for weight in frozen)


def test_another_state_changes_what_is_read(trained):
    interpreter, _, held_out, _ = trained
    lists = [list(catalogue().ids)] * 2
    first, second = interpreter.logprobs(held_out[:2], lists)
    assert np.abs(first - second).max() > 1e-2
    alone = interpreter.logprobs(held_out[1:2], lists[:1])[0]
    np.testing.assert_allclose(alone, second, atol=1e-4)


def test_ceilings_read_the_added_item_off_the_states():
    own, learned = residual(recommender(), examples(40, 900)), residual(recommender(), examples(320))
    lists, places = [list(catalogue().ids)] * len(own), [reading.items[0] - 1 for reading in own]
    lots = np.tile(np.arange(COUNT), (len(own), 1))
    assert target_ranks(probe_scores(recommender(), learned, own, lists), places, lots).mean() < 2.0
    assert nearest_scores(recommender(), own, lists).shape == (40, COUNT)
    unknown = [[*catalogue().ids, 99]] * len(own)
    assert (nearest_scores(recommender(), own, unknown)[:, -1] == -2.0).all()


def test_titles_are_written_line_by_line(base):
    """Greedily: as a slow loop of forward passes without a cache writes them, each line of at most five tokens."""
    interpreter = opened(base, "recovery")
    reading = recovery(recommender(), examples(1))[0]
    written = interpreter.titles(reading, most=3, tokens=5)
    (ids,) = interpreter._prompts([reading])
    lines: list[list[int]] = [[]]
    while len(lines) <= 3:
        with torch.no_grad():
            token = int(interpreter.lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == interpreter.prompts.line_end or len(lines[-1]) == 5:
            token = interpreter.prompts.line_end
            lines.append([])
        else:
            lines[-1].append(token)
        ids = [*ids, token]
    slow = [interpreter.prompts.line(line) for line in lines[:-1]]
    assert written == [line for line in slow if line]
    assert written


def test_titles_are_compared_whole():
    """A part of a title is none, and a title is no regular expression."""
    titles = catalogue().titles
    reading = Reading("a", torch.zeros(1, WIDTH), (1, 2))
    assert recovered([titles[1].upper(), f"{titles[2]}s"], reading, catalogue()) == [1]
    assert recovered(["(1995)?+", ".*"], reading, catalogue()) == []


def test_bad_input_is_named(base, tmp_path):
    interpreter = opened(base, "recovery")
    with pytest.raises(RecalignError, match="0 readings to learn from and 0 to look at"):
        learn(interpreter, [], [], tmp_path)
    with pytest.raises(RecalignError, match="reads 1 vectors"):
        interpreter.logprobs(residual(recommender(), examples(1)), [[1]])
    with pytest.raises(RecalignError, match="but the adapter reads vectors of width 8"):
        opened(base, "residual", 8).logprobs(residual(recommender(), examples(1)), [[1]])
    stranger = [replace(example, target=77) for example in examples(1)]
    assert residual(recommender(), stranger) == []
    lm = load_language_model(
        base, training_world.make_params().base, new_adapter=training_world.make_params().lora, trainable=True
    )
    with pytest.raises(RecalignError, match=r"lora_A.* trains; open the base without LoRA"):
        Interpreter(lm, interpreter.prompts, "residual", WIDTH)
