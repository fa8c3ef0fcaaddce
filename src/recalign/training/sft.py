"""Supervised fine-tuning: the language-model loss on titles that follow a history."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from recalign.llm.lower_layers import LowerStates
from recalign.llm.scoring import response_logprobs, tokens_at_once
from recalign.training import processes
from recalign.training.examples import TextExample
from recalign.training.loop import Measured, micro_batches


class LanguageModelling:
    """Mean negative log-likelihood (nats per token) of the continuations; a batch's mean is over its tokens.

    Where targets have weights it is Σ wᵢ ℓᵢ / N over the N targets of a batch, ℓᵢ the mean over a target's own tokens
    (`training.weights`). Validation is the mean over tokens on the targets of held-out examples. micro_tokens: tokens
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
        return -response_logprobs(self._model, *_ids(examples), exact_logits=False).sums.sum()

    def _weighted(self, examples: Sequence[TextExample]) -> torch.Tensor:
        """Σ wᵢ ℓᵢ over the targets of a part."""
        told = response_logprobs(self._model, *_ids(examples), exact_logits=False).tokens[:, 0]
        shares = [torch.tensor(token_shares(example.weights)) for example in examples]
        padded = torch.nn.utils.rnn.pad_sequence(shares, batch_first=True).to(told)
        return -(told * padded).sum()


def token_shares(weights: Sequence[tuple[float, int]]) -> list[float]:
    """What each token of a continuation counts for: its target's weight over the target's number of tokens."""
    return [weight / tokens for weight, tokens in weights for _ in range(tokens)]


def _ids(examples: Sequence[TextExample]) -> tuple[list[list[int]], list[list[list[int]]]]:
    return [e.prompt for e in examples], [[e.continuation] for e in examples]


def _learned(examples: Sequence[TextExample]) -> int:
    return sum(example.learned for example in examples)
