"""A teacher's item vectors: kept beside the adapter that reads them, whatever recommender they were read off."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recalign.common.artifacts import digest_of, read_parquet, write_parquet
from recalign.common.columns import ITEM, TITLE
from recalign.common.errors import RecalignError
from recalign.data.records import Items, hashed_order
from recalign.llm.adapters import TEACHER as FILE

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
