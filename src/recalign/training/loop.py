"""The training loop: AdamW, cosine schedule with warm-up, exact gradient accumulation, best step by validation.

A batch cut into parts that fit into memory, whatever the lengths of its examples.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.common.progress import memory_mb, reading_forecast, track
from recalign.common.run_log import COSTS
from recalign.data.records import hashed_batches
from recalign.params.section import OptimiserParams
from recalign.training import processes
from recalign.training.results import Checkpoints, CurveRow, TrainingResult, TrainingState, Weights

log = logging.getLogger(__name__)


class Example(Protocol):
    """What a task learns from."""

    @property
    def example_id(self) -> str:
        """The example's name; the order of training is drawn from it."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that it alone would make the model read."""
        ...


E = TypeVar("E", bound=Example)
E_contra = TypeVar("E_contra", bound=Example, contravariant=True)


@dataclass(frozen=True)
class Measured:
    """part: index among the batch's parts; loss: scalar, differentiable, the part's share of its batch's loss; sums:
    other figures, summed over examples."""

    part: int
    loss: Tensor
    sums: dict[str, float]


class Task(Protocol[E_contra]):
    """What the loop trains on: language modelling, or a preference objective."""

    name: str

    def tokens_at_once(self, examples: Sequence[E_contra]) -> int:
        """Tokens, padding included, that the model reads where `examples` are one micro-batch."""
        ...

    def losses(self, parts: Sequence[Sequence[E_contra]]) -> Iterator[Measured]:
        """The shares of a batch's parts under the present weights, of those that this process reads.

        Over all parts they add up to the loss of the whole.
        """
        ...

    def start(self) -> dict[str, float]:
        """What `validate` gives before the first step."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on the validation examples at the present weights, validation_loss (lower is better) among them."""
        ...

    def state_dict(self) -> dict[str, float]:
        """What steps change beside the weights; it goes into checkpoints."""
        ...

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what `state_dict` gave."""
        ...


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Rate of step 1 … `steps`: linear up to `peak` over the share `warmup` of the steps, then a cosine towards 0."""
    rising = math.ceil(warmup * steps)
    if step <= rising:
        return peak * step / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising - 1) / max(1, steps - rising)))


@dataclass(frozen=True)
class Passes(Generic[E]):
    """What is learned from: `examples` of every epoch, or of each one, counted from 0; how often; in which order.

    Who is in a batch is drawn from (seed, epoch, example id), never from the order given.
    """

    examples: Sequence[E] | Callable[[int], Sequence[E]]
    epochs: int
    seed: int

    def read_in(self, epoch: int) -> Sequence[E]:
        """The examples of one epoch."""
        return self.examples(epoch) if callable(self.examples) else self.examples

    def batches(self, size: int) -> Iterator[list[E]]:
        """The batches of all epochs, each in order of length."""
        for epoch in range(self.epochs):
            own = {e.example_id: e for e in self.read_in(epoch)}
            for names in hashed_batches(own, size, self.seed, epoch):
                yield sorted((own[name] for name in names), key=lambda e: (-e.tokens, e.example_id))


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """The steps after which validation is looked at: evenly spread, the last one among them."""
    return {math.ceil(steps * i / evaluations) for i in range(1, evaluations + 1)}


def trainable_weights(model: torch.nn.Module) -> Weights:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(
    model: torch.nn.Module,
    task: Task[E],
    passes: Passes[E],
    params: OptimiserParams,
    checkpoints: Checkpoints,
    notes: Path = COSTS,
) -> TrainingResult:
    """Train `model` in place; leave it at the step with the lowest validation loss, which may be step 0, the start.

    The same examples (in any order), params, seed and machine give the same weights, even after a kill in between.
    notes: what earlier runs took, from which the log says beforehand how long this one will.
    Raises RecalignError where there are no examples, or naming the step whose loss or gradient is not finite.
    """
    plan = list(passes.batches(params.batch))
    if not plan:
        raise RecalignError(f"{task.name}: no training examples; look at data/prepared/summary.json and pairs.examples")
    weights = trainable_weights(model)
    optimiser = torch.optim.AdamW(weights.values(), lr=params.learning_rate, weight_decay=params.weight_decay)
    state = checkpoints.load(weights, optimiser)
    if state.task:
        task.load_state_dict(state.task)
    looks = evaluation_steps(len(plan), params.evaluations)
    seen = list(accumulate(map(len, plan)))
    if processes.first():
        left = plan[state.step :]
        count = max(len(passes.read_in(epoch)) for epoch in range(passes.epochs))
        work = f"{count:,} examples, epochs {passes.epochs}, {len(left)} steps left of {len(plan)}"
        tokens = sum(example.tokens for batch in left for example in batch)
        log.info(reading_forecast(task.name, work, tokens, memory_mb(model), notes))
    if not state.rows:
        _keep(task.name, state, weights, {"step": 0, "examples": 0, **task.start()})
    steps = range(state.step + 1, len(plan) + 1)
    for step in track(steps, len(steps), task.name, "steps"):
        started = time.monotonic()
        rate = learning_rate(step, len(plan), params.learning_rate, params.warmup)
        torch.manual_seed(
            int(digest_of([passes.seed, task.name, step])[:15], 16)
        )  # dropout, the same after a resumption
        row = _step(task, plan[step - 1], weights, optimiser, rate, params, step)
        state.step = step
        state.tokens += sum(example.tokens for example in plan[step - 1])
        state.seconds += time.monotonic() - started
        figures = _validated(model, task) if step in looks else {}
        _keep(task.name, state, weights, {"step": step, "examples": seen[step - 1], **row, **figures})
        if processes.first() and checkpoints.due():
            state.task = task.state_dict()
            checkpoints.save(state, weights, optimiser)
    return _finish(task.name, state, weights)


