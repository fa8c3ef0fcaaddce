"""A text about a taste in a fixed structure: one line a point, the points always in the same order.

DPO4Rec lets the model answer a fixed list of points (likes, dislikes, factors of the domain), so that two texts of one
user differ in what they say and not in their form. What a model writes is untrusted: each line is cleaned as a title
is, and what has another structure is refused with its reason.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from recalign.data.titles import safe_title
from recalign.llm.prompts import LONGEST_READ

LIKES, DISLIKES, BECAUSE, SHORT = "Likes", "Dislikes", "Because of", "In short"
LONGEST_LINE = 160  # characters of a point; what is longer is refused, for a model that rambles has lost the structure


@dataclass(frozen=True)
class TasteText:
    """What is said of one user's taste.

    factors: what is said of each factor of the domain ("genre", "period"), in the order of params; because: titles of
    the user's own history; sentence: all of it in one.
    """

    likes: str
    dislikes: str
    factors: tuple[tuple[str, str], ...]
    because: tuple[str, ...]
    sentence: str

    def written(self) -> str:
        """The text in its structure: what a model learns to write."""
        return "\n".join(f"{label}: {told}" for label, told in self._points())

    def read(self) -> str:
        """What a text encoder reads: all points but the evidence, which only repeats titles of the history."""
        return ". ".join(f"{label}: {told}" for label, told in self._points() if label != BECAUSE)

    def _points(self) -> list[tuple[str, str]]:
        return [
            (LIKES, self.likes),
            (DISLIKES, self.dislikes),
            *((label_of(factor), told) for factor, told in self.factors),
            (BECAUSE, "; ".join(self.because)),
            (SHORT, self.sentence),
        ]


@dataclass(frozen=True)
class Refused:
    """Why a text is none of this structure: one of a few reasons, which are counted."""

    reason: str


def label_of(factor: str) -> str:
    """How a factor's line begins: "genre" is "Genre"."""
    return factor[:1].upper() + factor[1:]


def labels(factors: Iterable[str]) -> list[str]:
    """How the lines of a text begin, in their order."""
    return [LIKES, DISLIKES, *map(label_of, factors), BECAUSE, SHORT]


def one_line(text: str) -> str:
    """Untrusted text as a prompt, a log or a page may show it: what `safe_title` leaves of its first characters."""
    return safe_title(text[:LONGEST_READ])


def parse(raw: str, factors: Sequence[str], titles: Collection[str]) -> TasteText | Refused:
    """A model's answer as a text, or why it is none. titles: of the user's history.

    Asked for are all points, once each and in their order, nothing before or between them, none empty or above
    LONGEST_LINE characters, and at least one title of the history as evidence; other titles are left out. Lines after
    the last point are cut, since a model seldom knows where to stop.
    """
    wanted = labels(factors)
    lines = [line.strip() for line in raw[: LONGEST_READ * len(wanted)].split("\n") if line.strip()]
    told: list[str] = []
    for label, line in zip(wanted, lines, strict=False):
        begun, colon, rest = line.partition(":")
        if not colon or begun.strip().casefold() != label.casefold():
            return Refused("another line where a point is due")
        told.append(one_line(rest))
    if len(told) < len(wanted):
        return Refused("a point is missing")
    if not all(told):
        return Refused("a point is empty")
    if max(map(len, told)) > LONGEST_LINE:
        return Refused("a point is too long")
    because = _named(told[-2], titles)
    if not because:
        return Refused("no title of the history as evidence")
    return TasteText(told[0], told[1], tuple(zip(factors, told[2:-2], strict=True)), because, told[-1])


def _named(told: str, titles: Collection[str]) -> tuple[str, ...]:
    """The titles of the history that a line names, in the history's order."""
    said = told.casefold()
    return tuple(title for title in map(one_line, titles) if title and _stands_in(title.casefold(), said))


def _stands_in(title: str, said: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(title)}(?!\w)", said) is not None


def truthful_text(
    likes: Mapping[str, Sequence[str]], because: Sequence[str], noun: str, dislikes: str = "nothing in particular"
) -> TasteText:
    """A text that says what is planted: what an ideal writer would say. likes: as `Taste.likes` gives them."""
    genres, decades, directors = (tuple(likes[name]) for name in ("genre", "decade", "director"))
    told = f"{' and '.join(genres)} {noun} of the {', '.join(decades)} by {' and '.join(directors)}"
    factors = (("genre", ", ".join(genres)), ("period", ", ".join(decades)), ("creator", ", ".join(directors)))
    return TasteText(told, dislikes, factors, tuple(because), f"Likes {told}.")
