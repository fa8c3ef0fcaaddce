"""Whether the evidence of a claim is what the claim rests on: removed from the history, the claim must lose its ground.

Evidence is chosen by one scorer and tested on another one, which took no part in the choice: the score of a claim by a
recommender says how far above the other items it ranks those that the claim holds for. Removing the evidence must lower
that score more than removing as many items at random, and than removing the most recent ones (comprehensiveness,
DeYoung et al. 2020, arXiv 1911.03429, with a recommender in the place of the classifier).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import Interval, bootstrap_intervals
from recalign.preferences.profiles.profiles import Statement, supporting
from recalign.recommenders.recommender import Recommender, Request, cases_at_once

REMOVED = 3  # items that a scorer chooses as evidence of a claim, fewer where fewer support it
DRAWS = 10  # random removals a claim, of which the mean counts


@dataclass(frozen=True)
class Made:
    """A claim of one user, and the history that it was made from, oldest first."""

    user_id: int
    statement: Statement
    history: tuple[int, ...]


@dataclass(frozen=True)
class Faithfulness:
    """How much a claim's score falls (an AUC, so in 0..1) when items are removed, with 95 % intervals over users.

    evidence, at_random, recent: falls; over_random, over_recent: fall by evidence minus those, paired.
    """

    claims: int
    users: int
    evidence: Interval
    at_random: Interval
    recent: Interval
    over_random: Interval
    over_recent: Interval


def claim_scores(
    recommender: Recommender, ids: Sequence[int], asked: Sequence[tuple[Statement, Sequence[int], frozenset[int]]]
) -> Floats:
    """[B] how far a recommender puts the items of each claim above the others, given a history: an AUC in [0, 1].

    The chance that an item that the claim holds for is scored above one that it does not hold for, equal scores counted
    half (Mann and Whitney 1947); 0.5: not at all. ids: the catalogue, ascending; asked: statement, history, and the
    items that are left out on both sides (those of the whole history, so that what is removed from it is no reason).
    0.5 too where one side is empty.
    """
    values = np.full(len(asked), 0.5)
    step, places = cases_at_once(len(ids)), {item: place for place, item in enumerate(ids)}
    for start in range(0, len(asked), step):
        part = asked[start : start + step]
        requests = [Request(None, tuple(history)) for _, history, _ in part]
        for row, scores in enumerate(recommender.scores(requests, None).double().cpu().numpy()):
            statement, _, left_out = part[row]
            open_to = np.ones(len(ids), dtype=bool)
            open_to[[places[item] for item in left_out if item in places]] = False
            holds = np.zeros(len(ids), dtype=bool)
            holds[[places[item] for item in statement.items if item in places]] = True
            values[start + row] = _auc(scores[open_to], holds[open_to])
    return values


def _auc(scores: Floats, holds: NDArray[np.bool_]) -> float:
    from scipy.stats import rankdata

    own, others = int(holds.sum()), int((~holds).sum())
    if not own or not others:
        return 0.5
    return float((rankdata(scores)[holds].sum() - own * (own + 1) / 2) / (own * others))


def chosen_evidence(choosing: Recommender, ids: Sequence[int], made: Sequence[Made]) -> list[tuple[int, ...]]:
    """Of each claim the up to REMOVED supporting items without which `choosing` scores it lowest, in their order."""
    rows = [(place, item) for place, own in enumerate(made) for item in supporting(own.statement, own.history)]
    asked = [
        (made[place].statement, _without(made[place].history, {item}), frozenset(made[place].history))
        for place, item in rows
    ]
    left: list[dict[int, float]] = [{} for _ in made]
    for (place, item), score in zip(rows, claim_scores(choosing, ids, asked).tolist(), strict=True):
        left[place][item] = score
    return [
        tuple(item for item in own.history if item in sorted(mine, key=lambda i: (mine[i], i))[:REMOVED])
        for own, mine in zip(made, left, strict=True)
    ]


def faithfulness(
    testing: Recommender,
    ids: Sequence[int],
    made: Sequence[Made],
    evidence: Sequence[Sequence[int]],
    resamples: int,
    seed: int,
) -> Faithfulness | None:
    """Remove each claim's evidence, as many items drawn at random (mean of DRAWS), and the most recent ones.

    testing: a recommender that did not choose the evidence. Claims without evidence, and those whose history would be
    empty without it, are left out; None where none is left.
    """
    pairs = [
        (own, set(mine)) for own, mine in zip(made, evidence, strict=True) if mine and set(own.history) - set(mine)
    ]
    if not pairs:
        return None
    asked = [each for own, mine in pairs for each in _removals(own, mine, seed)]
    scores = claim_scores(testing, ids, asked).reshape(len(pairs), 3 + DRAWS)
    falls = scores[:, :1] - scores[:, 1:]
    by_evidence, recent, at_random = falls[:, 0], falls[:, 1], falls[:, 2:].mean(axis=1)
    columns = [by_evidence, at_random, recent, by_evidence - at_random, by_evidence - recent]
    users = [own.user_id for own, _ in pairs]
    return Faithfulness(
        len(pairs), len(set(users)), *bootstrap_intervals(np.stack(columns, axis=1), users, resamples, seed)
    )


def _removals(own: Made, evidence: set[int], seed: int) -> Iterator[tuple[Statement, tuple[int, ...], frozenset[int]]]:
    """The whole history, then without the evidence, the most recent items, and DRAWS times items at random."""
    everything = frozenset(own.history)
    distinct = list(dict.fromkeys(own.history))
    draw = random.Random(f"{seed}-{own.user_id}-{own.statement.attribute}-{own.statement.value}")
    recent = set(list(dict.fromkeys(reversed(own.history)))[: len(evidence)])
    removed = [set[int](), evidence, recent, *(set(draw.sample(distinct, len(evidence))) for _ in range(DRAWS))]
    for items in removed:
        yield own.statement, _without(own.history, items), everything


def _without(history: Sequence[int], items: set[int]) -> tuple[int, ...]:
    return tuple(item for item in history if item not in items)


def lines(told: Mapping[str, Faithfulness | None]) -> list[str]:
    """A line a test, for a terminal."""
    from recalign.evaluation.significance import signed

    found = []
    for name, own in told.items():
        if own is None:
            found.append(f"{name}: no claim has evidence beside other items")
            continue
        found.append(
            f"{name}: {own.claims} claims of {own.users} users; AUC falls by {signed(own.evidence)} without the "
            f"evidence, {signed(own.at_random)} at random, {signed(own.recent)} without the most recent; more than at "
            f"random {signed(own.over_random)}, than recent {signed(own.over_recent)}"
        )
    return found
