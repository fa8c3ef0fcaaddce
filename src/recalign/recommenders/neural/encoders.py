"""Sequence encoders: item columns in, a state at every position out. Each reads a position and what is before it.

All three take one row more than the catalogue has items: the start of a history, which also fills short rows at their
right end. That row is never an answer, and no position before it can see it.

Item embeddings of a sequence encoder that read what is written of items, so that an item without events has one.

`split` (AlphaFuse, arXiv 2504.19218): the leading directions of the text vectors, whitened, are frozen; learned
dimensions of the item's own stand beside them. `delta` (arXiv 2507.19473): the whitened text vector is frozen over all
dimensions, and what is learned on top of it has a norm of at most `bound` times the text vectors' mean norm. Both are
reconstructions: the scale (rows of mean squared norm 1), the share of dimensions and the zeros of new items are ours.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding, max_pool1d, pad, relu, scaled_dot_product_attention

from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.recommenders.item_text import TextMap, TextReader, fit_description

EncoderName = Literal["sasrec", "gru4rec", "caser"]
INITIAL = 0.02  # standard deviation of embeddings at the start, as in BERT


class Dropout(nn.Module):
    """Dropout as torch's, by uniform numbers: torch draws its Bernoulli ones on a CPU at a third of the speed."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        """The values, while training with a `share` of them 0 and the rest scaled up, so that the mean stays."""
        if not self.training or self.share == 0.0:
            return values
        return values * ((torch.rand_like(values) >= self.share) * (1.0 / (1.0 - self.share)))


class Encoder(nn.Module):
    """Item embeddings [items + 1, d] and what the encoders do with them."""

    def __init__(self, items: int, dimension: int, dropout: float) -> None:
        super().__init__()
        plain = nn.Embedding(items + 1, dimension)
        nn.init.normal_(plain.weight, std=INITIAL)
        self.embedding: nn.Embedding | TextEmbedding = plain
        self.dropout = Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(items))  # of an item, so that embeddings need not learn popularity

    def scores(self, states: Tensor) -> Tensor:
        """[…, items] of states […, d]: products with the items' embeddings (tied to the input), and their biases."""
        return states @ self.embedding.weight[:-1].T + self.bias

    def scores_of_one(self, states: Tensor, items: Tensor) -> Tensor:
        """[N] of states [N, d], each with its own item [N]."""
        return (states * self.embedding(items)).sum(-1) + self.bias[items]

    def scores_of_all(self, states: Tensor, items: Tensor) -> Tensor:
        """[N, K] of states [N, d], each with all of the items [K]."""
        return states @ self.embedding(items).T + self.bias[items]


