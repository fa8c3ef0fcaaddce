"""Flat rows that hold several prompts, each followed by its responses as branches that share it.

One prompt of P tokens with responses of R_k tokens takes P + Σ(R_k − 1) places: the prompt once, and each response
without its last token, whose successor nobody asks for. Position ids restart at P in every branch, and the registered
attention function lets a branch see its prompt and itself only. Nothing is padded but the attention of each prompt.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_ATTENTION = "shared_prefix"
PROMPT = -1  # the branch number of a prompt's own tokens
PADDING = -2


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a flat row of T places belong; B prompts, the longest with its branches L places long.

    gather [B, L]: place in the row of each token of a prompt's block (padded with 0); scatter [T]: its inverse;
    positions, branches [B, L]: position id and branch number (PROMPT, 0 … K, or PADDING).
    """

    gather: Tensor
    scatter: Tensor
    positions: Tensor
    branches: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """[B, 1, L, L], True where a query (row) may see a key (column); shared by all layers."""
        if window not in self.masks:
            query, key = self.positions[:, :, None], self.positions[:, None, :]
            own = self.branches[:, :, None] == self.branches[:, None, :]
            seen = (key <= query) & (own | (self.branches[:, None, :] == PROMPT))
            if window is not None:
                seen &= query - key < window
            # a padded query sees itself: a row without any key would be NaN, and NaN × 0 is NaN in the backward pass
            self.masks[window] = (seen | (own & (query == key)))[:, None]
        return self.masks[window]


@dataclass(frozen=True)
class PackedRow:
    """A flat row and what to read from its logits.

    input_ids, position_ids [1, T]; keep [N]: the places whose logits are needed, N = Σ over prompts of 1 + Σ(R_k − 1);
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
    ids: list[int] = []
    keep: list[int] = []
    blocks: list[tuple[int, list[int], list[int]]] = []  # where a block starts, its position ids, its branch numbers
    shape = (len(prompts), max(map(len, responses)), max(len(r) for group in responses for r in group))
    rows, tokens = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    valid = torch.zeros(shape, dtype=torch.bool)
    for b, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        start, length = len(ids), len(prompt)
        positions, branches = list(range(length)), [PROMPT] * length
        ids += prompt
        first = len(keep)
        keep.append(len(ids) - 1)
        for k, response in enumerate(group):
            n = len(response)
            # the first token is read off the prompt's last place, token t off the branch's place t − 1
            rows[b, k, :n] = torch.tensor([first, *range(len(keep), len(keep) + n - 1)])
            tokens[b, k, :n] = torch.tensor(response)
            valid[b, k, :n] = True
            keep += range(len(ids), len(ids) + n - 1)
            ids += response[:-1]
            positions += range(length, length + n - 1)
            branches += [k] * (n - 1)
        blocks.append((start, positions, branches))
    layout, position_ids = _layout(blocks, device)
    return PackedRow(
        torch.tensor([ids], device=device), position_ids, layout, torch.tensor(keep, device=device),
        rows.to(device), tokens.to(device), valid.to(device),
    )  # fmt: skip


def check(prompts: list[list[int]], responses: list[list[list[int]]]) -> None:
    """Raise ValueError where there is nothing to score or nothing to condition on."""
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts and {len(responses)} groups of responses; each prompt has one")
    if not all(prompts):
        raise ValueError("a prompt is empty: the first token of a response needs at least one token before it")
    if not all(group and all(group) for group in responses):
        raise ValueError("a response is empty, or a prompt has none")


def _layout(blocks: list[tuple[int, list[int], list[int]]], device: torch.device | str) -> tuple[Layout, Tensor]:
    longest = max(len(positions) for _, positions, _ in blocks)
    gather = torch.zeros(len(blocks), longest, dtype=torch.long)
    all_positions = torch.zeros(len(blocks), longest, dtype=torch.long)
    all_branches = torch.full((len(blocks), longest), PADDING)
    scatter: list[int] = []
    for b, (start, positions, branches) in enumerate(blocks):
        n = len(positions)
        gather[b, :n] = torch.arange(start, start + n)
        all_positions[b, :n] = torch.tensor(positions)
        all_branches[b, :n] = torch.tensor(branches)
        scatter += range(b * longest, b * longest + n)
    flat = torch.tensor([position for _, positions, _ in blocks for position in positions])
    tensors = (gather, torch.tensor(scatter), all_positions, all_branches)
    gather, places, all_positions, all_branches = (tensor.to(device) for tensor in tensors)
    return Layout(gather, places, all_positions, all_branches), flat[None].to(device)


def shared_prefix_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    layout: Layout | None = None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of transformers' interface: query [1, H, T, d], key and value [1, H_kv, T, d] to [1, T, H, d].

    With a `layout` each prompt's block is an attention problem of its own, and all of them run as one padded batch;
    without one (generation, naive scoring) it is the library's SDPA.
    Raises ValueError where the model asks for a soft-cap, attention sinks or a position bias.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
            sliding_window=sliding_window, **kwargs,
        )  # fmt: skip
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported:
        raise ValueError(f"{type(module).__name__} asks for {unsupported[0]}, which shared-prefix attention lacks")
    block = layout.gather.shape
    groups = query.shape[1] // key.shape[1]

    def blocks(states: Tensor) -> Tensor:  # [1, H, T, d] -> [B, H, L, d]
        rows = states[0].transpose(0, 1).index_select(0, layout.gather.flatten())
        return rows.unflatten(0, block).transpose(1, 2)

    query, key, value = blocks(query), blocks(key), blocks(value)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=layout.mask(sliding_window), dropout_p=dropout, scale=scaling
    )
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, layout.scatter)[None], None


AttentionInterface.register(SHARED_ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)  # for plain calls; a packed row passes its own
