"""Which training items an epoch treats as new: they are learned, and never read.

A model that has read every title in some history learns titles by what stands next to them. An item without events has
no such neighbours. So a share of the items is kept out of an epoch's histories and asked for all the same; another
share is in the next epoch, until each one was new once.
"""

from collections.abc import Iterable
from dataclasses import replace

from recalign.data.records import Example, hashed_order, hashed_share


def new_in_epoch(items: Iterable[int], share: float, epoch: int, seed: int) -> frozenset[int]:
    """The items that are new in an epoch, by hash: each one in a `share` of the epochs, neighbours in turn.

    Within 1 / share epochs, where that is a whole number, every item is new exactly once.
    """
    return frozenset(item for item in items if (hashed_share(seed, "new", item) - epoch * share) % 1.0 < share)


def turn_of(example: Example, share: float, seed: int) -> int:
    """The epoch that an example stands for where it is read in every epoch alike, as preference pairs are."""
    return int(hashed_order(seed, "turn", example.example_id), 16) % max(1, round(1 / share))


def known_history(example: Example, new: frozenset[int]) -> Example:
    """The example without new items in its history; itself where nothing would be left. Its target stays."""
    history = tuple(item for item in example.history if item not in new)
    return replace(example, history=history) if history else example


def without_new(example: Example, new: frozenset[int]) -> Example | None:
    """The example with no new item in its history; its target is the latest new one that has a history, if any has.

    None where nothing known comes before what could be asked for.
    """
    sequence = [*example.history, example.target]
    for place in [*(place for place in reversed(range(len(sequence))) if sequence[place] in new), len(sequence) - 1]:
        history = tuple(item for item in sequence[:place] if item not in new)
        if history:
            return replace(example, history=history, target=sequence[place])
    return None
