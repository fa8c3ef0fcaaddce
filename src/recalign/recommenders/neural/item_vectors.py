"""Item embeddings of a sequence encoder that read what is written of items, so that an item without events has one.

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
from torch.nn.functional import embedding

from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.recommenders.item_text import TextReader, fit_description

TextUse = Literal["none", "split", "delta"]
SAME = 1e-9  # share of the largest singular value below which a direction says nothing
LEAST = 1e-12  # norm below which nothing is cut


def whitened(catalogue: Items, encoder: str, width: int, read: TextReader) -> Tensor:
    """[items, width] of what `encoder` reads of items, in ascending id: the leading directions of the trained ones.

    Whitened: over the trained items each column has mean 0 and the same deviation, and rows a mean squared norm of 1.
    Columns beyond the rank are 0. Raises RecalignError where all trained items are described alike.
    """
    known = catalogue.trained.ids
    description = fit_description(encoder, catalogue, known, read)
    trained, every = description.vectors(catalogue, known), description.vectors(catalogue, catalogue.ids)
    mean = trained.mean(axis=0)
    _, values, right = np.linalg.svd(trained - mean, full_matrices=False)
    kept = int((values[:width] > SAME * values.max(initial=0.0)).sum()) if values.max(initial=0.0) > SAME else 0
    if not kept:
        raise RecalignError(
            f"recommenders.next_item.text reads '{encoder}', which says the same of all items: they have neither text "
            "nor attributes that differ; set it to none"
        )
    directions = right[:kept].T / values[:kept] * np.sqrt(len(known) / kept)
    found = np.zeros((len(catalogue.ids), width))
    found[:, :kept] = (every - mean) @ directions
    return torch.from_numpy(found).float()


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
