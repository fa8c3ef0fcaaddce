"""One encoded prompt from which continuations grow token by token, each on the cached states of what it continues."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from recalign.llm.head import full_precision
from recalign.llm.packing import Grown
from recalign.llm.scoring import use_shared_attention

PROMPT_END = -1  # the place from which a first token grows


class Branches:
    """A prompt of P tokens in the model's cache, and the places that have grown on it, numbered 0, 1, … in order.

    Only for models that `why_not_shared` finds nothing against. `first` [V]: fp32 log-probs of the token after the
    prompt. Every grown place keeps its keys and values until `cut`.
    """

    def __init__(self, model: torch.nn.Module, prompt: Sequence[int]) -> None:
        """Encode the prompt. Raises ValueError where it is empty."""
        if not prompt:
            raise ValueError("the prompt is empty: a first token needs at least one token before it")
        use_shared_attention(model)
        self._model, self._device = model, next(model.parameters()).device
        self._length = len(prompt)
        self._cache = DynamicCache()  # without the model's config: no layer may drop what leaves its window
        self._depths: list[int] = []
        self._lines: list[list[int]] = []  # of each place: its ancestors and itself
        seen = torch.ones(self._length, self._length, dtype=torch.bool).tril()
        self.first = self._forward(list(prompt), list(range(self._length)), seen, keep=1)[-1]

    def grow(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Put tokens [N] behind their parents' places; [N, V] fp32 log-probs of what follows each.

        A parent is PROMPT_END, a grown place, or an earlier one of this call (which counts on from the last place).
        """
        start = len(self._lines)
        for place, parent in enumerate(parents, start=start):
            line = [] if parent == PROMPT_END else self._lines[parent]
            self._lines.append([*line, place])
            self._depths.append(len(line))
        seen = torch.zeros(len(tokens), self._length + len(self._lines), dtype=torch.bool)
        seen[:, : self._length] = True
        rows = [row for row, line in enumerate(self._lines[start:]) for _ in line]
        columns = [self._length + place for line in self._lines[start:] for place in line]
        seen[rows, columns] = True
        return self._forward(tokens, [self._length + depth for depth in self._depths[start:]], seen)

    def cut(self, places: int = 0) -> None:
        """Forget all grown places but the first `places`."""
        self._cache.crop(places - len(self._lines))
        del self._lines[places:], self._depths[places:]

    def _forward(self, tokens: Sequence[int], positions: list[int], seen: Tensor, keep: int = 0) -> Tensor:
        every = [*range(self._length), *(self._length + depth for depth in self._depths)]
        layout = Grown(seen.to(self._device), torch.tensor(every, device=self._device))
        with torch.inference_mode(), full_precision():
            logits = self._model(
                input_ids=torch.tensor([list(tokens)], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._device),  # as in `scoring`
                past_key_values=self._cache,
                layout=layout,
                logits_to_keep=keep,
                use_cache=True,
            ).logits[0]
            return torch.log_softmax(logits.float(), dim=-1)
