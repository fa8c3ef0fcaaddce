"""Training: exact accumulation, the schedule, best step, resumption, determinism, and what the stages leave behind."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest
import tiny
import torch
from rounding import rounding
from safetensors.torch import load_file, save_file
from training_world import LONG, World, make_params, make_world, shared_params, write_pairs

from recalign.common.artifacts import file_digest, folder_digest, verify
from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.llm.scoring.packing import pack
from recalign.objectives.losses import PreferenceBatch
from recalign.objectives.objective import PRESETS, build_objective
from recalign.params.sft import SftParams
from recalign.training.examples import PreferenceExample, TextExample, in_epoch_order
from recalign.training.loop import (
    Measured,
    Passes,
    evaluation_steps,
    learning_rate,
    micro_batches,
    train,
    trainable_weights,
)
from recalign.training.new_items import new_in_epoch, without_new
from recalign.training.preference import PreferenceTraining
from recalign.training.results import Checkpoints
from recalign.training.sft import LanguageModelling


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose SFT adapter and reference are made."""
    made = make_world(tmp_path_factory.mktemp("world"))
    params = make_params()
    made.sft(params)
    made.reference(params)
    return made


@dataclass(frozen=True)
class Point:
    example_id: str
    x: tuple[float, float]
    y: float

    @property
    def tokens(self) -> int:
        return 1


class Regression:
    """Least squares: a task whose training can be followed by hand. Validation can be made to get worse."""

    name = "sft"

    def __init__(self, model: torch.nn.Linear, validation: Sequence[float] | None = None) -> None:
        self.model = model
        self.validation = iter(validation) if validation else None

    def tokens_at_once(self, examples: Sequence[Point]) -> int:
        return len(examples)

    def losses(self, parts: Sequence[Sequence[Point]]) -> Iterator[Measured]:
        for index, examples in enumerate(parts):
            x, y = torch.tensor([e.x for e in examples]), torch.tensor([e.y for e in examples])
            yield Measured(index, (self.model(x).squeeze(-1) - y).square().sum() / sum(map(len, parts)), {})

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        raise AssertionError("there is nothing to load")

    def start(self) -> dict[str, float]:
        return self.validate()

    def validate(self) -> dict[str, float]:
        return {"validation_loss": next(self.validation) if self.validation else self.model.weight.sum().abs().item()}


def points(count: int = 16) -> list[Point]:
    return [Point(f"p{n}", (math.sin(n), math.cos(n)), 2.0 * math.sin(n) - math.cos(n)) for n in range(count)]


def regression(validation: Sequence[float] | None = None) -> Regression:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    return Regression(model, validation)


def run(
    task: Regression,
    tmp_path: Path,
    examples: list[Point] | None = None,
    every_seconds: float = 60.0,
    **changes: object,
):
    values = {"learning_rate": 0.1, "batch": 4, "micro_tokens": 4096, "warmup": 0.1, "weight_decay": 0.0,
              "max_grad_norm": 1.0, "evaluations": 2, "examples": 16, "epochs": 3} | changes  # fmt: skip
    params = SftParams(**values)
    checkpoints = Checkpoints(tmp_path, "sft", "digest", every_seconds)
    examples = points() if examples is None else examples
    return train(task.model, task, Passes(examples, params.epochs, 1), params, checkpoints)


