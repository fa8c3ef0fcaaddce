"""What is written of an item as numbers: its attributes, the n-grams of its text, vectors of a text encoder.

A description puts one or several of these blocks side by side ("attributes+tfidf"). Each is centred on the trained
items and divided by their root mean square length, so that no block outweighs another by its units. It is fitted on
trained items alone and then reads any item.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from recalign.common.errors import RecalignError
from recalign.data.records import Items

Matrix = NDArray[np.float64]
ATTRIBUTES, TFIDF = "attributes", "tfidf"
MOST_VALUES = 1000  # of attributes that get a column of their own, the most frequent ones
FEWEST_NUMBERS = 5  # different numbers of an attribute before it is read as a quantity, not as names
MOST_TERMS = 8192  # n-grams that are counted, the most frequent ones
TFIDF_WIDTH = 256  # numbers that n-grams are reduced to (latent semantic analysis)
FIT_AGAIN = (
    "fit what reads text again, as by 'dvc repro -sf baselines@content baselines@content_prior'"  # unseen by DVC
)
SAME = 1e-9  # root mean square length below which all items are described alike


@dataclass(frozen=True)
class TextReader:
    """Reads texts by a text encoder's name. model, revision: what the name `model` stands for."""

    model: str | None = None
    revision: str | None = None
    threads: int = 1

    def __call__(self, name: str, texts: Sequence[str]) -> tuple[Matrix, str]:
        """Vectors [texts, width] and the encoder's identity; torch is met only here."""
        return self._read(name, texts)

    @cached_property
    def _read(self) -> Callable[[str, Sequence[str]], tuple[Matrix, str]]:
        from recalign.llm.text_vectors import text_reader

        return text_reader(self.model, self.revision, self.threads)


def text_of(items: Items, item: int) -> str:
    """Title and attributes in one line: "Toy Story; genre: Animation, Comedy; year: 1995"."""
    told = items.attributes.get(item, {})
    parts = [items.titles.get(item, ""), *(f"{name}: {', '.join(told[name])}" for name in sorted(told) if told[name])]
    return "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class Attributes:
    """values: (attribute, value) with a column each; numbers: attribute, mean and deviation over the trained items."""

    values: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, float, float], ...]

    @classmethod
    def fit(cls, items: Items, known: Sequence[int]) -> "Attributes":
        """An attribute that holds one number in each trained item that has it, and several different ones, is a
        quantity; the values of the others are names, one column each."""
        told = [items.attributes.get(item, {}) for item in known]
        names = sorted({name for each in told for name in each})
        numbers = {name: found for name in names if (found := _numbers([each.get(name, []) for each in told]))}
        counts = Counter(
            (name, value) for each in told for name in each if name not in numbers for value in set(each[name])
        )
        values = sorted(counts, key=lambda pair: (-counts[pair], pair))[:MOST_VALUES]
        moments = [(name, float(np.mean(n)), float(np.std(n))) for name, n in numbers.items()]
        return cls(tuple(values), tuple(moments))

    def vectors(self, items: Items, ids: Sequence[int]) -> Matrix:
        """[ids, columns]: 1 for a value that an item has; of a number its standardised value, that squared, and 1 where
        it is missing."""
        columns = {pair: column for column, pair in enumerate(self.values)}
        found = np.zeros((len(ids), len(self.values) + 3 * len(self.numbers)))
        for row, item in enumerate(ids):
            told = items.attributes.get(item, {})
            for name, values in told.items():
                found[row, [columns[name, value] for value in values if (name, value) in columns]] = 1.0
            for place, (name, mean, deviation) in enumerate(self.numbers):
                number = _number(told.get(name, []))
                z = 0.0 if number is None else max(-3.0, min(3.0, (number - mean) / deviation))
                start = len(self.values) + 3 * place
                found[row, start : start + 3] = z, z * z, number is None
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"values": self.values, "numbers": self.numbers}, {}

    @classmethod
    def of_state(cls, told: dict[str, Any], _: dict[str, NDArray[Any]]) -> "Attributes":
        return cls(
            tuple((name, value) for name, value in told["values"]),
            tuple((name, mean, deviation) for name, mean, deviation in told["numbers"]),
        )


def _number(values: Sequence[str]) -> float | None:
    if len(values) != 1:
        return None
    try:
        number = float(values[0])
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _numbers(column: Sequence[Sequence[str]]) -> list[float]:
    """The numbers of an attribute that is a quantity; empty where it is not."""
    given = [values for values in column if values]
    numbers = [number for values in given if (number := _number(values)) is not None]
    return numbers if len(numbers) == len(given) and len(set(numbers)) >= FEWEST_NUMBERS else []


