"""The parts that every preference loss is made of, as pure functions of tensors.

With the reward h of a response and the margins z_k = β(h_chosen − h_rejected,k − shift_k), shift_k the margin to win
by, with log_q also λ/β (log q_chosen − log q_rejected,k):

    reward     log_ratio   h = log π − log π_ref, tokens summed
               sum         h = log π, tokens summed (reference-free)
               mean        h = log π / |y|, the mean over the tokens
    negatives  first       ℓ(z_1)
               pairs       mean_k ℓ(z_k)
               mean        ℓ(mean_k z_k)
               logsumexp   ℓ(−log Σ_k exp(−z_k))
    positives  first       the chosen response alone; others that were liked are left out
               all         logsumexp and logistic alone, P liked responses: −mean_p log softmax over all P + K of βh_p,
                           which is log(1 + Σ_j exp(−z_j)) + Σ_p z_p / P, j over all but the chosen one
    loss       logistic    ℓ(z) = softplus(−z) = −log σ(z)
               hinge       ℓ(z) = max(0, 1 − z)
               ipo         ℓ(z) = (z/β − 1/(2β))², Azar et al. 2024, arXiv 2310.12036, eq. 17
    batch      mean        Σ_i v_i ℓ_i, v the weights of a plain or a filtered mean
               soft-min    −β' log Σ_i v_i exp(−ℓ_i/β')

All four ways over the negatives agree at K = 1, and with the logistic loss mean ≤ pairs ≤ logsumexp for any margins
(Jensen; LSE ≥ max).

What an objective reads: the log-probs of a batch's responses.

A mean and a spread that follow the training batches.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

# Below this spread (nats, or nats per token) all gaps are one gap and differ by rounding: a policy that still equals
# its reference would otherwise be standardised by noise, and the next batches by a spread far too small.
ROUNDING = 1e-3


@dataclass
class RunningStatistics:
    """Exponential moving mean and standard deviation (unbiased) of whole batches; 0 before the first batch.

    The first batch is copied, not averaged with zeros (as released codes do, which makes z ten times too large at the
    start). The spread starts with the first batch that has one.
    """

    momentum: float
    mean: float = 0.0
    std: float = 0.0
    batches: int = 0

    def update(self, values: Tensor) -> None:
        """Take in a batch's values, [n] with n ≥ 1."""
        values = values.detach().double()
        mean = float(values.mean())
        self.mean = mean if self.batches == 0 else self._moved(self.mean, mean)
        std = float(values.std()) if len(values) > 1 else 0.0
        if self.std == 0.0:
            self.std = std if std >= ROUNDING else 0.0
        elif len(values) > 1:
            self.std = self._moved(self.std, std)
        self.batches += 1

    def standardised(self, values: Tensor) -> Tensor:
        """(values − mean) / std in the shape of `values`; 0 as long as there is no spread."""
        if self.std == 0.0:
            return torch.zeros_like(values)
        return (values - self.mean) / max(self.std, ROUNDING)

    def _moved(self, old: float, new: float) -> float:
        return self.momentum * old + (1 - self.momentum) * new


@dataclass(frozen=True)
class PreferenceBatch:
    """Log-probs (nats) of B prompts' responses; column 0 is the chosen one.

    policy [B, 1+K] summed over tokens; reference [B, 1+K] or None; lengths [B, 1+K] tokens, terminator included;
    mask [B, 1+K] True where a response exists (K may differ from row to row). Masked columns are never read.
    liked [B, 1+K] True where a response is one that the user liked as well, column 0 among them; None: column 0 alone.
    log_q [B, 1+K] log of the chance by which an item is offered to be rejected (natural), or None: not known.
    """

    policy: Tensor
    reference: Tensor | None
    lengths: Tensor
    mask: Tensor
    liked: Tensor | None = None
    log_q: Tensor | None = None

    @property
    def rejected(self) -> Tensor:
        """[B, K] True where a rejected response exists."""
        present = self.mask[:, 1:]
        return present if self.liked is None else present & ~self.liked[:, 1:]


Reward = Literal["log_ratio", "sum", "mean"]
Negatives = Literal["first", "pairs", "mean", "logsumexp"]
Positives = Literal["first", "all"]
Loss = Literal["logistic", "hinge", "ipo"]


