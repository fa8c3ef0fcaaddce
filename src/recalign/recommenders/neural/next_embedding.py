"""Training of DreamRec on train events alone: to generate the embedding of each liked item from what is before it.

Two ways to come by the embeddings. pretrained: a SASRec learns them as `next_item` says, by its own loss; it is then
frozen, and the denoiser learns alone. joint: embeddings, encoder and denoiser learn together by the squared error,
without a wrong item ever drawn (the paper's way). Epochs of either are chosen on the held-out part of train; then all
is learned anew from all of train for so many.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from recalign.data.records import Items
from recalign.params.recommenders import DreamRecParams, NextItemParams, RecommendersParams
from recalign.recommenders.held_out import HeldOut, held_out
from recalign.recommenders.neural.dreamrec import Denoiser, DreamRec, Settings
from recalign.recommenders.neural.next_item import NO_TARGET, Histories, Training, choose_epochs
from recalign.recommenders.neural.sequential import Sequential, build_encoder
from recalign.recommenders.recommender import Fitting, Tuning, own_seed

SPREAD = 1.0  # standard deviation of embeddings at the start of joint training: that of the noise


def fit_dreamrec(
    catalogue: Items,
    events: pa.Table,
    clock: bool,
    seed: int,
    params: RecommendersParams,
    threads: int,
    met: pa.Table | None = None,
) -> tuple[DreamRec, Tuning]:
    """Train DreamRec on train events (user_id, item_id, timestamp, position); also its curve of held-out NDCG@10.

    Sizes, batches and rates are params.next_item's. A log too small to split is learned for params.next_item.epochs. At
    a fixed number of `threads`, the same events, seed and params give the same weights on one machine.
    """
    torch.set_num_threads(threads)
    learner = Learner(catalogue, clock, seed, params)
    cases = held_out(catalogue, events, clock, seed, met)
    part, whole, chosen = None, None, {}
    if params.dreamrec.embeddings == "pretrained":
        part, whole, chosen["sasrec_epochs"] = learner.pretrained(events, cases)
    epochs, report = choose_epochs(DreamRec.name, cases, lambda: learner.epochs(cases.events, part), params.next_item)
    model = next(islice(learner.epochs(events, whole), epochs - 1, None))
    return model, report | {"chosen": chosen | report["chosen"]}


class Learner:
    """DreamRec's training on one log: the same settings and seed for the part that chooses epochs and for all of it."""

    def __init__(self, catalogue: Items, clock: bool, seed: int, params: RecommendersParams) -> None:
        self.catalogue = catalogue
        self.sasrec = Training.of("sasrec", catalogue, clock, seed, params.next_item)
        self.own_seed = own_seed(seed, DreamRec.name)
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
        optimiser = torch.optim.Adam(weights, lr=self.encoding.learning_rate, betas=(0.9, 0.98), fused=True)
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

    def pretrained(self, events: pa.Table, cases: HeldOut) -> tuple[Sequential | None, Sequential, int]:
        """The SASRec of `fit_next_item`: as its epochs were chosen on cases.events, as it learns all events; epochs.

        The first is None where there is no case, and is not trained a second time where there is one.
        """
        latest: deque[dict[str, Tensor]] = deque(maxlen=self.encoding.patience + 1)  # the best one is among them

        def on_part() -> Iterator[Sequential]:
            for model in self._sasrec(cases.events):
                latest.append({name: value.clone() for name, value in model.encoder.state_dict().items()})
                yield model

        epochs, report = choose_epochs("sasrec", cases, on_part, self.encoding)
        part = self._new_condition() if latest else None
        if part is not None:
            part.encoder.load_state_dict(latest[epochs - len(report["tried"]) - 1])
            part.encoder.eval()
        return part, next(islice(self._sasrec(events), epochs - 1, None)), epochs

    def _sasrec(self, events: pa.Table) -> Iterator[Sequential]:
        """SASRec after each epoch, as `fit_next_item` trains it; the same object every time."""
        return (model for model, _ in self.sasrec.epochs(events, lambda encoder: None))

    def _new_condition(self) -> Sequential:
        """A SASRec that has learned nothing yet."""
        settings = self.sasrec.settings
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


def fit(log: Fitting) -> tuple[DreamRec, Tuning]:
    """Train as `recommenders` in params says."""
    return fit_dreamrec(log.catalogue, log.events, log.clock, log.seed, log.params, log.threads, log.met)


def load(name: str, path: Path, catalogue: Items) -> DreamRec:
    """Read what `save` wrote."""
    return DreamRec.load(path, catalogue)