def grams(text: str) -> Iterator[str]:
    """Words, pairs of words, and the 3 to 5 characters of words (with a blank on both sides), in small letters."""
    words = re.findall(r"\w+", text.casefold())
    yield from (f"w {word}" for word in words)
    yield from (f"w {one} {other}" for one, other in pairwise(words))
    for word in words:
        padded = f" {word} "
        for size in (3, 4, 5):
            yield from (f"c{padded[at : at + size]}" for at in range(len(padded) - size + 1))


@dataclass(frozen=True)
class TfIdf:
    """N-grams of texts by tf–idf, reduced to the leading directions of the trained items' texts.

    terms: n-grams; idf [terms]; directions [terms, width].
    """

    terms: tuple[str, ...]
    idf: Matrix
    directions: Matrix

    @classmethod
    def fit(cls, items: Items, known: Sequence[int]) -> "TfIdf":
        """Terms are the most frequent MOST_TERMS of the trained items' texts."""
        counts = Counter(term for item in known for term in set(grams(text_of(items, item))))
        terms = tuple(sorted(counts, key=lambda term: (-counts[term], term))[:MOST_TERMS])
        idf = np.log((1 + len(known)) / (1 + np.array([counts[term] for term in terms], np.float64))) + 1
        plain = cls(terms, idf, np.zeros((len(terms), 0)))
        if not terms:
            return plain
        directions = leading(plain.weighted(items, known), TFIDF_WIDTH)[1]
        return cls(terms, idf, directions.astype(np.float32).astype(np.float64))  # as they are kept

    def weighted(self, items: Items, ids: Sequence[int]) -> sparse.csr_array:
        """[ids, terms] of (1 + log count) · idf, rows of length 1."""
        column = {term: place for place, term in enumerate(self.terms)}
        rows, columns, values = [], [], []
        for row, item in enumerate(ids):
            told = Counter(column[term] for term in grams(text_of(items, item)) if term in column)
            weights = np.array([(1 + math.log(count)) * self.idf[place] for place, count in told.items()])
            rows += [row] * len(told)
            columns += list(told)
            values += (weights / max(float(np.linalg.norm(weights)), SAME)).tolist()
        return sparse.csr_array((values, (rows, columns)), shape=(len(ids), len(self.terms)))

    def vectors(self, items: Items, ids: Sequence[int]) -> Matrix:
        """[ids, width]."""
        if not self.terms:
            return np.zeros((len(ids), 0))
        return np.asarray(self.weighted(items, ids) @ self.directions, dtype=np.float64)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"terms": self.terms}, {"idf": self.idf, "directions": self.directions.astype(np.float32)}

    @classmethod
    def of_state(cls, told: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> "TfIdf":
        return cls(tuple(told["terms"]), arrays["idf"], arrays["directions"].astype(np.float64))


@dataclass(frozen=True)
class Encoded:
    """Vectors of a text encoder by its name; identity: which one it was when the description was fitted."""

    name: str
    identity: str
    read: TextReader

    def vectors(self, items: Items, ids: Sequence[int]) -> Matrix:
        """[ids, width]. Raises RecalignError where the name stands for another encoder by now."""
        vectors, identity = self.read(self.name, [text_of(items, item) for item in ids])
        if identity != self.identity:
            raise RecalignError(
                f"the text encoder '{self.name}' is another one (sha256 {identity[:12]}) than the recommender was "
                f"fitted with ({self.identity[:12]}); {FIT_AGAIN}"
            )
        return vectors

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"identity": self.identity, "model": self.read.model, "revision": self.read.revision}, {}

    @classmethod
    def of_state(cls, told: dict[str, Any]) -> "Encoded":
        return cls(told["name"], told["identity"], TextReader(told["model"], told["revision"]))


Block = Attributes | TfIdf | Encoded


