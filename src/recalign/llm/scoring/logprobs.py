"""The one scorer: log-probabilities of several short responses after one prompt, what begins alike encoded once.

SFT, the objectives, the reference store, ranking, profiles and serving all call `response_logprobs`. Which of the ways
to score is right for a model is tried before the first use, on a small twin and on its own weights: whether responses
may share a prompt, or a padded batch, is decided by code of transformers that differs from family to family and from
release to release. So it is measured: each way against one by one, in values and in a gradient.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.llm.model.random_models import VOCABULARY, twin_of
from recalign.llm.scoring.branches import PROMPT_END, Branches
from recalign.llm.scoring.head import full_precision, widen_head
from recalign.llm.scoring.packing import places
from recalign.llm.scoring.ways import (
    ResponseLogprobs,
    base_of,
    naive_logprobs,
    one_by_one_logprobs,
    shared_logprobs,
    token_logprobs,
    why_not_packed,
)

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
    own, which `verdict_of` tries at the first call; the log says which way is taken and why no faster one. Memory grows
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


log = logging.getLogger(__name__)
APART = 1e-3  # nats in fp32, and relative for a gradient: what no way may differ by from one by one
ROUNDED = 5e-2  # relative, where weights or activations have 8 bits or fewer of precision
NOISE = 2e-4  # what fp32 rounds by between two runs of one model
Scorer = Callable[[torch.nn.Module, list[list[int]], list[list[list[int]]]], ResponseLogprobs]
Case = tuple[list[list[int]], list[list[list[int]]]]


class Way(StrEnum):
    """How responses are scored."""

    SHARED = "shared prompts"
    BATCHED = "padded batches"
    ALONE = "one by one"


SCORERS: dict[Way, Scorer] = {
    Way.SHARED: shared_logprobs, Way.BATCHED: naive_logprobs, Way.ALONE: one_by_one_logprobs,
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The way that a model is scored in.

    refused: why the faster ways are not taken, by way; apart: the largest difference in nats that a taken way showed on
    the twin; wavers: why training it gives other values than evaluation, None where it does not.
    """

    way: Way
    refused: dict[Way, str]
    apart: float
    wavers: str | None = None

    @property
    def sentence(self) -> str:
        """The way, and why no faster one."""
        reasons = dict.fromkeys(self.refused.values())
        return f"scoring {'in ' if self.way != Way.ALONE else ''}{self.way}" + "".join(f": {r}" for r in reasons)


_twins: dict[str, Verdict] = {}  # by configuration: a second model of it in a process costs nothing
_verdicts: WeakKeyDictionary[PreTrainedModel, Verdict] = WeakKeyDictionary()


def verdict_of(model: torch.nn.Module) -> Verdict:
    """The way to score a model, found at the first call. Raises RecalignError for one that cannot be scored at all."""
    base = base_of(model)
    if base not in _verdicts:
        _verdicts[base] = _on_weights(model, _on_twin(base))
        log.info(_verdicts[base].sentence)
    return _verdicts[base]


def compare(model: torch.nn.Module, case: Case, *, gradient: bool, limit: Callable[[Tensor], Tensor]) -> Verdict:
    """Try each way on a case against one by one. limit: sums one by one -> what a way may differ by, in nats.

    Raises RecalignError where one by one itself is no score: not finite, or a token's depends on later ones.
    """
    base = base_of(model)
    values, slope = _measured(model, one_by_one_logprobs, case, gradient)
    _check_causal(model, case, limit)
    refused: dict[Way, str] = {}
    largest = 0.0
    reason = why_not_packed(model)
    if reason is not None:
        refused[Way.SHARED] = reason
    for way in [way for way in (Way.SHARED, Way.BATCHED) if way not in refused]:
        attention = base.config._attn_implementation
        try:
            other, other_slope = _measured(model, SCORERS[way], case, gradient)
            apart = float(((other - values).abs() / limit(values)).max())
            largest = max(largest, float((other - values).abs().max()))
            if way == Way.SHARED and apart <= 1:
                grown = _grown(model, case)
                apart = max(apart, float(((grown - values).abs() / limit(values)).max()))
                largest = max(largest, float((grown - values).abs().max()))
            said = f"differ by {largest:.2g} nats from one by one"
            if apart <= 1 and gradient:
                apart = float((other_slope - slope).norm() / slope.norm()) / APART
                said = f"have a gradient that differs by {apart * APART:.1g} from one by one"
            if apart <= 1:
                return Verdict(way, refused, largest)
            refused[way], largest = f"{type(base).__name__}'s {way} {said}", 0.0
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what an architecture lacks shows itself in many ways
            refused[way] = f"{type(base).__name__}: {' '.join(str(error).split())[:160] or type(error).__name__}"
            largest = 0.0
        if base.config._attn_implementation != attention:
            base.set_attn_implementation(attention)
    return Verdict(Way.ALONE, refused, 0.0)


def example(vocabulary: int, special: set[int]) -> Case:
    """Three prompts that begin alike, one of a token, and ragged responses, some of which begin alike too.

    The longest sequence has 26 tokens, past a twin's window.
    """
    drawn = torch.Generator().manual_seed(0)
    plain = [token for token in range(3, min(vocabulary, 1000)) if token not in special]

    def ids(n: int) -> list[int]:
        return [plain[place] for place in torch.randint(len(plain), (n,), generator=drawn).tolist()]

    first, title = ids(14), ids(3)
    prompts = [first, first[:1], [*first[:6], *ids(16)]]
    return prompts, [[title, ids(1), [*title[:2], *ids(3)]], [ids(2)], [ids(4), ids(2), title, [*title[:1], *ids(2)]]]


