"""What is claimed of a user, with the interactions that support it, and what the user says of it.

Inferred claims are never changed: an edit is kept in a file of its own (data/ledger/edits.json), which no stage writes,
so a rerun overwrites none. A forbidden claim is not made, and nothing that it holds for is recommended; a changed claim
is replaced by another one, and of the DEPTH best items those that it holds for come first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from recalign.common.artifacts import read_json, write_json
from recalign.common.errors import RecalignError, did_you_mean
from recalign.preferences.profiles.profiles import Claim, Profile, Statement, supporting, taste_sentence

LEDGER = Path("data/ledger")  # no stage writes it
FILE = "edits.json"
VERSION = 1
REPAIR = "restore it from a backup, or move it away to begin a new one"
Action = Literal["forbid", "change", "undo"]
ACTIONS: tuple[Action, ...] = ("forbid", "change", "undo")
DEPTH = 50  # best items among which those of an edited claim come first
SHOWN = 5  # titles named that an edit is about


@dataclass(frozen=True)
class Value:
    """An attribute's value, as a claim names it: "genre" and "Horror"."""

    attribute: str
    value: str

    def __str__(self) -> str:
        return f"{self.attribute}={self.value}"


@dataclass(frozen=True)
class Edit:
    """What a user says of a claim: forbidden where `to` is None, else replaced by it."""

    of: Value
    to: Value | None = None

    def __str__(self) -> str:
        return f"{self.of} forbidden" if self.to is None else f"{self.of} changed to {self.to}"


@dataclass(frozen=True)
class Entry:
    """A line of the ledger. by: the engine that inferred it, or "edit"; supports: items of the user's history that it
    holds for, oldest first; replaces: the claim in whose place an edit put it."""

    statement: str
    about: Value
    score: float | None
    by: str
    supports: tuple[int, ...]
    replaces: str | None = None


@dataclass(frozen=True)
class Ledger:
    """Entries that are made of a user, those that are forbidden, and all edits of the user, oldest first."""

    entries: tuple[Entry, ...]
    forbidden: tuple[Entry, ...]
    edits: tuple[Edit, ...]


