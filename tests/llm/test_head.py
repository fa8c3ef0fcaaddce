"""The head that widens a half-precision weight slice by slice gives what an fp32 head gives, in both directions."""

import pytest
import torch
from tiny import model

from recalign.llm.scoring import head
from recalign.llm.scoring.head import Head, answers_directly, full_precision, only, widen_head
from recalign.llm.scoring.logprobs import response_logprobs


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


def test_an_fp32_head_gives_the_same_logits_as_before():
    whole, hidden = model(), torch.randn(2, 3, 64)
    before = whole.lm_head(hidden)
    widen_head(whole)
    with full_precision():
        assert torch.equal(whole.lm_head(hidden), before)


@pytest.mark.parametrize("bias", [False, True])
def test_log_probs_alone_are_those_of_log_softmax_in_both_directions(bias):
    """Several responses read one row, some the same token of it, some rows nobody; tokens of every slice."""
    plain = linear(bias).double()
    hidden = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[[0, 2], [0, 3]], [[0, 2], [2, 4]]])
    tokens = torch.tensor([[[0, head.SLICE - 1], [head.SLICE, 2 * head.SLICE + 76]], [[0, 5], [6, 1500]]])

    def alone(states):
        with only(rows, tokens):
            return Head(plain)(states[None])

    expected = torch.log_softmax(plain(hidden), dim=-1)[rows, tokens]
    torch.testing.assert_close(alone(hidden), expected)
    weights = torch.arange(8, dtype=torch.float64).reshape(2, 2, 2) - 3.0
    [ours] = torch.autograd.grad((alone(hidden) * weights).sum(), hidden)
    [theirs] = torch.autograd.grad((expected * weights).sum(), hidden)
    torch.testing.assert_close(ours, theirs)
    assert ours[2].any()
    assert not ours[1].any()
    with torch.no_grad():  # logits of thousands: the sum of exponentials must not overflow
        torch.testing.assert_close(alone(1e4 * hidden), torch.log_softmax(plain(1e4 * hidden), dim=-1)[rows, tokens])


@pytest.mark.parametrize(
    ("family", "direct"),
    [("llama", True), ("gemma3", True), ("phi", True), ("gpt2", True), ("granite", False), ("gemma3-cap", False)],
)
def test_only_a_model_whose_logits_go_out_as_its_head_gave_them_answers_with_log_probs_alone(family, direct):
    """granite divides them, gemma3-cap caps them; a head that is trained needs its own gradient."""
    made = model(family).requires_grad_(False)
    response_logprobs(made, [[5, 6]], [[[7]]])
    assert answers_directly(made) is direct
    assert not answers_directly(made.requires_grad_(True))


def test_no_logits_of_the_whole_vocabulary_are_held_while_responses_are_scored():
    """The largest tensor that the head makes for 300 places is a slice of the vocabulary, not 640 logits a place."""
    made = model(vocab_size=8 * head.SLICE).requires_grad_(False)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32 and out.shape[:1] != (8 * head.SLICE,):
                largest = max(largest, out.numel())
            return out

    response_logprobs(made, [[5, 6]], [[[7]]])
    with Watch():
        response_logprobs(made, [[5, 6]], [[list(range(10, 310))]])
    assert 300 * head.SLICE <= largest < 600 * head.SLICE
