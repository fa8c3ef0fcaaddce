"""The one scorer: log-probabilities of several short responses after one prompt, what begins alike encoded once.

SFT, the objectives, the reference store, ranking, profiles and serving all call `response_logprobs`.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from recalign.common.artifacts import digest_of
from recalign.llm import lower_half
from recalign.llm.check import ROUNDED, SCORERS, Verdict, Way, example, special_tokens, verdict_of
from recalign.llm.head import full_precision, widen_head
from recalign.llm.packing import places
from recalign.llm.ways import ResponseLogprobs, base_of, device_of, naive_logprobs, one_by_one_logprobs

__all__ = [
    "SCORER", "ResponseLogprobs", "Verdict", "Way", "keep_lower_half", "naive_logprobs", "one_by_one_logprobs",
    "response_logprobs", "tokens_at_once", "verdict_of", "why_not_shared",
]  # fmt: skip
log = logging.getLogger(__name__)
SAME = 1e-4  # relative, in fp32: what kept states may change of a log-prob
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


def keep_lower_half(model: torch.nn.Module, folder: Path, key: Sequence[str]) -> None:
    """Let `response_logprobs` keep in a folder what the lower half of the model's layers gives, and begin with it.

    Where an adapter reaches no further down, all models on one base share these states: what the first of them computed
    the others read. key: of the bare base as it computes (weights, quantisation, compute type). Tried on the model's
    own weights first; where that shows another log-prob, or the model has no half of its own, or a GPU computes, which
    is faster than a disk, all is computed as ever and the log says why.
    """
    base = base_of(model)
    reason = _why_not_kept(model)
    if reason is None:
        half = lower_half.LowerHalf(base, folder, digest_of([SCORER, *key]))
        reason = _why_not_equal(model, half)
        lower_half.use(base, half if reason is None else None)
    if reason is not None:
        log.info("each model computes its lower layers by itself: %s", reason)


def _why_not_kept(model: torch.nn.Module) -> str | None:
    if device_of(model).type != "cpu":
        return "a GPU computes them faster than a disk gives them"
    return why_not_shared(model) or lower_half.why_not(base_of(model))


@torch.no_grad()
def _why_not_equal(model: torch.nn.Module, half: lower_half.LowerHalf) -> str | None:
    """Score a short case without kept states, once to keep them, and from them."""
    base, training = base_of(model), model.training
    prompts, responses = example(len(base.get_input_embeddings().weight), special_tokens(base))  # type: ignore[arg-type]
    model.eval()
    try:
        plain = response_logprobs(model, prompts, responses).sums
        lower_half.use(base, half)
        kept = [response_logprobs(model, prompts, responses).sums for _ in range(2)]
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what an architecture lacks shows itself in many ways
        return f"{type(base).__name__}: {' '.join(str(error).split())[:160] or type(error).__name__}"
    finally:
        lower_half.use(base, None)
        model.train(training)
    exact = plain.dtype == next(base.parameters()).dtype
    apart = max(float(((sums - plain).abs() / plain.abs().clamp(min=1.0)).max()) for sums in kept)
    if apart <= (SAME if exact else ROUNDED):
        return None
    return f"{type(base).__name__} begun in the middle differs by {apart:.1g} (relative)"
