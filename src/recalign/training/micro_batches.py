"""A batch cut into parts that fit into memory, whatever the lengths of its examples."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol, TypeVar


class Grouped(Protocol):
    """An example that shares its prompt with those of its group."""

    @property
    def group(self) -> str:
        """Examples of one group that stand together are kept together where they fit."""
        ...


G = TypeVar("G", bound=Grouped)


def micro_batches(batch: Sequence[G], budget: int, size: Callable[[Sequence[G]], int]) -> list[list[G]]:
    """Cut `batch`, in its order, into parts of at most `budget` tokens by `size`; an example above it stands alone.

    A group that fits into one part is not torn apart.
    """
    parts: list[list[G]] = []
    for _, members in groupby(batch, key=lambda example: example.group):
        group = list(members)
        if parts and size([*parts[-1], *group]) <= budget:
            parts[-1] += group
            continue
        parts.append(group[:1])
        for example in group[1:]:
            if size([*parts[-1], example]) <= budget:
                parts[-1].append(example)
            else:
                parts.append([example])
    return parts
