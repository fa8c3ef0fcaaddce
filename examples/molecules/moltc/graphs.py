"""Molecules as graphs of integers: what the graph network reads of atoms and bonds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from rdkit import Chem
from torch import Tensor

from moltc.chemistry import KEPT, rdkit_molecule

ATOM_SIZES = (119, 8, 9, 6, 2, 4, 2)  # element, degree, charge from −4, hydrogens, aromatic, chirality, in a ring
BOND_SIZES = (5, 6, 2)  # single double triple aromatic other; stereo; in a ring
_BONDS = {
    Chem.BondType.SINGLE: 0, Chem.BondType.DOUBLE: 1, Chem.BondType.TRIPLE: 2, Chem.BondType.AROMATIC: 3,
}  # fmt: skip


@dataclass(frozen=True)
class Graphs:
    """M molecules in one: atoms [N, 7] and bonds [E, 3] as numbers below ATOM_SIZES and BOND_SIZES; ends [2, E]: the
    atoms from which and to which, each bond twice; owner [N]: each atom's molecule, ascending; count: M."""

    atoms: Tensor
    bonds: Tensor
    ends: Tensor
    owner: Tensor
    count: int

    def to(self, device: torch.device) -> "Graphs":
        """The same there."""
        atoms, bonds, ends, owner = (each.to(device) for each in (self.atoms, self.bonds, self.ends, self.owner))
        return Graphs(atoms, bonds, ends, owner, self.count)


@lru_cache(KEPT)
def graph_of(smiles: str) -> Graphs:
    """The graph of one canonical SMILES; a single atom has no bonds."""
    return molecule_graph(rdkit_molecule(smiles))


def molecule_graph(molecule: Chem.Mol) -> Graphs:
    """The graph of RDKit's molecule, atoms in its order."""
    atoms = [
        (
            atom.GetAtomicNum(), atom.GetDegree(), atom.GetFormalCharge() + 4, atom.GetTotalNumHs(),
            int(atom.GetIsAromatic()), int(atom.GetChiralTag()), int(atom.IsInRing()),
        )
        for atom in molecule.GetAtoms()
    ]  # fmt: skip
    bonds, ends = [], []
    for bond in molecule.GetBonds():
        told = (_BONDS.get(bond.GetBondType(), 4), int(bond.GetStereo()), int(bond.IsInRing()))
        one, other = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds += [told, told]
        ends += [(one, other), (other, one)]
    return Graphs(
        _clipped(atoms, ATOM_SIZES), _clipped(bonds, BOND_SIZES),
        torch.tensor(ends, dtype=torch.long).reshape(-1, 2).T, torch.zeros(len(atoms), dtype=torch.long), 1,
    )  # fmt: skip


def _clipped(rows: Sequence[tuple[int, ...]], sizes: tuple[int, ...]) -> Tensor:
    """Rare values beyond a size count as its last one."""
    table = torch.tensor(rows, dtype=torch.long).reshape(-1, len(sizes))
    return table.clamp(min=0).minimum(torch.tensor(sizes) - 1)


def joined(graphs: Sequence[Graphs]) -> Graphs:
    """Several graphs as one; nothing is padded."""
    atoms = torch.tensor([0] + [len(graph.atoms) for graph in graphs]).cumsum(0)
    first = torch.tensor([0] + [graph.count for graph in graphs]).cumsum(0)
    return Graphs(
        torch.cat([graph.atoms for graph in graphs]), torch.cat([graph.bonds for graph in graphs]),
        torch.cat([graph.ends + start for graph, start in zip(graphs, atoms, strict=False)], dim=1),
        torch.cat([graph.owner + start for graph, start in zip(graphs, first, strict=False)]), int(first[-1]),
    )  # fmt: skip
