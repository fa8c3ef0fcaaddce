"""Flat rows that hold several prompts, each followed by its responses as branches that share it.

One prompt of P tokens with responses of R_k tokens takes at most P + Σ(R_k − 1) places: the prompt once, and each
response without its last token, whose successor nobody asks for. What begins alike takes its places once in the whole
row: the opening of all prompts, a prompt that begins another, titles with the same first word after one prompt.
Position ids restart at P in every branch, and the registered attention function lets a branch see the tokens of its own
prompt and itself only: each prompt's block is gathered from the row. Nothing is padded but the attention of each block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from recalign.common.errors import RecalignError

SHARED_ATTENTION = "shared_prefix"
PROMPT = -1  # the branch number of a prompt's own tokens
START = -1  # the place before the first one of a row
PADDING = -2
_in_packed_row: ContextVar[bool] = ContextVar("in_packed_row", default=False)


class LayoutLost(RecalignError):
    """A model passes on no layout to its attention, so that tokens of a packed row would see the whole of it."""


@contextmanager
def packed_row() -> Iterator[None]:
    """Inside, the model reads a packed row: attention without a layout is an error."""
    token = _in_packed_row.set(True)
    try:
        yield
    finally:
        _in_packed_row.reset(token)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a flat row of T places belong; B prompts, the longest with its branches L places long.

    gather [B, L]: place in the row of each token of a prompt's block (padded with 0), the same place in several blocks
    where they begin alike; scatter [T]: of each place one token of a block, counted through all blocks; positions,
    branches [B, L]: position id and branch number (PROMPT, 0, 1, … or PADDING).
    """

    gather: Tensor
    scatter: Tensor
    positions: Tensor
    branches: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether the row is one block, in which nothing is padded, shared or moved."""
        return len(self.gather) == 1 and self.gather.shape[1] == len(self.scatter)

    def mask(self, window: int | None) -> Tensor:
        """[B, 1, L, L], True where a query (row) may see a key (column); shared by all layers."""
        if window not in self.masks:
            query, key = self.positions[:, :, None], self.positions[:, None, :]
            own = self.branches[:, :, None] == self.branches[:, None, :]
            prompt = self.branches[:, None, :] == PROMPT
            seen = (key <= query) & (own | prompt)
            if window is not None:
                seen &= query - key < window
            # a padded query sees itself: a row without any key would be NaN, and NaN × 0 is NaN in the backward pass
            self.masks[window] = (seen | (own & (query == key)))[:, None]
        return self.masks[window]


@dataclass(frozen=True)
class Grown:
    """N new places of B prompts behind the M − N that the model's cache holds.

    The prompts have at most n new places and m places in all. queries [B, n]: place among the new ones of each prompt's
    (padded with 0); scatter [N]: its inverse; keys [B, m]: place in the cache likewise; positions [M]: position ids;
    seen [B, n, m]: True where a new place descends from the other, itself included.
    """

    queries: Tensor
    scatter: Tensor
    keys: Tensor
    positions: Tensor
    seen: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, queries: list[list[int]], keys: list[list[int]], seen: list[Tensor], positions: list[int]) -> "Grown":
        """From each prompt's new places, places in the cache, and which [n, m] of them each new one sees."""
        n, m = max(map(len, queries)), max(map(len, keys))
        together = torch.zeros(len(queries), n, m, dtype=torch.bool)
        together[:, :, 0] = True  # a padded query sees a place too: a row without any would be NaN
        scatter = torch.empty(sum(map(len, queries)), dtype=torch.long)
        for b, (own, mask) in enumerate(zip(queries, seen, strict=True)):
            together[b, : mask.shape[0], : mask.shape[1]] = mask
            scatter[torch.tensor(own)] = torch.arange(b * n, b * n + len(own))
        return cls(_padded(queries), scatter, _padded(keys), torch.tensor(positions), together)

    def to(self, device: torch.device) -> "Grown":
        """The same there."""
        queries, scatter, keys = self.queries.to(device), self.scatter.to(device), self.keys.to(device)
        return Grown(queries, scatter, keys, self.positions.to(device), self.seen.to(device))

    @property
    def single(self) -> bool:
        """Whether one prompt owns the row and the cache, so that nothing is padded or moved."""
        return len(self.queries) == 1 and self.keys.shape[1] == len(self.positions)

    def mask(self, window: int | None) -> Tensor:
        """[B, 1, n, m], True where a query (row) may see a key (column); shared by all layers."""
        if window not in self.masks:
            seen = self.seen
            if window is not None:
                new = self.positions[len(self.positions) - len(self.scatter) :]
                apart = new[self.queries][:, :, None] - self.positions[self.keys][:, None, :]
                seen = seen & (apart < window)
                seen[:, :, 0] |= ~seen.any(-1)
            self.masks[window] = seen[:, None]
        return self.masks[window]


