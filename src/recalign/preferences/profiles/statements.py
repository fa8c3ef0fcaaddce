"""Closed statements about a taste, drawn from the catalogue's attributes: "crime films", "films by Martin Scorsese"."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from recalign.data.records import Items
from recalign.data.titles import safe_title

MIN_ITEMS = 3  # an attribute's value that fewer items have says little about a taste
MAX_STATEMENTS = 256  # the values most met in the log; a catalogue of free tags has thousands
WELL_KNOWN_SHARE = 0.1  # of the catalogue, by events
PHRASES = {
    "genre": "{value} {noun}",
    "director": "{noun} by {value}",
    "author": "{noun} by {value}",
    "artist": "{noun} by {value}",
    "decade": "{noun} of the {value}",
    "popularity": "{value} {noun}",
}
OTHER_PHRASE = "{noun} with {attribute} {value}"


@dataclass(frozen=True)
class Statement:
    """What a person may like: `phrase` as text, the items it holds for, and their share of all events in [0, 1]."""

    attribute: str
    value: str
    phrase: str
    items: frozenset[int]
    base: float


def closed_statements(items: Items, counts: Mapping[int, int], noun: str) -> list[Statement]:
    """The statements that a catalogue affords, ordered by attribute and value.

    counts: events an item before the profile's cutoff, which fix the base rates; noun: what an item is called, plural.
    Years become decades; "well-known" are the WELL_KNOWN_SHARE items with the most events. Values that hold for fewer
    than MIN_ITEMS items or for all of them are left out, and beyond MAX_STATEMENTS those with the fewest events.
    Empty where the catalogue has no attributes.
    """
    total = max(sum(counts.values()), 1)
    groups: dict[tuple[str, str], set[int]] = defaultdict(set)
    for item in items.ids:
        for key in _values(items.attributes[item]):
            groups[key].add(item)
    if groups:
        groups["popularity", "well-known"] = _well_known(items, counts)
    statements = [
        Statement(
            name, value, _phrase(name, value, noun), frozenset(group), sum(counts.get(i, 0) for i in group) / total
        )
        for (name, value), group in groups.items()
        if MIN_ITEMS <= len(group) < len(items.ids)
    ]
    statements.sort(key=lambda s: (-s.base, s.attribute, s.value))
    return sorted(statements[:MAX_STATEMENTS], key=lambda s: (s.attribute, s.value))


def _values(attributes: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    for name, values in attributes.items():
        for value in values:
            if name == "year" and re.fullmatch(r"\d{4}", value):
                yield "decade", f"{value[:3]}0s"
            elif name != "year" and value:
                yield name, value


def _well_known(items: Items, counts: Mapping[int, int]) -> set[int]:
    ranked = sorted(items.ids, key=lambda item: (-counts.get(item, 0), item))
    return set(ranked[: int(len(ranked) * WELL_KNOWN_SHARE)])


def _phrase(attribute: str, value: str, noun: str) -> str:
    text = value.lower() if attribute == "genre" else value
    phrase = PHRASES.get(attribute, OTHER_PHRASE).format(attribute=attribute, value=text, noun=noun)
    return safe_title(phrase)  # values are the user's own data, untrusted as titles are


def supporting(statement: Statement, history: Iterable[int]) -> list[int]:
    """The items of a history that a statement holds for, in the history's order."""
    return [item for item in history if item in statement.items]


def plausible_items(statements: Iterable[Statement]) -> dict[int, int]:
    """The items that at least one of the statements holds for, each with the number that do."""
    return dict(Counter(item for statement in statements for item in statement.items))


def taste_sentence(phrases: Sequence[str]) -> str:
    """ "Likes a, b and c." — the text of a profile; empty without phrases."""
    if not phrases:
        return ""
    *others, last = phrases
    return f"Likes {', '.join(others)} and {last}." if others else f"Likes {last}."


def stated_in(text: str, statements: Iterable[Statement]) -> list[Statement]:
    """The statements whose value a free text names as a whole word, case aside."""
    return [s for s in statements if re.search(rf"(?<!\w){re.escape(s.value)}(?!\w)", text, re.IGNORECASE)]


PRIOR_ITEMS = 2.0  # pseudo-items that pull a lift towards 1; keeps one film by a rare director from being a taste


def smoothed_lift(statement: Statement, history: Sequence[int]) -> float:
    """ln of how many times more often than expected the statement holds in the history; 0 where as often.

    (observed + m) / (expected + m) with expected = len(history) × base rate and m = PRIOR_ITEMS: the posterior mean of
    a rate ratio under a Gamma(m, m) prior (DuMouchel 1999, The American Statistician 53(3), eq. 4 with one component).
    """
    observed, expected = len(supporting(statement, history)), len(history) * statement.base
    return math.log((observed + PRIOR_ITEMS) / (expected + PRIOR_ITEMS))


def strongest_lifts(
    statements: Sequence[Statement], history: Sequence[int], limit: int
) -> list[tuple[Statement, float]]:
    """The `limit` statements with the largest smoothed lift above 0, strongest first, each with that lift."""
    lifts = [(statement, smoothed_lift(statement, history)) for statement in statements]
    lifts = [(statement, lift) for statement, lift in lifts if lift > 0]
    return sorted(lifts, key=lambda pair: (-pair[1], pair[0].attribute, pair[0].value))[:limit]
