"""A profile: what is inferred that a user likes, with the claims it rests on and the items that support them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.common.errors import RecalignError
from recalign.preferences.profiles.statements import Statement, supporting, taste_sentence

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