def _padded(lists: list[list[int]]) -> Tensor:
    width = max(map(len, lists))
    return torch.tensor([[*places, *[0] * (width - len(places))] for places in lists])


@dataclass(frozen=True)
class PackedRow:
    """A flat row and what to read from its logits.

    input_ids, position_ids [1, T]; keep [N]: the places whose logits are needed, at most 1 + Σ(R_k − 1) a prompt;
    rows, tokens [B, 1+K, R]: for each token of each response the index into `keep` and its id (0 where valid is False).
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    keep: Tensor
    rows: Tensor
    tokens: Tensor
    valid: Tensor


def pack(prompts: list[list[int]], responses: list[list[list[int]]], device: torch.device | str = "cpu") -> PackedRow:
    """Lay B prompts and their responses out in one row.

    Raises ValueError for an empty prompt, an empty response, or a prompt without responses.
    """
    check(prompts, responses)
    tree, blocks = _Tree(), []
    kept: dict[int, int] = {}  # place → its number among those whose logits are needed
    shape = (len(prompts), max(map(len, responses)), max(len(r) for group in responses for r in group))
    rows, tokens = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    valid = torch.zeros(shape, dtype=torch.bool)
    for b, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        block = _Block()
        block.add(tree.grow(START, prompt), 0, PROMPT)
        end = block.places[-1]
        for k, response in enumerate(group):
            n = len(response)
            branch = tree.grow(end, response[:-1])
            block.add(branch, len(prompt), k)
            # the first token is read off the prompt's last place, token t off the branch's place t − 1; a negative id
            # is a vector's (hybrid/prompts): it is read, but nobody asks how likely it is
            read_off = zip((end, *branch), response, strict=True)
            rows[b, k, :n] = torch.tensor([kept.setdefault(p, len(kept)) if t >= 0 else 0 for p, t in read_off])
            tokens[b, k, :n] = torch.tensor(response).clamp(min=0)
            valid[b, k, :n] = torch.tensor(response) >= 0
        blocks.append(block)
    return PackedRow(
        torch.tensor([tree.tokens], device=device), torch.tensor([tree.positions], device=device),
        _layout(blocks, device), torch.tensor(list(kept), device=device),
        rows.to(device), tokens.to(device), valid.to(device),
    )  # fmt: skip


def places(prompts: list[list[int]], responses: list[list[list[int]]]) -> int:
    """Places of a packed row with its blocks padded to the longest, as if nothing began alike: what a forward pass's
    memory grows with at the most."""
    groups = zip(prompts, responses, strict=True)
    return len(prompts) * max(len(prompt) + sum(len(response) - 1 for response in group) for prompt, group in groups)


class _Tree:
    """The places of a row: a token after the same tokens has one place, wherever it is asked for."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self._known: dict[tuple[int, int], int] = {}

    def grow(self, before: int, tokens: list[int]) -> list[int]:
        """The places of tokens that follow the place `before`, or START."""
        places = []
        for token in tokens:
            place = self._known.setdefault((before, token), len(self.tokens))
            if place == len(self.tokens):
                self.tokens.append(token)
                self.positions.append(0 if before == START else self.positions[before] + 1)
            places.append(place)
            before = place
        return places


