"""Losses of next-item prediction: pure functions of scores. Positions without a target are masked out of every mean."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

LossName = Literal["binary", "sampled", "full"]


def full(scores: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy over the whole catalogue, a position.

    scores [N, items], targets [N] columns; returns [N] nats.
    """
    return cross_entropy(scores, targets, reduction="none")


def sampled(positive: Tensor, negative: Tensor, allowed: Tensor) -> Tensor:
    """Softmax cross-entropy of the target against sampled items: InfoNCE over scores.

    positive [N], negative [N, K], allowed [N, K]: False where a drawn item is one that the user likes, which then does
    not count. Uniform draws need no correction of the scores. Returns [N] nats, 0 where no negative is allowed.
    """
    others = negative.masked_fill(~allowed, -torch.inf)
    return torch.cat([positive[:, None], others], dim=1).logsumexp(dim=1) - positive


def binary(positive: Tensor, negative: Tensor, allowed: Tensor) -> Tensor:
    """Binary cross-entropy of the target as 1 and sampled items as 0 (Kang and McAuley 2018, section III-E).

    Shapes as in `sampled`; K negatives are averaged, K = 1 is the paper's. Returns [N] nats.
    """
    against = -(logsigmoid(-negative) * allowed).sum(dim=1) / allowed.sum(dim=1).clamp(min=1)
    return against - logsigmoid(positive)
