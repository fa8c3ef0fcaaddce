"""Slices of the warm test cases: who and what a system serves well, each with its number of cases and interval."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recalign.common.item_groups import FIFTHS
from recalign.evaluation.metrics import metric_values
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import Interval, bootstrap_intervals
from recalign.evaluation.systems import ORACLE

FEWEST = 30  # cases below which a slice is shown in grey and nothing in it is called best
RARE_EVENTS = 10  # an item with fewer train events is rare
FEW_EVENTS = 5  # a user with fewer train events is hardly known
LENGTHS = (10, 20, 40)  # history lengths at which a new slice begins
GROUPS_SHOWN = 12  # values of the first attribute, those with the most cases
STARTS = ("user's first like", "target's first like")
DIMENSIONS = ("user", "item", "target's popularity", "history", *STARTS)  # and the items' first attribute
NEVER, AFTER = "not before the case", "after train"  # what a start is called
LATE, BEFORE = "in the last tenth of train's time", "earlier in train"
USERS = "user without train events", f"hardly known user (under {FEW_EVENTS} train events)", "known user"


@dataclass(frozen=True)
class CaseFacts:
    """What slices are cut by: liked items before the case, the user's train events, and the target's train events,
    popularity fifth and values of its first attribute (empty where items have none).

    starts: when user and target were first liked, each as NEVER, AFTER, LATE or BEFORE; None without a global clock.
    """

    history: int
    user_events: int
    target_events: int
    fifth: str
    groups: tuple[str, ...]
    starts: tuple[str, str] | None = None


@dataclass(frozen=True)
class Slice:
    """Cases that share a label of a dimension; values hold NDCG@10 of every system on them."""

    dimension: str
    label: str
    cases: int
    users: int
    values: dict[str, Interval]

    @property
    def small(self) -> bool:
        """Too few cases to rank systems by."""
        return self.cases < FEWEST

    @property
    def best(self) -> str | None:
        """The system with the highest value, the oracle aside; None where the slice is small or two share the place."""
        names = [name for name in self.values if name != ORACLE]
        first, *others = sorted(names, key=lambda name: -self.values[name].value)
        tied = any(self.values[name].value == self.values[first].value for name in others)
        return None if self.small or tied else first


def labels(facts: CaseFacts, attribute: str | None) -> list[tuple[str, str]]:
    """(dimension, label) of each slice that a case belongs to; an item with several values of an attribute is in each
    of theirs."""
    found = [
        (DIMENSIONS[0], _user(facts.user_events)),
        (DIMENSIONS[1], f"{RARE_EVENTS} train events or more" if facts.target_events >= RARE_EVENTS
         else f"rare item (under {RARE_EVENTS} train events)"),
        (DIMENSIONS[2], facts.fifth),
        (DIMENSIONS[3], _length(facts.history)),
        *zip(STARTS, facts.starts or (), strict=False),
    ]  # fmt: skip
    return found + [(attribute, group) for group in facts.groups if attribute]


def _user(events: int) -> str:
    if events >= FEW_EVENTS:
        return USERS[2]
    return USERS[1] if events else USERS[0]


def _length(history: int) -> str:
    starts = [0, *LENGTHS]
    place = sum(history >= start for start in LENGTHS)
    return f"{starts[place]} to {starts[place + 1] - 1} items" if place < len(LENGTHS) else f"{starts[place]} or more"


def build_slices(
    systems: Sequence[SystemRanks], facts: Mapping[str, CaseFacts], attribute: str | None, resamples: int, seed: int
) -> list[Slice]:
    """The slices of the systems' common cases (`facts` by example id), by dimension, then in a fixed order of labels.

    attribute is the name of the first attribute of the items, whose GROUPS_SHOWN most frequent values are slices.
    Raises RecalignError when the systems' cases differ.
    """
    for system in systems:
        systems[0].check_comparable(system)
    rows: dict[tuple[str, str], list[int]] = {}
    for row, example in enumerate(systems[0].example_ids):
        for key in labels(facts[example], attribute):
            rows.setdefault(key, []).append(row)
    gains = np.stack([metric_values(CHOSEN_BY, system.ranks) for system in systems], axis=1)
    users = np.array(systems[0].user_ids)
    made = []
    for key in _shown(rows, attribute):
        own = rows[key]
        intervals = bootstrap_intervals(gains[own], users[own].tolist(), resamples, seed)
        values = {system.system: interval for system, interval in zip(systems, intervals, strict=True)}
        made.append(Slice(*key, len(own), len(set(users[own].tolist())), values))
    return made


def _shown(rows: Mapping[tuple[str, str], Sequence[int]], attribute: str | None) -> list[tuple[str, str]]:
    sizes = Counter({key: len(own) for key, own in rows.items() if key[0] == attribute})
    frequent = sorted(sizes, key=lambda key: (-sizes[key], key))[:GROUPS_SHOWN]
    return sorted((key for key in rows if key[0] != attribute), key=_order) + frequent


def _order(key: tuple[str, str]) -> tuple[int, int, str]:
    dimension, label = key
    known = (*USERS, *FIFTHS, NEVER, AFTER, LATE, BEFORE)
    place = known.index(label) if label in known else int(label.split()[0]) if dimension == DIMENSIONS[3] else 0
    return DIMENSIONS.index(dimension), place, label
