"""Seeds that depend on nothing but what they are for: what runs beside it changes no random number of a part."""

from typing import Any

from recalign.data.records import hashed_order


def own_seed(seed: int, name: str) -> int:
    """The seed of what is called `name` in a run with `seed`: 60 bits, for torch's seeds are signed 64-bit numbers."""
    return int(hashed_order(seed, name)[:15], 16)


def key(*parts: Any) -> int:
    """64 bits that depend on the parts only: numpy's keys and seeds are unsigned numbers."""
    return int(hashed_order(*parts)[:16], 16)
