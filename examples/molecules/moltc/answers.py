"""What a pair can be answered with: the sentences of interaction types, yes and no, or a number in words."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recalign.common.artifacts import read_parquet, write_parquet
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats

FIRST, SECOND = "{drug_1}", "{drug_2}"  # in a type's sentence: the two molecules, by their roles
YES_NO = (("0", "They do not interact."), ("1", "They interact."))
NAMES = ("Molecule 1", "Molecule 2")  # by the places of a prompt
_NUMBER = re.compile(r"between (-?\d+\.\d) and (-?\d+\.\d), so it is (-?\d+\.\d\d)")


@dataclass(frozen=True)
class Answers:
    """The closed answers of a data set; empty where the answer is a number.

    codes: as the file's label column writes them; sentences: with FIRST and SECOND. A directed type is two answers of
    one code: as the file says it, and the other way round. turned: the answer that says the same of a pair whose
    molecules change places, itself where the order says nothing.
    """

    codes: tuple[str, ...]
    sentences: tuple[str, ...]
    turned: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def types(self) -> tuple[str, ...]:
        """The different codes: what a figure is about, whichever molecule has which role."""
        return tuple(dict.fromkeys(self.codes))

    @property
    def type_of(self) -> np.ndarray:
        """[C] the place of each answer's code among `types`."""
        places = {code: place for place, code in enumerate(self.types)}
        return np.array([places[code] for code in self.codes], dtype=np.int64)

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """[N] the places of the labels' types, whichever molecule has which role; numbers as they are."""
        return self.type_of[labels.astype(np.int64)] if len(self) else labels

    def by_type(self, scores: Floats) -> Floats:
        """[N, C] log-probs of the answers → [N, T] of the types: both directions of a type count together."""
        return np.stack([np.logaddexp.reduce(scores[:, self.type_of == t], axis=1) for t in range(len(self.types))], 1)

    @classmethod
    def yes_no(cls) -> "Answers":
        """Of a label 0 or 1, which a pair has in either order."""
        return cls(tuple(code for code, _ in YES_NO), tuple(said for _, said in YES_NO), (0, 1))

    @classmethod
    def of_rows(cls, rows: Sequence[dict[str, str | None]], origin: str) -> "Answers":
        """Of the rows (type, sentence, symmetric 0 or 1) of a types file.

        Raises RecalignError for a type without a code or sentence, one that is listed twice, or another `symmetric`.
        """
        codes: list[str] = []
        sentences: list[str] = []
        turned: list[int] = []
        for number, row in enumerate(rows, start=1):
            code, sentence, both = ((row[name] or "").strip() for name in ("type", "sentence", "symmetric"))
            if not code or not sentence or "\n" in sentence:
                raise RecalignError(f"{origin}, row {number}: type is {code!r} and sentence {sentence!r}; give both, "
                                    "the sentence in one line")  # fmt: skip
            if both not in ("0", "1"):
                raise RecalignError(f"{origin}, row {number}: symmetric is {both!r}; allowed are 0 and 1")
            if code in codes:
                raise RecalignError(f"{origin}, row {number}: type {code!r} is listed twice; keep one row")
            if both == "0" and not (FIRST in sentence and SECOND in sentence):
                raise RecalignError(f"{origin}, row {number}: symmetric is 0, but the sentence does not name both "
                                    f"{FIRST} and {SECOND}, so it cannot say which is which")  # fmt: skip
            place = len(codes)
            codes += [code] if both == "1" else [code, code]
            sentences += [sentence] if both == "1" else [sentence, _other_way(sentence)]
            turned += [place] if both == "1" else [place + 1, place]
        if len(set(codes)) < 2:
            raise RecalignError(f"{origin} holds {len(set(codes))} types; a choice needs at least two")
        return cls(tuple(codes), tuple(sentences), tuple(turned))

    def said(self, *, swapped: bool) -> list[str]:
        """Each answer with the molecules' names; swapped: the pair's first molecule is the prompt's second one."""
        one, other = NAMES[::-1] if swapped else NAMES
        return [sentence.replace(FIRST, one).replace(SECOND, other) for sentence in self.sentences]

    def write(self, path: Path) -> None:
        """As Parquet."""
        write_parquet(path, pa.table({
            "code": pa.array(self.codes, pa.string()), "sentence": pa.array(self.sentences, pa.string()),
            "turned": pa.array(self.turned, pa.int64()),
        }))  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """What `write` wrote."""
        table = read_parquet(path)
        return cls(*(tuple(table[name].to_pylist()) for name in ("code", "sentence", "turned")))


def _other_way(sentence: str) -> str:
    """The sentence with both roles exchanged."""
    return SECOND.join(part.replace(SECOND, FIRST) for part in sentence.split(FIRST))


def number_said(value: float) -> str:
    """A number in MolTC's text form: bounds at multiples of a half, then the value to two decimals.

    The bounds are those of the value as it is written: ⌊2v⌋/2 and ⌈2v⌉/2, which are one where v is such a multiple
    (2.0 lies between 2.0 and 2.0, as in the paper).
    """
    shown = round(value, 2) + 0.0  # no −0.00
    low, high = math.floor(2 * shown) / 2 + 0.0, math.ceil(2 * shown) / 2 + 0.0
    return f"The value lies between {low:.1f} and {high:.1f}, so it is {shown:.2f}."


def number_read(text: str) -> float | None:
    """The value that a generated text states in the form of `number_said`; None where it states none.

    The bounds are a step of thought and not checked: a model may get them wrong and the value right.
    """
    found = _NUMBER.search(text)
    return float(found.group(3)) if found else None
