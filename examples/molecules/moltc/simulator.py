"""Pairs of invented molecules whose interaction follows rules over RDKit's descriptors: the best answer is known.

The chemistry is a caricature. `python -m moltc simulate` writes the bundled data/simulated/ again, byte for byte.
"""

import csv
import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from rdkit import Chem

from moltc.answers import FIRST, SECOND
from moltc.chemistry import descriptors, rdkit_molecule, read_molecule
from moltc.splits import fraction
from recalign.common.artifacts import write_text
from recalign.data.records import hashed_order

LEFT = ("", "O", "N", "OC(=O)", "Cl", "F", "COC", "N#C")
CORES = ("CC", "CCC", "CCCC", "CCCCCC", "CC(C)C", "C1CCC(CC1)", "c1ccc(cc1)", "c1ccc(s1)", "c1ncc(cn1)", "C1CCN(CC1)")
RIGHT = ("", "O", "N", "C(=O)O", "Cl", "C#N", "OC", "C(=O)C", "C(=O)N", "CC")
MOLECULES, PER_TYPE = 220, 450
NOISE = 0.05  # of the types, exchanged for another one: nobody can be right more often than 95 %
SPREAD = 0.2  # of the energy, kcal/mol: nobody's RMSE can be lower
NEAR = 1.0  # of logP, within which two liquids mix
TYPES = {
    "salt": ("The two molecules form a salt.", 1),
    "ester": (f"The acid of {FIRST} forms an ester with {SECOND}.", 0),
    "mix": ("The two molecules mix in every ratio.", 1),
    "layer": (f"{FIRST} forms a layer above {SECOND}.", 0),
}
COLUMNS = ("smiles_1", "smiles_2", "type", "reacts", "energy", "best_type", "best_energy")
FAULTS = (  # rows that validation has to find, or to read all the same (a salt)
    ("C1CC", "CCO", "mix", "0", "-1.00", "mix", "-1.00"),
    ("", "CCO", "mix", "0", "-1.00", "mix", "-1.00"),
    ("CCO", "OCC", "mix", "0", "-1.00", "mix", "-1.00"),
    ("CCO", "CCCl", "explode", "9", "much", "mix", "-1.00"),
    ("CC(=O)[O-].[Na+]", "CCN", "salt", "1", "-2.00", "salt", "-2.00"),
)


GROUPS = ("[CX3](=O)[OX2H1]", "[NX3H2][CX4,c]", "[CX4][OX2H1]")  # SMARTS of an acid, a primary amine, an alcohol


class Interaction(NamedTuple):
    """The type of a pair in the order of its roles, and whether that is the other order than asked in."""

    type: str
    turned: bool


def interaction(one: str, other: str) -> Interaction:
    """What the rules say of two SMILES: an acid and an amine form a salt; else an acid and an alcohol an ester, the
    acid first; else what is near in logP mixes; else the more lipophilic one, first, is the upper layer."""
    acids, amines, alcohols = ([_has(each, group) for each in (one, other)] for group in GROUPS)
    if (acids[0] and amines[1]) or (acids[1] and amines[0]):
        return Interaction("salt", False)
    if acids[0] and alcohols[1]:
        return Interaction("ester", False)
    if acids[1] and alcohols[0]:
        return Interaction("ester", True)
    gap = descriptors(one)[0] - descriptors(other)[0]
    return Interaction("mix", False) if abs(gap) <= NEAR else Interaction("layer", gap < 0)


def _has(smiles: str, group: str) -> bool:
    return bool(rdkit_molecule(smiles).HasSubstructMatch(Chem.MolFromSmarts(group)))


def energy(solute: str, solvent: str) -> float:
    """An invented free energy of solvation, kcal/mol: hydrogen bonds both ways, size, and the distance in logP."""
    one, other = descriptors(solute), descriptors(solvent)
    bonds = min(one[2], other[3]) + min(one[3], other[2])
    return -0.9 * bonds - 0.45 * one[5] - 0.02 * one[7] + 0.3 * abs(one[0] - other[0])


def invented_molecules() -> list[str]:
    """MOLECULES different SMILES, put together from pieces; which ones is drawn by a hash."""
    every = {read_molecule(left + core + right).smiles for left, core, right in product(LEFT, CORES, RIGHT)}
    return sorted(every, key=lambda smiles: hashed_order("invented", smiles))[:MOLECULES]


def _normal(text: str) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(min(max(fraction(text), 1e-9), 1 - 1e-9))


def simulated_rows() -> Iterator[tuple[str, ...]]:
    """PER_TYPE pairs a type in the file's columns, in the order of a hash, the FAULTS among them at the end."""
    molecules = invented_molecules()
    pairs = [(a, b) for a, b in product(molecules, molecules) if a < b]
    counts = dict.fromkeys(TYPES, 0)
    names = list(TYPES)
    for a, b in sorted(pairs, key=lambda pair: hashed_order("simulated", *pair)):
        found = interaction(a, b)
        if counts[found.type] == PER_TYPE:
            continue
        counts[found.type] += 1
        one, other = (b, a) if found.turned else (a, b)
        said, pair = found.type, f"{a}|{b}"
        if fraction(f"noise|{pair}") < NOISE:
            others = [name for name in names if name != said]
            said = others[int(fraction(f"other|{pair}") * len(others))]
        best = energy(one, other)
        value = best + SPREAD * _normal(f"energy|{pair}")
        yield one, other, said, str(int(said in ("salt", "ester"))), f"{value:.2f}", found.type, f"{best:.2f}"
    yield from FAULTS


def write_simulated(folder: Path) -> None:
    """Write pairs.csv and types.csv into `folder`."""
    types = [(code, sentence, str(both)) for code, (sentence, both) in TYPES.items()]
    tables = {"pairs.csv": (COLUMNS, simulated_rows()), "types.csv": (("type", "sentence", "symmetric"), iter(types))}
    for name, (columns, rows) in tables.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        write_text(folder / name, text.getvalue())
