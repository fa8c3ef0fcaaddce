"""Supervised fine-tuning: the language-model loss on titles that follow a history, and what each title weighs in it.

`sft.weights` reweights what is learned, so that no group of items is taught more often than people like it (IFairLRS).

W(g) = share of group g in the histories / share of g among the targets (Jiang et al. 2024, arXiv 2402.15215): a group
that is a target more often than its share of the histories weighs less than 1. Both shares are counted per target
position, for SFT learns whole histories here: each title that is learned is a target, all titles before it are its
history. A target's weight is the mean of W over its item's groups. Counted as shares of items of several groups are,
Σ share among targets · W = 1: the mean loss keeps its scale.

The published code multiplies the mean of all token losses of a micro-batch by the mean weight of its examples, so that
within a micro-batch nothing is reweighted. Here the loss of a batch of the optimiser is Σ wᵢ ℓᵢ / N over its N targets,
with ℓᵢ the mean over that target's own tokens, whatever the micro-batches are.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recalign.common.errors import RecalignError
from recalign.common.item_groups import Floats, Grouping, group_items
from recalign.data.records import Example, Items
from recalign.llm.lower_layers import LowerStates
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.logprobs import response_logprobs, tokens_at_once
from recalign.params.sft import NO_WEIGHTS, SftParams
from recalign.training import processes
from recalign.training.examples import TextExample
from recalign.training.loop import Measured, micro_batches


class LanguageModelling:
    """Mean negative log-likelihood (nats per token) of the continuations; a batch's mean is over its learned tokens.

    Where targets have weights it is Σ wᵢ ℓᵢ / N over the N targets of a batch, ℓᵢ the mean over a target's own tokens.
    Validation is the mean over tokens on the targets of held-out examples. micro_tokens: tokens
    in one forward pass.
    """

    name = "sft"

    def __init__(self, model: torch.nn.Module, validation: Sequence[TextExample], micro_tokens: int) -> None:
        self._model = model
        ordered = sorted(validation, key=lambda example: (example.tokens, example.example_id))
        self._lower = LowerStates()  # validation looks several times at the same examples
        self._validation = micro_batches(ordered, micro_tokens, self.tokens_at_once)

    def tokens_at_once(self, examples: Sequence[TextExample]) -> int:
        """Tokens of the sequences, padded to the longest."""
        return tokens_at_once(self._model, *_ids(examples))

    def losses(self, parts: Sequence[Sequence[TextExample]]) -> Iterator[Measured]:
        """Negative log-likelihood of each part's continuations, over the tokens (or weighted targets) of all parts."""
        if any(example.weights for part in parts for example in part):
            targets = sum(len(example.weights) for part in parts for example in part)
            for index in processes.mine(parts):
                yield Measured(index, self._weighted(parts[index]) / targets, {})
            return
        total = sum(map(_learned, parts))
        for index in processes.mine(parts):
            yield Measured(index, self._negative(parts[index]) / total, {})

    def start(self) -> dict[str, float]:
        """As `validate`."""
        return self.validate()

    def validate(self) -> dict[str, float]:
        """validation_loss: nats per token over all validation targets."""
        with torch.no_grad():
            own = {i: self._looked_at(self._validation[i]) for i in processes.mine(self._validation)}
        return {"validation_loss": sum(processes.merged(own).values()) / sum(map(_learned, self._validation))}

    def state_dict(self) -> dict[str, float]:
        """Nothing: the weights are all."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Nothing to take over."""

    def _looked_at(self, examples: Sequence[TextExample]) -> float:
        with self._lower.used(self._model, self.name, *_ids(examples)):
            return self._negative(examples).item()

    def _negative(self, examples: Sequence[TextExample]) -> torch.Tensor:
        told = response_logprobs(self._model, *_ids(examples), exact_logits=False)
        if not any(example.unlearned for example in examples):
            return -told.sums.sum()
        return -_shared_out(told.tokens[:, 0], [example.mask for example in examples])

    def _weighted(self, examples: Sequence[TextExample]) -> torch.Tensor:
        """Σ wᵢ ℓᵢ over the targets of a part."""
        told = response_logprobs(self._model, *_ids(examples), exact_logits=False).tokens[:, 0]
        return -_shared_out(told, [token_shares(example.weights, frozenset(example.unlearned)) for example in examples])


