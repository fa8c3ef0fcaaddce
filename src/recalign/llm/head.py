"""Logits in fp32 from a half-precision output head, while responses are scored.

A bf16 logit of 16 to 32 is rounded to a multiple of 1/8 (8 bits of significand), which is what preference objectives
compare. A head in fp32 would be a second copy of the largest matrix; here a slice of the vocabulary at a time is
widened instead, for the few places whose logits are asked for. Generation keeps the plain head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

SLICE = 1024  # rows of the vocabulary widened at once: two or three MB, which stay in a CPU's cache
_widened: ContextVar[bool] = ContextVar("widened", default=False)


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
    """A linear output head that shares another one's weight, and answers in fp32 inside `full_precision`."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight, self.bias = head.weight, head.bias
        self.train(head.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., d] to logits [..., V]."""
        if not _widened.get() or (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(input)
        logits: Tensor = WideLogits.apply(input, self.weight)
        return logits if self.bias is None else logits + self.bias.float()


def widen_head(model: Any) -> None:
    """Once a model: let a frozen plain head in half precision be able to answer in fp32. Other heads stay."""
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16):
        model.set_output_embeddings(Head(head))


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, heads that `widen_head` has seen give fp32 logits; on this thread alone."""
    token = _widened.set(True)
    try:
        yield
    finally:
        _widened.reset(token)
