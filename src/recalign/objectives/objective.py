"""A preference loss as one composition: reward, loss, scale, margin, over the negatives, over the batch.

The papers are rows of PRESETS; `recalign.objectives.losses` has the equations of the parts.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from recalign.common.errors import RecalignError
from recalign.objectives import losses as parts
from recalign.objectives.losses import PreferenceBatch, RunningStatistics
from recalign.params.align import ObjectiveSettings

SEVERAL = ("logsumexp", "logistic")  # negatives and loss that `positives: all` is made for
SMALLEST_BETA = 1e-3  # a dynamic β never falls below it, or the loss would no longer depend on the policy


@dataclass(frozen=True)
class BatchPlan:
    """What the whole batch of an optimiser's step fixes before gradients flow; no tensor has a graph.

    beta: the scale; shift [B, K]: the margin to win by; weights [B]: of the examples, sum 1; penalty [B]: constants
    that complete Σ weights · loss to the objective's value. Cut it with `rows` for a part of the batch.
    """

    beta: float
    shift: Tensor
    weights: Tensor
    penalty: Tensor

    def rows(self, start: int, stop: int, negatives: int) -> "BatchPlan":
        """The plan of the rows start … stop − 1, whose widest has `negatives` rejected responses."""
        part = slice(start, stop)
        return BatchPlan(self.beta, self.shift[part, :negatives], self.weights[part], self.penalty[part])


@dataclass(frozen=True)
class ObjectiveOutput:
    """loss: scalar over the batch, or the part's share of it. per_example [B]. diagnostics: name → [B], detached.

    reward_accuracy is the share of rejected responses whose reward is below the chosen one's (an equal one counts half,
    so policy = reference is 0.5); reward_margin the mean reward difference, β included; chosen_logp_drift and
    rejected_logp_drift the mean of log π − log π_ref (only where the batch has a reference); beta the scale of this
    batch (only where it is dynamic).
    """

    loss: Tensor
    per_example: Tensor
    diagnostics: dict[str, Tensor]


@dataclass
class Objective:
    """A preference loss of log-probs. Build it with `recalign.objectives.objective.build_objective`.

    reward, loss, negatives: the choices of `recalign.objectives.losses`; beta: scale; rho: margin to win by, in the
    reward's unit (SimPO's γ/β); label_smoothing: assumed share of swapped labels (conservative DPO).
    alpha: how far the margin follows an example's standardised gap to the reference (α-DPO); beta_scale: how far β
    follows the batch's gap (β-DPO's a); drop: share of the batch left out, unlikely gaps first (β-DPO's filter);
    momentum: of the running statistics of both; beta_prime: temperature of the soft-min over the batch, None for the
    mean (Dr. DPO). log_q: share of the correction for how often an item is offered to be rejected: 1 takes log q from
    each βh, so that what is popular is not pushed down for being offered more often (Yi et al. 2019, RecSys,
    sampling-bias correction); 0 leaves it out. positives: "all" learns from each of several liked responses, which
    needs negatives "logsumexp" and loss "logistic"; "first" leaves all but the chosen one out, neither chosen nor
    rejected. convention: "code" counts alpha and beta_scale in the reward's unit, as the released codes do;
    "paper" in β times that unit, as we take the papers to do (alpha = α/β and beta_scale = a·β in "code" units).
    seed: of the filter's draws. The running statistics are the only state; they move in training alone.
    """

    name: str
    reward: parts.Reward
    negatives: parts.Negatives
    beta: float
    loss: parts.Loss = "logistic"
    rho: float = 0.0
    label_smoothing: float = 0.0
    alpha: float = 0.0
    beta_scale: float = 0.0
    drop: float = 0.0
    momentum: float = 0.9
    beta_prime: float | None = None
    log_q: float = 0.0
    positives: parts.Positives = "first"
    convention: Literal["code", "paper"] = "code"
    seed: int = 0
    gaps: RunningStatistics = field(init=False)  # of each pair's gap to the reference (α)
    margins: RunningStatistics = field(init=False)  # of each example's margin (β)

    def __post_init__(self) -> None:
        self.gaps, self.margins = RunningStatistics(self.momentum), RunningStatistics(self.momentum)
        if self.positives == "all" and (self.negatives, self.loss) != SEVERAL:
            raise RecalignError(
                f"objective '{self.name}': positives is 'all' with negatives '{self.negatives}' and loss "
                f"'{self.loss}'; several liked responses need {' and '.join(SEVERAL)}"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the batch must carry reference log-probs."""
        return self.reward == "log_ratio" or self.alpha != 0

    @property
    def needs_whole_batch(self) -> bool:
        """Whether an example's gradient depends on the rest of the batch, so that parts need a plan of the whole."""
        return self.alpha != 0 or self.beta_scale != 0 or self.drop > 0 or self.beta_prime is not None

    def __call__(
        self, batch: PreferenceBatch, *, training: bool = True, plan: BatchPlan | None = None
    ) -> ObjectiveOutput:
        """Loss of a batch; differentiable in `batch.policy` when `training`, without a graph otherwise.

        With the rows of a `plan` the batch is a part of a larger one and the loss its share: shares add up to the loss
        of the whole, gradients included. Outside training the loss is a fixed function of the log-probs (constant β, no
        α margin, nothing dropped, statistics unread), so that two steps can be compared. Raises RecalignError where the
        reference is missing, or naming the row that has no rejected response or a log-prob that is not finite.
        """
        if plan is None:
            plan = self.plan(batch, training=training)
        else:
            self._check(batch)
        with torch.set_grad_enabled(training and torch.is_grad_enabled()):
            margins = self._margins(batch)
            per_example = self._per_example(batch, margins, plan.beta, plan.shift)
            loss = (plan.weights * per_example + plan.penalty).sum()
        found = self._diagnostics(batch, margins.detach())
        if self.beta_scale:
            found["beta"] = torch.full_like(per_example.detach(), plan.beta)
        return ObjectiveOutput(loss, per_example, found)

    @torch.no_grad()
    def plan(self, batch: PreferenceBatch, *, training: bool = True) -> BatchPlan:
        """What the whole batch decides: margins, β and weights; in training the statistics take the batch in first."""
        self._check(batch)
        margins = self._margins(batch)
        beta, shift = self.beta, torch.full_like(margins, self.rho)
        weights = torch.full_like(margins[:, 0], 1 / len(margins))
        if training and self.alpha:
            shift += self._alpha_margin(batch, margins)
        if training and (self.beta_scale or self.drop):
            beta, weights = self._beta_and_filter(_row_means(margins, batch.rejected))
        if self.log_q and batch.log_q is not None:  # `_check` has looked
            shift += self.log_q / beta * parts.above(batch.log_q, batch).to(shift)
        penalty = torch.zeros_like(weights)
        if self.beta_prime is not None:
            per_example = self._per_example(batch, margins, beta, shift)
            weights, penalty = parts.soft_min(per_example, weights, self.beta_prime)
        return BatchPlan(beta, shift, weights, penalty)

    def state_dict(self) -> dict[str, float]:
        """The running statistics as plain numbers, for checkpoints."""
        kept = {"gaps": self.gaps, "margins": self.margins}
        return {f"{name}.{key}": value for name, of in kept.items() for key, value in vars(of).items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what `state_dict` gave."""
        for name, of in {"gaps": self.gaps, "margins": self.margins}.items():
            for key in vars(of):
                setattr(of, key, state[f"{name}.{key}"])

    def _margins(self, batch: PreferenceBatch) -> Tensor:
        """[B, K] unscaled reward of the chosen response minus that of each rejected one; 0 where masked."""
        return parts.above(parts.rewards(batch, self.reward), batch)

    def _per_example(self, batch: PreferenceBatch, margins: Tensor, beta: float, shift: Tensor) -> Tensor:
        several = batch.liked is not None and self.positives == "all"
        if several:
            shift = shift.masked_fill(~batch.rejected, 0.0)  # no liked response need win over another
        scaled = beta * (margins - shift)
        z, weights = parts.over_negatives(scaled, batch.mask[:, 1:] if several else batch.rejected, self.negatives)
        losses = (parts.pair_loss(z, self.loss, beta, self.label_smoothing) * weights).sum(dim=1)
        return losses + parts.among_liked(scaled, batch.mask[:, 1:] & ~batch.rejected) if several else losses

    def _alpha_margin(self, batch: PreferenceBatch, margins: Tensor) -> Tensor:
        """[B, K] α z, z the standardised gap δπ − δref of each pair; Wu et al. 2024, arXiv 2410.10148."""
        reference = parts.reference_rewards(batch, self.reward)
        gaps = margins - (reference[:, :1] - reference[:, 1:])
        self.gaps.update(gaps[batch.rejected])
        alpha = self.alpha / self.beta if self.convention == "paper" else self.alpha
        return alpha * self.gaps.standardised(gaps)

    def _beta_and_filter(self, gaps: Tensor) -> tuple[float, Tensor]:
        """β of this batch and the examples' weights, from their gaps [B]; Wu et al. 2024, arXiv 2407.08639.

        With more than one rejected response an example's gap is its mean over them (the paper has one). At least one
        example is kept.
        """
        draw = self.margins.batches  # the same draw after a resumption, and in every process
        self.margins.update(gaps)
        kept = torch.ones_like(gaps, dtype=torch.bool)
        if self.drop:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
            log_weights = -0.5 * self.margins.standardised(gaps).square()
            kept = parts.keep_likely(log_weights, max(1, int(len(gaps) * (1 - self.drop))), generator)
        scale = self.beta_scale * self.beta if self.convention == "paper" else self.beta_scale
        beta = self.beta * (1 + scale * (float(gaps[kept].mean()) - self.margins.mean))
        return max(SMALLEST_BETA, beta) if scale else self.beta, kept.to(gaps) / kept.sum()

    def _diagnostics(self, batch: PreferenceBatch, margins: Tensor) -> dict[str, Tensor]:
        present = batch.rejected
        won = (margins > 0).to(margins) + 0.5 * (margins == 0).to(margins)
        found = {
            "reward_accuracy": _row_means(won, present),
            "reward_margin": self.beta * _row_means(margins, present),
        }
        if batch.reference is not None:
            drift = parts.drift(batch)
            found["chosen_logp_drift"] = drift[:, 0]
            found["rejected_logp_drift"] = _row_means(drift[:, 1:], present)
        return found

    def _check(self, batch: PreferenceBatch) -> None:
        if self.needs_reference and batch.reference is None:
            raise RecalignError(
                f"objective '{self.name}' compares with a reference and got none; "
                "run 'recalign reference' first, or choose simpo, which needs none"
            )
        alone = (~batch.mask[:, 0] | ~batch.rejected.any(dim=1)).nonzero().flatten().tolist()
        if alone:
            raise RecalignError(
                f"objective '{self.name}': row {alone[0]} of the batch has no chosen or no rejected response "
                "(K = 0); K ≥ 1 is needed: raise pairs.negatives and run 'dvc repro pairs'"
            )
        if self.log_q and batch.log_q is None:
            raise RecalignError(
                f"objective '{self.name}': log_q is {self.log_q:g}, and the pairs do not say how often an item is "
                "offered to be rejected; set pairs.strategy to in_batch and run 'dvc repro pairs', or log_q to 0"
            )
        read = {"policy": batch.policy} | ({"reference": batch.reference} if batch.reference is not None else {})
        for part, values in read.items():
            bad = (~torch.isfinite(values.detach()) & batch.mask).nonzero().tolist()
            if bad:
                row, column = bad[0]
                raise RecalignError(
                    f"objective '{self.name}': the {part} log-prob of row {row}, response {column} is "
                    f"{float(values[row, column])}; log-probs must be finite: lower the learning rate "
                    "or set base.compute to fp32"
                )


def _row_means(values: Tensor, present: Tensor) -> Tensor:
    """[B] mean of values [B, K] over the present columns."""
    return (values * present).sum(dim=1) / present.sum(dim=1)


Row = Mapping[str, Any]


def _row(**choices: Any) -> Row:
    return MappingProxyType(choices)


# name: what makes it that objective; params.yaml gives beta and rho, and may change the rest
PRESETS: dict[str, Row] = {
    "dpo": _row(reward="log_ratio", negatives="first"),
    "dpo_pairs": _row(reward="log_ratio", negatives="pairs"),
    "sdpo": _row(reward="log_ratio", negatives="logsumexp"),
    "mult_dpo": _row(reward="log_ratio", negatives="logsumexp", positives="all"),
    "dmpo": _row(reward="log_ratio", negatives="mean"),
    "simpo": _row(reward="mean", negatives="pairs"),
    "alpha_dpo": _row(reward="mean", negatives="pairs", alpha=0.2),
    "beta_dpo": _row(reward="log_ratio", negatives="pairs", beta_scale=0.6, drop=0.2),
    "dr_dpo": _row(reward="log_ratio", negatives="pairs", beta_prime=1.0),
}
SOURCES = {
    "dpo": "Rafailov et al. 2023, arXiv 2305.18290, eq. 7; the first rejected response only",
    "dpo_pairs": "DPO on each of the K pairs, averaged",
    "sdpo": "Chen et al. 2024, arXiv 2406.09215: a softmax over K negatives",
    "mult_dpo": "arXiv 2606.10078, a reconstruction: S-DPO with several liked responses (`pairs.positives`)",
    "dmpo": "Bai et al. 2024, arXiv 2405.16127: against the average negative",
    "simpo": "Meng et al. 2024, arXiv 2405.14734, eq. 6; averaged over the K pairs",
    "alpha_dpo": "Wu et al. 2024, arXiv 2410.10148: SimPO with a margin of each pair's own; averaged over the K pairs",
    "beta_dpo": "Wu et al. 2024, arXiv 2407.08639: β follows the batch, unlikely pairs are left out",
    "dr_dpo": "Wu et al. 2024, arXiv 2407.07880: a soft-min over the batch",
}


def build_objective(name: str, *, seed: int = 0, **settings: Any) -> Objective:
    """The objective called `name`: a key of PRESETS, or any name with `like` naming one.

    settings: as in `ObjectiveSettings` of params (beta is needed); what is given wins over the preset's row, so
    any combination can be had. Raises RecalignError for an unknown name, with the nearest one, or a value out of range.
    """
    try:
        checked = ObjectiveSettings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecalignError(f"objective '{name}': {key} is {first['input']!r}; {_lowered(first['msg'])}") from None
    preset = checked.like or name
    if preset not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise RecalignError(f"objective is '{name}'; allowed are {', '.join(PRESETS)} (did you mean {near}?)")
    given = checked.model_dump(exclude={"like"}, exclude_none=True)
    if "beta" not in given:
        raise RecalignError(f"objective '{name}' has no beta, the scale of the reward; give one above 0")
    return Objective(name, seed=seed, **{**PRESETS[preset], **given})


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def family_table() -> str:
    """The presets as a Markdown table, for docs/objectives.md."""
    rows = ["| objective | reward | over the negatives | its own | from |", "|---|---|---|---|---|"]
    for name, preset in PRESETS.items():
        own = {key: value for key, value in preset.items() if key not in ("reward", "negatives")}
        settings = ", ".join(f"`{key}` {value}" for key, value in own.items()) or "—"
        rows.append(f"| `{name}` | `{preset['reward']}` | `{preset['negatives']}` | {settings} | {SOURCES[name]} |")
    return "\n".join(rows)
