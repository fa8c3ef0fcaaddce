"""Contextual states as vectors of a prompt: what a sequence model's hidden state is after a history that it has read.

A static vector is a row of a table, and its number is that row. A state has no table: its number is a hash of the items
that are read, so that the same history has the same number in every process, and another history another one. Whoever
builds a prompt asks for the number, and what was read is remembered until the language model looks the number up.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.records import Items

if TYPE_CHECKING:
    from recalign.recommenders.neural.encoders import EncoderName
    from recalign.recommenders.neural.sequential import Sequential

DIGITS = 15  # hex digits of a number: 60 bits, which an id of 64 has room for; a million histories collide once in 10^6


class States:
    """The states of one recommender; most: histories that are remembered at once, the latest ones; None: all."""

    def __init__(self, recommender: "Sequential", most: int | None = None) -> None:
        self.recommender = recommender
        self.most = most
        self._read: dict[int, tuple[int, ...]] = {}

    @cached_property
    def digest(self) -> str:
        """Digest of the recommender's settings and weights."""
        weights = {name: value.numpy().tobytes().hex() for name, value in self.recommender.encoder.state_dict().items()}
        return digest_of([self.recommender.settings.told, weights])

    def number(self, history: Sequence[int]) -> int:
        """The number of the state after a history of the recommender's own items, oldest first.

        It depends on the latest items alone, as many as the recommender reads.
        """
        read = tuple(history[-self.recommender.settings.length :])
        number = int(digest_of(read)[:DIGITS], 16)
        self._read.pop(number, None)
        self._read[number] = read  # the latest is the last one
        if self.most is not None and len(self._read) > self.most:
            self._read.pop(next(iter(self._read)), None)
        return number

    def of(self, numbers: Sequence[int]) -> Tensor:
        """[K, d] of K numbers, in fp32, without a gradient.

        Computed anew at each call, in one batch: a state that was kept from another batch differs in its last bits, and
        a training that goes on after a kill would not give the same bytes. Raises RecalignError for a number that is
        not remembered.
        """
        histories = [self._read.get(number) for number in numbers]
        if None in histories:
            raise RecalignError(
                f"a prompt asks for a state of '{self.recommender.name}' that no history of this process has, or that "
                f"{self.most or 'no'} later ones have displaced; build prompts with the teacher that the model was "
                "opened with, and score them before many others are built"
            )
        return self.recommender.last(cast(list[tuple[int, ...]], histories)).float()

    def write(self, folder: Path) -> None:
        """Write the recommender itself into `folder`, so that serving needs no other."""
        self.recommender.save(folder)

    @classmethod
    def read(cls, name: str, folder: Path, catalogue: Items, most: int | None = None) -> "States":
        """What `write` wrote. Raises RecalignError where it is missing, damaged or of another catalogue."""
        from recalign.recommenders.neural.sequential import Sequential

        try:
            return cls(Sequential.load(cast("EncoderName", name), folder, catalogue), most)
        except (KeyError, TypeError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise RecalignError(f"{folder} holds no whole '{name}' ({said}); restore it with 'dvc checkout'") from None
