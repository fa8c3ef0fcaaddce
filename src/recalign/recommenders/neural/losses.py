"""Losses of offline reinforcement learning over a log: pure functions of values, scores and states.

A state s is what an encoder makes of a history, an action a is the next item, and its reward r is what the log says of
it. MCRL (Li et al., arXiv 2310.16566) gives no formula in its abstract and has no public code; these are the usual
forms of the terms that it names, so each is a reconstruction of the paper and an implementation of its own source.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize


def double_q(own: Tensor, other: Tensor) -> Tensor:
    """Value of a state [N]: `other`'s for the action that `own` values most (van Hasselt 2010), without gradient.

    own, other [N, items]: what two heads give to each action. A head that chose and judged by itself would take its own
    errors for value wherever they are positive.
    """
    best = own.detach().argmax(dim=1, keepdim=True)
    return other.detach().gather(1, best).squeeze(1)


def temporal_difference(value: Tensor, reward: Tensor, following: Tensor, terminal: Tensor, discount: float) -> Tensor:
    """Squared error of Q(s, a) against r + γ V(s'), as in SQN (Xin et al. 2020); returns [N].

    value, reward, following [N]: Q(s, a), r and V(s'), of which only the first gets a gradient. terminal [N]: where the
    history ends, so that V(s') counts as 0 whatever stands there. discount: γ in [0, 1).
    """
    goal = reward + discount * following.masked_fill(terminal, 0.0)
    return (value - goal.detach()).square()


def conservative(values: Tensor, taken: Tensor) -> Tensor:
    """log Σ exp Q(s, ·) − Q(s, a): CQL's regulariser (Kumar et al. 2020, eq. 4) at one state; returns [N] nats.

    values [N, items], taken [N]: the action in the log. It lowers what the log never shows, which no reward would.
    It is the cross-entropy of a softmax policy over Q as well.
    """
    return values.logsumexp(dim=1) - values.gather(1, taken[:, None]).squeeze(1)


def contrastive_reward(asked: Tensor, positive: Tensor, negative: Tensor, allowed: Tensor) -> Tensor:
    """InfoNCE of a reward model ρ(s, a) = ⟨asked, item⟩: the action of the log against drawn ones; returns [N] nats.

    asked [N, d] made of states, positive [N, d] and negative [K, d] embeddings of items, allowed [N, K] as in
    `item_losses.sampled`.
    """
    return sampled((asked * positive).sum(dim=1), asked @ negative.T, allowed)


def contrastive_transition(
    predicted: Tensor, following: Tensor, others: Tensor, allowed: Tensor, temperature: float
) -> Tensor:
    """InfoNCE of a transition model: what it predicts against the state that came and against others; returns [N] nats.

    predicted [N, d] made of (s, a), following [N, d] the states s' that came, others [K, d] states of other histories,
    allowed [N, K]: False where one is no other history's. Scores are cosines over `temperature`. The states that came
    get no gradient: else the encoder could make them easy to tell instead of telling them.
    """
    predicted, following, others = (normalize(rows, dim=1) for rows in (predicted, following.detach(), others.detach()))
    positive = (predicted * following).sum(dim=1)
    return sampled(positive / temperature, predicted @ others.T / temperature, allowed)


def mean(losses: Tensor) -> Tensor:
    """[] of losses [N]; 0 where there is none, which has a gradient too."""
    return losses.sum() / max(1, len(losses))


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
