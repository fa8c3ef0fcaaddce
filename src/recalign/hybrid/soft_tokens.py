"""Vectors in prompts: a negative id stands for a vector, and the model's input embedding looks it up.

Id −1 − n is the n-th vector. Prompts stay lists of ids, so that the one scorer packs, shares and caches them as ever:
the same vector after the same tokens has one place in a row, another vector is another token. No tokenizer gives a
negative id, whatever a title says. Responses are scored without the places of vectors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recalign.common.errors import RecalignError
from recalign.hybrid.modality import PLACEHOLDER, ModalityAdapter, splice
from recalign.llm.ways import base_of


def soft_id(number: int) -> int:
    """The id of the n-th vector."""
    return PLACEHOLDER - number


def text_only(ids: Sequence[int]) -> list[int]:
    """A prompt or response without its vectors: what a model of text reads."""
    return [token for token in ids if token > PLACEHOLDER]


class Projected(nn.Module):
    """The n-th vector of a table [N, in_dim], through the adapter that learns."""

    table: Tensor

    def __init__(self, table: Tensor, adapter: ModalityAdapter) -> None:
        """Raises RecalignError where the table has another width than the adapter reads, or is not finite."""
        super().__init__()
        if table.ndim != 2 or table.shape[1] != adapter.in_dim:
            raise RecalignError(
                f"the teacher's vectors have shape {list(table.shape)}, but the adapter reads vectors of width "
                f"{adapter.in_dim}; give it the teacher that it was trained with"
            )
        if not bool(table.isfinite().all()):
            raise RecalignError("the teacher has vectors that are not finite; fit it again with a lower learning rate")
        self.adapter = adapter
        self.register_buffer("table", table.detach().clone(), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """[K, llm_dim] of numbers [K]."""
        outputs: Tensor = self.adapter(self.table[numbers])
        return outputs


class SoftEmbedding(nn.Module):
    """A model's own input embedding, and vectors where ids are negative. Without any it is the embedding as it was."""

    def __init__(self, plain: nn.Module, vectors: Projected) -> None:
        super().__init__()
        self.plain, self.vectors = plain, vectors

    @property
    def weight(self) -> Any:
        """The table, which a head may share."""
        return self.plain.weight

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L, D] of ids [B, L]. Raises RecalignError for a negative id that no vector has."""
        soft = ids < 0
        if not bool(soft.any()):
            embedded: Tensor = self.plain(ids)
            return embedded
        numbers, places = torch.unique(PLACEHOLDER - ids[soft], return_inverse=True)
        if int(numbers[-1]) >= len(self.vectors.table):
            raise RecalignError(
                f"a prompt asks for vector {int(numbers[-1])} of a teacher that has {len(self.vectors.table)}; build "
                "prompts with the teacher that the model was opened with"
            )
        chosen = self.vectors(numbers)[places]
        return splice(self.plain(ids.clamp(min=0)), ids.masked_fill(soft, PLACEHOLDER), PLACEHOLDER, chosen)


def attach(model: nn.Module, vectors: Projected) -> None:
    """Let a model read vectors, in place of those that it read before; after LoRA, which would adapt the adapter too.

    Raises RecalignError where the adapter's outputs are not as wide as the model's embeddings.
    """
    base = base_of(model)
    plain: Any = base.get_input_embeddings()
    if isinstance(plain, SoftEmbedding):
        plain = plain.plain
    width, wanted = vectors.adapter.llm_dim, plain.weight.shape[-1]
    if width != wanted:
        raise RecalignError(
            f"the modality adapter gives vectors of width {width}, but the base's embeddings have {wanted}; set "
            "base.model to the one that it was trained with"
        )
    base.set_input_embeddings(SoftEmbedding(plain, vectors.to(plain.weight.device)))
