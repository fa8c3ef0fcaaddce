"""A profile: what is inferred that a user likes, with the claims it rests on and the items that support them.

It may know each user's events before the split's cutoff, and nothing after it. What it claims are closed statements
about a taste, drawn from the catalogue's attributes: "crime films", "films by Martin Scorsese".
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Items, hashed_order
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
    groups = _items_by_value(items, counts)
    enough = {key: group for key, group in groups.items() if MIN_ITEMS <= len(group) < len(items.ids)}
    statements = _stated(enough, counts, noun)
    statements.sort(key=lambda s: (-s.base, s.attribute, s.value))
    return sorted(statements[:MAX_STATEMENTS], key=lambda s: (s.attribute, s.value))


def every_statement(items: Items, noun: str) -> list[Statement]:
    """A statement for each value that an item of the catalogue has, however few have it, by attribute and value.

    It is what a user may say of a taste, where `closed_statements` is what may be inferred. Events are the catalogue's
    own popularity, so that a value is about the same items whatever a command has counted.
    """
    groups = {key: group for key, group in _items_by_value(items, items.popularity).items() if group}
    return sorted(_stated(groups, items.popularity, noun), key=lambda s: (s.attribute, s.value))


def _items_by_value(items: Items, counts: Mapping[int, int]) -> dict[tuple[str, str], set[int]]:
    """The items that each attribute's value holds for; empty where the catalogue has no attributes."""
    groups: dict[tuple[str, str], set[int]] = defaultdict(set)
    for item in items.ids:
        for key in _values(items.attributes[item]):
            groups[key].add(item)
    if groups:
        groups["popularity", "well-known"] = _well_known(items, counts)
    return groups


def _stated(groups: Mapping[tuple[str, str], Set[int]], counts: Mapping[int, int], noun: str) -> list[Statement]:
    total = max(sum(counts.values()), 1)
    return [
        Statement(
            name, value, _phrase(name, value, noun), frozenset(group), sum(counts.get(i, 0) for i in group) / total
        )
        for (name, value), group in groups.items()
    ]


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


@dataclass(frozen=True)
class Histories:
    """Of one split: what each chosen user did before the cutoff (None without a clock), and how often items were met.

    of: user -> item ids, oldest first, never empty;
    counts: item -> events before the cutoff, all users.
    """

    split: str
    cutoff: datetime | None
    of: dict[int, tuple[int, ...]]
    counts: dict[int, int]


@dataclass(frozen=True)
class Known:
    """Of one split: what everybody did before the cutoff (None without a clock).

    asked: the users of the split's examples, in the order of `read_examples`, of training or warm cases first; users,
    items: the events before the cutoff, by user and their order [events]; counts: item -> events before the cutoff.
    """

    split: str
    cutoff: datetime | None
    asked: tuple[int, ...]
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    counts: dict[int, int]

    def history(self, user: int) -> tuple[int, ...]:
        """The user's items before the cutoff, oldest first; empty for one who came later."""
        start, stop = np.searchsorted(self.users, [user, user + 1])
        return tuple(self.items[start:stop].tolist())

    @cached_property
    def present(self) -> list[int]:
        """The users of `asked` who did something before the cutoff, in its order."""
        there = frozenset(np.unique(self.users).tolist())
        return [user for user in self.asked if user in there]

    def histories(self, users: Iterable[int]) -> Histories:
        """The histories of these users, in their order; those who came after the cutoff have none."""
        of = {user: history for user in users if (history := self.history(user))}
        return Histories(self.split, self.cutoff, of, self.counts)


def read_known(prepared: Path, split: str, seed: int) -> Known:
    """What a split's profiles may be made from.

    With a clock: the events strictly before summary.json's cutoff of the split (for train, before the first training
    target); who came later has no history. Without one: the user's items that are the target of no example of any view,
    and counts of the train users.
    """
    wanted = [c.EXAMPLE, c.USER, c.TARGET, c.VIEW]
    examples = read_parquet(prepared / "examples.parquet", wanted, pc.field(c.SPLIT) == split)
    cutoff = Prepared(prepared).cutoff(split)
    file, own = prepared / "events.parquet", [c.USER, c.ITEM, c.POSITION]
    if cutoff is None:
        counted = read_parquet(file, own, pc.field(c.SPLIT) == c.TRAIN)
        asked = pc.field(c.USER).isin(pc.unique(examples[c.USER]))
        known = _without_targets(read_parquet(file, own, asked), examples)
    else:
        known = counted = read_parquet(file, own, pc.field(c.TIMESTAMP) < pa.scalar(cutoff, pa.timestamp("us")))
    known = known.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
    met = counted[c.ITEM].value_counts()
    counts = dict(zip(met.field("values").to_pylist(), met.field("counts").to_pylist(), strict=True))
    return Known(split, cutoff, _asked(examples, seed), known[c.USER].to_numpy(), known[c.ITEM].to_numpy(), counts)


def read_histories(prepared: Path, split: str, users: int, seed: int) -> Histories:
    """The profile histories of a split's first `users` users, in the order of `read_examples`, who have one."""
    known = read_known(prepared, split, seed)
    return known.histories(known.present[:users])