def _step(
    task: Task[E],
    batch: list[E],
    weights: Weights,
    optimiser: torch.optim.Optimizer,
    rate: float,
    params: OptimiserParams,
    step: int,
) -> dict[str, float]:
    """One step of the optimiser; the loss is that of the whole batch, however it is cut into micro-batches."""
    parts = micro_batches(batch, params.micro_tokens, task.tokens_at_once)
    own: dict[int, dict[str, float]] = {}
    try:
        for measured in task.losses(parts):
            measured.loss.backward()
            own[measured.part] = {"loss": measured.loss.item(), **measured.sums}
    except RecalignError as error:
        raise RecalignError(f"{task.name}: at step {step}: {error}") from None
    processes.add_up_gradients(weights.values())
    sums: dict[str, float] = {}
    for figures in processes.merged(own).values():
        for key, value in figures.items():
            sums[key] = sums.get(key, 0.0) + value
    loss = sums.pop("loss")
    norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), params.max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        section = task.name.partition("@")[0]  # align@sdpo is trained by align.learning_rate
        raise RecalignError(
            f"{task.name}: at step {step} the loss is {loss} and the gradient's norm {norm} (first example "
            f"{batch[0].example_id}); both must be finite: lower {section}.learning_rate, now {params.learning_rate}"
        )
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    means = {key: value / len(batch) for key, value in sums.items()}
    return {"loss": loss, "learning_rate": rate, "grad_norm": norm, **means}


def _validated(model: torch.nn.Module, task: Task[E]) -> dict[str, float]:
    model.eval()
    try:
        return task.validate()
    finally:
        model.train()


def _keep(name: str, state: TrainingState, weights: Weights, row: CurveRow) -> None:
    """Add a row to the curve; keep the weights where its validation loss is the lowest so far (or the first)."""
    state.rows.append(row)
    if "validation_loss" not in row:
        return
    figures = (f"{key.replace('_', ' ')} {row[key]:.4f}" for key in row if key.startswith("validation"))
    log.info("%s: step %d, %s", name, row["step"], ", ".join(figures))
    if not math.isfinite(row["validation_loss"]):
        raise RecalignError(f"{name}: at step {row['step']} the validation loss is {row['validation_loss']}")
    if row["validation_loss"] < state.best_loss:
        state.best_step, state.best_loss = int(row["step"]), row["validation_loss"]
        state.best_weights = {key: parameter.detach().clone() for key, parameter in weights.items()}


def _finish(name: str, state: TrainingState, weights: Weights) -> TrainingResult:
    with torch.no_grad():
        for key, parameter in weights.items():
            parameter.copy_(state.best_weights[key])
    if state.best_step == 0:
        log.info("%s: validation never improved on the start, so the start is kept", name)
    speed = state.tokens / state.seconds if state.seconds else 0.0
    return TrainingResult(state.rows, state.best_step, state.best_loss, state.seconds, speed)


Piece = TypeVar("Piece")


def micro_batches(batch: Sequence[Piece], budget: int, size: Callable[[Sequence[Piece]], int]) -> list[list[Piece]]:
    """Cut `batch`, in its order, into parts of at most `budget` tokens by `size`; an example above it stands alone."""
    parts: list[list[Piece]] = []
    for example in batch:
        if parts and size([*parts[-1], example]) <= budget:
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts
