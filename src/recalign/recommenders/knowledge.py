"""A reranker that reads a text about the user: DPO4Rec's recommender with knowledge, and so its reward model.

A reconstruction of arXiv 2410.05939, for which there is no code of the authors: a frozen text encoder, an adaptor that
reduces its width, joined with the recommender's ID vectors and read by a small listwise transformer (PRM, Pei et al.
2019, RecSys) that is trained with the ListNet loss (Cao et al. 2007, ICML) on the first stage's own best items.
Four choices are ours, since hundreds of users are few: the items' texts pass the same adaptor, the likeness of both
texts (cosine of the frozen vectors, standardised in the list) is an input, the first stage's score and that likeness
are added to the output by a weight each, and the last layer and the likeness's weight start at zero, so that an
untrained reranker keeps the first stage's order.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.evaluation.metrics import Floats
from recalign.recommenders.item_text import TFIDF, Encoded, TextReader, TfIdf, leading, text_of
from recalign.recommenders.listed import ListedCase, best_columns
from recalign.recommenders.recommender import Recommender, Request
from recalign.recommenders.roster import load_fitted
from recalign.recommenders.store import bags, columns_of, load_state, save_state

NAME = "knowledge"
MOST_FACTORS = 32  # of the log, where the first stage has no vectors of its own
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class TextEncoding:
    """A frozen encoder of any text: tf–idf over the catalogue's texts, or a language encoder by its name."""

    name: str
    block: TfIdf | Encoded

    @classmethod
    def open(cls, name: str, catalogue: Items, read: TextReader) -> "TextEncoding":
        """name: tfidf, or what `text_reader` knows (minilm, base, model). Raises RecalignError where it is not to be
        had."""
        if name == TFIDF:
            return cls(name, TfIdf.fit(catalogue, catalogue.ids))
        return cls(name, Encoded(name, read(name, [])[1], read))

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """[texts, width], rows of length 1; an empty text is a row of zeros."""
        ids = tuple(range(len(texts)))
        told = Items(ids, dict(zip(ids, texts, strict=True)), {}, {})
        found = self.block.vectors(told, ids)
        norms = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        spoken = np.array([bool(text.strip()) for text in texts], dtype=bool)[:, None]
        return np.where(spoken, found / norms, 0.0).astype(np.float32)


@dataclass(frozen=True)
class Sizes:
    """Of the listwise model: widths in numbers, listed in items. text and vectors are given by encoder and log."""

    text: int
    vectors: int
    listed: int
    knowledge: int = 32
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1


@dataclass(frozen=True)
class Lists:
    """B lists of C items as numbers. texts [B, text] of the users, zeros for no text; items [B, C, text];
    vectors [B, C, vectors] of the items; states [B, vectors] of the users; first [B, C] standardised scores of the
    first stage; ranks [B, C] from 0."""

    texts: Tensor
    items: Tensor
    vectors: Tensor
    states: Tensor
    first: Tensor
    ranks: Tensor

    def rows(self, index: Tensor) -> "Lists":
        """Some of the lists."""
        return Lists(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class ListwiseModel(nn.Module):
    """Scores the items of a list together: [B, C] from `Lists`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.adaptor = nn.Sequential(
            nn.Linear(sizes.text, 2 * sizes.knowledge),
            nn.ReLU(),
            nn.Linear(2 * sizes.knowledge, sizes.knowledge),
            nn.LayerNorm(sizes.knowledge),
        )
        joined = 3 * sizes.vectors + 3 * sizes.knowledge + 4  # and: cosine, first score, 1 / log2(2 + rank), has text
        self.fuse = nn.Linear(joined, sizes.hidden)
        self.place = nn.Embedding(sizes.listed, sizes.hidden)
        layer = nn.TransformerEncoderLayer(
            sizes.hidden, sizes.heads, 4 * sizes.hidden, sizes.dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, sizes.layers, enable_nested_tensor=False)
        last = nn.Linear(sizes.hidden // 2, 1)
        self.head = nn.Sequential(nn.Linear(sizes.hidden, sizes.hidden // 2), nn.ReLU(), last)
        self.weights = nn.Parameter(torch.tensor([1.0, 0.0]))  # of the first stage's score and of the likeness
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, lists: Lists) -> Tensor:
        spoken = lists.texts.abs().sum(dim=1, keepdim=True) > 0  # [B, 1]
        wide = lists.first.shape[1]
        user = (self.adaptor(lists.texts) * spoken)[:, None].expand(-1, wide, -1)
        items = self.adaptor(lists.items)
        states = lists.states[:, None].expand(-1, wide, -1)
        likeness = standardised(torch.einsum("bt,bct->bc", lists.texts, lists.items))
        numbers = torch.stack(
            [
                likeness,
                lists.first,
                1.0 / torch.log2(2.0 + lists.ranks),
                spoken.expand(-1, wide).to(lists.first),
            ],
            dim=2,
        )
        parts = [lists.vectors, states, lists.vectors * states, items, user, items * user, numbers]
        read = torch.relu(self.fuse(torch.cat(parts, dim=2)))
        read = read + self.place(lists.ranks.clamp(max=self.sizes.listed - 1))
        scores: Tensor = self.head(self.encoder(read)).squeeze(2)
        return self.weights[0] * lists.first + self.weights[1] * likeness + scores


def standardised(scores: Tensor) -> Tensor:
    """[B, C] scores with mean 0 and deviation 1 in each list; 0 where all are alike, as without a text."""
    apart = scores - scores.mean(dim=1, keepdim=True)
    spread = apart.std(dim=1, keepdim=True, correction=0)
    return torch.where(spread > 1e-6, apart / spread.clamp(min=1e-6), torch.zeros_like(apart))


def listnet_loss(scores: Tensor, found: Tensor) -> Tensor:
    """−Σ_i y_i / Σ y · log softmax(scores)_i, the mean over lists with a target; scores, found [B, C] (0 or 1).

    The top-one form of Cao et al. 2007, eq. 6, with binary labels. Lists without a target teach nothing and count 0.
    """
    counts = found.sum(dim=1)
    losses = -(found * torch.log_softmax(scores, dim=1)).sum(dim=1) / counts.clamp(min=1)
    return losses.sum() / (counts > 0).sum().clamp(min=1)


@dataclass(frozen=True)
class Learning:
    """How the reranker learns.

    learning_rate: of AdamW; weights_rate: of the two weights of the sum, which have far to go in few steps; batch:
    lists a step; epochs: passes at most; patience: passes without a better validation loss before it stops;
    text_dropout: share of lists that are read without their text, so that it works without one, too.
    """

    learning_rate: float = 1e-3
    weights_rate: float = 3e-2
    batch: int = 32
    epochs: int = 40
    patience: int = 6
    text_dropout: float = 0.2
    weight_decay: float = 1e-2


class KnowledgeReranker:
    """Reranks the first stage's best items by the model; `Request.profile` is the text about the user."""

    def __init__(self, catalogue: Items, first: Recommender, encoding: TextEncoding, log_vectors: Vectors,
                 model: ListwiseModel) -> None:  # fmt: skip
        """log_vectors [items, width]: the items' ID vectors, in the catalogue's order."""
        self.name = NAME
        self.catalogue = catalogue
        self.first = first
        self.encoding = encoding
        self.model = model
        self._vectors = log_vectors
        self._items = encoding.vectors([text_of(catalogue, item) for item in catalogue.ids])

    def with_model(self, model: ListwiseModel) -> "KnowledgeReranker":
        """The same first stage and vectors, read by another model."""
        other = copy.copy(self)
        other.model = model
        return other

    @property
    def listed(self) -> int:
        """n: how many of the first stage's best items it reranks."""
        return self.model.sizes.listed

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> Tensor:
        """[B, C] scores of equally long candidate lists, or [B, items]: the first stage's n best reranked, then the
        rest in its order. Raises RecalignError for an item that the catalogue does not hold."""
        if candidates is not None:
            return self._reranked(requests, candidates)
        first = self.first.scores(requests, None).double()
        best = best_columns(first, self.catalogue, requests, self.listed)
        lists = [[self.catalogue.ids[column] for column in row] for row in best.tolist()]
        reranked = self._reranked(requests, lists)
        lowest, highest = reranked.min(dim=1, keepdim=True).values, first.max(dim=1, keepdim=True).values
        return (first - highest + lowest - 1.0).scatter(1, best, reranked)

    def save(self, path: Path) -> None:
        """Write the first stage, the encoder's state, the ID vectors and the model's weights into the folder `path`."""
        told, arrays = self.encoding.block.state()
        arrays = {f"encoding.{key}": value for key, value in arrays.items()} | {"vectors": self._vectors}
        arrays |= {f"model.{key}": value.detach().numpy() for key, value in self.model.state_dict().items()}
        settings = {"sizes": asdict(self.model.sizes), "encoder": self.encoding.name, "encoding": told}
        self.first.save(path / "first")
        save_state(path, NAME, self.catalogue, arrays, settings | {"first": self.first.name})

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "KnowledgeReranker":
        """Read what `save` wrote. Raises RecalignError for another recommender or catalogue."""
        arrays, settings = load_state(path, NAME, catalogue)
        own = {key.removeprefix("encoding."): value for key, value in arrays.items() if key.startswith("encoding.")}
        name, told = settings["encoder"], settings["encoding"]
        block = TfIdf.of_state(told, own) if name == TFIDF else Encoded.of_state(told | {"name": name})
        model = ListwiseModel(Sizes(**settings["sizes"]))
        weights = {key.removeprefix("model."): torch.from_numpy(value) for key, value in arrays.items()
                   if key.startswith("model.")}  # fmt: skip
        model.load_state_dict(weights)
        first = load_fitted(settings["first"], path / "first", catalogue)
        return cls(catalogue, first, TextEncoding(name, block), arrays["vectors"], model.eval())

    def lists(self, requests: Sequence[Request], candidates: Sequence[Sequence[int]]) -> Lists:
        """What the model reads of the requests and their lists, whatever the order of a list."""
        first = self.first.scores(list(requests), [list(row) for row in candidates]).double()
        # ties of the first stage keep the list's order, which is the first stage's own for its best items
        ranks = torch.argsort(torch.argsort(first, dim=1, descending=True, stable=True), dim=1)
        columns = columns_of(self.catalogue, [item for row in candidates for item in row]).reshape(len(candidates), -1)
        return Lists(
            torch.from_numpy(self.encoding.vectors([request.profile or "" for request in requests])),
            torch.from_numpy(self._items[columns]),
            torch.from_numpy(self._vectors[columns]),
            torch.from_numpy(states_of(self.first, self.catalogue, self._vectors, [r.history for r in requests])),
            standardised(first).float(),
            ranks,
        )

    @torch.no_grad()
    def _reranked(self, requests: Sequence[Request], candidates: Sequence[Sequence[int]]) -> Tensor:
        self.model.eval()
        scores: Tensor = self.model(self.lists(requests, candidates)).double()
        return scores


@runtime_checkable
class HasStates(Protocol):
    """A sequence model: vectors of items, and a state after a history."""

    def item_embedding(self, ids: list[int]) -> Tensor:
        """[N, d]."""
        ...

    def last(self, histories: list[tuple[int, ...]]) -> Tensor:
        """[B, d]."""
        ...


def id_vectors(first: Recommender, catalogue: Items, histories: Sequence[tuple[int, ...]]) -> Vectors:
    """[items, width] ID vectors: the first stage's own where it is a sequence model, else the leading factors of the
    histories' user × item matrix, times the singular values over the largest (a sparse log has no others)."""
    if isinstance(first, HasStates):
        own: Vectors = first.item_embedding(list(catalogue.ids)).float().numpy()
        return own
    values, right = leading(bags(catalogue, list(histories)), MOST_FACTORS)
    if not len(values):
        return np.zeros((len(catalogue.ids), 1), np.float32)
    scaled = right * (values / values[0]) * np.sqrt(len(catalogue.ids))
    return np.asarray(scaled, dtype=np.float32)


def states_of(first: Recommender, catalogue: Items, vectors: Vectors, histories: Sequence[tuple[int, ...]]) -> Vectors:
    """[B, width] a user's state: the sequence model's after the history, else the mean of its items' vectors."""
    if isinstance(first, HasStates):
        own: Vectors = first.last(list(histories)).detach().float().numpy()
        return own
    told = bags(catalogue, list(histories))
    lengths = np.array([max(1, len(history)) for history in histories], dtype=np.float64)[:, None]
    return np.asarray((told @ vectors) / lengths, dtype=np.float32)


def requests_of(cases: Sequence[ListedCase], texts: Sequence[str | None]) -> list[Request]:
    """The cases as requests that carry a text each."""
    return [
        Request(case.user_id, case.history, profile=text, excluded=case.met | frozenset(case.history))
        for case, text in zip(cases, texts, strict=True)
    ]


def scores_under(reranker: Recommender, case: ListedCase, texts: Sequence[str | None]) -> Floats:
    """[N, n] the reranker's scores of the case's list under each of N texts about the user."""
    requests = requests_of([case] * len(texts), texts)
    scores: Floats = reranker.scores(requests, [list(case.listed)] * len(texts)).numpy()
    return scores


def fit_reranker(
    start: KnowledgeReranker,
    cases: Sequence[ListedCase],
    texts: Sequence[str],
    validation: tuple[Sequence[ListedCase], Sequence[str]],
    learning: Learning,
    seed: int,
) -> tuple[KnowledgeReranker, dict[str, float]]:
    """Train a new reranker by the first stage, encoder and sizes of `start`; also what was learned from.

    cases, texts: of users whose own first stage is fitted without the targets, one text each; validation: other users'
    cases and texts, by whose loss the best pass is kept (the start among them). Equal inputs give equal weights on one
    machine. Raises RecalignError where no list holds a target, of those that are learned from or of the others.
    """
    found, right = _found(cases), _found(validation[0])
    taught = int((found.sum(dim=1) > 0).sum())
    if not taught:
        raise RecalignError(
            f"none of the {len(cases)} lists that the reranker would learn from holds a target: raise dpo4rec.listed, "
            "or choose another dpo4rec.first_stage"
        )
    if not right.any():
        raise RecalignError(
            f"none of V's {len(right)} lists holds a target, so no pass can be chosen: raise dpo4rec.listed, "
            "dpo4rec.users or dpo4rec.shares.validation"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ListwiseModel(start.model.sizes)
        reranker = start.with_model(model)
        lists = reranker.lists(requests_of(cases, texts), [case.listed for case in cases])
        looked = reranker.lists(requests_of(validation[0], validation[1]), [case.listed for case in validation[0]])
        told = _train(model, lists, found, (looked, right), learning)
    return reranker, {"lists": len(cases), "lists_with_target": taught} | told


def _found(cases: Sequence[ListedCase]) -> Tensor:
    """[B, n] 1 where a listed item is a target, else 0."""
    return torch.from_numpy(np.stack([case.found for case in cases])).float() if cases else torch.zeros((0, 1))


def _train(
    model: ListwiseModel, lists: Lists, found: Tensor, validation: tuple[Lists, Tensor], learning: Learning
) -> dict[str, float]:
    """Adam on the lists in random order; leaves the model at its best pass."""
    deep = [parameter for name, parameter in model.named_parameters() if name != "weights"]
    groups: list[dict[str, Any]] = [
        {"params": deep},
        {"params": [model.weights], "lr": learning.weights_rate, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, learning.learning_rate, weight_decay=learning.weight_decay)

    def look() -> float:
        model.eval()
        with torch.no_grad():
            return float(listnet_loss(model(validation[0]), validation[1]))

    best, kept, best_epoch = look(), {key: value.clone() for key, value in model.state_dict().items()}, 0
    first = best
    for epoch in range(1, learning.epochs + 1):
        model.train()
        for rows in torch.randperm(len(found)).split(learning.batch):
            part = lists.rows(rows)
            spoken = (torch.rand(len(rows), 1) >= learning.text_dropout).to(part.texts)
            loss = listnet_loss(model(replace(part, texts=part.texts * spoken)), found[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if (now := look()) < best:
            best, best_epoch = now, epoch
            kept = {key: value.clone() for key, value in model.state_dict().items()}
        if epoch - best_epoch >= learning.patience:
            break
    model.load_state_dict(kept)
    model.eval()
    return {"best_epoch": best_epoch, "start_loss": round(first, 6), "validation_loss": round(best, 6)}


def new_reranker(
    catalogue: Items, first: Recommender, encoding: TextEncoding, histories: Sequence[tuple[int, ...]], listed: int
) -> KnowledgeReranker:
    """One that still keeps the first stage's order; histories: those that the first stage was fitted on."""
    if listed > len(catalogue.ids):
        raise RecalignError(f"dpo4rec.listed is {listed}, and the catalogue has {len(catalogue.ids)} items; lower it")
    vectors = id_vectors(first, catalogue, histories)
    sizes = Sizes(encoding.vectors([""]).shape[1], vectors.shape[1], listed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KnowledgeReranker(catalogue, first, encoding, vectors, ListwiseModel(sizes).eval())
