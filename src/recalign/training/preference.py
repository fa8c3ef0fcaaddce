"""Preference training: an objective on the policy's log-probs and the stored ones of the reference."""

import logging
from collections.abc import Mapping, Sequence

import torch

from recalign.errors import RecalignError
from recalign.llm.scoring import response_logprobs
from recalign.objectives import Objective, PreferenceBatch
from recalign.training.examples import PreferenceExample
from recalign.training.loop import Measured

log = logging.getLogger(__name__)


class PreferenceTraining:
    """An objective over preference examples; every example weighs the same.

    references: example id → log-probs of its responses under the reference, for training and validation examples.
    The loss of a batch is the sum over its micro-batches because every present objective averages over the batch.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        references: Mapping[str, list[float]],
        validation: Sequence[PreferenceExample],
        micro_batch: int,
    ) -> None:
        self.name = f"align@{objective.name}"
        self._model = model
        self._objective = objective
        self._references = references
        self._validation = sorted(validation, key=lambda example: (example.tokens, example.example_id))
        self._micro_batch = micro_batch

    def weight(self, example: PreferenceExample) -> int:
        """1: examples count alike, however long."""
        return 1

    def loss(self, examples: Sequence[PreferenceExample]) -> Measured:
        """Summed loss; accuracy, margin and drift of each example, summed."""
        out = self._objective(self._batch(examples), training=True)
        return Measured(out.per_example.sum(), {k: float(v.sum()) for k, v in out.diagnostics.items()})

    def start(self) -> dict[str, float]:
        """As `validate`, from the stored log-probs alone: before training the policy is the reference."""
        return self._validated(known=True)

    def validate(self) -> dict[str, float]:
        """validation_loss and validation_reward_accuracy, means over the validation examples."""
        return self._validated(known=False)

    def _validated(self, known: bool) -> dict[str, float]:
        loss = accuracy = 0.0
        with torch.no_grad():
            for start in range(0, len(self._validation), self._micro_batch):
                examples = self._validation[start : start + self._micro_batch]
                batch = self._stored(examples) if known else self._batch(examples)
                out = self._objective(batch, training=False)
                loss += float(out.per_example.sum())
                accuracy += float(out.diagnostics["reward_accuracy"].sum())
        count = len(self._validation)
        return {"validation_loss": loss / count, "validation_reward_accuracy": accuracy / count}

    def check_start(self, examples: Sequence[PreferenceExample], tolerance: float) -> float:
        """Largest |log π − log π_ref| / max(1, |log π_ref|) over `examples`, before training: both are the same model.

        Raises RecalignError above `tolerance`: the reference is then not the model that training starts from.
        """
        with torch.no_grad():
            batch = self._batch(examples)
        assert batch.reference is not None
        apart = (batch.policy - batch.reference).abs() / batch.reference.abs().clamp(min=1.0)
        largest = float(apart.masked_fill(~batch.mask, 0.0).max())
        log.info("%s: at step 0 policy and reference differ by at most %.1e (relative)", self.name, largest)
        if not largest <= tolerance:
            raise RecalignError(
                f"{self.name}: at step 0 policy and reference log-probs differ by {largest:.1e} (relative), more than "
                f"{tolerance:.0e}; data/reference belongs to another model: delete it and run 'dvc repro reference'"
            )
        return largest

    def _batch(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        scored = response_logprobs(self._model, [e.prompt for e in examples], [e.responses for e in examples])
        stored = self._stored(examples).policy.to(scored.sums)
        return PreferenceBatch(scored.sums, stored, scored.lengths, scored.mask)

    def _stored(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        """The batch that the reference gives: it is policy and reference at once."""
        shape = (len(examples), max(len(example.responses) for example in examples))
        sums, lengths = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            count = len(example.responses)
            sums[row, :count] = torch.tensor(self._references[example.example_id])
            lengths[row, :count] = torch.tensor([len(response) for response in example.responses])
        return PreferenceBatch(sums, sums, lengths, lengths > 0)
