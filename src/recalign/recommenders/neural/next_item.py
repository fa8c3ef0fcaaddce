"""Training of sequence encoders on train events alone: every item of a history is a target for what is before it.

How many epochs is chosen on a held-out part of train (NDCG@10, early stop); then a new encoder learns all of train for
so many, so that the newest likes are not lost. The random numbers are drawn from (seed, name) and from nothing else.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.params.recommenders import NextItemParams
from recalign.recommenders.item_text import TextMap, TextReader
from recalign.recommenders.neural import losses as item_losses
from recalign.recommenders.neural.encoders import INITIAL, Encoder, EncoderName, TextEmbedding, whitening
from recalign.recommenders.neural.sequential import Sequential, Settings, TextSequential, build_encoder, filled
from recalign.recommenders.recommender import Fitting, Recommender, Tuning, own_seed
from recalign.recommenders.store import columns_of
from recalign.recommenders.tuning import METRIC, HeldOut, held_out

log = logging.getLogger(__name__)
NO_TARGET = -1


class Batch(NamedTuple):
    """Rows of histories, filled up at their right ends.

    inputs [B, T]: columns; targets [B, T]: what comes next, or NO_TARGET; users [B]: places in `Histories.likes`;
    ended [B]: whether the history ends with the row (a long one is cut into several).
    """

    inputs: Tensor
    targets: Tensor
    users: Tensor
    ended: Tensor


class Histories:
    """The users' likes as columns, in their order, and the batches that are made of them."""

    def __init__(self, catalogue: Items, events: pa.Table) -> None:
        """events: user_id, item_id and position (the user's order)."""
        ordered = events.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
        self.items = len(catalogue.ids)
        known = columns_of(catalogue, np.array(catalogue.trained.ids))
        self.known = None if len(known) == self.items else torch.from_numpy(known)  # None: all of them
        _, users, counts = np.unique(ordered[c.USER].to_numpy(), return_inverse=True, return_counts=True)
        columns = columns_of(catalogue, ordered[c.ITEM].to_numpy())
        self.likes = np.split(columns, np.cumsum(counts)[:-1]) if len(counts) else []
        self.taken = torch.from_numpy(np.sort(users * self.items + columns))

    def batches(self, size: int, settings: Settings, draw: np.random.Generator) -> Iterator[Batch]:
        """The batches of one epoch, the last one too.

        A history longer than the encoder's is cut into rows, counted from its end. A set is shuffled anew each epoch.
        """
        rows = []
        for user, likes in enumerate(self.likes):
            targets = likes if settings.ordered else draw.permutation(likes)
            inputs = np.append(self.items, targets[:-1])
            for end in range(len(targets), 0, -settings.length):
                span = slice(max(0, end - settings.length), end)
                rows.append((inputs[span], targets[span], user, end == len(targets)))
        order = draw.permutation(len(rows))
        for first in range(0, len(rows), size):
            batch = [rows[row] for row in order[first : first + size]]
            read, wanted, users, ended = zip(*batch, strict=True)
            blocks = filled(read, self.items), filled(wanted, NO_TARGET)
            yield Batch(*blocks, torch.tensor(users), torch.tensor(ended))

    def drawn(self, count: int, draw: np.random.Generator) -> Tensor:
        """[K] columns of trained items, with repeats: new ones are nobody's wrong answers."""
        places = torch.from_numpy(draw.integers(self.items if self.known is None else len(self.known), size=count))
        return places if self.known is None else self.known[places]

    def allowed(self, users: Tensor, drawn: Tensor) -> Tensor:
        """[B, K] whether each user [B] never liked each of the drawn items [K]."""
        keys = users[:, None] * self.items + drawn
        places = torch.searchsorted(self.taken, keys).clamp(max=len(self.taken) - 1)
        return self.taken[places] != keys


