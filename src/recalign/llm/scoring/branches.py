"""Encoded prompts from which continuations grow token by token, each on the cached states of what it continues."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from recalign.llm.scoring.head import full_precision
from recalign.llm.scoring.packing import Grown, packed_row
from recalign.llm.scoring.ways import use_shared_attention

PROMPT_END = -1  # the place from which a first token of the first prompt grows; that of the next one is −2, and so on


class Branches:
    """B prompts in the model's cache, and the places that have grown on them, numbered 0, 1, … in order.

    One forward pass encodes the prompts, and one extends any of them, each place seeing its own prompt alone. Only for
    models that `why_not_shared` finds nothing against. `first` [B, V]: fp32 log-probs of the token after each prompt.
    Every grown place keeps its keys and values until `cut`.
    """

    def __init__(self, model: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        """Encode the prompts. Raises ValueError for none and for an empty one."""
        if not prompts or not all(prompts):
            raise ValueError("the prompt is empty: a first token needs at least one token before it")
        use_shared_attention(model)
        self._model, self._device = model, next(model.parameters()).device
        self._cache = DynamicCache()  # without the model's config: no layer may drop what leaves its window
        self._lengths = [len(prompt) for prompt in prompts]
        self._rows: list[int] = [row for row, length in enumerate(self._lengths) for _ in range(length)]
        self._positions = [position for length in self._lengths for position in range(length)]
        self._kept = len(self._positions)
        self._cached: list[list[int]] = [[] for _ in prompts]  # of each prompt: its own places in the cache
        for place, row in enumerate(self._rows):
            self._cached[row].append(place)
        self._lines: list[list[int]] = []  # of each grown place: its ancestors and itself, as places of `_cached`
        seen = [torch.ones(length, length, dtype=torch.bool).tril() for length in self._lengths]
        ends = [places[-1] for places in self._cached]
        self.first = self._forward([token for prompt in prompts for token in prompt], range(len(prompts)), seen, ends)

    def __len__(self) -> int:
        """Grown places."""
        return len(self._lines)

    def grow(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Put tokens [N] behind their parents' places; [N, V] fp32 log-probs of what follows each.

        A parent is the end of a prompt (PROMPT_END minus the prompt's number), a grown place, or an earlier one of this
        call (which counts on from the last place). They may stand in any order.
        """
        start = len(self._lines)
        for parent in parents:
            row = PROMPT_END - parent if parent < 0 else self._rows[self._kept + parent]
            line = [] if parent < 0 else self._lines[parent]
            self._lines.append([*line, len(self._cached[row])])
            self._positions.append(self._lengths[row] + len(line))
            self._cached[row].append(len(self._rows))
            self._rows.append(row)
        lines: dict[int, list[list[int]]] = {}
        for row, line in zip(self._rows[self._kept + start :], self._lines[start:], strict=True):
            lines.setdefault(row, []).append(line)
        return self._forward(tokens, list(lines), [self._seen(row, own) for row, own in lines.items()], None)

    def cut(self, places: int = 0) -> None:
        """Forget all grown places but the first `places`."""
        self._cache.crop(places - len(self._lines))
        for row in self._rows[self._kept + places :]:
            self._cached[row].pop()
        del self._lines[places:], self._rows[self._kept + places :], self._positions[self._kept + places :]

    def _seen(self, row: int, lines: list[list[int]]) -> Tensor:
        """[n, m]: which of the prompt's m places in the cache each of its n new ones sees."""
        seen = torch.zeros(len(lines), len(self._cached[row]), dtype=torch.bool)
        seen[:, : self._lengths[row]] = True
        numbers = [number for number, line in enumerate(lines) for _ in line]
        seen[numbers, [place for line in lines for place in line]] = True
        return seen

    def _forward(
        self, tokens: Sequence[int], rows: Sequence[int], seen: list[Tensor], keep: list[int] | None
    ) -> Tensor:
        """Log-probs after the new places: `rows` names their prompts, `seen` what they see; keep: of these alone."""
        start = len(self._rows) - len(tokens)
        new = {row: [place - start for place in self._cached[row] if place >= start] for row in rows}
        grown = Grown.of([new[row] for row in rows], [self._cached[row] for row in rows], seen, self._positions)
        with torch.inference_mode(), full_precision(), packed_row():
            logits = self._model(
                input_ids=torch.tensor([list(tokens)], device=self._device),
                position_ids=torch.tensor([self._positions[start:]], device=self._device),
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._device),  # as in `ways`
                cache=self._cache,
                layout=grown.to(self._device),
                logits_to_keep=0 if keep is None else torch.tensor(keep, device=self._device),
                use_cache=True,
            ).logits[0]
            return torch.log_softmax(logits.float(), dim=-1)
