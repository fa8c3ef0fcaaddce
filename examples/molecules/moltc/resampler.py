"""Learned queries that read a molecule's atoms by cross-attention: a fixed number of vectors for any size of graph.

A reconstruction of MolTC's Q-Former in small: queries, self-attention among them and cross-attention to the graph in
every layer, without SciBERT's weights, its text branch and MolCA's pretraining.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head attention of x [M, T, width] to y [M, S, width]; `seen` [M, S] is True where there is something."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask, self.tell = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        """[M, T, width]."""

        def split(z: Tensor) -> Tensor:
            return z.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        key, value = self.tell(y).chunk(2, dim=-1)
        mask = None if seen is None else seen[:, None, None, :]
        found = scaled_dot_product_attention(split(self.ask(x)), split(key), split(value), attn_mask=mask)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    """Self-attention, cross-attention and an MLP, each on normalised input and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.own, self.cross = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, graph: Tensor, seen: Tensor) -> Tensor:
        normed = self.norms[0](queries)
        queries = queries + self.own(normed, normed)
        queries = queries + self.cross(self.norms[1](queries), graph, seen)
        out: Tensor = queries + self.mlp(self.norms[2](queries))
        return out


class Resampler(nn.Module):
    """`tokens` learned queries over a graph's mean and its atoms."""

    def __init__(self, width: int, tokens: int, layers: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(tokens, width) / width**0.5)
        self.before = nn.LayerNorm(width)
        self.layers = nn.ModuleList([_Layer(width, heads) for _ in range(layers)])

    def forward(self, atoms: Tensor, owner: Tensor, mean: Tensor) -> Tensor:
        """[M, tokens, width] of atoms [N, width] with their molecule owner [N] (ascending), and mean [M, width]."""
        count, sizes = len(mean), torch.bincount(owner, minlength=len(mean))
        place = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]
        longest = int(sizes.max())
        dense = atoms.new_zeros(count, longest, atoms.shape[1]).index_put((owner, place), atoms)
        graph = self.before(torch.cat([mean[:, None], dense], dim=1))
        seen = torch.arange(longest + 1, device=owner.device) <= sizes[:, None]  # place 0 is the mean
        queries = self.queries.expand(count, -1, -1)
        for layer in self.layers:
            queries = layer(queries, graph, seen)
        return queries
