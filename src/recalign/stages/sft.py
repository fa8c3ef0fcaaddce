"""Stage sft: supervised fine-tuning of a new LoRA adapter on histories."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recalign import project as layout
from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_json
from recalign.data.records import Items
from recalign.llm.base import load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import profile_texts, read_told
from recalign.preferences.profiles.selection import nobody, sft_examples
from recalign.preferences.profiles.shares import shares_sentence, training_shares
from recalign.training import processes
from recalign.training.checkpoints import Checkpoints
from recalign.training.examples import TextExample, text_examples
from recalign.training.listing import read_listing
from recalign.training.loop import train
from recalign.training.results import learned_from, write_training
from recalign.training.sft import LanguageModelling

log = logging.getLogger(__name__)


@processes.joined()
def sft(
    params: Params,
    *,
    prepared: Path = layout.PREPARED,
    base: Path = layout.BASE,
    profiles: Path = layout.PROFILES,
    out: Path = layout.SFT,
    cache: Path = layout.CACHE,
) -> None:
    """Train an adapter on the titles of training histories and their targets; keep the step with the best validation.

    Raises RecalignError where there are no training or validation examples, where prompts show profiles and too few
    users have one, or where a loss is not finite.
    """
    items, summary = Items.read(prepared), read_json(prepared / "summary.json")
    lm = load_language_model(
        base, params.base, new_adapter=params.lora, trainable=True, seed=params.seed, threads=params.threads,
    )  # fmt: skip
    builder = PromptBuilder(lm.tokenizer, items, params.prompt, summary["noun"], clock=summary["clock"])
    material = read_material(params, prepared, profiles, builder, items)
    learned, held_out = material.learned, material.held_out
    inputs = digest_of(
        [params.sft.model_dump(), params.lora.model_dump(), params.seed, params.threads, lm.digest, builder.digest]
        + [[e.example_id, e.prompt, e.continuation] for e in [*learned, *held_out]]
    )
    checkpoints = Checkpoints(cache / "checkpoints", "sft", inputs, params.checkpoint_seconds)
    task = LanguageModelling(lm.model, held_out, params.sft.micro_tokens)
    result = train(
        lm.model, task, learned, params.sft, epochs=params.sft.epochs, seed=params.seed, checkpoints=checkpoints,
        notes=cache / "costs",
    )  # fmt: skip
    facts: dict[str, Any] = {
        "stage": "sft",
        "base": lm.identity,
        "inputs": inputs,
        "prompt": builder.digest,
        "data": learned_from(prepared, params.prompt.form),
        "examples": len(learned),
        "params": {"sft": params.sft.model_dump(), "lora": params.lora.model_dump(), "seed": params.seed},
    }
    facts |= material.shares
    if processes.first():
        write_training(lm, result, facts, out, cache / "costs")
        checkpoints.remove()


@dataclass(frozen=True)
class Material:
    """What a language model learns from and is watched on; shares: for training.json, how many prompts show a profile
    (nothing where none does)."""

    learned: list[TextExample]
    held_out: list[TextExample]
    shares: dict[str, Any]


def read_material(params: Params, prepared: Path, profiles: Path, builder: PromptBuilder, items: Items) -> Material:
    """The training histories and validation targets of a run, as this builder writes them.

    Raises RecalignError where there are none, or where prompts show profiles and too few users have one.
    """
    told = read_told(profiles, params.profiles.engine) if params.prompt.profile else nobody
    chosen = {split: sft_examples(params, prepared, split, told) for split in (c.TRAIN, c.VALIDATION)}
    names = {split: [example.example_id for example in own] for split, own in chosen.items()}
    listing = read_listing(params, prepared, items, names)
    texts = {split: _profile_texts(params, profiles, split) for split in (c.TRAIN, c.VALIDATION)}
    learned = text_examples(chosen[c.TRAIN], builder, profiles=texts[c.TRAIN], listing=listing, whole_history=True)
    held_out = text_examples(chosen[c.VALIDATION], builder, profiles=texts[c.VALIDATION], listing=listing)
    if not params.prompt.profile:
        return Material(learned, held_out, {})
    shares = {
        split: training_shares(texts[split].get(example.user_id) for example in own) for split, own in chosen.items()
    }
    log.info("sft: profiles %s", shares_sentence(params.profiles.engine, shares))
    return Material(learned, held_out, {"profiles": shares})


def _profile_texts(params: Params, profiles: Path, split: str) -> dict[int, str]:
    """User → the profile that prompts show; empty where they show none."""
    if not params.prompt.profile:
        return {}
    return profile_texts(profiles, params.profiles.engine, split)
