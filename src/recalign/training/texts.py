"""Alignment of a writer of texts: DPO on the better and the worse of two texts about one user.

The same scorer, objective and loop as for items; a response is a whole text, so its log-prob is a sum over some hundred
tokens, and β is small (0.01 in the paper). The reference is the model that wrote the texts.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.artifacts import digest_of
from recalign.llm.model.base import load_language_model
from recalign.objectives.objective import build_objective
from recalign.params.load import Params
from recalign.params.section import OptimiserParams
from recalign.training.examples import PreferenceExample
from recalign.training.loop import Passes, train
from recalign.training.preference import START_TOLERANCE, PreferenceTraining
from recalign.training.reference import sums_of_model
from recalign.training.results import Checkpoints, learned_from, write_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenPair:
    """name: unique; prompt: what the text was written after; chosen, rejected: the texts as they go on from it."""

    name: str
    prompt: str
    chosen: str
    rejected: str


def text_pair_examples(pairs: Sequence[WrittenPair], tokenizer: "PreTrainedTokenizerBase") -> list[PreferenceExample]:
    """The pairs as token ids; each text ends with the blank line that generation stops at."""
    end = tokenizer.encode("\n\n", add_special_tokens=False)
    return [
        PreferenceExample(
            pair.name,
            list(tokenizer.encode(pair.prompt)),
            [
                [*tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), *end]
                for text in (pair.chosen, pair.rejected)
            ],
        )
        for pair in pairs
    ]


@dataclass(frozen=True)
class TextAlignment:
    """One round: its number, the pairs that it learns from and those that choose its step, neither empty."""

    number: int
    pairs: Sequence[WrittenPair]
    validation: Sequence[WrittenPair]


def align_texts(
    params: Params, work: TextAlignment, adapter: Path | None, *, base: Path, prepared: Path, cache: Path
) -> Path:
    """Train the writer's adapter (None: a new one on the base) on the pairs; its folder, in `cache`.

    A folder that was trained before on equal inputs is taken as it is, and a killed run goes on after its checkpoint.
    """
    lm = load_language_model(
        base, params.base, adapter=adapter, new_adapter=None if adapter else params.lora, trainable=True,
        seed=params.seed, threads=params.threads,
    )  # fmt: skip
    train_on = text_pair_examples(work.pairs, lm.tokenizer)
    look_at = text_pair_examples(work.validation, lm.tokenizer)
    own = params.dpo4rec
    read = [[e.example_id, e.prompt, e.responses] for e in [*train_on, *look_at]]
    settings = own.model_dump(include={*OptimiserParams.model_fields, "beta", "epochs"})
    inputs = digest_of([settings, params.lora.model_dump(), params.seed, params.threads, lm.digest, read, len(look_at)])
    place = cache / "dpo4rec" / f"round-{work.number}-{inputs[:16]}"
    if (place / "training.json").is_file():
        log.info("round %d was aligned before: %s", work.number, place)
        return place
    references = sums_of_model(lm.model, lm.digest, [*train_on, *look_at], own.micro_tokens)
    objective = build_objective("dpo", seed=params.seed, beta=own.beta)
    task = PreferenceTraining(lm.model, objective, references, look_at, own.micro_tokens)
    task.name = f"dpo4rec@round-{work.number}"
    lm.model.train(params.lora.dropout == 0.0)
    apart = task.check_start(train_on[:1], START_TOLERANCE[lm.dtype])
    lm.model.train()
    checkpoints = Checkpoints(cache / "checkpoints", task.name, inputs, params.checkpoint_seconds)
    result = train(lm.model, task, Passes(train_on, own.epochs, params.seed), own, checkpoints, cache / "costs")
    facts = {
        "stage": task.name,
        "base": lm.identity,
        "reference": lm.digest,
        "data": learned_from(prepared, "texts"),
        "inputs": inputs,
        "examples": len(train_on),
        "step_0_difference": apart,
        "params": {"dpo4rec": settings, "seed": params.seed},
    }
    write_training(lm, result, facts, place, cache / "costs")
    checkpoints.remove()
    return place