def test_the_rate_rises_linearly_then_falls_as_a_cosine():
    rates = [learning_rate(step, 20, 1.0, 0.2) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.5)
    assert rates[19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert [learning_rate(1, 1, 1.0, 0.0), learning_rate(1, 1, 1.0, 1.0)] == [1.0, 1.0]


def test_validation_looks_are_spread_evenly_and_end_with_the_last_step():
    assert evaluation_steps(10, 4) == {3, 5, 8, 10}
    assert evaluation_steps(2, 4) == {1, 2}


def test_batches_hold_every_example_once_an_epoch_whatever_the_order_given():
    examples = points(10)
    plan = list(Passes(examples, 2, 3).batches(4))
    assert [len(batch) for batch in plan] == [4, 4, 2, 4, 4, 2]
    assert {e.example_id for batch in plan[:3] for e in batch} == {e.example_id for e in examples}
    assert plan == list(Passes(examples[::-1], 2, 3).batches(4))
    assert plan[:3] != plan[3:], "each epoch has an order of its own"
    assert plan != list(Passes(examples, 2, 4).batches(4))


def test_each_epoch_may_have_examples_of_its_own():
    examples = points(6)
    plan = list(Passes(lambda epoch: examples[3 * epoch : 3 * epoch + 3], 2, 3).batches(2))
    assert {e.example_id for batch in plan[:2] for e in batch} == {e.example_id for e in examples[:3]}
    assert {e.example_id for batch in plan[2:] for e in batch} == {e.example_id for e in examples[3:]}


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
def test_every_item_is_new_in_its_share_of_the_epochs(share):
    epochs = [new_in_epoch(range(2000), share, epoch, seed=1) for epoch in range(round(1 / share))]
    assert sorted(item for new in epochs for item in new) == list(range(2000)), "once each"
    assert all(abs(len(new) / 2000 - share) < 0.05 for new in epochs)
    assert new_in_epoch(range(2000), share, 0, seed=2) != epochs[0]
    assert new_in_epoch(range(50), share, 0, seed=1) == epochs[0] & set(range(50)), "an item's turn is its own"


def test_a_set_is_read_in_another_order_each_epoch_and_a_history_in_time_never():
    """The first epoch reads what was prepared; the target stays."""
    timed = Example("1-9", 1, "train", datetime(2024, 1, 1), tuple(range(8)), 9)
    assert all(in_epoch_order(timed, epoch, 1) is timed for epoch in range(3))
    read = [in_epoch_order(replace(timed, cutoff=None), epoch, 1) for epoch in range(3)]
    assert read[0].history == timed.history
    assert len({own.history for own in read}) == 3
    assert all((sorted(own.history), own.target) == (list(range(8)), 9) for own in read)


@pytest.mark.parametrize("epochs", [1, 2])
def test_sft_reads_sets_anew_in_each_epoch(world, monkeypatch, epochs):
    given = {}

    def caught(model, task, passes, *_):
        given.update({epoch: {own.example_id: own for own in passes.read_in(epoch)} for epoch in range(2)})
        raise RecalignError("enough")

    monkeypatch.setattr("recalign.stages.sft.train", caught)
    with pytest.raises(RecalignError, match="enough"):
        world.sft(make_params(sft__epochs=epochs), "never")
    first, second = given[0], given[1]
    assert first.keys() == second.keys()
    assert (first == second) == (epochs == 1)
    lines = {name: [*own.prompt, *own.continuation] for name, own in first.items()}
    assert all(sorted(lines[name]) == sorted([*own.prompt, *own.continuation]) for name, own in second.items())


def test_a_new_item_is_the_target_and_never_in_the_history():
    example = Example("1-9", 1, "train", None, (3, 4, 5, 6, 7), 9)
    latest = without_new(example, frozenset({4, 6, 12}))
    assert (latest.history, latest.target) == ((3, 5), 6)
    itself = without_new(example, frozenset({4, 9}))
    assert (itself.history, itself.target) == ((3, 5, 6, 7), 9)
    assert without_new(example, frozenset()) == example
    first = without_new(example, frozenset({3}))
    assert (first.history, first.target) == ((4, 5, 6, 7), 9), "nothing stands before it, so a known one is asked for"
    assert without_new(example, frozenset({3, 4, 5, 6, 7})) is None


def test_sft_reads_no_new_item_in_a_history(world, monkeypatch):
    """What the stage gives the loop: in each epoch every title but the last of a sequence is known."""
    given = {}

    def caught(model, task, passes, *_):
        given.update({epoch: list(passes.read_in(epoch)) for epoch in range(passes.epochs)})
        raise RecalignError("enough")

    monkeypatch.setattr("recalign.stages.sft.train", caught)
    params = make_params(sft__epochs=2, sft__new_items=0.5)
    with pytest.raises(RecalignError, match="enough"):
        world.sft(params, "never")
    items, tokenizer = Items.read(world.root / "prepared"), tiny.tokenizer()
    builder = PromptBuilder(tokenizer, items, params.prompt, "films", clock=False)
    newline = builder.response(1)[-1]
    titles = {tuple(builder.response(item)): item for item in items.ids}
    asked = set()
    for epoch, examples in given.items():
        new = new_in_epoch(items.ids, 0.5, epoch, params.seed)
        assert examples
        for example in examples:
            lines, line = [], []
            for token in [*example.prompt, *example.continuation]:
                line.append(token)
                if token == newline:
                    lines.append(titles.get(tuple(line)))
                    line = []
            assert not new & set(lines[:-1])
            asked |= {lines[-1]} & new
    assert len(asked) > 5


def test_new_items_need_the_form_without_candidates(world):
    with pytest.raises(RecalignError, match=r"sft\.new_items is 0\.2, but prompt\.form 'candidates'.*set it to 0"):
        world.sft(make_params(prompt__form="candidates", sft__new_items=0.2), "never")


def test_a_batch_stands_in_order_of_length_whoever_is_in_it():
    """Parts of a batch are padded to their longest example: the like in length stand together."""
    examples = [PreferenceExample(f"{user}-{n}", [5] * n, [[7], [8]]) for n in (1, 2, 3) for user in "abcdef"]
    made = list(Passes(examples, 1, 3).batches(6))
    assert list(map(len, made)) == [6, 6, 6]
    for batch in made:
        assert [e.tokens for e in batch] == sorted((e.tokens for e in batch), reverse=True)
        assert len({e.example_id[0] for e in batch}) > 2


def test_training_finds_the_planted_weights(tmp_path):
    task = regression()
    result = run(task, tmp_path, epochs=30)
    assert result.rows[1]["loss"] > 0.5
    assert result.rows[-1]["loss"] < 0.01


def test_the_best_step_is_kept_not_the_last(tmp_path):
    task = regression(validation=[3.0, 1.0, 2.0])
    result = run(task, tmp_path)
    assert (result.best_step, result.best_loss) == (6, 1.0)
    assert [row["step"] for row in result.rows if "validation_loss" in row] == [0, 6, 12]
    early = regression(validation=[3.0, 2.0, 1.0])
    run(early, tmp_path / "again", evaluations=2)
    assert not torch.equal(task.model.weight, early.model.weight)


def test_the_start_is_kept_where_training_never_improves_and_the_log_says_so(tmp_path, caplog):
    task = regression(validation=[1.0, 2.0, 1.0])
    with caplog.at_level("INFO"):
        result = run(task, tmp_path)
    assert result.best_step == 0
    assert task.model.weight.eq(0).all()
    assert "sft: validation never improved on the start, so the start is kept" in caplog.messages


def test_a_loss_that_is_not_a_number_stops_naming_step_and_key(tmp_path):
    bad = [*points(7), Point("p-bad", (float("nan"), 0.0), 1.0)]
    with pytest.raises(RecalignError, match=r"sft: at step \d+ the loss is nan.*lower sft\.learning_rate, now 0\.1"):
        run(regression(), tmp_path, bad)


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, list(range(1, 13))), (86400.0, [])])
def test_the_seconds_between_two_checkpoints_say_which_steps_leave_one(tmp_path, monkeypatch, seconds, saved):
    """0: all twelve; a day: none."""
    steps, real = [], Checkpoints.save

    def save(checkpoints, state, *rest):
        steps.append(state.step)
        real(checkpoints, state, *rest)

    monkeypatch.setattr(Checkpoints, "save", save)
    run(regression(), tmp_path, every_seconds=seconds)
    assert steps == saved


