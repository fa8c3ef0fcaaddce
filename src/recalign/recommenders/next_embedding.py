"""Training of DreamRec on train events alone: to generate the embedding of each liked item from what is before it.

Two ways to come by the embeddings. pretrained: a SASRec learns them as `next_item` says, by its own loss; it is then
frozen, and the denoiser learns alone. joint: embeddings, encoder and denoiser learn together by the squared error,
without a wrong item ever drawn (the paper's way). Epochs of either are chosen on the held-out part of train; then all
is learned anew from all of train for so many.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from recalign.data.records import Items, hashed_order
from recalign.params import DreamRecParams, NextItemParams, RecommendersParams
from recalign.recommenders import sequential
from recalign.recommenders.dreamrec import Denoiser, DreamRec, Settings
from recalign.recommenders.held_out import held_out
from recalign.recommenders.next_item import NO_TARGET, Histories, choose_epochs, fit_next_item, train_epochs
from recalign.recommenders.sequential import Sequential, build_encoder

SPREAD = 1.0  # standard deviation of embeddings at the start of joint training: that of the noise


def fit_dreamrec(
    catalogue: Items, events: pa.Table, clock: bool, seed: int, params: RecommendersParams, threads: int
) -> tuple[DreamRec, dict[str, Any]]:
    """Train DreamRec on train events (user_id, item_id, timestamp, position); also its curve of held-out NDCG@10.

    Sizes, batches and rates are params.next_item's. A log too small to split is learned for params.next_item.epochs. At
    a fixed number of `threads`, the same events, seed and params give the same weights on one machine.
    """
    torch.set_num_threads(threads)
    learner = Learner(catalogue, clock, seed, params)
    cases = held_out(catalogue, events, clock, seed)
    pretrained = params.dreamrec.embeddings == "pretrained"
    first, chosen = None, {}
    if pretrained:
        first, report = fit_next_item("sasrec", catalogue, events, clock, seed, params.next_item, threads)
        chosen["sasrec_epochs"] = report["chosen"]["epochs"]

    def on_part() -> Iterator[DreamRec]:
        again = learner.pretrained(cases.events, chosen["sasrec_epochs"]) if pretrained else None
        return learner.epochs(cases.events, again)

    epochs, report = choose_epochs(DreamRec.name, cases, on_part, params.next_item)
    model = next(islice(learner.epochs(events, first), epochs - 1, None))
    return model, report | {"chosen": chosen | report["chosen"]}


class Learner:
    """DreamRec's training on one log: the same settings and seed for the part that chooses epochs and for all of it."""

    def __init__(self, catalogue: Items, clock: bool, seed: int, params: RecommendersParams) -> None:
        self.catalogue = catalogue
        self.clock = clock
        self.seed = seed
        self.own_seed = int(hashed_order(seed, "dreamrec")[:15], 16)
        self.params: DreamRecParams = params.dreamrec
        self.encoding: NextItemParams = params.next_item

    def epochs(self, events: pa.Table, pretrained: Sequential | None) -> Iterator[DreamRec]:
        """The recommender after each epoch on these events; the same object every time.

        pretrained: the frozen condition; None lets a new one learn jointly.
        """
        joint = pretrained is None
        condition = self._new_condition() if pretrained is None else pretrained
        settings = condition.settings
        histories = Histories(self.catalogue, events)
        draw = np.random.default_rng(self.own_seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.own_seed)
            model = DreamRec(condition, Denoiser(settings.dimension), self._settings())
        weights = [*model.denoiser.parameters(), *(condition.encoder.parameters() if joint else ())]
        optimiser = torch.optim.Adam(weights, lr=self.encoding.learning_rate, betas=(0.9, 0.98))
        for epoch in range(self.encoding.epochs):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.own_seed + epoch + 1)  # steps, noise, dropout; nobody else's numbers move
                condition.encoder.train(joint)
                for batch in histories.batches(self.encoding.batch, settings, draw):
                    real = batch.targets != NO_TARGET
                    with torch.set_grad_enabled(joint):
                        states = condition.encoder(batch.inputs)[real]
                        clean = model.clean_embeddings()[batch.targets[real]]
                    loss = model.denoiser.loss(model.diffusion, clean, states, self.params.dropped)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            condition.encoder.eval()
            yield model

    def pretrained(self, events: pa.Table, epochs: int) -> Sequential:
        """The SASRec that `fit_next_item` has after so many epochs, had it these events."""
        own_seed = int(hashed_order(self.seed, "sasrec")[:15], 16)
        trained = train_epochs(
            "sasrec", self.catalogue, events, self._encoder(), own_seed, self.encoding, lambda encoder: None
        )
        model, _ = next(islice(trained, epochs - 1, None))
        return model

    def _encoder(self) -> sequential.Settings:
        params = self.encoding
        return sequential.Settings(
            params.dimension, params.dropout, params.max_history, params.window, ordered=self.clock
        )

    def _new_condition(self) -> Sequential:
        """A SASRec that has learned nothing yet."""
        settings = self._encoder()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.own_seed)
            encoder = build_encoder("sasrec", len(self.catalogue.ids), settings)
            nn.init.normal_(encoder.embedding.weight, std=SPREAD)
        return Sequential(self.catalogue, "sasrec", encoder, settings)

    def _settings(self) -> Settings:
        chosen = self.params
        return Settings(
            chosen.embeddings,
            chosen.schedule,
            chosen.steps,
            chosen.guidance,
            chosen.sampler,
            chosen.sampler_steps,
            self.own_seed,
        )
