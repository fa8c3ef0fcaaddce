"""Preference training: an objective on the policy's log-probs and the stored ones of the reference."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from recalign.common.errors import RecalignError
from recalign.llm.scoring.logprobs import response_logprobs, tokens_at_once
from recalign.objectives.losses import PreferenceBatch
from recalign.objectives.objective import BatchPlan, Objective
from recalign.training import processes
from recalign.training.examples import PreferenceExample
from recalign.training.loop import Measured, micro_batches

log = logging.getLogger(__name__)
Part = Sequence[PreferenceExample]
# Largest |log π − log π_ref| allowed at step 0, in shares of |log π_ref| or nats a token, by compute type. Both compute
# the same function, but the rounding of a sum depends on which examples share a forward pass. Measured on SmolLM2-135M,
# alone against eight at once: fp32 2.5e-6, bf16 2.3e-2 (0.34 nats). A sure answer of few tokens has a sum near 0, and
# the rounding of its logits all the same. 4- and 8-bit weights keep the tolerance of their compute type.
START_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


class PreferenceTraining:
    """An objective over preference examples.

    references: example id → log-probs of its responses under the reference, for training and validation examples.
    micro_tokens: tokens in one forward pass. Where an objective needs the whole batch and that is cut into parts, the
    parts are read twice: without gradients for the plan of the batch, then with them, part by part.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        references: Mapping[str, list[float]],
        validation: Part,
        micro_tokens: int,
    ) -> None:
        self.name = f"align@{objective.name}"
        self._model = model
        self._objective = objective
        self._references = references
        ordered = sorted(validation, key=lambda example: (example.tokens, example.example_id))
        self._validation = micro_batches(ordered, micro_tokens, self.tokens_at_once)

    def tokens_at_once(self, examples: Part) -> int:
        """Tokens of the examples, a shared prompt counted once, padded to the longest prompt with its responses."""
        return tokens_at_once(self._model, [e.prompt for e in examples], [e.responses for e in examples])

    def losses(self, parts: Sequence[Part]) -> Iterator[Measured]:
        """Each part's share of the batch's loss; accuracy, margin and drift of each example, summed."""
        planned = self._objective.needs_whole_batch and (len(parts) > 1 or processes.count() > 1)
        plan = self._plan(parts) if planned else None
        ends = list(accumulate(map(len, parts)))
        for index in processes.mine(parts):
            batch, stop = self._batch(parts[index]), ends[index]
            start = stop - len(parts[index])
            rows = plan.rows(start, stop, batch.mask.shape[1] - 1) if plan else None
            out = self._objective(batch, plan=rows)
            # a mean over all examples needs no plan: a part's share is its number of examples
            loss = out.loss if plan else out.loss * ((stop - start) / ends[-1])
            yield Measured(index, loss, {key: float(values.sum()) for key, values in out.diagnostics.items()})

    def _plan(self, parts: Sequence[Part]) -> BatchPlan:
        """The plan of the whole batch, from a first pass without gradients; dropout draws the same in the second."""
        with torch.no_grad(), torch.random.fork_rng():
            return self._objective.plan(self._whole(parts))

    def _whole(self, parts: Sequence[Part]) -> PreferenceBatch:
        """The batch of all parts, each read by one process."""
        own = {index: self._batch(parts[index]).policy.detach() for index in processes.mine(parts)}
        policies = processes.merged(own)
        device = next(self._model.parameters()).device
        batches = []
        for index, examples in enumerate(parts):
            stored = self._stored(examples)
            batches.append(_moved(replace(stored, policy=policies[index]), device))
        return _joined(batches)

    def start(self) -> dict[str, float]:
        """As `validate`, from the stored log-probs alone: before training the policy is the reference."""
        return self._validated(_joined([self._stored(examples) for examples in self._validation]))

    def validate(self) -> dict[str, float]:
        """validation_loss and validation_reward_accuracy over the validation examples.

        The loss is the objective's outside training: the same function of the log-probs at every step.
        """
        with torch.no_grad():
            return self._validated(self._whole(self._validation))

    def _validated(self, batch: PreferenceBatch) -> dict[str, float]:
        out = self._objective(batch, training=False)
        accuracy = float(out.diagnostics["reward_accuracy"].mean())
        return {"validation_loss": float(out.loss), "validation_reward_accuracy": accuracy}

    def state_dict(self) -> dict[str, float]:
        """The objective's running statistics."""
        return self._objective.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over the running statistics of a checkpoint."""
        self._objective.load_state_dict(state)

    def check_start(self, examples: Sequence[PreferenceExample], tolerance: float) -> float:
        """Largest |log π − log π_ref| / max(tokens, |log π_ref|) over `examples`, before training: both are one model.

        Raises RecalignError above `tolerance`: the reference is then not the model that training starts from.
        """
        with torch.no_grad():
            batch = self._batch(examples)
        assert batch.reference is not None
        scale = batch.reference.abs().maximum(batch.lengths.to(batch.reference)).clamp(min=1.0)
        apart = (batch.policy - batch.reference).abs() / scale
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
        stored = self._stored(examples)
        stored = _moved(stored, scored.mask.device)
        reference = stored.policy.to(scored.sums)
        return PreferenceBatch(scored.sums, reference, scored.lengths, scored.mask, stored.liked, stored.log_q)

    def _stored(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        """The batch that the reference gives: it is policy and reference at once."""
        shape = (len(examples), max(len(example.responses) for example in examples))
        sums, lengths, log_q = torch.zeros(shape), torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        for row, example in enumerate(examples):
            count = len(example.responses)
            sums[row, :count] = torch.tensor(self._references[example.example_id])
            lengths[row, :count] = torch.tensor([len(response) for response in example.responses])
            log_q[row, : len(example.log_q)] = torch.tensor(example.log_q)
        counts = torch.tensor([example.liked for example in examples])
        liked = torch.arange(shape[1]) < counts[:, None] if (counts > 1).any() else None
        told = log_q if all(example.log_q for example in examples) else None
        return PreferenceBatch(sums, sums, lengths, lengths > 0, liked, told)


def _joined(batches: Sequence[PreferenceBatch]) -> PreferenceBatch:
    """One batch of all rows, as wide as the widest."""
    width = max(batch.mask.shape[1] for batch in batches)
    several = any(batch.liked is not None for batch in batches)

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in tensors])

    # all of them, or none
    references = [batch.reference for batch in batches if batch.reference is not None]
    log_q = [batch.log_q for batch in batches if batch.log_q is not None]
    return PreferenceBatch(
        join([batch.policy for batch in batches]),
        join(references) if references else None,
        join([batch.lengths for batch in batches]),
        join([batch.mask for batch in batches]),
        join([_liked(batch) for batch in batches]) if several else None,
        join(log_q) if log_q else None,
    )


def _moved(batch: PreferenceBatch, device: torch.device) -> PreferenceBatch:
    tensors = {name: value.to(device) for name, value in vars(batch).items() if value is not None}
    return replace(batch, **tensors)


def _liked(batch: PreferenceBatch) -> Tensor:
    """[B, 1+K] What was liked, where another batch says it of more than the chosen response."""
    if batch.liked is not None:
        return batch.liked
    alone = torch.zeros_like(batch.mask)
    alone[:, 0] = True
    return alone
