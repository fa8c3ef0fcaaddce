"""The output head while responses are scored: the log-probs that are asked for, and fp32 where it matters.

Nobody needs the logits of a whole vocabulary, which would leave the CPU's cache three times on their way to a few
log-probs: a slice of the vocabulary at a time is computed and summed up instead, where the model returns its head's
logits as they are. A bf16 logit of 16 to 32 is rounded to a multiple of 1/8 (8 bits of significand), which is what
preference objectives compare; a head in fp32 would be a second copy of the largest matrix, so slices are widened, too.
Generation keeps the plain head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.nn.functional import linear

SLICE = 1024  # rows of the vocabulary widened at once: two or three MB, which stay in a CPU's cache
_widened: ContextVar[bool] = ContextVar("widened", default=False)
_asked: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("asked", default=None)


class TokenLogprobs(torch.autograd.Function):
    """log_softmax(hidden [N, d] @ weight.T + bias)[rows, tokens] of a frozen head, without logits [N, V] in memory.

    As in FlashAttention (arXiv 2205.14135), the largest logit and the sum of exponentials run along the slices. For the
    backward pass the forward pass keeps the mean row of the weight under each distribution, Σ_v p(v) W[v]: the
    gradient of log p(y) by the hidden state is W[y] minus that. wide: in fp32 whatever the weight is in.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, tokens: Tensor, wide: bool
    ) -> Tensor:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        given = hidden.to(kind) if wide else hidden
        largest = torch.full((len(hidden), 1), -torch.inf, dtype=kind, device=hidden.device)
        total, asked = torch.zeros_like(largest), torch.empty(rows.shape, dtype=kind, device=hidden.device)
        mean = torch.zeros_like(hidden, dtype=kind) if ctx.needs_input_grad[0] else None
        for start in range(0, len(weight), SLICE):
            part = weight[start : start + SLICE]
            logits = linear(given, part.to(given.dtype)).to(kind)
            if bias is not None:
                logits += bias[start : start + SLICE]
            here = (tokens >= start) & (tokens < start + SLICE)
            asked[here] = logits[rows[here], tokens[here] - start]
            before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
            shrunk, share = (before - largest).exp_(), logits.sub_(largest).exp_()
            total.mul_(shrunk).add_(share.sum(1, keepdim=True))
            if mean is not None:
                # in the weight's own precision, as in `WideLogits`
                mean.mul_(shrunk).add_(share.to(weight.dtype) @ part)
        if mean is not None:
            ctx.save_for_backward(mean.div_(total), weight, rows, tokens)
        return (asked - largest[rows, 0]) - total.log()[rows, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mean, weight, rows, tokens = ctx.saved_tensors
        added = gradient.new_zeros(len(mean)).index_put_((rows,), gradient, accumulate=True)
        slope = mean * -added[:, None]
        slope.index_put_((rows,), gradient[..., None] * weight[tokens], accumulate=True)
        return slope.to(weight.dtype), None, None, None, None, None


class WideLogits(torch.autograd.Function):
    """x [..., d] and a frozen weight [V, d] to x @ weight.T in fp32 [..., V], without an fp32 copy of the weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = hidden.dtype
        wide = hidden.float()
        logits = wide.new_empty(*hidden.shape[:-1], len(weight))
        for start in range(0, len(weight), SLICE):
            logits[..., start : start + SLICE] = linear(wide, weight[start : start + SLICE].float())
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        # in the weight's own precision: a gradient is not the small difference of large numbers that a margin is
        return (gradient.to(weight.dtype) @ weight).to(ctx.dtype), None


class Head(torch.nn.Linear):
    """A linear output head that shares another one's weight; it answers in fp32 inside `full_precision`, and with
    log-probs alone inside `only`."""

    plain: bool
    said: "ReferenceType[Tensor] | None"

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight, self.bias = head.weight, head.bias
        self.plain, self.said = False, None  # whether logits go out as they are, and the last ones, until `notice`
        self.train(head.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., d] to logits [..., V]; inside `only` [1, N, d] to the log-probs that are asked for."""
        asked = _asked.get()
        if asked is not None:
            found: Tensor = TokenLogprobs.apply(input[0], self.weight, self.bias, *asked, _widened.get())
            return found
        logits = self._logits(input)
        self.said = ref(logits)
        return logits

    def _logits(self, hidden: Tensor) -> Tensor:
        half = self.weight.dtype in (torch.bfloat16, torch.float16)
        if not (half and _widened.get()) or (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(hidden)
        logits: Tensor = WideLogits.apply(hidden, self.weight)
        return logits if self.bias is None else logits + self.bias.float()


def widen_head(model: Any) -> None:
    """Once a model: let a plain head be able to answer in fp32, and with log-probs alone. Other heads stay."""
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and head.weight.is_floating_point():
        model.set_output_embeddings(Head(head))


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, heads that `widen_head` has seen give fp32 logits; on this thread alone."""
    token = _widened.set(True)
    try:
        yield
    finally:
        _widened.reset(token)


def answers_directly(model: Any) -> bool:
    """Whether a model can give log-probs alone: its head is frozen, and `notice` saw its logits go out as they are."""
    head = model.get_output_embeddings()
    return isinstance(head, Head) and head.plain and not (head.weight.requires_grad and torch.is_grad_enabled())


def notice(model: Any, logits: Tensor) -> None:
    """Learn from a pass whether a model returns its head's logits as they are, or scales or caps them."""
    head = model.get_output_embeddings()
    if isinstance(head, Head):
        head.plain, head.said = head.said is not None and head.said() is logits, None


@contextmanager
def only(rows: Tensor, tokens: Tensor) -> Iterator[None]:
    """Inside, a model that `answers_directly` returns, in place of logits, the log-probs of tokens after its rows."""
    token = _asked.set((rows, tokens))
    try:
        yield
    finally:
        _asked.reset(token)
