"""The three trainings, on recalign's loop, scorer and objectives, and the one task that those lack: a number's head."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from moltc import project
from moltc.examples import (
    NumberExample,
    answer_examples,
    describe_examples,
    number_examples,
    preference_examples,
)
from moltc.params import Params, StageParams
from moltc.prepared import PairSet
from moltc.prompts import PairPrompts
from moltc.vectors import GraphVectors, attach_graphs, write_graphs
from recalign.common import columns as c
from recalign.common.artifacts import digest_of, folder, write_json, write_text
from recalign.common.errors import RecalignError
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.llm.scoring.ways import base_of, device_of
from recalign.objectives.objective import build_objective
from recalign.training.loop import (
    Example,
    Measured,
    Passes,
    Task,
    TrainingResult,
    micro_batches,
    train,
    trainable_weights,
)
from recalign.training.preference import START_TOLERANCE, PreferenceTraining
from recalign.training.reference import sums_of_model
from recalign.training.results import Checkpoints, curve_csv, write_training
from recalign.training.sft import LanguageModelling

log = logging.getLogger(__name__)
E = TypeVar("E", bound=Example)


def last_hidden(model: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> Tensor:
    """[B, D] the last layer's state of each prompt's last token; prompts: B lists of ids, soft ones among them."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    seen = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    device = device_of(model)
    decoder: Any = base_of(model).base_model
    states = decoder(input_ids=ids.to(device), attention_mask=seen.to(device), use_cache=False).last_hidden_state
    found: Tensor = states[torch.arange(len(prompts)), lengths - 1]
    return found


class NumberTraining:
    """Mean squared error of the head's number, in units of the training labels' spread; batches of padded prompts."""

    name = "number"

    def __init__(
        self, model: torch.nn.Module, vectors: GraphVectors, validation: Sequence[NumberExample], micro_tokens: int
    ) -> None:
        self._model, self._vectors = model, vectors
        ordered = sorted(validation, key=lambda example: (example.tokens, example.example_id))
        self._validation = micro_batches(ordered, micro_tokens, self.tokens_at_once)

    def tokens_at_once(self, examples: Sequence[NumberExample]) -> int:
        """Tokens, padding included."""
        return len(examples) * max(example.tokens for example in examples)

    def losses(self, parts: Sequence[Sequence[NumberExample]]) -> Iterator[Measured]:
        """Each part's share of the batch's mean."""
        total = sum(map(len, parts))
        for index, part in enumerate(parts):
            yield Measured(index, self._squares(part).sum() / total, {})

    def start(self) -> dict[str, float]:
        """As `validate`."""
        return self.validate()

    def validate(self) -> dict[str, float]:
        """validation_loss: the mean over the validation pairs."""
        with torch.no_grad():
            sums = [float(self._squares(part).sum()) for part in self._validation]
        return {"validation_loss": sum(sums) / sum(map(len, self._validation))}

    def state_dict(self) -> dict[str, float]:
        """Nothing: the weights are all."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Nothing to take over."""

    def _squares(self, examples: Sequence[NumberExample]) -> Tensor:
        hidden = last_hidden(self._model, [example.prompt for example in examples])
        truth = torch.tensor([example.value for example in examples], device=hidden.device)
        return ((self._vectors.number(hidden) - truth) / self._vectors.scale[1]).square()


@dataclass(frozen=True)
class Opened:
    """A language model that reads graphs, and its prompts."""

    lm: LanguageModel
    vectors: GraphVectors
    prompts: PairPrompts


def open_model(
    params: Params, pairs: PairSet, base: Path, trained: Path | None, *, tokens: int | None = None,
    lora: bool = True, trainable: bool = False,
) -> Opened:  # fmt: skip
    """The base in the folder `base` with its graph side: new, or as a stage wrote it into `trained`, and the LoRA where
    that folder has one.

    tokens: graph tokens, in place of graph.tokens; lora: False for stage 1, whose language model is frozen.
    """
    from recalign.llm.model.adapters import CONFIG

    old = trained if trained is not None and (trained / CONFIG).is_file() else None
    lm = load_language_model(
        base, params.base, adapter=old, new_adapter=params.lora if lora and old is None else None,
        trainable=trainable, seed=params.seed, threads=params.threads,
    )  # fmt: skip
    graph = params.graph if tokens is None else params.graph.model_copy(update={"tokens": tokens})
    vectors = attach_graphs(lm, pairs.molecules, graph, params.seed, trained)
    lm.model.train(trainable)
    return Opened(lm, vectors, PairPrompts(lm.tokenizer, pairs.molecules, pairs.answers, params.prompt, vectors.ids))


def describe(params: Params, pairs: PairSet, root: Path, out: Path) -> None:
    """Stage 1: the graph side learns to describe molecules; the language model is frozen."""
    opened = open_model(params, pairs, root / project.BASE, None, lora=False, trainable=True)
    training, validation = (subset(params, pairs, split) for split in (c.TRAIN, c.VALIDATION))
    examples = describe_examples(training, opened.prompts, params.subset.describe, params.seed)
    held = describe_examples(validation, opened.prompts, params.subset.validation, params.seed)
    for parameter in opened.vectors.head.parameters():
        parameter.requires_grad_(False)
    task = LanguageModelling(opened.lm.model, held, params.describe.micro_tokens)
    task.name = "describe"
    result = run_training(params, params.describe, opened, task, examples, root)
    facts = stage_facts(params, "describe", pairs, opened, len(examples))
    with folder(out) as partial:
        write_graphs(opened.vectors, partial)
        write_text(partial / "curve.csv", curve_csv(result.rows))
        best = {"best_step": result.best_step, "best_validation_loss": result.best_loss,
                "start_validation_loss": result.rows[0]["validation_loss"]}  # fmt: skip
        write_json(partial / "training.json", facts | best)
    log.info("describe: validation loss %.4f at the start, %.4f at step %d", result.rows[0]["validation_loss"],
             result.best_loss, result.best_step)  # fmt: skip