def _asked(examples: pa.Table, seed: int) -> tuple[int, ...]:
    rows = zip(*(examples[name].to_pylist() for name in (c.VIEW, c.EXAMPLE, c.USER)), strict=True)
    ordered = sorted((view not in (None, c.WARM), hashed_order(seed, name), user) for view, name, user in rows)
    return tuple(dict.fromkeys(user for _, _, user in ordered))


def _without_targets(events: pa.Table, examples: pa.Table) -> pa.Table:
    targets = pa.table({c.USER: examples[c.USER], c.ITEM: examples[c.TARGET]})
    return events.join(targets, [c.USER, c.ITEM], join_type="left anti")


ENGINE = "engine"
COUNTING = "counting"
SCORE_DIGITS = 3  # decimals kept: beyond them log-probs differ with the batch that they were computed in
SCHEMA = pa.schema(
    [
        (c.USER, pa.int64()),
        (c.SPLIT, pa.string()),
        (ENGINE, pa.string()),
        (c.TEXT, pa.string()),
        (
            c.CLAIMS,
            pa.list_(
                pa.struct(
                    [
                        ("statement", pa.string()),
                        ("attribute", pa.string()),
                        ("value", pa.string()),
                        ("score", pa.float64()),
                    ]
                )
            ),
        ),
        (c.EVIDENCE, pa.list_(pa.int64())),
        (c.MODEL_DIGEST, pa.string()),
        (c.PROMPT_DIGEST, pa.string()),
    ]
)


@dataclass(frozen=True)
class Claim:
    """One statement about a user; score as its engine gives it (higher is surer), None where the engine gives none."""

    statement: str
    attribute: str
    value: str
    score: float | None


@dataclass(frozen=True)
class Profile:
    """One user's profile for one split; evidence are the items of the history that a claim holds for, oldest first.

    text is empty where nothing could be said. The digests are None for the engine `counting`, which has no model.
    """

    user_id: int
    split: str
    engine: str
    text: str
    claims: tuple[Claim, ...]
    evidence: tuple[int, ...]
    model_digest: str | None
    prompt_digest: str | None


@dataclass(frozen=True)
class Engine:
    """Who inferred a profile: its name in params, and the digests of the model and of the prompt's form."""

    name: str
    model_digest: str | None = None
    prompt_digest: str | None = None


def make_profile(
    engine: Engine,
    split: str,
    user: int,
    history: Sequence[int],
    claimed: Sequence[tuple[Statement, float | None]],
    text: str | None = None,
) -> Profile:
    """A profile from the claimed statements and their scores; its text is made of them unless one is given."""
    claims = tuple(
        Claim(s.phrase, s.attribute, s.value, None if score is None else round(score, SCORE_DIGITS))
        for s, score in claimed
    )
    supports = {item for statement, _ in claimed for item in supporting(statement, history)}
    return Profile(
        user,
        split,
        engine.name,
        taste_sentence([claim.statement for claim in claims]) if text is None else text,
        claims,
        tuple(item for item in history if item in supports),
        engine.model_digest,
        engine.prompt_digest,
    )


def profiles_table(profiles: Iterable[Profile]) -> pa.Table:
    """The profiles as data/profiles/profiles.parquet holds them, by split, user and engine."""
    rows = sorted(profiles, key=lambda profile: (profile.split, profile.user_id, profile.engine))
    return pa.Table.from_pylist([asdict(profile) for profile in rows], schema=SCHEMA)


def read_profiles(folder: Path, engine: str) -> dict[tuple[str, int], Profile]:
    """One engine's profiles by (split, user)."""
    rows = [row for row in read_parquet(folder / "profiles.parquet").to_pylist() if row[ENGINE] == engine]
    return {
        (row[c.SPLIT], row[c.USER]): Profile(
            **row
            | {
                c.CLAIMS: tuple(Claim(**claim) for claim in row[c.CLAIMS]),
                c.EVIDENCE: tuple(row[c.EVIDENCE]),
            }
        )
        for row in rows
    }


def profile_texts(folder: Path, engine: str, split: str) -> dict[int, str]:
    """User → text of one engine's profile for a split: what prompts show of the user.

    Raises RecalignError where the folder holds profiles, and none by this engine: prompts would show none in silence.
    """
    there = set(read_parquet(folder / "profiles.parquet", [ENGINE])[ENGINE].to_pylist())
    if there and engine not in there:
        raise RecalignError(
            f"{folder / 'profiles.parquet'} holds profiles by {', '.join(sorted(there))} and none by {engine!r}, which "
            f"the prompts of this system show; set profiles.engine to {engine} and run 'dvc repro profiles'"
        )
    return {user: profile.text for (of, user), profile in read_profiles(folder, engine).items() if of == split}


def read_told(folder: Path, engine: str) -> Callable[[str, int], bool]:
    """Whether one engine's profile has something to say of a user in a split."""
    told = {owner for owner, profile in read_profiles(folder, engine).items() if profile.text}
    return lambda split, user: (split, user) in told