def test_no_examples_are_refused(tmp_path):
    with pytest.raises(RecalignError, match="sft: no training examples"):
        run(regression(), tmp_path, [])


def test_a_damaged_checkpoint_is_left_aside(tmp_path, caplog):
    whole = regression()
    run(whole, tmp_path, every_seconds=0.0)
    (tmp_path / "sft-digest" / "tensors.safetensors").write_bytes(b"half")
    again = regression()
    with caplog.at_level("INFO"):
        run(again, tmp_path)
    assert "the checkpoint is damaged" in caplog.text
    assert torch.equal(whole.model.weight, again.model.weight)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", b"{half"),
        ("manifest.json", b"\xff\xfe"),
        ("manifest.json", b"[]"),
        ("manifest.json", b'{"sha256": {}}'),
        ("state.json", b"[1, 2]"),
        ("state.json", b'{"from_another_version": 1}'),
        ("state.json", b"\xff"),
        ("tensors.safetensors", None),
    ],
)
def test_a_checkpoint_damaged_in_any_way_costs_its_steps_and_nothing_else(file, content, tmp_path, caplog):
    """Its manifest agrees with it, as where another version of recalign wrote it, or is damaged itself."""
    whole = regression()
    run(whole, tmp_path, every_seconds=0.0)
    place = tmp_path / "sft-digest"
    if content is None:
        save_file({"weights/other": torch.zeros(1)}, place / file)
    else:
        (place / file).write_bytes(content)
    if file != "manifest.json":
        digests = {name: file_digest(place / name) for name in ("state.json", "tensors.safetensors")}
        (place / "manifest.json").write_text(json.dumps({"sha256": digests}))
    elif content == b'{"sha256": {}}':
        (place / "state.json").unlink()
    again = regression()
    with caplog.at_level("INFO"):
        run(again, tmp_path)
    assert "starting afresh, the checkpoint is damaged" in caplog.text
    assert torch.equal(whole.model.weight, again.model.weight)