def read_edits(folder: Path) -> dict[str, tuple[Edit, ...]]:
    """Edits by the user's own id; none where there is no file. Raises RecalignError for a file that is no ledger."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        told = read_json(file)
        if told["version"] != VERSION:
            raise KeyError(told["version"])
        return {
            user: tuple(Edit(Value(**own["of"]), Value(**own["to"]) if own["to"] else None) for own in edits)
            for user, edits in told["users"].items()
        }
    except RecalignError:  # its advice is 'dvc checkout', which knows no file that no stage writes
        raise RecalignError(f"{file} is not JSON; {REPAIR}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecalignError(
            f"{file} is no ledger of version {VERSION} ({type(error).__name__}: {error}); {REPAIR}"
        ) from None


def with_edit(edits: Sequence[Edit], action: Action, values: Sequence[Value]) -> tuple[Edit, ...]:
    """The edits with one more; a later edit of the same claim takes the place of the earlier one.

    Raises RecalignError where `undo` finds nothing, and where a claim is changed to itself or to a forbidden one.
    """
    kept = tuple(edit for edit in edits if edit.of != values[0])
    if action == "undo":
        if len(kept) == len(edits):
            raise RecalignError(f"--edit undo {values[0]}: this user has no edit of it; 'recalign profile' shows them")
        return kept
    if action == "change" and values[0] == values[1]:
        raise RecalignError(f"--edit changes {values[0]} to itself; give another claim, or 'undo' an edit of it")
    if action == "change" and Edit(values[1]) in kept:
        raise RecalignError(
            f"--edit changes {values[0]} to {values[1]}, which this user has forbidden; '--edit undo {values[1]}' first"
        )
    return (*kept, Edit(values[0], values[1] if action == "change" else None))


def _standing(edits: Sequence[Edit]) -> list[Edit]:
    """The edits without those that put in a claim which a later edit is of: what was put in can be edited again."""
    return [edit for place, edit in enumerate(edits) if all(later.of != edit.to for later in edits[place + 1 :])]


def write_edits(folder: Path, edits: Mapping[str, Sequence[Edit]]) -> None:
    """Write the edits of all users; atomic."""
    users = {user: [asdict(edit) for edit in own] for user, own in sorted(edits.items()) if own}
    write_json(folder / FILE, {"version": VERSION, "users": users})


def parse_edit(
    words: Sequence[str], statements: Sequence[Statement], edits: Sequence[Edit] = ()
) -> tuple[Action, list[Value]]:
    """What `--edit` says: forbid A=V, change A=V A=W, or undo A=V.

    edits: the user's own; one of them can be undone whatever the catalogue has by now.
    Raises RecalignError naming what is wrong: the action, the number of claims, an attribute or a value that no
    statement about this catalogue has.
    """
    action = next((own for own in ACTIONS if words and words[0] == own), None)
    wanted = 2 if action == "change" else 1
    if action is None or len(words) != 1 + wanted:
        raise RecalignError(
            f"--edit is {' '.join(words)!r}; allowed are 'forbid ATTRIBUTE=VALUE', 'change ATTRIBUTE=VALUE "
            "ATTRIBUTE=VALUE' and 'undo ATTRIBUTE=VALUE'"
        )
    if action == "undo" and (own := _edited_value(words[1], edits)):
        return action, [own]
    return action, [_known(word, statements) for word in words[1:]]


def _edited_value(word: str, edits: Sequence[Edit]) -> Value | None:
    """The value that an edit is of; in this very spelling first, else case aside."""
    values = [edit.of for edit in edits]
    exact = [value for value in values if str(value) == word]
    return next(iter(exact + [value for value in values if str(value).casefold() == word.casefold()]), None)


def _known(word: str, statements: Sequence[Statement]) -> Value:
    attribute, equals, value = word.partition("=")
    attributes = sorted({statement.attribute for statement in statements})
    if not equals or attribute not in attributes:
        raise RecalignError(
            f"--edit names the attribute {attribute!r}, which no claim about this catalogue can have; allowed are "
            f"{', '.join(attributes) or 'none: the catalogue has no attributes'}{did_you_mean(attribute, attributes)}"
        )
    values = [statement.value for statement in statements if statement.attribute == attribute]
    if value in values:
        return Value(attribute, value)
    cased = {own.casefold(): own for own in values}
    if value.casefold() not in cased:
        raise RecalignError(f"--edit names {attribute} {value!r}, which no item has{did_you_mean(value, values)}")
    return Value(attribute, cased[value.casefold()])


def ledger_of(
    claims: Sequence[Claim],
    by: str,
    history: Sequence[int],
    statements: Sequence[Statement],
    edits: Sequence[Edit],
) -> Ledger:
    """Inferred claims with what supports each, and the edits applied; a change also holds where its claim is no longer
    inferred, and a claim that is told twice is told once. Where a claim that was put in is changed again, the last one
    holds."""
    known = {Value(statement.attribute, statement.value): statement for statement in statements}
    said, standing = {edit.of: edit for edit in edits}, _standing(edits)
    entries: dict[Value, Entry] = {}
    forbidden = []
    for claim in claims:
        about = Value(claim.attribute, claim.value)
        supports = tuple(supporting(known[about], history)) if about in known else ()
        entry = Entry(claim.statement, about, claim.score, by, supports)
        edit = said.pop(about, None)
        if edit is None:
            entries.setdefault(about, entry)
        elif edit.to is None:
            forbidden.append(entry)
        elif edit in standing:
            entries[edit.to] = _edited(edit, known, history)
    for edit in said.values():
        if edit.to is None:
            forbidden.append(replace(_edited(Edit(edit.of, edit.of), known, history), replaces=None))
        elif edit in standing:
            entries[edit.to] = _edited(edit, known, history)
    banned = {entry.about for entry in forbidden}
    return Ledger(tuple(e for about, e in entries.items() if about not in banned), tuple(forbidden), tuple(edits))


def _edited(edit: Edit, known: Mapping[Value, Statement], history: Sequence[int]) -> Entry:
    assert edit.to is not None
    statement = known.get(edit.to)
    phrase = statement.phrase if statement else str(edit.to)
    supports = tuple(supporting(statement, history)) if statement else ()
    return Entry(phrase, edit.to, None, "edit", supports, str(edit.of))


@dataclass(frozen=True)
class Spoken:
    """What an edit did to a list: the items that it left out, or put before the others."""

    edit: Edit
    items: tuple[int, ...]

    def sentence(self, titles: Mapping[int, str]) -> str:
        """ "genre=Horror forbidden: leaves out 2 items (Alien, …)". titles: of the items, untrusted."""
        did = "leaves out" if self.edit.to is None else "puts first"
        if not self.items:
            return f"{self.edit}: changes nothing here"
        named = ", ".join(titles[item] for item in self.items[:SHOWN])
        rest = ", …" if len(self.items) > SHOWN else ""
        return f"{self.edit}: {did} {len(self.items)} item{'' if len(self.items) == 1 else 's'} ({named}{rest})"


@dataclass(frozen=True)
class Wishes:
    """What a user's edits ask of a list, whatever ranks it: each edit with the items that it is about."""

    banned: Mapping[Edit, frozenset[int]]
    wanted: Mapping[Edit, frozenset[int]]

    @classmethod
    def of(cls, edits: Iterable[Edit], statements: Sequence[Statement]) -> "Wishes":
        """A claim that one edit forbids and another one puts in is forbidden."""
        holds = {Value(statement.attribute, statement.value): statement.items for statement in statements}
        own = list(edits)
        forbidden = {edit.of for edit in own if edit.to is None}
        banned = {edit: holds.get(edit.of, frozenset()) for edit in own if edit.to is None}
        asked = [edit for edit in _standing(own) if edit.to is not None and edit.to not in forbidden]
        return cls(banned, {edit: holds.get(edit.to, frozenset()) for edit in asked if edit.to})

    @property
    def excluded(self) -> frozenset[int]:
        """All that is banned."""
        return frozenset[int]().union(*self.banned.values())

    def reordered(self, ranked: Sequence[int]) -> list[int]:
        """A ranking, best first, without what is banned, and of the first DEPTH left what is wanted before the rest."""
        banned, wanted = self.excluded, frozenset[int]().union(*self.wanted.values())
        left = [item for item in ranked if item not in banned]
        first = left[:DEPTH]
        return [i for i in first if i in wanted] + [i for i in first if i not in wanted] + left[DEPTH:]

    def spoken(self, before: Sequence[int], after: Sequence[int]) -> list[Spoken]:
        """What each edit does: of a list without edits, what it left out; of the list with them, what it put first."""
        out = [Spoken(edit, tuple(item for item in before if item in own)) for edit, own in self.banned.items()]
        return out + [Spoken(edit, tuple(i for i in after if i in own)) for edit, own in self.wanted.items()]


def edited_profile(
    profile: Profile, history: Sequence[int], statements: Sequence[Statement], edits: Sequence[Edit]
) -> Profile:
    """The profile as the user's edits leave it; the very same where they are about none of its claims and add none.

    A text in a model's own words gives way to the sentence of the claims: it may say elsewhere what is forbidden.
    """
    if not edits:
        return profile
    ledger = ledger_of(profile.claims, profile.engine, history, statements, edits)
    claims = tuple(Claim(e.statement, e.about.attribute, e.about.value, e.score) for e in ledger.entries)
    if claims == profile.claims:
        return profile
    supports = {item for entry in ledger.entries for item in entry.supports}
    return replace(
        profile, claims=claims, text=taste_sentence([claim.statement for claim in claims]),
        evidence=tuple(item for item in history if item in supports),
    )  # fmt: skip
