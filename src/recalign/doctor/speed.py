"""How fast this machine runs the base model in each precision: measured, since instructions alone do not tell."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recalign.common.progress import track
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.llm.model.quantisation import choose_device, choose_dtype, why_not_quantised
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.params.load import Params

# A batch as training has it: histories of some titles, a chosen and a rejected title each
PROMPTS, PROMPT_TOKENS, RESPONSES, RESPONSE_TOKENS = 4, 128, 2, 8
READ = PROMPTS * (PROMPT_TOKENS + RESPONSES * (RESPONSE_TOKENS - 1))  # tokens the model reads for it, prompts once
LEAST_SECONDS, LEAST_ROUNDS = 2.0, 3  # of each measurement, after one round to warm up


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one precision: scoring (no gradients) and a LoRA training step without the optimiser.

    name: as base.compute and base.quantisation would say it; reason: why it was not measured, else "".
    """

    name: str
    compute: str
    quantisation: str
    scoring: float
    training: float
    reason: str = ""


def measure(base: Path, params: Params) -> list[Speed]:
    """Measure fp32, bf16 and NF4 (with the compute that base.compute: auto takes) on the base model in `base`.

    Medians of rounds of at least two seconds in all; one model in memory at a time.
    """
    wanted = [("fp32", "none"), ("bf16", "none"), (_auto(params), "nf4")]
    return [_measured(base, params, *pair) for pair in track(wanted, len(wanted), "doctor --speed", "precisions")]


def chosen(params: Params) -> str:
    """The compute, "fp32" or "bf16", that a run with these params takes on this machine."""
    return "bf16" if choose_dtype(params.base, choose_device()) == torch.bfloat16 else "fp32"


def fastest(speeds: list[Speed]) -> Speed:
    """The precision that trains fastest."""
    return max(speeds, key=lambda speed: speed.training)


def _auto(params: Params) -> str:
    return chosen(params.model_copy(update={"base": params.base.model_copy(update={"compute": "auto"})}))


def _measured(base: Path, params: Params, compute: str, quantisation: str) -> Speed:
    name = compute if quantisation == "none" else f"{quantisation} ({compute})"
    if quantisation != "none" and (reason := why_not_quantised(choose_device())):
        return Speed(name, compute, quantisation, 0.0, 0.0, reason)
    scoring, training = _rates(base, params, compute, quantisation)
    gc.collect()  # so that the next model finds the memory free
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Speed(name, compute, quantisation, scoring, training)


def _rates(base: Path, params: Params, compute: str, quantisation: str) -> tuple[float, float]:
    settings = params.base.model_copy(update={"compute": compute, "quantisation": quantisation})
    lm = load_language_model(
        base, settings, new_adapter=params.lora, trainable=True, seed=params.seed, threads=params.threads
    )
    return rates(lm)


def rates(lm: LanguageModel) -> tuple[float, float]:
    """Tokens a second of a model with a trainable adapter: of scoring, and of a training step without the optimiser."""
    training = _rate(lm, lambda: _step(lm))
    lm.model.eval()
    return _rate(lm, lambda: _score(lm)), training


def _rate(lm: LanguageModel, work: Callable[[], Any]) -> float:
    """Tokens a second, the median of rounds."""
    work()
    rounds: list[float] = []
    while len(rounds) < LEAST_ROUNDS or sum(rounds) < LEAST_SECONDS:
        _wait(lm)
        started = time.perf_counter()
        work()
        _wait(lm)
        rounds.append(time.perf_counter() - started)
    return READ / statistics.median(rounds)


def _wait(lm: LanguageModel) -> None:
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)


def _step(lm: LanguageModel) -> None:
    (-response_logprobs(lm.model, *_batch(lm)).sums.mean()).backward()
    lm.model.zero_grad(set_to_none=True)


def _score(lm: LanguageModel) -> None:
    with torch.no_grad():
        response_logprobs(lm.model, *_batch(lm))


def _batch(lm: LanguageModel) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids drawn from a fixed seed: speed does not depend on which they are, sharing does on their difference."""
    drawn = torch.Generator().manual_seed(0)
    size = len(lm.tokenizer)
    prompts = torch.randint(size, (PROMPTS, PROMPT_TOKENS), generator=drawn).tolist()
    return prompts, torch.randint(size, (PROMPTS, RESPONSES, RESPONSE_TOKENS), generator=drawn).tolist()
