"""Generation of short texts in batches: greedy, sampled, or held to points.

A sampled text's draws belong to it, so that it is the same whatever batch it is written in: a token is
argmax(logits / temperature + Gumbel noise), a draw from softmax(logits / temperature) (Gumbel 1954); the noise of each
row comes from a stream of its own, seeded by the text's own key. With points to answer, their names are written for
the model, which fills the lines: constrained decoding in one pass.

What all prompts of a batch begin with (an instruction, a worked example) is read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from recalign.llm.model.base import LanguageModel
from recalign.llm.scoring.logprobs import why_not_shared
from recalign.llm.scoring.ways import base_of

LEAST_SHARED = 16  # tokens: below that a pass of its own for what is common costs more than it saves


class _StopText(StoppingCriteria):
    """Ends each text of a batch once `stop` stands in what was generated after `start` places."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, stop: str) -> None:
        self._tokenizer, self._start, self._stop = tokenizer, start, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._start :])
        return torch.tensor([self._stop in text for text in texts], device=input_ids.device)


def generate_texts(
    language_model: LanguageModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop: str = "\n\n",
    noise: LogitsProcessor | None = None,
) -> list[str]:
    """The greedy continuation of each prompt, up to `stop` or the end token, without blanks around it.

    prompts: B lists of token ids, one batch; the caller chooses B. Greedy, so equal inputs give equal texts, but for
    what `noise` adds to the logits. Raises ValueError for an empty prompt.
    """
    if not prompts or not all(prompts):
        raise ValueError("a prompt is empty, or there is none: generation continues at least one token")
    model, tokenizer, device = language_model.model, language_model.tokenizer, language_model.device
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    training = model.training
    model.eval()
    with torch.inference_mode():
        common, begun = _begun(language_model, prompts)
        # padded behind what is common, so that every row's next token follows its prompt directly
        rows = [(prompt[:common], longest - len(prompt), prompt[common:]) for prompt in prompts]
        ids = torch.tensor([[*head, *[pad] * gap, *rest] for head, gap, rest in rows], device=device)
        seen = torch.tensor([[1] * common + [0] * gap + [1] * len(rest) for _, gap, rest in rows], device=device)
        out = model.generate(
            input_ids=ids,
            attention_mask=seen,
            **({} if begun is None else {"cache": begun}),
            generation_config=GenerationConfig(  # not the model's own, which may sample
                do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=tokenizer.eos_token_id
            ),
            logits_processor=LogitsProcessorList([noise] if noise else []),
            stopping_criteria=StoppingCriteriaList([_StopText(tokenizer, longest, stop)]),
        )
    model.train(training)
    texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return [text.split(stop)[0].strip() for text in texts]


def _begun(language_model: LanguageModel, prompts: Sequence[list[int]]) -> tuple[int, DynamicCache | None]:
    """How many tokens all prompts begin with, and a cache that holds them for each; 0 and None where that is too
    little, or the model's layers keep something else than keys and values of all places."""
    first, last = min(prompts), max(prompts)  # in their order no other prompt leaves these two earlier
    common = next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    common = min(common, min(map(len, prompts)) - 1)  # each row reads at least one token of its own
    model = language_model.model
    if len(prompts) == 1 or common < LEAST_SHARED or why_not_shared(model) is not None:
        return 0, None
    cache = DynamicCache(config=base_of(model).config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):  # a window would count the padding
        return 0, None
    model(
        input_ids=torch.tensor([first[:common]], device=language_model.device), cache=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    cache.batch_repeat_interleave(len(prompts))
    return common, cache


class GumbelNoise(LogitsProcessor):
    """Makes greedy generation a sample: seeds [B], one a row; temperature above 0."""

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[1], generator=stream) for stream in self._streams])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self._temperature + noise.to(scores.device)


@dataclass(frozen=True)
class Points:
    """What a text is held to. begun: how each further line begins ("Dislikes:"); quoted: the place of the line that
    names titles; longest: tokens of a line that the model fills."""

    begun: tuple[str, ...]
    quoted: int
    longest: int


@dataclass
class _Line:
    """Where a row is: the line's number, the tokens of it that the model chose, and those that are due now."""

    number: int = 0
    chosen: list[int] = field(default_factory=list)
    due: list[int] = field(default_factory=list)


class HeldToPoints(LogitsProcessor):
    """`GumbelNoise` that keeps to `Points`: the first line is begun in the prompt; in the quoted line a row may only
    write one of its own titles."""

    def __init__(
        self,
        noise: GumbelNoise,
        points: Points,
        titles: Sequence[Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """titles: of each row, never empty. The tokenizer must have a token for a newline alone."""
        self._noise = noise
        self._points = points
        self._newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
        self._end = tokenizer.eos_token_id
        self._begun = [tokenizer.encode(begun, add_special_tokens=False) for begun in points.begun]
        quoted = [[tokenizer.encode(f" {t}", add_special_tokens=False) for t in own] for own in titles]
        self._titles = [[[*ids, self._newline] for ids in own] for own in quoted]
        words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        breaks = {self._newline, *tokenizer.all_special_ids}
        breaks |= {token for token, word in enumerate(words) if word and ("Ċ" in word or "\n" in word)}
        self._breaks = torch.tensor(sorted(breaks))
        self._lines = [_Line() for _ in titles]
        self._seen: int | None = None

    @property
    def most(self) -> int:
        """Tokens that the longest of these texts can take, its end with them."""
        names = sum(map(len, self._begun))
        quoted = max(len(ids) for own in self._titles for ids in own)
        return names + quoted + (len(self._begun) + 1) * (self._points.longest + 1) + 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = self._noise(input_ids, scores)
        last = None if self._seen is None else input_ids[:, -1].tolist()
        self._seen = input_ids.shape[1]
        held = torch.full_like(drawn, -torch.inf)
        for row, line in enumerate(self._lines):
            if last is not None:
                self._move(line, last[row])
            allowed = self._allowed(row, line)
            if allowed is None:
                held[row] = drawn[row]
                held[row, self._breaks] = -torch.inf
                if line.chosen:
                    held[row, self._newline] = drawn[row, self._newline]
            else:
                held[row, allowed] = drawn[row, allowed]
        return held

    def _move(self, line: _Line, token: int) -> None:
        """Take in the token that was written."""
        if line.due:
            line.due.pop(0)
        elif token == self._newline:
            line.number, line.chosen = line.number + 1, []
            done = line.number > len(self._begun)
            line.due = [] if done else [*self._begun[line.number - 1]]
        else:
            line.chosen.append(token)

    def _allowed(self, row: int, line: _Line) -> list[int] | None:
        """The tokens that may come next; None: any but those that end a line too early."""
        if line.number > len(self._begun):
            return [self._end]
        if line.due:
            return [line.due[0]]
        if line.number == self._points.quoted:
            at = len(line.chosen)
            going = [ids for ids in self._titles[row] if ids[:at] == line.chosen and len(ids) > at]
            return sorted({ids[at] for ids in going})
        return [self._newline] if len(line.chosen) >= self._points.longest else None