def interact(params: Params, pairs: PairSet, root: Path, out: Path, described: Path | None) -> None:
    """Stage 2: graph side and LoRA learn the answers. described: what stage 1 wrote; None: the twin of text alone."""
    tokens = 0 if described is None else None
    opened = open_model(params, pairs, root / project.BASE, described, tokens=tokens, trainable=True)
    training, validation = (subset(params, pairs, split) for split in (c.TRAIN, c.VALIDATION))
    name = "interact" if described is not None else "text"
    micro = params.interact.micro_tokens
    result: TrainingResult
    if pairs.kind == "number" and params.prompt.number == "head":
        opened.vectors.scale_to(training.labels)
        numbers, held = (number_examples(part, opened.prompts) for part in (training, validation))
        regression = NumberTraining(opened.lm.model, opened.vectors, held, micro)
        regression.name = name
        result = run_training(params, params.interact, opened, regression, numbers, root)
    else:
        opened.vectors.head.requires_grad_(False)
        texts, kept = (answer_examples(part, opened.prompts, params.seed) for part in (training, validation))
        task = LanguageModelling(opened.lm.model, kept, micro)
        task.name = name
        result = run_training(params, params.interact, opened, task, texts, root)
    facts = stage_facts(params, name, pairs, opened, len(training))
    finished(opened, result, facts, root, out)


def prefer(params: Params, pairs: PairSet, root: Path, trained: Path, out: Path) -> None:
    """Stage 3: the right sentence against wrong ones, from what stage 2 wrote into `trained`; skipped for numbers,
    which have no wrong sentences."""
    if pairs.kind == "number":
        with folder(out) as partial:
            write_json(partial / "training.json", {"stage": "prefer", "skipped": "a number has no wrong sentences"})
        return
    opened = open_model(params, pairs, root / project.BASE, trained, trainable=True)
    opened.vectors.head.requires_grad_(False)
    training, validation = (subset(params, pairs, split) for split in (c.TRAIN, c.VALIDATION))
    examples, held = (
        preference_examples(part, opened.prompts, params.prefer.negatives, training.labels, params.seed)
        for part in (training, validation)
    )
    given = params.prefer.settings.model_dump(exclude_none=True)
    objective = build_objective(params.prefer.objective, seed=params.seed, **given)
    ordered = sorted([*examples, *held], key=lambda example: (example.tokens, example.example_id))
    references = sums_of_model(opened.lm.model, opened.lm.digest, ordered, params.prefer.micro_tokens)
    task = PreferenceTraining(opened.lm.model, objective, references, held, params.prefer.micro_tokens)
    task.name = "prefer"
    opened.lm.model.train(params.lora.dropout == 0.0)
    apart = task.check_start(examples[: params.prefer.batch], START_TOLERANCE[opened.lm.dtype])
    result = run_training(params, params.prefer, opened, task, examples, root)
    facts = stage_facts(params, task.name, pairs, opened, len(examples))
    finished(opened, result, facts | {"step_0_difference": apart}, root, out)


def subset(params: Params, pairs: PairSet, split: str) -> PairSet:
    """The pairs that a stage reads of a split. Raises RecalignError where there is none."""
    most = params.subset.train if split == c.TRAIN else params.subset.validation
    found = pairs.of(split, most, params.seed)
    if not len(found):
        raise RecalignError(f"no pair is for {split}; give more pairs, or hold out fewer molecules (split.molecules)")
    return found


def run_training(
    params: Params, stage: StageParams, opened: Opened, task: Task[E], examples: Sequence[E], root: Path
) -> TrainingResult:
    """Train a stage with recalign's loop; a killed one goes on."""
    settings = {**stage.model_dump(), "prefer": params.prefer.model_dump(), "graph": opened.vectors.sizes}
    about = [settings, params.lora.model_dump(), params.seed, params.threads, opened.lm.digest, opened.prompts.digest]
    begin = {name: float(weight.detach().double().sum()) for name, weight in trainable_weights(opened.lm.model).items()}
    inputs = digest_of([*map(str, about), begin, [vars(example) for example in examples]])
    checkpoints = Checkpoints(root / project.CACHE / "checkpoints", task.name, inputs)
    passes = Passes(examples, stage.epochs, params.seed)
    result = train(opened.lm.model, task, passes, stage, checkpoints, root / project.CACHE / "costs")
    checkpoints.remove()
    return result


def stage_facts(params: Params, name: str, pairs: PairSet, opened: Opened, examples: int) -> dict[str, Any]:
    """What every training.json says."""
    return {
        "stage": name, "base": opened.lm.identity, "data_digest": pairs.digest, "prompt": opened.prompts.digest,
        "examples": examples, "seed": params.seed,
    }  # fmt: skip


def finished(opened: Opened, result: TrainingResult, facts: Mapping[str, Any], root: Path, out: Path) -> None:
    """Write LoRA, graph side, curve and facts into a new folder."""
    notes = root / project.CACHE / "costs"
    write_training(opened.lm, result, facts, out, notes, lambda partial: write_graphs(opened.vectors, partial))
