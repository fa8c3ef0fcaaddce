"""How well profiles match the tastes that the simulator planted: precision and recall of their claims."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from recalign.data.simulator import Taste, days_since_start
from recalign.preferences.profiles.profiles import Profile


class ClaimScores(TypedDict):
    """Users, claims and planted values, pooled; precision is None without claims."""

    users: int
    claims: int
    right: int
    planted: int
    precision: float | None
    recall: float


def score_profiles(
    profiles: Iterable[Profile], tastes: Mapping[int, Taste], cutoffs: Mapping[str, datetime]
) -> dict[str, dict[str, ClaimScores]]:
    """{engine: {split: {users, claims, right, planted, precision, recall}}}, all users of a split pooled.

    A claim is right when its value is among those that the user liked at the split's cutoff; claims about attributes
    in which no taste is planted are passed over. recall is right / planted, so few claims bound it; users without any
    claim count, users without a planted taste do not. precision is None without claims.
    """
    pooled: dict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
    for profile in profiles:
        if profile.user_id not in tastes:
            continue
        likes = tastes[profile.user_id].likes(days_since_start(cutoffs[profile.split]))
        claims = [claim for claim in profile.claims if claim.attribute in likes]
        right = sum(claim.value in likes[claim.attribute] for claim in claims)
        pooled[profile.engine, profile.split].append((len(claims), right, sum(map(len, likes.values()))))
    scores: dict[str, dict[str, ClaimScores]] = defaultdict(dict)
    for (engine, split), counted in sorted(pooled.items()):
        claims_made, right_claims, planted = (sum(column) for column in zip(*counted, strict=True))
        scores[engine][split] = {
            "users": len(counted),
            "claims": claims_made,
            "right": right_claims,
            "planted": planted,
            "precision": right_claims / claims_made if claims_made else None,
            "recall": right_claims / planted,
        }
    return dict(scores)


@dataclass(frozen=True)
class Learned:
    """One user's planted and claimed values of an attribute."""

    user_id: int
    planted: frozenset[str]
    claimed: frozenset[str]


def learned_values(
    profiles: Iterable[Profile], tastes: Mapping[int, Taste], cutoff: datetime, attribute: str
) -> list[Learned]:
    """What was planted in each user at the cutoff of the profiles' split, beside what they claim, by user."""
    day = days_since_start(cutoff)
    return [
        Learned(
            profile.user_id,
            frozenset(tastes[profile.user_id].likes(day).get(attribute, ())),
            frozenset(claim.value for claim in profile.claims if claim.attribute == attribute),
        )
        for profile in sorted(profiles, key=lambda profile: profile.user_id)
        if profile.user_id in tastes
    ]


def truth_lines(scores: Mapping[str, Mapping[str, ClaimScores]]) -> list[str]:
    """The scores as lines of a small table, one an engine and split."""
    lines = [f"{'engine':<12}{'split':<12}{'users':>6}{'claims':>8}{'precision':>11}{'recall':>8}"]
    for engine, splits in scores.items():
        for split, row in splits.items():
            precision = "–" if row["precision"] is None else f"{row['precision']:.2f}"
            lines.append(
                f"{engine:<12}{split:<12}{row['users']:>6}{row['claims']:>8}{precision:>11}{row['recall']:>8.2f}"
            )
    return lines