class Block(nn.Module):
    """Causal self-attention and a two-layer network a position, each with a residual; normalised before (pre-LN)."""

    def __init__(self, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(dimension)
        self.before_network = nn.LayerNorm(dimension)
        self.query = nn.Linear(dimension, dimension)
        self.key_value = nn.Linear(dimension, 2 * dimension)
        self.out = nn.Linear(dimension, dimension)
        self.network = nn.Sequential(
            nn.Linear(dimension, dimension), nn.ReLU(), Dropout(dropout), nn.Linear(dimension, dimension)
        )
        self.dropout = Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, T, d] to [B, T, d]; position t reads positions up to t. Attention is scaled by the width of a head."""
        rows, length, width = inputs.shape
        normal = self.before_attention(inputs)

        def split(values: Tensor) -> Tensor:
            return values.view(rows, length, self.heads, -1).transpose(1, 2)

        key, value = self.key_value(normal).chunk(2, dim=-1)
        attended = scaled_dot_product_attention(split(self.query(normal)), split(key), split(value), is_causal=True)
        inputs = inputs + self.dropout(self.out(attended.transpose(1, 2).reshape(rows, length, width)))
        return inputs + self.dropout(self.network(self.before_network(inputs)))


class SASRec(Encoder):
    """Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018): two blocks of one head, tied embeddings.

    Padding needs no mask: it stands at the right end, where causal attention does not reach from a real position.
    """

    def __init__(self, items: int, dimension: int, dropout: float, length: int, ordered: bool) -> None:
        super().__init__(items, dimension, dropout)
        self.positions = nn.Parameter(torch.zeros(length, dimension)) if ordered else None
        if self.positions is not None:
            nn.init.normal_(self.positions, std=INITIAL)
        self.blocks = nn.ModuleList([Block(dimension, 1, dropout) for _ in range(2)])
        self.last = nn.LayerNorm(dimension)

    def forward(self, items: Tensor) -> Tensor:
        """States [B, T, d] of item columns [B, T], T at most the length; positions count from the left."""
        states = self.embedding(items)
        if self.positions is not None:
            states = states + self.positions[: items.shape[1]]
        states = self.dropout(states)
        for block in self.blocks:
            states = block(states)
        normal: Tensor = self.last(states)
        return normal


class GRU4Rec(Encoder):
    """Session-based recommendation with a recurrent network (Hidasi et al., ICLR 2016): one GRU layer."""

    def __init__(self, items: int, dimension: int, dropout: float) -> None:
        super().__init__(items, dimension, dropout)
        self.recurrent = nn.GRU(dimension, dimension, batch_first=True)

    def forward(self, items: Tensor) -> Tensor:
        """States [B, T, d] of item columns [B, T]."""
        states, _ = self.recurrent(self.dropout(self.embedding(items)))
        return self.dropout(states)


class Caser(Encoder):
    """Convolutional sequence embedding (Tang and Wang, WSDM 2018) of the `window` latest items at each position.

    Horizontal filters of each height with max-pooling over time, vertical filters over the window, then one layer. The
    paper's user embedding is left out: a request may come from a user who was not in train.
    """

    HORIZONTAL, VERTICAL = 16, 4  # filters a height; filters of the whole window (the paper's defaults)

    def __init__(self, items: int, dimension: int, dropout: float, window: int) -> None:
        super().__init__(items, dimension, dropout)
        self.window = window
        heights = range(1, window + 1)
        self.horizontal = nn.ModuleList([nn.Conv1d(dimension, self.HORIZONTAL, height) for height in heights])
        self.vertical = nn.Linear(window, self.VERTICAL)  # over the places of a window, the same for each dimension
        self.dense = nn.Linear(self.HORIZONTAL * window + self.VERTICAL * dimension, dimension)

    def forward(self, items: Tensor) -> Tensor:
        """States [B, T, d] of item columns [B, T]; before the first item a window holds zeros.

        A filter runs over the row once, and its answers are pooled window by window, since windows overlap.
        """
        embedded = pad(self.embedding(items), (0, 0, self.window - 1, 0))
        by_dimension = embedded.transpose(1, 2)
        pooled = [
            max_pool1d(relu(filters(by_dimension)), self.window - height, stride=1)
            for height, filters in enumerate(self.horizontal)
        ]
        vertical = self.vertical(embedded.unfold(1, self.window, 1)).flatten(2)
        features = torch.cat([torch.cat(pooled, dim=1).transpose(1, 2), vertical], dim=2)
        return relu(self.dense(self.dropout(features)))


TextUse = Literal["none", "split", "delta"]
SAME = 1e-9  # share of the largest singular value below which a direction says nothing
LEAST = 1e-12  # norm below which nothing is cut


def whitening(catalogue: Items, encoder: str, width: int, read: TextReader) -> TextMap:
    """Leads from what `encoder` reads of an item to [width]: the leading directions of the trained items.

    Whitened: over the trained items each column has mean 0 and the same deviation, and rows a mean squared norm of 1.
    Columns beyond the rank are 0. Raises RecalignError where all trained items are described alike.
    """
    known = catalogue.trained.ids
    description = fit_description(encoder, catalogue, known, read)
    trained = description.vectors(catalogue, known)
    mean = trained.mean(axis=0)
    _, values, right = np.linalg.svd(trained - mean, full_matrices=False)
    kept = int((values[:width] > SAME * values.max(initial=0.0)).sum()) if values.max(initial=0.0) > SAME else 0
    if not kept:
        raise RecalignError(
            f"recommenders.next_item.text reads '{encoder}', which says the same of all items: they have neither text "
            "nor attributes that differ; set it to none"
        )
    directions = np.zeros((trained.shape[1], width))
    directions[:, :kept] = right[:kept].T / values[:kept] * np.sqrt(len(known) / kept)
    return TextMap(description, directions, -mean @ directions)


class TextEmbedding(nn.Module):
    """In place of nn.Embedding: `weight` [items + 1, d], partly frozen, partly learned; the last row is the start's.

    text: how; width: frozen dimensions of `split`; bound: of `delta`.
    """

    def __init__(self, items: int, dimension: int, text: TextUse, width: int, bound: float) -> None:
        super().__init__()
        self.kind, self.bound = text, bound
        self.text: Tensor
        self.register_buffer("text", torch.zeros(items + 1, width if text == "split" else dimension))
        self.own = nn.Parameter(torch.zeros(items + 1, dimension - width if text == "split" else dimension))

    @torch.no_grad()
    def fill(self, vectors: Tensor, known: NDArray[np.int64], deviation: float) -> None:
        """Take over text vectors [items, width]; what is learned starts at random of the columns `known`, else at 0.

        The random numbers are torch's, one draw whatever is known.
        """
        self.text[:-1] = vectors
        drawn = torch.randn_like(self.own) * deviation
        start = [*known.tolist(), len(self.own) - 1]
        if self.kind == "split":
            self.own[start] = drawn[start]
        else:
            self.own[-1] = drawn[-1]  # the start of a history has no text

    @property
    def weight(self) -> Tensor:
        """[items + 1, d]."""
        if self.kind == "split":
            return torch.cat([self.text, self.own], dim=1)
        norms = self.own.norm(dim=1, keepdim=True)
        most = self.bound * self.text[:-1].norm(dim=1).mean()
        free = torch.ones_like(norms)
        free[:-1] = (most / norms[:-1].clamp(min=LEAST)).clamp(max=1.0)
        return self.text + self.own * free

    def forward(self, items: Tensor) -> Tensor:
        """Rows […, d] of item columns […]."""
        return embedding(items, self.weight)
