"""The head that widens a half-precision weight slice by slice gives what an fp32 head gives, in both directions."""

import pytest
import torch
from tiny import model

from recalign.llm import head
from recalign.llm.head import Head, full_precision, widen_head


def linear(bias: bool, outputs: int = 2 * head.SLICE + 77) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(24, outputs, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(5,), (1, 3), (0,)])
def test_logits_and_gradients_are_those_of_an_fp32_copy(bias, rows):
    plain = linear(bias)
    wide = torch.nn.Linear(24, plain.out_features, bias=bias)
    wide.load_state_dict({key: value.float() for key, value in plain.state_dict().items()})
    hidden = torch.randn(*rows, 24).bfloat16().requires_grad_()
    copy = hidden.detach().float().requires_grad_()
    with full_precision():
        logits = Head(plain)(hidden)
    expected = wide(copy)
    weights = torch.randn(expected.shape)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    # the gradient of a margin is no small difference of large numbers: bf16 is enough
    torch.testing.assert_close(hidden.grad, copy.grad.bfloat16(), rtol=2e-2, atol=5e-2)


def test_outside_the_context_it_is_the_plain_head():
    plain, hidden = linear(True), torch.randn(4, 24).bfloat16()
    assert torch.equal(Head(plain)(hidden), plain(hidden))


def test_the_weight_stays_the_one_that_is_tied_to_the_embedding():
    tied = model("gemma").to(torch.bfloat16)
    names = set(tied.state_dict())
    widen_head(tied)
    widen_head(tied)
    assert type(tied.lm_head) is Head
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    assert set(tied.state_dict()) == names


def test_an_fp32_head_is_left_alone():
    whole = model()
    widen_head(whole)
    assert type(whole.lm_head) is torch.nn.Linear