def _shared_out(tokens: torch.Tensor, shares: Sequence[list[float]]) -> torch.Tensor:
    """Σ share · log-prob of tokens [B, R], with a list of shares an example."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(own) for own in shares], batch_first=True).to(tokens)
    return (tokens * padded).sum()


def token_shares(weights: Sequence[tuple[float, int]], unlearned: Collection[int] = ()) -> list[float]:
    """What each token of a continuation counts for: its target's weight over the target's number of learned tokens."""
    shares: list[float] = []
    for weight, tokens in weights:
        places = range(len(shares), len(shares) + tokens)
        count = sum(place not in unlearned for place in places)
        shares += [0.0 if place in unlearned else weight / count for place in places]
    return shares


def _ids(examples: Sequence[TextExample]) -> tuple[list[list[int]], list[list[list[int]]]]:
    return [e.prompt for e in examples], [[e.continuation] for e in examples]


def _learned(examples: Sequence[TextExample]) -> int:
    return sum(example.learned for example in examples)


log = logging.getLogger(__name__)
IDLE = 0.05  # how far from 1 a weight may lie where reweighting does nothing to speak of


@dataclass(frozen=True)
class Position:
    """What one example teaches: the items before its first target, and its targets in their order."""

    before: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """history, targets [G]: each group's share of either; by_group [G]: W, clipped and scaled as `balanced` says."""

    grouping: Grouping
    history: Floats
    targets: Floats
    by_group: Floats

    def of(self, items: Sequence[int]) -> list[float]:
        """The weight of each target: the mean of W over its item's groups."""
        rows = np.searchsorted(self.grouping.items, np.asarray(items, dtype=np.int64))
        weights: list[float] = (self.grouping.shares[rows] @ self.by_group).tolist()
        return weights

    @property
    def idle(self) -> bool:
        """Whether all groups that are learned weigh 1, nearly."""
        return bool((np.abs(self.by_group[self.targets > 0] - 1.0) <= IDLE).all())

    @property
    def table(self) -> str:
        """A line a group: its share of the histories, of the targets, and W."""
        width = max(map(len, [*self.grouping.names, self.grouping.by]))
        head = f"{self.grouping.by:{width}}  histories  targets      W"
        rows = zip(self.grouping.names, self.history, self.targets, self.by_group, strict=True)
        return "\n".join(
            [head, *(f"{name:{width}}  {own:9.3f}  {asked:7.3f}  {weight:5.2f}" for name, own, asked, weight in rows)]
        )

    def as_dict(self) -> dict[str, Any]:
        """What training.json holds."""
        rows = zip(
            self.grouping.names, self.history.tolist(), self.targets.tolist(), self.by_group.tolist(), strict=True
        )
        return {
            "by": self.grouping.by,
            "idle": self.idle,
            "groups": {
                name: {"history": round(own, 6), "targets": round(asked, 6), "weight": round(weight, 6)}
                for name, own, asked, weight in rows
            },
        }


def balanced(history: Floats, targets: Floats, bound: float) -> Floats:
    """W(g) [G] = history(g) / targets(g), brought into 1/bound … bound, then scaled so that Σ targets · W = 1.

    history, targets [G]: shares, each summing to 1. Scaling moves clipped weights by a factor of `bound` at most, so
    each lies within 1/bound² … bound². A group without targets gets the upper bound before scaling, and nothing
    has its weight; one that no history holds gets the lower bound. Raises RecalignError for a bound below 1, and where
    there is no target or no history.
    """
    if bound < 1.0:
        raise RecalignError(f"the bound of weights is {bound:g}; it must be 1 or more, 1: all weigh alike")
    if history.sum() <= 0 or targets.sum() <= 0:
        raise RecalignError("weights are a ratio of histories and targets, and one of them is empty")
    asked = targets > 0
    raw = np.where(asked, history / np.where(asked, targets, 1.0), bound)
    clipped = np.clip(raw, 1.0 / bound, bound)
    weights: Floats = clipped / float((targets / targets.sum()) @ clipped)
    return weights


def position_shares(positions: Iterable[Position], grouping: Grouping) -> tuple[Floats, Floats]:
    """Each group's share of the histories and of the targets [G], counted per target: an item before three targets
    counts three times among the histories."""
    before, asked = np.zeros(len(grouping.items)), np.zeros(len(grouping.items))
    for own in positions:
        count = len(own.targets)
        targets = np.searchsorted(grouping.items, own.targets)
        np.add.at(before, np.searchsorted(grouping.items, own.before), float(count))
        np.add.at(before, targets, np.arange(count - 1, -1, -1, dtype=np.float64))  # each is before those after it
        np.add.at(asked, targets, 1.0)
    shares = [counts @ grouping.shares for counts in (before, asked)]
    history, targets_ = (own / own.sum() if own.sum() > 0 else own for own in shares)
    return history, targets_


def learned_positions(examples: Sequence[Example], builder: PromptBuilder, *, whole_history: bool) -> list[Position]:
    """What SFT learns of each example, as `text_examples` builds it."""
    return [
        Position(tuple(before), tuple(targets))
        for before, targets in (
            builder.learned(example.history, example.target, whole=whole_history) for example in examples
        )
    ]


def target_weights(params: SftParams, items: Items, positions: Iterable[Position]) -> Weights | None:
    """The weights that sft.weights asks for, told in the log with their table; None for `none`.

    Raises RecalignError as `group_items` does, naming the key.
    """
    if params.weights == NO_WEIGHTS:
        return None
    try:
        grouping = group_items(params.weights, items.popularity, items.attributes)
    except RecalignError as error:
        raise RecalignError(f"sft.weights: {error}") from None
    history, targets = position_shares(positions, grouping)
    weights = Weights(grouping, history, targets, balanced(history, targets, params.weight_bound))
    log.info("sft: weights of targets by group (within 1/%g … %g)\n%s", *[params.weight_bound] * 2, weights.table)
    if weights.idle:
        log.info("sft: reweighting is idle: every weight is within %g %% of 1", 100 * IDLE)
    return weights