class Heads(Protocol):
    """What learns beside an encoder's own scores, from the same states: its weights, and its loss [] of a batch."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def loss(self, encoder: Encoder, states: Tensor, batch: Batch, histories: Histories) -> Tensor | None:
        """Added to the encoder's loss; None adds nothing, and leaves the encoder's training as it is, bit for bit."""
        ...


H = TypeVar("H", bound=Heads | None)


@dataclass(frozen=True)
class Training:
    """An encoder's training, alike on the part of a log that chooses its epochs and on all of it.

    settings: the encoder's; seed: of all its random numbers; text: what reads items, where they are read.
    """

    name: EncoderName
    catalogue: Items
    settings: Settings
    seed: int
    params: NextItemParams
    text: TextMap | None = None

    @classmethod
    def of(cls, name: EncoderName, catalogue: Items, clock: bool, seed: int, params: NextItemParams) -> "Training":
        """What `params` say of a log with or without a clock, in a run with `seed`."""
        return cls(name, catalogue, Settings.of(params, clock), own_seed(seed, name), params)

    def reading(self, read: TextReader) -> "Training":
        """The same, with items read by their text as params say; itself where they say none, and for Caser."""
        params = self.params
        if params.text == "none" or self.name == "caser":
            return self
        width = params.dimension if params.text == "delta" else max(1, round(params.text_share * params.dimension))
        settings = replace(self.settings, text=params.text, text_width=width, text_bound=params.text_bound)
        return replace(self, settings=settings, text=whitening(self.catalogue, params.text_encoder, width, read))

    @cached_property
    def vectors(self) -> Tensor:
        """[items, width] of the catalogue's items as `text` reads them."""
        assert self.text is not None, "items are not read"
        return torch.from_numpy(self.text.of(self.catalogue, self.catalogue.ids)).float()

    def fit(self, events: pa.Table, cases: HeldOut, make_heads: Callable[[Encoder], H]) -> tuple[Sequential, H, Tuning]:
        """Trained on all events for as many epochs as are best on the held-out cases; also what was tried."""

        def on_part() -> Iterator[Sequential]:
            return (model for model, _ in self.epochs(cases.events, make_heads))

        epochs, report = choose_epochs(self.name, cases, on_part, self.params)
        model, heads = next(islice(self.epochs(events, make_heads), epochs - 1, None))
        return model, heads, report

    def epochs(self, events: pa.Table, make_heads: Callable[[Encoder], H]) -> Iterator[tuple[Sequential, H]]:
        """The recommender after each epoch on these events, with the heads that `make_heads` puts upon its encoder.

        The same objects every time. A function that returns None puts none upon it.
        """
        histories = Histories(self.catalogue, events)
        draw = np.random.default_rng(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoder = build_encoder(self.name, len(self.catalogue.ids), self.settings)
            if self.text is not None and isinstance(encoder.embedding, TextEmbedding):
                known = columns_of(self.catalogue, np.array(self.catalogue.trained.ids))
                encoder.embedding.fill(self.vectors, known, INITIAL)
        made = self.catalogue, self.name, encoder, self.settings
        model, heads = TextSequential(*made, self.text) if self.text else Sequential(*made), make_heads(encoder)
        beside: Heads | None = heads
        weights = [*encoder.parameters(), *(beside.parameters() if beside else ())]
        optimiser = torch.optim.Adam(weights, lr=self.params.learning_rate, betas=(0.9, 0.98), fused=True)
        for epoch in range(self.params.epochs):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed + epoch + 1)  # dropout; nobody else's random numbers move
                encoder.train()
                for batch in histories.batches(self.params.batch, self.settings, draw):
                    states = encoder(batch.inputs)
                    loss = batch_loss(encoder, states, batch, histories, self.params, draw)
                    further = beside.loss(encoder, states, batch, histories) if beside else None
                    loss = loss if further is None else loss + further
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            encoder.eval()
            yield model, heads


def fit(log: Fitting) -> tuple[Sequential, Tuning]:
    """Train an encoder on train events (user_id, item_id, timestamp, position); also its curve of held-out NDCG@10.

    A log too small to split is learned for next_item.epochs. At a fixed number of threads, the same
    events, seed and params give the same weights on one machine.
    """
    torch.set_num_threads(log.threads)
    name = cast(EncoderName, log.name)
    training = Training.of(name, log.catalogue, log.clock, log.seed, log.params.next_item)
    cases = held_out(log.catalogue, log.events, log.clock, log.seed, log.met)
    content = log.params.content
    reading = training.reading(TextReader(content.model, content.revision, log.threads))
    model, _, report = reading.fit(log.events, cases, lambda encoder: None)
    return model, report


def choose_epochs(
    name: str, cases: HeldOut, on_part: Callable[[], Iterator[Recommender]], params: NextItemParams
) -> tuple[int, Tuning]:
    """How many epochs are best on the held-out cases, and what was tried; params.epochs where there is no case.

    on_part: starts training on cases.events; the recommender after each epoch. It ends params.patience after the best.
    """
    curve: list[float] = []
    if cases.requests and len(cases.events):
        for model in on_part():
            curve.append(cases.value(model))
            best = int(np.argmax(curve))
            if len(curve) - 1 - best >= params.patience:
                break
        epochs = best + 1
        log.info("%s: epoch %d of %d is best on %d cases of train", name, epochs, len(curve), len(cases.requests))
    else:
        epochs = params.epochs
        log.info("%s: train is too small to split; %d epochs", name, epochs)
    return epochs, {
        "chosen": {"epochs": epochs},
        "metric": METRIC,
        "cases": len(cases.requests),
        "tried": [{"epochs": number, METRIC: value} for number, value in enumerate(curve, start=1)],
    }


def batch_loss(
    encoder: Encoder,
    states: Tensor,
    batch: Batch,
    histories: Histories,
    params: NextItemParams,
    draw: np.random.Generator,
) -> Tensor:
    """Mean loss over the targets of a batch, [] in nats, by the encoder's states [B, T, d] of its inputs.

    Negatives are drawn once a batch, for all of its targets.
    """
    real = batch.targets != NO_TARGET
    asked, wanted = states[real], batch.targets[real]
    if params.loss == "full":
        scores = encoder.scores(asked)
        if histories.known is not None:
            new = torch.ones(histories.items, dtype=torch.bool)
            new[histories.known] = False
            scores = scores.masked_fill(new, -torch.inf)
        return item_losses.full(scores, wanted).mean()
    drawn = histories.drawn(params.negatives, draw)
    allowed = histories.allowed(batch.users, drawn).repeat_interleave(real.sum(dim=1), dim=0)
    loss = item_losses.sampled if params.loss == "sampled" else item_losses.binary
    return loss(encoder.scores_of_one(asked, wanted), encoder.scores_of_all(asked, drawn), allowed).mean()


def load(name: str, path: Path, catalogue: Items) -> Sequential:
    """Read what `save` wrote."""
    return Sequential.load(cast(EncoderName, name), path, catalogue)
