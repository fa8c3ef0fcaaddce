"""Supervised fine-tuning: the language-model loss on titles that follow a history."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from recalign.llm.scoring import response_logprobs, tokens_at_once
from recalign.training import processes
from recalign.training.examples import TextExample
from recalign.training.loop import Measured
from recalign.training.micro_batches import micro_batches


class LanguageModelling:
    """Mean negative log-likelihood (nats per token) of the continuations; a batch's mean is over its tokens.

    Validation is the same on the targets of held-out examples. micro_tokens: tokens in one forward pass.
    """

    name = "sft"

    def __init__(self, model: torch.nn.Module, validation: Sequence[TextExample], micro_tokens: int) -> None:
        self._model = model
        ordered = sorted(validation, key=lambda example: (example.tokens, example.example_id))
        self._validation = micro_batches(ordered, micro_tokens, self.tokens_at_once)

    def tokens_at_once(self, examples: Sequence[TextExample]) -> int:
        """Tokens of the sequences, padded to the longest."""
        return tokens_at_once(self._model, *_ids(examples))

    def losses(self, parts: Sequence[Sequence[TextExample]]) -> Iterator[Measured]:
        """Negative log-likelihood of each part's continuations, over the tokens of all parts."""
        total = sum(map(_learned, parts))
        for index in processes.mine(parts):
            yield Measured(index, self._negative(parts[index]) / total, {})

    def start(self) -> dict[str, float]:
        """As `validate`."""
        return self.validate()

    def validate(self) -> dict[str, float]:
        """validation_loss: nats per token over all validation targets."""
        with torch.no_grad():
            own = {i: self._negative(self._validation[i]).item() for i in processes.mine(self._validation)}
        return {"validation_loss": sum(processes.merged(own).values()) / sum(map(_learned, self._validation))}

    def state_dict(self) -> dict[str, float]:
        """Nothing: the weights are all."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Nothing to take over."""

    def _negative(self, examples: Sequence[TextExample]) -> torch.Tensor:
        return -response_logprobs(self._model, *_ids(examples), exact_logits=False).sums.sum()


def _ids(examples: Sequence[TextExample]) -> tuple[list[list[int]], list[list[list[int]]]]:
    return [e.prompt for e in examples], [[e.continuation] for e in examples]


def _learned(examples: Sequence[TextExample]) -> int:
    return sum(example.learned for example in examples)