def rewards(batch: PreferenceBatch, reward: Reward) -> Tensor:
    """[B, 1+K] unscaled rewards in nats (nats per token for "mean"), zero in masked columns; half precision is widened.

    Only "log_ratio" reads the reference, and gives it no gradient.
    """
    policy = _present(batch.policy, batch.mask)
    if reward == "mean":
        return policy / batch.lengths.clamp(min=1)
    if reward == "sum":
        return policy
    assert batch.reference is not None  # Objective has looked
    return policy - _present(batch.reference, batch.mask).detach()


def reference_rewards(batch: PreferenceBatch, reward: Reward) -> Tensor:
    """[B, 1+K] what the reference itself would get where `reward` does not subtract it; zero for "log_ratio"."""
    assert batch.reference is not None
    if reward == "log_ratio":
        return torch.zeros_like(_present(batch.reference, batch.mask))
    bare = PreferenceBatch(batch.reference.detach(), None, batch.lengths, batch.mask)
    return rewards(bare, reward)


def drift(batch: PreferenceBatch) -> Tensor:
    """[B, 1+K] log π − log π_ref in nats, tokens summed, detached; zero in masked columns."""
    return rewards(batch, "log_ratio").detach()


def above(values: Tensor, batch: PreferenceBatch) -> Tensor:
    """[B, K] the chosen response's value minus that of each other one, from values [B, 1+K]; 0 where masked."""
    return (values[:, :1] - values[:, 1:]).masked_fill(~batch.mask[:, 1:], 0.0)


def over_negatives(z: Tensor, present: Tensor, how: Negatives) -> tuple[Tensor, Tensor]:
    """Turn scaled margins z [B, K] into L margins a row and their weights, both [B, L]; each row's weights sum to 1.

    L is K for "pairs" and 1 otherwise. `present` [B, K] is True where a rejected response exists, at least once a row.
    """
    count = present.sum(dim=1, keepdim=True)
    if how == "pairs":
        return z, present.to(z) / count
    if how == "first":
        margin = z.gather(1, present.to(torch.uint8).argmax(dim=1, keepdim=True))
    elif how == "mean":
        margin = (z * present).sum(dim=1, keepdim=True) / count
    else:
        margin = -torch.logsumexp((-z).masked_fill(~present, -torch.inf), dim=1, keepdim=True)
    return margin, torch.ones_like(margin)


def among_liked(z: Tensor, liked: Tensor) -> Tensor:
    """[B] Σ_p z_p / P over the P liked responses, from their scaled margins below the chosen one, z [B, K].

    liked [B, K] is True for those beside the chosen one, whose own margin is 0.
    """
    return (z * liked).sum(dim=1) / (1 + liked.sum(dim=1))


def pair_loss(z: Tensor, loss: Loss, beta: float, label_smoothing: float) -> Tensor:
    """ℓ(z), or with label smoothing ε (the assumed share of swapped labels) (1 − ε) ℓ(z) + ε ℓ(−z); z of any shape."""

    def of(margin: Tensor) -> Tensor:
        if loss == "logistic":
            return softplus(-margin)
        if loss == "hinge":
            return relu(1 - margin)
        return ((margin - 0.5) / beta).square()

    return of(z) if label_smoothing == 0 else (1 - label_smoothing) * of(z) + label_smoothing * of(-z)


def soft_min(losses: Tensor, shares: Tensor, beta_prime: float) -> tuple[Tensor, Tensor]:
    """Weights w [B] of the soft-min of losses [B] over a mean with weights `shares` [B] (sum 1), and its penalty [B].

    −β' log Σ v_i exp(−ℓ_i/β') = Σ w_i ℓ_i + β' Σ w_i log(w_i/v_i) with w ∝ v exp(−ℓ/β'), and the gradient is
    Σ w_i ∇ℓ_i with w held fixed: so the sum can be taken piece by piece. Nothing is exponentiated that could underflow.
    """
    log_weights = torch.log_softmax(shares.log() - losses / beta_prime, dim=0)
    weights = log_weights.exp()
    penalty = beta_prime * weights * (log_weights - shares.log())
    return weights, penalty.masked_fill(shares == 0, 0.0)


def keep_likely(log_weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[B] True for `count` rows drawn without replacement in proportion to exp(log_weights) (Gumbel top-k)."""
    uniform = torch.rand(log_weights.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    noisy = log_weights.double().cpu() - (-uniform.log()).log()
    kept = torch.zeros(log_weights.shape, dtype=torch.bool)
    kept[noisy.topk(count).indices] = True
    return kept.to(log_weights.device)


def _present(values: Tensor, mask: Tensor) -> Tensor:
    wide = values if values.dtype == torch.float64 else values.float()
    return wide.masked_fill(~mask, 0.0)
