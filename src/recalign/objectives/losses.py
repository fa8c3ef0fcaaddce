"""Preference losses as one composition: reward, margin, over the negatives, over the batch.

With h = log π − log π_ref of a response (tokens summed) or h = log π / |y| (tokens averaged), and
z_k = β(h_chosen − h_rejected,k − ρ):

    first      softplus(−z_1)
    pairs      mean_k softplus(−z_k)
    mean       softplus(−mean_k z_k)
    logsumexp  softplus(log Σ_k exp(−z_k))

All four agree at K = 1, and mean ≤ pairs ≤ logsumexp for any margins (Jensen; LSE ≥ max). The papers are rows of
`recalign.objectives.presets`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from recalign.errors import RecalignError

Reward = Literal["log_ratio", "mean"]
Negatives = Literal["first", "pairs", "mean", "logsumexp"]


@dataclass(frozen=True)
class PreferenceBatch:
    """Log-probs (nats) of B prompts' responses; column 0 is the chosen one.

    policy [B, 1+K] summed over tokens; reference [B, 1+K] or None; lengths [B, 1+K] tokens, terminator included;
    mask [B, 1+K] True where a response exists (K may differ from row to row). Masked columns are never read.
    """

    policy: Tensor
    reference: Tensor | None
    lengths: Tensor
    mask: Tensor


@dataclass(frozen=True)
class ObjectiveOutput:
    """loss: scalar, the batch mean. per_example [B]. diagnostics: name → [B], detached.

    reward_accuracy is the share of rejected responses whose reward is below the chosen one's (an equal one counts half,
    so policy = reference is 0.5); reward_margin the mean reward difference, β included; chosen_logp_drift and
    rejected_logp_drift the mean of log π − log π_ref (only where the batch has a reference).
    """

    loss: Tensor
    per_example: Tensor
    diagnostics: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """A preference loss: a pure function of log-probs. Build it with `recalign.objectives.presets.build_objective`.

    reward: what stands for preference; negatives: how K comparisons become one; beta: scale; rho: margin to win by
    (SimPO's γ/β); label_smoothing: assumed share of swapped labels (conservative DPO).
    """

    name: str
    reward: Reward
    negatives: Negatives
    beta: float
    rho: float = 0.0
    label_smoothing: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether the batch must carry reference log-probs."""
        return self.reward == "log_ratio"

    def __call__(self, batch: PreferenceBatch, *, training: bool = True) -> ObjectiveOutput:
        """Loss of a batch; differentiable in `batch.policy` when `training`, without a graph otherwise.

        Raises RecalignError where the reference is missing, or naming the row that has no rejected response or a
        log-prob that is not finite.
        """
        self._check(batch)
        with torch.set_grad_enabled(training and torch.is_grad_enabled()):
            rewards = self._rewards(batch)
            present = batch.mask[:, 1:]
            margins = (rewards[:, :1] - rewards[:, 1:]).masked_fill(~present, 0.0)
            logits, weights = over_negatives(self.beta * (margins - self.rho), present, self.negatives)
            losses = (1 - self.label_smoothing) * softplus(-logits) + self.label_smoothing * softplus(logits)
            per_example = (losses * weights).sum(dim=1)
        return ObjectiveOutput(per_example.mean(), per_example, self._diagnostics(batch, margins.detach()))

    def _rewards(self, batch: PreferenceBatch) -> Tensor:
        """[B, 1+K] unscaled rewards, zero in masked columns; half precision is widened to fp32."""
        policy = _widened(batch.policy).masked_fill(~batch.mask, 0.0)
        if self.reward == "mean":
            return policy / batch.lengths.clamp(min=1)
        assert batch.reference is not None  # _check has seen it
        return policy - _widened(batch.reference).detach().masked_fill(~batch.mask, 0.0)

    def _diagnostics(self, batch: PreferenceBatch, margins: Tensor) -> dict[str, Tensor]:
        present = batch.mask[:, 1:]
        count = present.sum(dim=1)
        won = (margins > 0).to(margins) + 0.5 * (margins == 0).to(margins)
        found = {
            "reward_accuracy": (won * present).sum(dim=1) / count,
            "reward_margin": self.beta * margins.sum(dim=1) / count,
        }
        if batch.reference is not None:
            drift = (_widened(batch.policy) - _widened(batch.reference)).detach().masked_fill(~batch.mask, 0.0)
            found["chosen_logp_drift"] = drift[:, 0]
            found["rejected_logp_drift"] = drift[:, 1:].sum(dim=1) / count
        return found

    def _check(self, batch: PreferenceBatch) -> None:
        if self.needs_reference and batch.reference is None:
            raise RecalignError(
                f"objective '{self.name}' compares with a reference and got none; "
                "run 'recalign reference' first, or choose simpo, which needs none"
            )
        alone = (~batch.mask[:, 0] | ~batch.mask[:, 1:].any(dim=1)).nonzero().flatten().tolist()
        if alone:
            raise RecalignError(
                f"objective '{self.name}': row {alone[0]} of the batch has no chosen or no rejected response "
                "(K = 0); K ≥ 1 is needed: raise pairs.negatives and run 'dvc repro pairs'"
            )
        parts = {"policy": batch.policy} | ({"reference": batch.reference} if batch.reference is not None else {})
        for part, values in parts.items():
            bad = (~torch.isfinite(values.detach()) & batch.mask).nonzero().tolist()
            if bad:
                row, column = bad[0]
                raise RecalignError(
                    f"objective '{self.name}': the {part} log-prob of row {row}, response {column} is "
                    f"{float(values[row, column])}; log-probs must be finite: lower the learning rate "
                    "or set base.compute to fp32"
                )


def over_negatives(z: Tensor, present: Tensor, how: Negatives) -> tuple[Tensor, Tensor]:
    """Turn scaled margins z [B, K] into L logits a row and their weights, both [B, L]; each row's weights sum to 1.

    L is K for "pairs" and 1 otherwise. `present` [B, K] is True where a rejected response exists, at least once a row.
    """
    count = present.sum(dim=1, keepdim=True)
    if how == "pairs":
        return z, present.to(z) / count
    if how == "first":
        logit = z.gather(1, present.to(torch.uint8).argmax(dim=1, keepdim=True))
    elif how == "mean":
        logit = (z * present).sum(dim=1, keepdim=True) / count
    else:
        logit = -torch.logsumexp((-z).masked_fill(~present, -torch.inf), dim=1, keepdim=True)
    return logit, torch.ones_like(logit)


def _widened(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
