"""The recommenders whose item vectors a hybrid prompt shows: read off their fitted folders, kept beside the adapter.

As in LLaRA's code the vectors are the static item embeddings, not the states of a history. Sequence models are weak
where histories are sets, so the factors of EASE are a teacher too.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recalign.common.artifacts import digest_of, folder_digest, read_parquet, write_parquet
from recalign.common.columns import ITEM, TITLE
from recalign.common.errors import RecalignError, did_you_mean
from recalign.data.records import Items, hashed_order
from recalign.llm.adapters import TEACHER as FILE
from recalign.recommenders.roster import refusal

SEQUENCES, EASE = ("sasrec", "gru4rec", "caser"), "ease"
TEACHERS = (*SEQUENCES, EASE)
FACTORS = 64  # of EASE's weights that are kept: the width of the sequence models' embeddings
VECTOR = "vector"


@dataclass(frozen=True)
class Teacher:
    """Item vectors [N, d] of a recommender, in the order of `ids`; titles: by which a newer catalogue knows the items.

    fitted: digest of the folder that they were read from, or that of what was made of them.
    """

    name: str
    ids: tuple[int, ...]
    titles: tuple[str, ...]
    vectors: Tensor
    fitted: str

    def __post_init__(self) -> None:
        if self.vectors.shape[:1] != (len(self.ids),) or len(self.ids) != len(self.titles):
            raise RecalignError(
                f"the teacher '{self.name}' has {len(self.vectors)} vectors for {len(self.ids)} items; fit it again "
                f"with 'dvc repro baselines@{self.name}'"
            )

    @cached_property
    def order_digest(self) -> str:
        """Digest of which items the vectors are of, in their order."""
        return digest_of([self.ids, self.titles])

    @cached_property
    def digest(self) -> str:
        """Digest of the vectors themselves, and of what they were read from."""
        return digest_of([self.name, self.fitted, self.vectors.float().numpy().tobytes().hex()])

    def numbers(self, catalogue: Items) -> dict[int, int]:
        """Item of a catalogue → number of its vector, by title; items without one are left out."""
        known = {title: number for number, title in enumerate(self.titles)}
        return {item: known[title] for item, title in catalogue.titles.items() if title in known}

    def write(self, folder: Path) -> None:
        """Write FILE into an existing folder, from where it travels with the adapter."""
        table = pa.table({
            ITEM: pa.array(self.ids, pa.int64()), TITLE: pa.array(self.titles, pa.string()),
            VECTOR: pa.array(self.vectors.float().tolist(), pa.list_(pa.float32())),
        })  # fmt: skip
        told = {b"name": self.name.encode(), b"fitted": self.fitted.encode()}
        write_parquet(folder / FILE, table.replace_schema_metadata(told))

    @classmethod
    def read(cls, folder: Path) -> "Teacher":
        """What `write` wrote. Raises RecalignError where it is missing or something else."""
        if not (folder / FILE).is_file():
            raise RecalignError(f"{folder} holds no {FILE}, the vectors of its teacher; restore it with 'dvc checkout'")
        table = read_parquet(folder / FILE)
        said = table.schema.metadata or {}
        if {b"name", b"fitted"} - said.keys() or {ITEM, TITLE, VECTOR} - set(table.column_names) or not len(table):
            raise RecalignError(f"{folder / FILE} holds no vectors of a teacher; restore it with 'dvc checkout'")
        vectors = torch.tensor(np.stack(table[VECTOR].to_pylist()), dtype=torch.float32)
        ids, titles = (tuple(table[name].to_pylist()) for name in (ITEM, TITLE))
        return cls(said[b"name"].decode(), ids, titles, vectors, said[b"fitted"].decode())


def read_teacher(name: str, baselines: Path, catalogue: Items) -> Teacher:
    """The item vectors of a recommender fitted in `baselines`.

    Raises RecalignError for a name that is no teacher, one that was not fitted, or one of another catalogue.
    """
    if name not in TEACHERS:
        allowed = ", ".join(TEACHERS)
        raise RecalignError(f"hybrid.teachers names '{name}'; allowed are {allowed}{did_you_mean(name, TEACHERS)}")
    folder = baselines / name
    why = refusal(folder)
    if why is not None or not folder.is_dir():
        raise RecalignError(
            f"hybrid.teachers names '{name}', which was not fitted{f' ({why})' if why else ''}; put it into "
            f"recommenders.systems and run 'dvc repro baselines@{name}'"
        )
    own = catalogue.trained
    vectors = _factors(folder, own) if name == EASE else _embeddings(name, folder, own)
    return Teacher(name, own.ids, tuple(own.titles[item] for item in own.ids), vectors, folder_digest(folder))


def _embeddings(name: str, folder: Path, catalogue: Items) -> Tensor:
    from recalign.recommenders.neural.encoders import EncoderName
    from recalign.recommenders.neural.sequential import Sequential

    recommender = Sequential.load(cast(EncoderName, name), folder, catalogue)
    return recommender.item_embedding(list(catalogue.ids)).float().contiguous()


def _factors(folder: Path, catalogue: Items) -> Tensor:
    from recalign.recommenders.ease import EASE as Recommender

    return torch.from_numpy(item_factors(Recommender.load(folder, catalogue).weights, FACTORS))


def item_factors(weights: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """[items, width] U·√S of the largest singular values of EASE's weights: what an item adds as a part of a history.

    Fewer columns than `width` where the catalogue is smaller. The signs are fixed: the largest entry of a column is
    positive.
    """
    from scipy.sparse.linalg import svds

    size = len(weights)
    kept = min(width, size - 1)
    left, values, _ = svds(weights.astype(np.float64), k=kept, v0=np.ones(size) / np.sqrt(size))
    order = np.argsort(-values, kind="stable")
    factors = left[:, order] * np.sqrt(values[order])
    signs = np.sign(factors[np.abs(factors).argmax(axis=0), np.arange(kept)])
    found: NDArray[np.float32] = (factors * np.where(signs == 0, 1.0, signs)).astype(np.float32)
    return found


def shuffled(teacher: Teacher, seed: int) -> Teacher:
    """A control: every item has another item's vector, by a hashed order."""
    order = sorted(range(len(teacher.ids)), key=lambda number: hashed_order(seed, "shuffled", teacher.ids[number]))
    moved = torch.empty(len(order), dtype=torch.long)
    moved[torch.tensor(order)] = torch.tensor([*order[1:], order[0]])  # one place on along that order: nobody keeps his
    return _made(teacher, teacher.vectors[moved], f"shuffled by {seed}")


def averaged(teacher: Teacher) -> Teacher:
    """A control: every item has the mean vector of all."""
    return _made(teacher, teacher.vectors.mean(dim=0, keepdim=True).expand_as(teacher.vectors).clone(), "averaged")


def _made(teacher: Teacher, vectors: Tensor, how: str) -> Teacher:
    return replace(teacher, vectors=vectors, fitted=digest_of([teacher.fitted, how]))