def on_twin(twin: PreTrainedModel) -> Verdict:
    """The way that is right on a small random fp32 model."""
    case = example(VOCABULARY, special_tokens(twin))
    found = compare(twin, case, gradient=True, limit=lambda sums: torch.full_like(sums, NOISE))
    return Verdict(found.way, found.refused, found.apart, _why_it_wavers(twin, case))


@torch.inference_mode(False)  # the caller may score without gradients; the twin's are part of the check
@torch.enable_grad()
def _on_twin(base: PreTrainedModel) -> Verdict:
    beside = ("_name_or_path", "transformers_version", "dtype")
    text = {name: value for name, value in base.config.to_dict().items() if name not in beside}
    key = digest_of([type(base).__name__, repr(sorted(text.items(), key=str))])
    if key not in _twins:
        twin = twin_of(base)
        reason = f"no small twin of {type(base).__name__}'s configuration could be built to check the others on"
        nothing = Verdict(Way.ALONE, {Way.SHARED: reason, Way.BATCHED: reason}, 0.0)
        _twins[key] = nothing if twin is None else on_twin(twin)
    return _twins[key]


def _on_weights(model: torch.nn.Module, twin: Verdict) -> Verdict:
    """The twin's verdict, put to one short prompt on the model's own weights."""
    base = base_of(model)
    prompts, responses = example(len(base.get_input_embeddings().weight), special_tokens(base))  # type: ignore[arg-type]
    case = prompts[:1], responses[:1]
    exact = next(base.parameters()).dtype == torch.float32 and not getattr(base, "is_quantized", False)

    def limit(sums: Tensor) -> Tensor:
        return torch.full_like(sums, APART) if exact else ROUNDED * sums.abs().clamp(min=1.0)

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            values, _ = _measured(model, one_by_one_logprobs, case, gradient=False)
            _check_causal(model, case, limit)
            if twin.way == Way.ALONE:
                return twin
            attention = base.config._attn_implementation
            for _ in range(2):  # the second pass may take log-probs from the head alone (`head.notice`)
                other, _ = _measured(model, SCORERS[twin.way], case, gradient=False)
    finally:
        model.train(training)
    apart = float((other - values).abs().max())
    if bool(((other - values).abs() <= limit(values)).all()):
        return twin
    if base.config._attn_implementation != attention:
        base.set_attn_implementation(attention)
    reason = f"{type(base).__name__}'s {twin.way} differ by {apart:.2g} nats from one by one on its own weights"
    return Verdict(Way.ALONE, {**twin.refused, twin.way: reason}, 0.0, twin.wavers)


def _measured(model: torch.nn.Module, score: Scorer, case: Case, gradient: bool) -> tuple[Tensor, Tensor]:
    """The sums [responses] of a case, and the gradient of a contrast of them, as one vector (empty without)."""
    with torch.set_grad_enabled(gradient), full_precision():
        result = score(model, *case)
    sums = result.sums[result.mask]
    if not bool(sums.isfinite().all()):
        raise RecalignError(f"{type(base_of(model)).__name__} gives log-probs that are not finite")
    if not gradient:
        return sums, sums.new_empty(0)
    model.zero_grad(set_to_none=True)
    signs = torch.tensor([1.0, -1.0], device=sums.device).repeat(len(sums))[: len(sums)]
    (sums * signs).sum().backward()
    slopes = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()
        if p.requires_grad
    ]  # fmt: skip
    model.zero_grad(set_to_none=True)
    return sums.detach(), torch.cat(slopes)


@torch.no_grad()
def _check_causal(model: torch.nn.Module, case: Case, limit: Callable[[Tensor], Tensor]) -> None:
    """A response's first token must score the same whatever follows it: else sums are no probabilities of texts."""
    (prompt, *_), (group, *_) = case
    whole = max(group, key=len)
    alone, before = token_logprobs(model, prompt, whole[:1])[0], token_logprobs(model, prompt, whole)[0]
    if bool((alone - before).abs() > limit(alone)):
        raise RecalignError(
            f"base.model is a {type(base_of(model)).__name__} whose tokens look at later ones (a log-prob moves by "
            f"{float((alone - before).abs()):.2g} nats with what follows its token); choose a causal language model"
        )


@torch.no_grad()
def _grown(model: torch.nn.Module, case: Case) -> Tensor:
    """The sums of a case as a search over titles computes them: on cached prompts, token by token."""
    prompts, responses = case
    branches = Branches(model, prompts)
    sums = []
    for number, group in enumerate(responses):
        for response in group:
            start = len(branches)
            total = branches.first[number, response[0]]
            if len(response) > 1:
                parents = [PROMPT_END - number, *range(start, start + len(response) - 2)]
                rows = branches.grow(response[:-1], parents)
                total = total + rows.gather(1, torch.tensor(response[1:], device=rows.device)[:, None]).sum()
            sums.append(total)
    return torch.stack(sums)


def _why_it_wavers(twin: PreTrainedModel, case: Case) -> str | None:
    """Why the twin scores otherwise in train mode, its dropout being 0; None where it does not."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        calm = one_by_one_logprobs(twin, *case).sums
        busy = one_by_one_logprobs(twin.train(), *case).sums
        twin.eval()
    apart = float((calm - busy).abs().max())
    if apart <= APART:
        return None
    return f"{type(twin).__name__} computes something else in training, without dropout too ({apart:.2g} nats apart)"


def special_tokens(model: PreTrainedModel) -> set[int]:
    """Ids that a model's configuration gives a meaning of their own: an example of plain text has none."""
    config = model.config.get_text_config()
    named = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "unk", "decoder_start")]
    return {token for each in named for token in (each if isinstance(each, list) else [each]) if token is not None}