def leading(matrix: sparse.csr_array, most: int) -> tuple[NDArray[np.float64], Matrix]:
    """The largest `most` singular values of a matrix [rows, columns], largest first, and their right vectors
    [columns, k]; those that are zero are left out. Each vector's largest entry is positive, so equal data give equal
    vectors."""
    small = min(matrix.shape)
    if small <= 2 * most:
        _, values, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        _, values, right = svds(matrix.astype(np.float64), k=most, v0=np.ones(small), solver="arpack")
    order = np.argsort(-values, kind="stable")[:most]
    order = order[values[order] > SAME * max(float(values.max(initial=0.0)), SAME)]
    vectors = right[order].T
    if vectors.size:
        peaks = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
        vectors = vectors * np.where(peaks < 0, -1.0, 1.0)
    return values[order], vectors


@dataclass(frozen=True)
class Description:
    """Blocks side by side, each with what centres [width] and scales it."""

    blocks: tuple[tuple[str, Block], ...]
    means: tuple[Matrix, ...]
    scales: tuple[float, ...]

    def vectors(self, items: Items, ids: Sequence[int]) -> Matrix:
        """[ids, features] of any items.

        Raises RecalignError where an encoder gives vectors of another size than it did when this was fitted.
        """
        parts = [np.zeros((len(ids), 0))]
        for (name, block), mean, scale in zip(self.blocks, self.means, self.scales, strict=True):
            raw = block.vectors(items, ids)
            if raw.shape[1] != len(mean):
                raise RecalignError(
                    f"the text encoder '{name}' gives {raw.shape[1]} numbers an item, and the recommender was fitted "
                    f"with {len(mean)}; {FIT_AGAIN}"
                )
            parts.append((raw - mean) / scale)
        return np.concatenate(parts, axis=1)

    def state(self) -> tuple[list[Any], dict[str, NDArray[Any]]]:
        """What `of_state` reads: JSON-able values, and arrays by name."""
        told: list[Any] = []
        arrays: dict[str, NDArray[Any]] = {}
        for (name, block), mean, scale in zip(self.blocks, self.means, self.scales, strict=True):
            own, kept = block.state()
            told.append({"name": name, "scale": scale} | own)
            arrays |= {f"{name}.{key}": value for key, value in kept.items()} | {f"{name}.mean": mean}
        return told, arrays

    @classmethod
    def of_state(cls, told: Sequence[dict[str, Any]], arrays: dict[str, NDArray[Any]]) -> "Description":
        blocks: list[tuple[str, Block]] = []
        for each in told:
            name = each["name"]
            own = {key.removeprefix(f"{name}."): kept for key, kept in arrays.items() if key.startswith(f"{name}.")}
            if name == ATTRIBUTES:
                blocks.append((name, Attributes.of_state(each, own)))
            elif name == TFIDF:
                blocks.append((name, TfIdf.of_state(each, own)))
            else:
                blocks.append((name, Encoded.of_state(each)))
        means = tuple(arrays[f"{name}.mean"] for name, _ in blocks)
        return cls(tuple(blocks), means, tuple(each["scale"] for each in told))


@dataclass(frozen=True)
class TextMap:
    """Leads from a description to targets: vectors @ weights [features, d] + constant [d]."""

    description: Description
    weights: Matrix
    constant: Matrix

    def of(self, items: Items, ids: Sequence[int]) -> Matrix:
        """[ids, d]."""
        told: Matrix = self.description.vectors(items, ids) @ self.weights + self.constant
        return told

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        told, arrays = self.description.state()
        return {"blocks": told}, arrays | {"weights": self.weights, "constant": self.constant}

    @classmethod
    def of_state(cls, told: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> "TextMap":
        description = Description.of_state(told["blocks"], arrays)
        return cls(description, arrays["weights"], arrays["constant"])


def fit_description(encoder: str, items: Items, known: Sequence[int], read: TextReader) -> Description:
    """The blocks that `encoder` names (joined by "+"), fitted on the items `known`.

    A block that says the same of all of them is left out; a description without any block says nothing.
    """
    blocks, means, scales = [], [], []
    for name in encoder.split("+"):
        block = _fit_block(name, items, known, read)
        raw = block.vectors(items, known)
        mean = raw.mean(axis=0)
        scale = float(np.sqrt(((raw - mean) ** 2).sum(axis=1).mean()))
        if scale > SAME:
            blocks.append((name, block))
            means.append(mean)
            scales.append(scale)
    return Description(tuple(blocks), tuple(means), tuple(scales))


def _fit_block(name: str, items: Items, known: Sequence[int], read: TextReader) -> Block:
    if name == ATTRIBUTES:
        return Attributes.fit(items, known)
    if name == TFIDF:
        return TfIdf.fit(items, known)
    _, identity = read(name, [])
    return Encoded(name, identity, read)
