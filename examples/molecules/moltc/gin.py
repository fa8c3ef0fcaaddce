"""The graph isomorphism network (Xu et al. 2019, arXiv 1810.00826) with embedded bonds (Hu et al. 2020, arXiv
1905.12265), from scratch: MolTC's encoder without its pretrained weights.

LayerNorm takes the place of BatchNorm: a molecule's vectors then depend on no other molecule of the batch, training and
evaluation compute the same, and a checkpoint holds parameters alone.
"""

import torch
from torch import Tensor, nn

from moltc.graphs import ATOM_SIZES, BOND_SIZES, Graphs


class _Sum(nn.Module):
    """The sum of one learned vector for each of a row's numbers."""

    def __init__(self, sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(size, width) for size in sizes])

    def forward(self, rows: Tensor) -> Tensor:
        """[N, width] of rows [N, len(sizes)]."""
        parts = [table(rows[:, place]) for place, table in enumerate(self.tables)]
        return torch.stack(parts).sum(dim=0)


class GinLayer(nn.Module):
    """h'_v = MLP((1 + ε) h_v + Σ_u (h_u + e_uv)) over v's neighbours u, e_uv the embedded bond; ε is learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bonds = _Sum(BOND_SIZES, width)
        self.epsilon = nn.Parameter(torch.zeros(()))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.norm: nn.Module = nn.LayerNorm(width)

    def forward(self, atoms: Tensor, graphs: Graphs) -> Tensor:
        """[N, width] of atoms [N, width]."""
        source, target = graphs.ends
        messages = atoms[source] + self.bonds(graphs.bonds)
        summed = torch.zeros_like(atoms).index_add_(0, target, messages)
        out: Tensor = self.norm(self.mlp((1 + self.epsilon) * atoms + summed))
        return out


class Gin(nn.Module):
    """`layers` GIN layers, ReLU between them; the last layer's vectors are the output (the paper's JK "last")."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.atoms = _Sum(ATOM_SIZES, width)
        self.layers = nn.ModuleList([GinLayer(width) for _ in range(layers)])

    def forward(self, graphs: Graphs) -> Tensor:
        """[N, width]: a vector an atom."""
        hidden: Tensor = self.atoms(graphs.atoms)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden if number == 0 else torch.relu(hidden), graphs)
        return hidden

    def pooled(self, vectors: Tensor, graphs: Graphs) -> Tensor:
        """[M, width]: the mean over each molecule's atoms."""
        sums = vectors.new_zeros(graphs.count, vectors.shape[1]).index_add_(0, graphs.owner, vectors)
        return sums / torch.bincount(graphs.owner, minlength=graphs.count)[:, None]
