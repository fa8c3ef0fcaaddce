"""Supervised fine-tuning: the language-model loss on titles that follow a history."""

from collections.abc import Sequence

import torch

from recalign.llm.scoring import response_logprobs
from recalign.training.examples import TextExample
from recalign.training.loop import Measured


class LanguageModelling:
    """Mean negative log-likelihood (nats a token) of the continuations; a batch's mean is over its tokens.

    Validation is the same on the targets of held-out examples.
    """

    name = "sft"

    def __init__(self, model: torch.nn.Module, validation: Sequence[TextExample], micro_batch: int) -> None:
        self._model = model
        self._validation = sorted(validation, key=lambda example: (example.tokens, example.example_id))
        self._micro_batch = micro_batch

    def weight(self, example: TextExample) -> int:
        """The tokens learned."""
        return len(example.continuation)

    def loss(self, examples: Sequence[TextExample]) -> Measured:
        """Summed negative log-likelihood of the continuations."""
        scored = response_logprobs(self._model, [e.prompt for e in examples], [[e.continuation] for e in examples])
        return Measured(-scored.sums.sum(), {})

    def start(self) -> dict[str, float]:
        """As `validate`."""
        return self.validate()

    def validate(self) -> dict[str, float]:
        """validation_loss: nats a token over all validation targets."""
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(self._validation), self._micro_batch):
                total += self.loss(self._validation[start : start + self._micro_batch]).loss.item()
        return {"validation_loss": total / sum(map(self.weight, self._validation))}
