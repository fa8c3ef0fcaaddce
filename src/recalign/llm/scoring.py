"""The one scorer: log-probabilities of several short responses after one prompt, what begins alike encoded once.

SFT, the objectives, the reference store, ranking, profiles and serving all call `response_logprobs`.
"""

from contextlib import nullcontext

import torch

from recalign.llm.check import SCORERS, Verdict, Way, verdict_of
from recalign.llm.head import full_precision, widen_head
from recalign.llm.packing import places
from recalign.llm.ways import ResponseLogprobs, base_of, naive_logprobs, one_by_one_logprobs

__all__ = [
    "SCORER", "ResponseLogprobs", "Verdict", "Way", "naive_logprobs", "one_by_one_logprobs",
    "response_logprobs", "tokens_at_once", "verdict_of", "why_not_shared",
]  # fmt: skip
SCORER = 4  # raised when layout or arithmetic changes, so that log-probs stored before are not read; part of every key


def response_logprobs(
    model: torch.nn.Module,
    prompts: list[list[int]],
    responses: list[list[list[int]]],
    *,
    exact_logits: bool = True,
) -> ResponseLogprobs:
    """Σ_t log π(y_t | x, y_<t) of each response, differentiable, by the fastest way that is right for the model.

    model: a transformers causal LM, bare or under PEFT; prompts: B lists of token ids; responses: B lists of 1+K lists
    of token ids (ragged K allowed), each ending with its terminator. Equal to scoring every prompt + response on its
    own, which `check` tries before the first call; the log says which way is taken and why no faster one. Memory grows
    with `tokens_at_once`: the caller chooses B.
    exact_logits: fp32 logits under a bf16 model, which whoever compares responses needs; language modelling does not,
    and its many places make them as expensive as the rest of the model.
    Raises ValueError for an empty prompt or response, RecalignError where a prompt is too long to share a row or the
    model cannot be scored.
    """
    score = SCORERS[verdict_of(model).way]
    widen_head(base_of(model))
    with full_precision() if exact_logits else nullcontext():
        return score(model, prompts, responses)


def tokens_at_once(model: torch.nn.Module, prompts: list[list[int]], responses: list[list[list[int]]]) -> int:
    """Tokens, padding included, that `response_logprobs` runs through the model: its memory grows with them."""
    if verdict_of(model).way == Way.SHARED:
        return places(prompts, responses)
    groups = zip(prompts, responses, strict=True)
    return sum(len(group) * (len(prompt) + max(map(len, group)) - 1) for prompt, group in groups)


def why_not_shared(model: torch.nn.Module) -> str | None:
    """Why this model's responses cannot branch off one encoded prompt; None where they can."""
    return verdict_of(model).refused.get(Way.SHARED)
