"""A batch cut into parts that fit into memory, whatever the lengths of its examples."""

from collections.abc import Callable, Sequence
from typing import TypeVar

E = TypeVar("E")


def micro_batches(batch: Sequence[E], budget: int, size: Callable[[Sequence[E]], int]) -> list[list[E]]:
    """Cut `batch`, in its order, into parts of at most `budget` tokens by `size`; an example above it stands alone."""
    parts: list[list[E]] = []
    for example in batch:
        if parts and size([*parts[-1], example]) <= budget:
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts
