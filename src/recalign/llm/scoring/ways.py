"""The three ways to compute what responses score after a prompt; `logprobs` takes the fastest that it found right.

Shared: all prompts in one flat row, what begins alike once. Batched: a right-padded sequence a response. One by one: a
forward pass a response, which is what the other two must equal.
"""

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recalign.common.errors import RecalignError
from recalign.llm.scoring.head import answers_directly, notice, only, widen_head
from recalign.llm.scoring.packing import SHARED_ATTENTION, check, pack, packed_row

POSITIONAL_LAYERS = {"full_attention", "sliding_attention"}  # kinds of layer that only look at ids' positions
ROPE_BY_LENGTH = ("dynamic", "longrope")  # their angles change for a whole row once its longest prompt passes a limit


@dataclass(frozen=True)
class ResponseLogprobs:
    """What the model gives 1+K responses to each of B prompts; all tensors are [B, 1+K].

    sums: summed token log-probs in fp32, 0 where mask is False; lengths: tokens, terminator included;
    mask: True where a response exists (K may differ from prompt to prompt). tokens [B, 1+K, R]: what the sums are of, 0
    beyond a response's end.
    """

    sums: Tensor
    lengths: Tensor
    mask: Tensor
    tokens: Tensor


def shared_logprobs(
    model: torch.nn.Module, prompts: list[list[int]], responses: list[list[list[int]]]
) -> ResponseLogprobs:
    """All prompts in one flat row, what begins alike encoded once; the decoder sees at most Σ (P + Σ(R − 1)) tokens,
    the head Σ (1 + Σ(R − 1)) rows. Only for models that `verdict_of` found to score like one by one.

    Raises ValueError for an empty prompt or response, RecalignError where a prompt is too long to share a row.
    """
    check(prompts, responses)
    _check_reach(model, max(len(p) + max(map(len, g)) - 1 for p, g in zip(prompts, responses, strict=True)))
    use_shared_attention(model)
    row, base = pack(prompts, responses, device_of(model)), base_of(model)
    direct = answers_directly(base)
    asked = only(row.rows, row.tokens) if direct else nullcontext()
    with packed_row(), asked:
        said = model(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            # a 4-D mask is handed on as it is: no T × T mask is built; the attention function goes by the layout alone
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=row.input_ids.device),
            layout=row.layout,
            logits_to_keep=row.keep,
            use_cache=False,
        ).logits
    if direct:
        logprobs = said
    else:  # fp32: log-softmax in bf16 loses what objectives compare
        notice(base, said)
        logprobs = _TokenLogprobs.apply(said[0].float(), row.rows, row.tokens)
    lengths = row.valid.sum(-1)
    kept = logprobs.masked_fill(~row.valid, 0.0)
    return ResponseLogprobs(kept.sum(-1), lengths, lengths > 0, kept)


class _TokenLogprobs(torch.autograd.Function):
    """log_softmax(logits [N, V])[rows, tokens], whose backward pass holds one [N, V] beside the log-probs, not two.

    That pass begins while every activation is held: what it takes is the peak of a training step. Not
    logits[y] − logsumexp(logits), which is the difference of two larger numbers and less exact.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        logprobs = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(logprobs, rows, tokens)
        return logprobs[rows, tokens]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logprobs, rows, tokens = ctx.saved_tensors
        asked = gradient.new_zeros(len(logprobs)).index_put_((rows,), gradient, accumulate=True)
        logits = logprobs.exp().mul_(-asked[:, None])
        return logits.index_put_((rows, tokens), gradient, accumulate=True), None, None


def naive_logprobs(
    model: torch.nn.Module, prompts: list[list[int]], responses: list[list[list[int]]]
) -> ResponseLogprobs:
    """A right-padded sequence a response, one prompt a forward pass: for models that cannot share a prompt."""
    check(prompts, responses)
    tokens = [_naive(model, prompt, group) for prompt, group in zip(prompts, responses, strict=True)]
    return _stacked(tokens, responses)


def _stacked(tokens: list[Tensor], responses: list[list[list[int]]]) -> ResponseLogprobs:
    """Of token log-probs [K, R] a prompt, where K and R differ. A negative id is a vector's: read and not scored."""
    width, longest = max(map(len, responses)), max(len(response) for group in responses for response in group)
    pad = torch.nn.functional.pad
    kept = torch.stack([pad(own, (0, longest - own.shape[1], 0, width - len(own))) for own in tokens])
    learned = [[sum(token >= 0 for token in r) for r in group] + [0] * (width - len(group)) for group in responses]
    lengths = torch.tensor(learned, device=kept.device)
    sums = torch.stack([pad(own.sum(-1), (0, width - len(own))) for own in tokens])
    return ResponseLogprobs(sums, lengths, lengths > 0, kept)


