"""Sampling whose draws belong to each text, so that a text is the same whatever batch it is written in.

A token is argmax(logits / temperature + Gumbel noise), a draw from softmax(logits / temperature) (Gumbel 1954); the
noise of each row comes from a stream of its own, seeded by the text's own key. With points to answer, their names are
written for the model, which fills the lines: constrained decoding in one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase


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