LEARNED_FROM = {"source": "simulated", "data_digest": "ab" * 32, "form": "history"}  # of the tests' world


def adapter(folder: Path) -> str:
    return file_digest(folder / "adapter_model.safetensors")


def test_sft_lowers_the_validation_loss_and_leaves_a_whole_folder(world):
    out = world.root / "sft"
    verify(out)
    facts = json.loads((out / "training.json").read_text())
    assert facts["best_validation_loss"] < facts["start_validation_loss"]
    assert facts["base"]["id"] == "tiny-random"
    assert facts["data"] == LEARNED_FROM
    assert facts["steps"] == 4
    with (out / "curve.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["step"] for row in rows] == [str(step) for step in range(5)]
    assert rows[0]["loss"] == "", "step 0 is validated, not trained"
    assert float(rows[-1]["validation_loss"]) == pytest.approx(facts["best_validation_loss"], rel=1e-5)
    assert rows[-1]["examples"] == "32"
    assert not list((world.root / "cache" / "checkpoints").glob("*")), "checkpoints go when the stage ends"


def test_the_same_inputs_give_the_same_adapter_bytes(world):
    assert adapter(world.sft(make_params(), name="sft-again")) == adapter(world.root / "sft")


def test_another_seed_gives_another_adapter(world):
    assert adapter(world.sft(make_params(seed=5), name="sft-seed")) != adapter(world.root / "sft")


def preference_examples(count: int = 9) -> list[PreferenceExample]:
    """Three users whose prompts lie along a history each, K = 1 … 3, titles of 1 … 4 tokens, log q −1 … −3; of four
    responses two are liked."""
    made = []
    for n in range(count):
        user, step = divmod(n, 3)
        prompt = [3 + (7 * user + i) % 600 for i in range(12 - 3 * step)]
        responses = [[20 + (31 * n + 7 * k + t) % 500 for t in range(1 + (n + k) % 4)] for k in range(2 + n % 3)]
        liked, log_q = 2 if len(responses) == 4 else 1, tuple(-1.0 - (n + k) % 3 for k in range(len(responses)))
        made.append(PreferenceExample(f"{user}-{step}", prompt, responses, liked, log_q))
    return made


ATTENDED = 80  # terms of the sums in fp32 (attention) on the way to a gradient, which parts may order otherwise
WHOLE = {
    "dr_dpo": {},
    "beta_dpo": {},
    "alpha_dpo": {},
    "sdpo": {},
    "mult_dpo": {},
    "in_batch": {"like": "sdpo", "log_q": 1.0},
    "dmpo": {"like": "beta_dpo", "negatives": "mean"},
}


def preference_step(name: str, budget: int) -> tuple[float, torch.Tensor, dict[str, float], int]:
    """Loss, gradient, statistics and forward passes of the second of two batches cut at `budget` tokens."""
    model, examples = tiny.model().double(), preference_examples()
    references = {e.example_id: [-20.0 - k for k in range(len(e.responses))] for e in examples}
    objective = build_objective(name, beta=0.4, **WHOLE[name])
    task = PreferenceTraining(model, objective, references, examples[:2], budget)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    for _ in range(2):
        model.zero_grad()
        passes, total = 0, 0.0
        hook = model.register_forward_pre_hook(count)
        for measured in task.losses(micro_batches(examples, budget, task.tokens_at_once)):
            measured.loss.backward()
            total += measured.loss.item()
        hook.remove()
    return total, model.get_input_embeddings().weight.grad.clone(), task.state_dict(), passes


@pytest.mark.parametrize("name", WHOLE)
def test_a_batch_cut_into_parts_has_the_loss_and_the_gradient_of_the_whole(name):
    """Soft-min, filter and statistics see the whole batch; only they pay a second pass, and only where it is cut."""
    whole, gradient, statistics, passes = preference_step(name, 10**6)
    assert passes == 1
    for budget, parts in ((1, 9), (60, 3)):
        loss, cut, state, passes = preference_step(name, budget)
        assert loss == pytest.approx(whole, rel=rounding(ATTENDED))
        assert float((cut - gradient).norm() / gradient.norm()) < rounding(ATTENDED)
        assert state == pytest.approx(statistics, rel=rounding(2 * ATTENDED))
        assert passes == (parts if name in ("sdpo", "mult_dpo", "in_batch") else 2 * parts)


def test_how_often_items_are_offered_reaches_the_loss():
    """The first of two batches starts from the reference: log(1 + Σ q_chosen / q_k) a row, whatever the model says."""
    examples = preference_examples()
    with torch.no_grad():
        model = tiny.model().double()
        scored = response_logprobs(model, [e.prompt for e in examples], [e.responses for e in examples]).sums
    sums = {e.example_id: row[: len(e.responses)].tolist() for e, row in zip(examples, scored, strict=True)}
    corrected, plain = (
        PreferenceTraining(
            model, build_objective("in_batch", beta=0.4, like="sdpo", log_q=share), sums, examples, 10**6
        )
        for share in (1.0, 0.0)
    )
    rows = [(e.log_q[0], e.log_q[e.liked :]) for e in examples]
    expected = [math.log(1 + sum(math.exp(own - other) for other in others)) for own, others in rows]
    assert corrected.validate()["validation_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert plain.validate()["validation_loss"] == pytest.approx(
        sum(math.log(1 + len(others)) for _, others in rows) / len(rows), rel=1e-5
    )
    assert corrected.start()["validation_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize(("strength", "at"), [(0.5, 0.5), (0.0, 0.0)])
def test_a_part_of_what_was_learned_is_kept(world, strength, at):
    """B of every LoRA module is a share of the whole's, A is the same; at 0 nothing is left of the training."""
    whole = load_file(world.root / "sft" / "adapter_model.safetensors")
    part = load_file(world.sft(make_params(sft__strength=strength), "sft-part") / "adapter_model.safetensors")
    assert whole.keys() == part.keys()
    assert any(weights.abs().sum() > 0 for name, weights in whole.items() if ".lora_B." in name)
    for name, weights in whole.items():
        expected = weights * at if ".lora_B." in name else weights
        assert torch.equal(part[name], expected), name


def test_sft_cut_into_parts_has_the_gradient_of_the_whole():
    examples = [TextExample(str(n), [5 + n] * (3 + n), [9 + n, 7, 30 + n][: 1 + n % 3]) for n in range(6)]
    gradients = []
    for budget in (10**6, 1, 20):
        model = tiny.model().double()
        task = LanguageModelling(model, examples, budget)
        for measured in task.losses(micro_batches(examples, budget, task.tokens_at_once)):
            measured.loss.backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / gradients[0].norm()) < rounding(ATTENDED)


def test_no_part_reads_more_tokens_than_the_budget_but_a_single_example():
    examples = preference_examples(15)
    task = PreferenceTraining(tiny.model(), build_objective("sdpo", beta=1.0), {}, [], 60)
    parts = micro_batches(examples, 60, task.tokens_at_once)
    assert [e for part in parts for e in part] == examples
    assert all(len(part) == 1 or task.tokens_at_once(part) <= 60 for part in parts)
    assert max(map(len, parts)) > 1
    assert all(len(part) == 1 for part in micro_batches(examples, 1, task.tokens_at_once))


def test_the_tokens_counted_are_those_that_the_model_reads():
    """A prompt is read once for all its responses; blocks of two prompts are padded to the longer one."""
    examples = preference_examples()
    task = PreferenceTraining(tiny.model(), build_objective("sdpo", beta=1.0), {}, [], 60)
    one, other = examples[0], examples[3]
    read = [pack([e.prompt], [e.responses]).input_ids.shape[1] for e in (one, other)]
    assert task.tokens_at_once([one]) == read[0] == one.tokens
    assert task.tokens_at_once([one, other]) == 2 * max(read)


def test_statistics_live_in_checkpoints(tmp_path, monkeypatch):
    """A run that went on from a checkpoint has the weights and the statistics of one that was never broken."""
    weights, states = [], []
    for place, stops in (("whole", []), ("broken", [3, 5])):
        for stop in [*stops, None]:
            model, examples = tiny.model(), preference_examples()
            references = {e.example_id: [-20.0 - k for k in range(len(e.responses))] for e in examples}
            objective = build_objective("mix", like="alpha_dpo", beta=0.4, drop=0.3, beta_scale=0.5, reward="log_ratio")
            task = PreferenceTraining(model, objective, references, examples[:3], 60)
            if stop:
                monkeypatch.setattr(task, "validate", fail_at(task, stop))
            params = SftParams(
                learning_rate=1e-3, batch=3, micro_tokens=60, warmup=0.1, weight_decay=0.0, max_grad_norm=1.0,
                evaluations=9, examples=9, epochs=3,
            )  # fmt: skip
            checkpoints = Checkpoints(tmp_path / place, "align", "digest", every_seconds=0.0)
            with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
                train(model, task, Passes(examples, 3, 1), params, checkpoints)
        weights.append(model.get_input_embeddings().weight.detach().clone())
        states.append(objective.state_dict())
    assert states[0]["margins.batches"] == 9
    assert states[0]["gaps.std"] > 0
    assert states[0] == states[1]
    assert torch.equal(*weights)


def fail_at(task: PreferenceTraining, call: int) -> Callable[[], dict[str, float]]:
    """`task.validate`, interrupted at a call: as Ctrl-C after that many steps."""
    real, calls = task.validate, iter(range(1, 100))

    def validate() -> dict[str, float]:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real()

    return validate


def test_a_killed_run_goes_on_to_the_same_adapter(world, caplog):
    whole = adapter(world.sft(make_params(**LONG), name="whole"))
    script = Path(__file__).parents[1] / "worlds" / "training_world.py"
    process = subprocess.Popen([sys.executable, str(script), str(world.root), "killed"], stderr=subprocess.PIPE)
    step = wait_for_step(world.root / "cache" / "checkpoints", process, at_least=3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (world.root / "killed").exists()
    with caplog.at_level("INFO"):
        resumed = adapter(world.sft(make_params(**LONG), name="killed"))
    assert "going on after step" in caplog.text
    assert step < 36, "the run was to be killed among its 36 steps"
    assert resumed == whole
    assert folder_digest(world.root / "killed") == folder_digest(world.root / "whole")  # training.json too


def test_how_often_a_checkpoint_is_written_changes_no_byte(world):
    """Neither of an adapter nor of the reference, so no stage depends on it."""
    often = make_params(checkpoint_seconds=0)
    assert folder_digest(world.sft(often, name="sft-often")) == folder_digest(world.root / "sft")
    assert folder_digest(world.reference(often, name="reference-often")) == folder_digest(world.root / "reference")
    assert folder_digest(world.align(often, name="often")) == folder_digest(world.align(make_params(), name="seldom"))


def wait_for_step(folder: Path, process: subprocess.Popen[bytes], at_least: int) -> int:
    """The step of the first checkpoint past `at_least`; the run must still be alive."""
    for _ in range(6000):
        for state in folder.glob("sft-*/state.json"):
            try:
                step = json.loads(state.read_text())["step"]
            except (FileNotFoundError, json.JSONDecodeError):
                continue  # replaced while it was read
            if step >= at_least:
                return step
        assert process.poll() is None, process.stderr.read().decode()[-2000:] if process.stderr else ""
        time.sleep(0.01)
    raise AssertionError("no checkpoint came")


def test_alignment_starts_at_chance_from_its_reference_and_improves(world):
    out = world.align(make_params(align__epochs=3), name="align-longer")
    verify(out)
    facts = json.loads((out / "training.json").read_text())
    assert facts["stage"] == "align@sdpo"
    assert facts["data"] == LEARNED_FROM
    assert facts["step_0_difference"] <= 1e-4
    with (out / "curve.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    # validation rows have K = 3 and K = 2 in turn, so chance is the mean of log 4 and log 3
    assert float(rows[0]["validation_loss"]) == pytest.approx((math.log(4) + math.log(3)) / 2, abs=1e-5)
    assert float(rows[0]["validation_reward_accuracy"]) == 0.5
    assert float(rows[-1]["loss"]) < float(rows[1]["loss"])
    assert facts["best_validation_loss"] < facts["start_validation_loss"]
    assert float(rows[-1]["chosen_logp_drift"]) > float(rows[-1]["rejected_logp_drift"])


@pytest.mark.parametrize("objective", [name for name in PRESETS if name != "sdpo"])
def test_every_objective_trains(world, objective):
    facts = json.loads((world.align(make_params(), objective) / "training.json").read_text())
    assert facts["stage"] == f"align@{objective}"
    assert facts["steps"] == 12


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_qlora_trains_from_a_policy_that_equals_its_reference(tmp_path, compute):
    params = make_params(base__quantisation="nf4", base__compute=compute)
    world = make_world(tmp_path)
    world.sft(params)
    world.reference(params)
    facts = json.loads((world.align(params) / "training.json").read_text())
    assert facts["step_0_difference"] <= {"fp32": 1e-4, "bf16": 5e-2}[compute]
    assert facts["best_validation_loss"] < facts["start_validation_loss"]


def test_alignment_repeats_byte_for_byte(world):
    first, second = (adapter(world.align(make_params(), name=name)) for name in ("align-a", "align-b"))
    assert first == second
    assert first != adapter(world.root / "sft")


def test_an_unknown_objective_is_refused_before_anything_is_loaded(world):
    with pytest.raises(RecalignError, match=r"objective is 'spdo'; .*allowed are dpo,"):
        world.align(make_params(), "spdo")


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.mark.slow
def test_a_launcher_that_was_asked_for_two_processes_and_started_one_is_refused(tmp_path):
    """accelerate with --cpu leaves several processes to mpirun: without it, one would train and look like two."""
    script = tmp_path / "one.py"
    script.write_text("from recalign.training.processes import joined\nwith joined(): print('trains')\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=100, check=False)
    assert "trains" not in done.stdout
    assert "torchrun --standalone --nproc-per-node" in done.stderr


@pytest.mark.parametrize(
    "launcher",
    [pytest.param(TORCHRUN, id="torchrun"), pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow)],
)
def test_two_processes_train_as_one(world, launcher):
    """Two CPU processes (gloo) have the losses of one, though batch and statistics are spread; one adapter."""
    one = world.align(shared_params(), "everything", name="one-process")
    script = Path(__file__).parents[1] / "worlds" / "training_world.py"
    launch = [sys.executable, "-m", *launcher]
    done = subprocess.run(
        [*launch, str(script), str(world.root), "shared"], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = world.root / "two-processes" / "everything"
    verify(two)
    assert not list((world.root / "cache" / "checkpoints").glob("*everything*"))
    curves = [list(csv.DictReader((folder / "curve.csv").open())) for folder in (one, two)]
    assert len(curves[0]) == len(curves[1]) == 13
    for alone, shared in zip(*curves, strict=True):
        for key in ("loss", "grad_norm", "reward_margin", "beta", "validation_loss"):
            if alone[key]:
                assert float(shared[key]) == pytest.approx(float(alone[key]), abs=1e-5), (key, alone["step"])
    assert len({row["beta"] for row in curves[0]}) > 10, "β moved, and with it the statistics"


def test_no_pairs_are_refused(world):
    write_pairs(world.root / "none", [], negatives=3)
    with pytest.raises(RecalignError, match=r"pairs\.parquet holds no train pairs.*pairs\.examples"):
        world.align(make_params(), pairs="none")


def test_a_policy_that_is_not_the_reference_is_refused():
    example = PreferenceExample("1-2", [5, 6], [[7, 8], [9, 8]])
    sdpo = build_objective("sdpo", beta=1.0)
    task = PreferenceTraining(tiny.model(), sdpo, {"1-2": [-1.0, -2.0]}, [example], 4096)
    with pytest.raises(RecalignError, match=r"align@sdpo: at step 0 policy and reference .* more than 1e-04"):
        task.check_start([example], 1e-4)


def test_a_sure_answer_of_few_tokens_is_allowed_its_rounding(monkeypatch):
    """Its sum is near 0, the rounding of its four logits is not: 0.08 nats are 0.02 a token."""
    task = PreferenceTraining(tiny.model(), build_objective("sdpo", beta=1.0), {}, [], 4096)
    policy, reference = torch.tensor([[-0.10, -9.0]]), torch.tensor([[-0.02, -9.0]])
    batch = PreferenceBatch(policy, reference, torch.tensor([[4, 4]]), torch.ones(1, 2, dtype=torch.bool))
    monkeypatch.setattr(task, "_batch", lambda examples: batch)
    assert task.check_start([], 5e-2) == pytest.approx(0.02)
    with pytest.raises(RecalignError, match="at step 0"):
        task.check_start([], 1e-2)


def test_prompts_that_list_candidates_train_too(world):
    prompt = {"form": "candidates", "history": 4, "training_history": 4, "profile": False, "max_title_tokens": 24}
    params = make_params(prompt=prompt)
    facts = json.loads((world.sft(params, name="sft-listed") / "training.json").read_text())
    assert facts["best_validation_loss"] < facts["start_validation_loss"]


def test_only_the_adapter_trains():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(False)
    assert list(trainable_weights(model)) == ["1.weight", "1.bias"]
