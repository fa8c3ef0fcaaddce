"""Items by group: fifths of popularity, or the values of an attribute; several groups of an item share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recalign.common.errors import RecalignError

Floats = NDArray[np.float64]
POPULARITY = "popularity"  # the grouping by fifths of the catalogue; any other is the name of an attribute
NO_GROUP = "none"  # the group of items that an attribute says nothing of
Attributes = Mapping[int, Mapping[str, Sequence[str]]]  # item -> name of an attribute -> values
LEAST_KNOWN = 0.5  # share of the train events whose items need a value of an attribute that is grouped by
FIFTHS = ("least popular fifth", "second fifth", "third fifth", "fourth fifth", "most popular fifth")


def popularity_fifths(popularity: Mapping[int, int]) -> dict[int, str]:
    """Item -> its fifth of the catalogue by train events; items with equal counts share the lower of their fifths."""
    counts = np.sort(np.fromiter(popularity.values(), dtype=np.int64))
    return {
        item: FIFTHS[min(4, int(np.searchsorted(counts, events) * 5 // len(counts)))]
        for item, events in popularity.items()
    }


@dataclass(frozen=True)
class Grouping:
    """Items by group: shares [items, G] of each item (rows add up to 1), history [G] of all train events.

    items: in ascending id; names [G], sorted. A group has at least one item, but may have no train event.
    """

    by: str
    items: tuple[int, ...]
    names: tuple[str, ...]
    shares: Floats
    history: Floats

    def share_of(self, lists: Sequence[Sequence[int]]) -> Floats:
        """[B, G] each group's share of each list of item ids. Raises RecalignError for an empty list."""
        empty = next((place for place, items in enumerate(lists) if not len(items)), None)
        if empty is not None:
            raise RecalignError(f"list {empty} shows no item; exposure needs one at least")
        flat = np.searchsorted(self.items, np.concatenate([np.asarray(items) for items in lists]))
        starts = np.cumsum([0, *(len(items) for items in lists[:-1])])
        lengths = np.array([len(items) for items in lists], dtype=np.float64)
        summed: Floats = np.add.reduceat(self.shares[flat], starts, axis=0)
        return summed / lengths[:, None]


def group_items(by: str, popularity: Mapping[int, int], attributes: Attributes) -> Grouping:
    """The items of a catalogue by `popularity` (fifths of the items, by train events) or by an attribute.

    popularity: item -> train events; attributes: item -> name -> values. Items without the attribute are the group
    "none". Raises RecalignError for an attribute that no item has, or items of less than half of the train events; for
    a single group, which is always fair; and where there is no train event.
    """
    if by == POPULARITY:
        groups: Mapping[int, Sequence[str]] = {item: [own] for item, own in popularity_fifths(popularity).items()}
    else:
        groups = {item: attributes.get(item, {}).get(by, ()) for item in popularity}
        _check_attribute(by, popularity, attributes, groups)
    items = tuple(sorted(popularity))
    names, shares = membership(items, groups)
    if len(names) < 2:
        raise RecalignError(
            f"by {by!r} all items are of one group ({names[0]}), so that nothing can be unfair; allowed are "
            f"{_allowed(attributes)}"
        )
    events = np.array([popularity[item] for item in items], dtype=np.float64)
    if events.sum() <= 0:
        raise RecalignError("no item has a train event; exposure is measured against what people liked")
    return Grouping(by, items, tuple(names), shares, (events / events.sum()) @ shares)


def _check_attribute(
    by: str, popularity: Mapping[int, int], attributes: Attributes,
    groups: Mapping[int, Sequence[str]],
) -> None:  # fmt: skip
    known = sum(events for item, events in popularity.items() if groups[item])
    total = sum(popularity.values())
    if not any(groups.values()):
        raise RecalignError(f"no item has the attribute {by!r}; items are grouped by {_allowed(attributes)}")
    if known < LEAST_KNOWN * total:
        raise RecalignError(
            f"only {known / total:.0%} of the train events are of items that have {by!r}, and {LEAST_KNOWN:.0%} are "
            f"needed: else one group without a name decides; allowed are {_allowed(attributes)}"
        )


def _allowed(attributes: Attributes) -> str:
    return ", ".join([POPULARITY, *sorted({name for own in attributes.values() for name in own})])


def membership(items: Sequence[int], groups: Mapping[int, Sequence[str]]) -> tuple[list[str], Floats]:
    """The groups in sorted order, and [items, G] shares: an item of several groups counts in each with 1 / how many.

    IFairLRS counts a whole item in each of its groups; SPRec, and we, split it, so that every item weighs the same.
    Items without a group are of the group "none"; a value that an item has twice counts once.
    """
    of = [tuple(dict.fromkeys(groups.get(item) or (NO_GROUP,))) for item in items]
    names = sorted({group for own in of for group in own})
    column = {name: place for place, name in enumerate(names)}
    shares = np.zeros((len(of), len(names)))
    for row, own in enumerate(of):
        for group in own:
            shares[row, column[group]] += 1.0 / len(own)
    return names, shares
