"""Stage sft: supervised fine-tuning of a new LoRA adapter on histories."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from recalign.common import columns as c
from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Example, Items
from recalign.llm.model.adapters import scale_adapter
from recalign.llm.model.base import load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import profile_texts, read_told
from recalign.preferences.profiles.selection import nobody, sft_examples, shares_sentence, training_shares
from recalign.project import Project
from recalign.training import processes
from recalign.training.examples import TextExample, in_epoch_order, read_listing, text_examples
from recalign.training.loop import Passes, train
from recalign.training.new_items import new_in_epoch, without_new
from recalign.training.results import Checkpoints, learned_from, write_training
from recalign.training.sft import LanguageModelling, learned_positions, target_weights

log = logging.getLogger(__name__)


@processes.joined()
def sft(params: Params, project: Project = Project()) -> None:
    """Train an adapter on the titles of training histories and their targets; keep the step with the best validation.

    Raises RecalignError where there are no training or validation examples, where prompts show profiles and too few
    users have one, or where a loss is not finite.
    """
    items, summary = Items.read(project.prepared), Prepared(project.prepared)
    lm = load_language_model(
        project.base, params.base, new_adapter=params.lora, trainable=True, seed=params.seed, threads=params.threads,
    )  # fmt: skip
    builder = PromptBuilder(lm.tokenizer, items, params.prompt, summary.noun, clock=summary.clock)
    material = read_material(params, project.prepared, project.profiles, builder, items)
    sections = [params.sft.told(), params.lora.model_dump()]
    inputs = digest_of([*sections, params.seed, params.threads, lm.digest, builder.digest, *material.read])
    checkpoints = Checkpoints(project.cache / "checkpoints", "sft", inputs, params.checkpoint_seconds)
    task = LanguageModelling(lm.model, material.held_out, params.sft.micro_tokens)
    passes = Passes(material.epoch, params.sft.epochs, params.seed)
    result = train(lm.model, task, passes, params.sft, checkpoints, project.costs)
    facts: dict[str, Any] = {
        "stage": "sft",
        "base": lm.identity,
        "inputs": inputs,
        "prompt": builder.digest,
        "data": learned_from(project.prepared, params.prompt.form),
        "examples": material.examples,
        "params": {"sft": params.sft.told(), "lora": params.lora.model_dump(), "seed": params.seed},
    }
    facts |= material.facts
    if processes.first():
        scale_adapter(lm.model, params.sft.strength)
        write_training(lm, result, facts, project.sft, project.costs)
        checkpoints.remove()


@dataclass(frozen=True)
class Material:
    """What a language model learns from and is watched on.

    learned: a list per epoch where epochs differ, else one for all; facts: for training.json, how many prompts show a
    profile and what targets weigh (nothing where none does).
    """

    learned: list[list[TextExample]]
    held_out: list[TextExample]
    facts: dict[str, Any]

    def epoch(self, number: int) -> list[TextExample]:
        """What an epoch, counted from 0, learns from."""
        return self.learned[number % len(self.learned)]

    @property
    def examples(self) -> int:
        """Examples of the epoch that has most."""
        return max(map(len, self.learned))

    @property
    def read(self) -> list[list[Any]]:
        """All that is read, for digests."""
        examples = [*chain(*self.learned), *self.held_out]
        return [[e.example_id, e.prompt, e.continuation, *e.weights, *filter(None, [e.unlearned])] for e in examples]


def read_material(
    params: Params, prepared: Path, profiles: Path, builder: PromptBuilder, items: Items, *, weighted: bool = True
) -> Material:
    """The training histories and validation targets of a run, as this builder writes them.

    weighted: False leaves out sft.weights. Raises RecalignError where there are none, where prompts show profiles and
    too few users have one, where sft.weights names no groups, or where sft.new_items leaves an epoch nothing.
    """
    told = read_told(profiles, params.profiles.engine) if params.prompt.profile else nobody
    chosen = {split: sft_examples(params, prepared, split, told) for split in (c.TRAIN, c.VALIDATION)}
    names = {split: [example.example_id for example in own] for split, own in chosen.items()}
    listing = read_listing(params, prepared, items, names)
    texts = {split: _profile_texts(params, profiles, split) for split in (c.TRAIN, c.VALIDATION)}
    epochs = _by_epoch(chosen[c.TRAIN], items, params)
    whole, weights = params.sft.targets == "all", None
    if weighted:
        positions = chain.from_iterable(learned_positions(own, builder, whole_history=whole) for own in epochs)
        weights = target_weights(params.sft, items, positions)  # which reads them only where something weighs
    learned = [
        text_examples(
            own, builder, profiles=texts[c.TRAIN], listing=listing, whole_history=whole,
            weigh=weights.of if weights else None,
        )
        for own in epochs
    ]  # fmt: skip
    held_out = text_examples(chosen[c.VALIDATION], builder, profiles=texts[c.VALIDATION], listing=listing)
    facts: dict[str, Any] = {"weights": weights.as_dict()} if weights else {}
    if params.prompt.profile:
        facts["profiles"] = {
            split: training_shares(texts[split].get(example.user_id) for example in own)
            for split, own in chosen.items()
        }
        log.info("sft: profiles %s", shares_sentence(params.profiles.engine, facts["profiles"]))
    return Material(learned, held_out, facts)


def _by_epoch(examples: Sequence[Example], items: Items, params: Params) -> list[Sequence[Example]]:
    """What each epoch learns from, where they differ; else the one list that all of them share.

    Raises RecalignError where an epoch would have nothing to read.
    """
    share = params.sft.new_items
    orders: list[Sequence[Example]] = [
        [in_epoch_order(own, epoch, params.seed) for own in examples] for epoch in range(params.sft.epochs)
    ]
    if not share:
        return orders if orders[-1] != examples else [examples]  # histories in order of time: every epoch is alike
    if params.prompt.form == "candidates":
        raise RecalignError(
            f"sft.new_items is {share:g}, but prompt.form 'candidates' lists new items in the prompt; set it to 0, or "
            "prompt.form to 'history'"
        )
    epochs: list[Sequence[Example]] = []
    for epoch, ordered in enumerate(orders):
        new = new_in_epoch(items.trained.ids, share, epoch, params.seed)
        epochs.append([own for example in ordered if (own := without_new(example, new)) is not None])
        asked = sum(example.target in new for example in epochs[-1])
        log.info(
            "sft: epoch %d treats %d of %d items as new; %d of %d examples ask for one",
            epoch + 1, len(new), len(items.trained.ids), asked, len(epochs[-1]),
        )  # fmt: skip
    if not all(epochs):
        raise RecalignError(
            f"sft.new_items is {share:g}, and an epoch has no example left with a history; lower it, or raise "
            f"sft.examples, now {params.sft.examples}"
        )
    return epochs


def _profile_texts(params: Params, profiles: Path, split: str) -> dict[int, str]:
    """User → the profile that prompts show; empty where they show none."""
    if not params.prompt.profile:
        return {}
    return profile_texts(profiles, params.profiles.engine, split)
