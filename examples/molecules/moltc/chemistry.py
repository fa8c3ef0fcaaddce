"""Molecules from SMILES by RDKit: parsed, canonical, without salts; what can be computed of them without learning."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors
from rdkit.Chem.MolStandardize import rdMolStandardize

from recalign.evaluation.metrics import Floats

LONGEST_SMILES = 2000  # characters; RDKit would read more, no language model here would
BITS = 1024  # of a Morgan fingerprint
RADIUS = 2
KEPT = 2**15  # molecules in memory, of which RDKit need not read the SMILES again
MISSING, UNPARSABLE, TOO_LONG = "no SMILES", "unparsable SMILES", "SMILES too long"
DESCRIPTORS = (
    "logP", "polar surface", "hydrogen-bond donors", "hydrogen-bond acceptors", "rotatable bonds", "rings",
    "aromatic rings", "weight",
)  # fmt: skip


class BadMoleculeError(ValueError):
    """A text that is no molecule; `rule` says why, in the words of the quarantine."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


@dataclass(frozen=True)
class Molecule:
    """smiles: canonical, stereo kept, of the largest fragment; skeleton: the same without stereo, isotopes and charges
    that a proton more or less takes away, by which splits go (mirror images, and an acid and its salt, are one molecule
    there); atoms: without hydrogens; fragments: in the text, 2 or more for a salt or a mixture."""

    smiles: str
    skeleton: str
    atoms: int
    fragments: int


def read_molecule(text: str | None) -> Molecule:
    """The molecule that a SMILES names: of salts and mixtures the fragment with most atoms (ties: the first by SMILES).

    Charges stay as they are written; numbers of atoms in a reaction (atom maps) do not. Raises BadMoleculeError for a
    text that is missing, too long, or no molecule. A name behind the SMILES makes it unparsable: RDKit would read the
    part before the first blank, so that `C C O` were methane.
    """
    text = (text or "").strip()
    if not text:
        raise BadMoleculeError(MISSING)
    if len(text) > LONGEST_SMILES:
        raise BadMoleculeError(TOO_LONG)
    with rdBase.BlockLogs():  # what it says of a bad text goes to quarantine, in our words
        whole = Chem.MolFromSmiles(text) if len(text.split()) == 1 else None
        if whole is None:
            raise BadMoleculeError(UNPARSABLE)
        for atom in whole.GetAtoms():
            atom.SetAtomMapNum(0)
        fragments = Chem.GetMolFrags(whole, asMols=True)
        largest = min(fragments, key=lambda part: (-part.GetNumHeavyAtoms(), Chem.MolToSmiles(part)))
        smiles = Chem.MolToSmiles(largest)
        skeleton = _skeleton(largest)
    return Molecule(smiles, skeleton, largest.GetNumAtoms(), len(fragments))


def _skeleton(molecule: Chem.Mol) -> str:
    plain = Chem.Mol(molecule)
    for atom in plain.GetAtoms():
        atom.SetIsotope(0)
    heavy = Chem.RemoveAllHs(plain) if plain.GetNumHeavyAtoms() else plain  # hydrogen itself stays
    neutral = rdMolStandardize.Uncharger().uncharge(heavy)
    text: str = Chem.MolToSmiles(neutral, isomericSmiles=False)
    return text


@lru_cache(KEPT)
def rdkit_molecule(smiles: str) -> Chem.Mol:
    """RDKit's molecule of a canonical SMILES that `read_molecule` gave."""
    with rdBase.BlockLogs():
        found = Chem.MolFromSmiles(smiles)
    assert found is not None, f"{smiles} comes from read_molecule"
    return found


@lru_cache(KEPT)
def descriptors(smiles: str) -> tuple[float, ...]:
    """The eight DESCRIPTORS of a molecule, in their usual units (Å² of polar surface, Da of the exact weight)."""
    molecule = rdkit_molecule(smiles)
    logp, _ = rdMolDescriptors.CalcCrippenDescriptors(molecule)
    return (
        float(logp), float(rdMolDescriptors.CalcTPSA(molecule)),
        float(rdMolDescriptors.CalcNumHBD(molecule)), float(rdMolDescriptors.CalcNumHBA(molecule)),
        float(rdMolDescriptors.CalcNumRotatableBonds(molecule)), float(rdMolDescriptors.CalcNumRings(molecule)),
        float(rdMolDescriptors.CalcNumAromaticRings(molecule)), float(rdMolDescriptors.CalcExactMolWt(molecule)),
    )  # fmt: skip


def description(smiles: str) -> str:
    """What stage 1 learns to say of a molecule, and the first step of a chain of thought; some 25 words at most."""
    logp, surface, donors, acceptors, rotatable, rings, aromatic, weight = descriptors(smiles)
    return (
        f"weight {weight:.0f}, logP {logp:.1f}, polar surface {surface:.0f}, {donors:.0f} donors, "
        f"{acceptors:.0f} acceptors, {rotatable:.0f} rotatable bonds, {rings:.0f} rings, {aromatic:.0f} aromatic"
    )


def morgan_counts(smiles: Sequence[str]) -> Floats:
    """[N, BITS] counts of the circular substructures of radius 2 (Morgan, ECFP4), hashed to BITS places."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    rows = [generator.GetCountFingerprintAsNumPy(rdkit_molecule(each)) for each in smiles]
    return np.stack(rows).astype(np.float64)


def tanimoto(smiles: Sequence[str]) -> Floats:
    """[N, N] Tanimoto similarity of Morgan bits: common substructures over all of both, from 0 to 1."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    prints = [generator.GetFingerprint(rdkit_molecule(each)) for each in smiles]
    return np.array([DataStructs.BulkTanimotoSimilarity(one, prints) for one in prints], dtype=np.float64)