@dataclass
class _Block:
    """One encoded prompt with all that branches off it, token by token."""

    places: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)

    def add(self, places: list[int], first: int, branch: int) -> None:
        """Put places behind the others, whose position ids count on from `first`."""
        self.places += places
        self.positions += range(first, first + len(places))
        self.branches += [branch] * len(places)


def check(prompts: list[list[int]], responses: list[list[list[int]]]) -> None:
    """Raise ValueError where there is nothing to score or nothing to condition on."""
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts and {len(responses)} groups of responses; each prompt has one")
    if not all(prompts):
        raise ValueError("a prompt is empty: the first token of a response needs at least one token before it")
    if not all(group and all(group) for group in responses):
        raise ValueError("a response is empty, or a prompt has none")


def _layout(blocks: list[_Block], device: torch.device | str) -> Layout:
    longest = max(len(block.positions) for block in blocks)
    gather, positions = (torch.zeros(len(blocks), longest, dtype=torch.long) for _ in range(2))
    branches = torch.full((len(blocks), longest), PADDING)
    scatter: dict[int, int] = {}  # a place stands where it is met first, so they come in ascending order
    for b, block in enumerate(blocks):
        n = len(block.positions)
        gather[b, :n] = torch.tensor(block.places)
        positions[b, :n] = torch.tensor(block.positions)
        branches[b, :n] = torch.tensor(block.branches)
        for number, place in enumerate(block.places):
            scatter.setdefault(place, b * longest + number)
    return Layout(
        gather.to(device),
        torch.tensor(list(scatter.values()), device=device),
        positions.to(device),
        branches.to(device),
    )


def shared_prefix_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    layout: Layout | Grown | None = None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of transformers' interface: query [1, H, T, d], key and value [1, H_kv, T, d] to [1, T, H, d].

    With a `layout` each prompt's block is an attention problem of its own, and all of them run as one padded batch, on
    top of a cache too (`Grown`); without one (generation, naive scoring) it is the library's SDPA.
    Raises LayoutLost where a packed row's layout did not reach it, ValueError where the model asks for a soft-cap,
    attention sinks or a position bias.
    """
    if layout is None and _in_packed_row.get():
        raise LayoutLost(f"{type(module).__name__} is called without the layout of the row, which its layer drops")
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
            sliding_window=sliding_window, **kwargs,
        )  # fmt: skip
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported:
        raise ValueError(f"{type(module).__name__} asks for {unsupported[0]}, which shared-prefix attention lacks")
    queries, keys = (layout.queries, layout.keys) if isinstance(layout, Grown) else (layout.gather, layout.gather)
    if not layout.single:
        query, key, value = _blocks(query, queries), _blocks(key, keys), _blocks(value, keys)
    kind, on_cpu = value.dtype, query.device.type == "cpu"
    if on_cpu:  # its bf16 kernel rounds more and has a slower backward pass; fp32 stays what it is
        query, key, value = query.float(), key.float(), value.float()
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not on_cpu:  # a CUDA kernel that takes a mask wants as many keys as queries
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=layout.mask(sliding_window), dropout_p=dropout, scale=scaling, enable_gqa=on_cpu
    )
    mixed = mixed.to(kind).transpose(1, 2)
    if layout.single:
        return mixed, None
    return mixed.flatten(0, 1).index_select(0, layout.scatter)[None], None


def _blocks(states: Tensor, places: Tensor) -> Tensor:
    """[1, H, T, d] -> [B, H, L, d], by the places [B, L] of each block in the row."""
    rows = states[0].transpose(0, 1).index_select(0, places.flatten())
    return rows.unflatten(0, places.shape).transpose(1, 2)


AttentionInterface.register(SHARED_ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)  # for plain calls; a packed row passes its own