def _naive(model: torch.nn.Module, prompt: list[int], group: list[list[int]]) -> Tensor:
    """[K, R] log-probs of a group's tokens, 0 where there is none."""
    device = device_of(model)
    longest = max(map(len, group))
    length = len(prompt) + longest - 1  # nobody asks what follows the last token
    ids = torch.zeros(len(group), length, dtype=torch.long)
    seen, valid = torch.zeros_like(ids), torch.zeros(len(group), longest, dtype=torch.bool)
    labels = torch.zeros(len(group), longest, dtype=torch.long)
    for k, response in enumerate(group):
        n = len(prompt) + len(response) - 1
        ids[k, :n] = torch.tensor(prompt + response[:-1])
        seen[k, :n] = 1
        labels[k, : len(response)] = torch.tensor(response).clamp(min=0)
        valid[k, : len(response)] = torch.tensor(response) >= 0
    labels, valid = labels.to(device), valid.to(device)
    logits = model(input_ids=ids.to(device), attention_mask=seen.to(device), use_cache=False).logits
    logprobs = torch.log_softmax(logits[:, len(prompt) - 1 :].float(), dim=-1)
    return logprobs.gather(-1, labels[..., None]).squeeze(-1).masked_fill(~valid, 0.0)


def one_by_one_logprobs(
    model: torch.nn.Module, prompts: list[list[int]], responses: list[list[list[int]]]
) -> ResponseLogprobs:
    """A forward pass a response, with nothing beside it: what scoring means, and the way of last resort."""
    check(prompts, responses)
    tokens = []
    for prompt, group in zip(prompts, responses, strict=True):
        each = [token_logprobs(model, prompt, response) for response in group]
        tokens.append(torch.nn.utils.rnn.pad_sequence(each, batch_first=True))
    return _stacked(tokens, responses)


def token_logprobs(model: torch.nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    """[R] fp32 log-probs of a response's tokens, each given all before it, from one sequence without padding; 0 at a
    vector's place."""
    ids = torch.tensor([prompt + response[:-1]], device=device_of(model))
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt) - 1 :].float(), dim=-1)
    asked = torch.tensor(response, device=ids.device)
    return logprobs.gather(-1, asked.clamp(min=0)[:, None]).squeeze(-1).masked_fill(asked < 0, 0.0)


def why_not_packed(model: torch.nn.Module) -> str | None:
    """Why this architecture's responses cannot branch off one encoded prompt, as far as its class and config say; else
    None, which `verdict_of` puts to the test."""
    base = base_of(model)
    name, config = type(base).__name__, base.config.get_text_config()
    takes = inspect.signature(base.forward).parameters
    if not base._can_set_attn_implementation() or not getattr(base, "_supports_attention_backend", False):
        return f"{name} does not take a registered attention function"
    if not {"position_ids", "logits_to_keep"} <= set(takes):
        return f"{name} does not take position ids (ALiBi) or does not project chosen places"
    if getattr(base, "_is_stateful", False):
        return f"{name} is recurrent: its state is the order of the row"
    others = set(getattr(config, "layer_types", None) or ()) - POSITIONAL_LAYERS
    if others:
        return f"{name} has layers of the kind {min(others)}"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{name} caps its attention logits"
    if getattr(config, "alibi", False):
        return f"{name} biases attention by distance in the row (ALiBi)"
    return None


def _check_reach(model: torch.nn.Module, longest: int) -> None:
    """Refuse what would make one prompt's rotary angles depend on a longer neighbour in the row."""
    config = base_of(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ROPE_BY_LENGTH:
        return
    reach = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    if longest > reach:
        raise RecalignError(
            f"a prompt with its response has {longest} tokens, but this model's rotary embedding "
            f"({rope['rope_type']}) changes beyond {reach}; lower prompt.history or prompt.training_history"
        )


def base_of(model: Any) -> PreTrainedModel:
    """The model of transformers, without PEFT around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def use_shared_attention(model: torch.nn.Module) -> None:
    """Once a model, and for good: with gradient checkpointing attention runs again in the backward pass."""
    base = base_of(model)
    if base.config._attn_implementation != SHARED_ATTENTION:
        base.set_attn_implementation(SHARED_ATTENTION)
        widen_head(base)
