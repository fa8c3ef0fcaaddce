"""Evidence is what a claim rests on where its removal takes the claim's ground away, and removals of others do not."""

import pytest
import torch

from recalign.preferences.faithfulness import (
    DRAWS,
    Made,
    chosen_evidence,
    claim_scores,
    faithfulness,
    lines,
)
from recalign.preferences.profiles.profiles import Statement
from recalign.recommenders.recommender import Request

IDS = tuple(range(1, 21))
CRIME = Statement("genre", "Crime", "crime films", frozenset({1, 2, 3, 4, 5, 6}), 0.3)


class Copies:
    """Scores an item by how many items of the history are of its half of the catalogue: what one likes, again."""

    name = "copies"

    def __init__(self, half: int = 10) -> None:
        self.half = half

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        assert candidates is None
        return torch.tensor(
            [[float(sum((i <= self.half) == (item <= self.half) for item in r.history)) for i in IDS] for r in requests]
        )


class Deaf(Copies):
    """The same for everybody: no history moves it."""

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        return torch.zeros(len(requests), len(IDS))


def test_a_claims_score_is_the_chance_that_its_items_are_ranked_above_the_others() -> None:
    """History 1 and 11, so both halves alike: ties count half. History 1 alone: crime {2..6} above 10 others, level
    with 4 of {7..10}: (10 + 4 / 2) / 14."""
    both, one = frozenset({1, 11}), frozenset({1})
    scores = claim_scores(Copies(), IDS, [(CRIME, (1, 11), both), (CRIME, (1,), one), (CRIME, (11,), frozenset({11}))])
    assert scores.tolist() == pytest.approx([0.5, (10 + 4 / 2) / 14, (4 / 2) / 13])
    everything = frozenset(CRIME.items)
    assert claim_scores(Copies(), IDS, [(CRIME, (1,), everything)]).tolist() == [0.5]


def test_the_items_without_which_the_claim_is_scored_lowest_are_its_evidence_three_at_most() -> None:
    """Only items that the claim holds for; equals by their number, told in the order of the history."""
    made = [Made(1, CRIME, (11, 5, 4, 3, 2)), Made(2, CRIME, (12, 1)), Made(3, CRIME, (12, 13))]
    assert chosen_evidence(Copies(), IDS, made) == [(4, 3, 2), (1,), ()]


def test_evidence_that_a_claim_rests_on_falls_by_more_than_random_and_recent_items() -> None:
    """History 1, 2 and one of 11 to 13: crime {3..6} is above the other half's 9, level with {7..10}: (9 + 4 / 2) / 13.
    Without 1 and 2 it is below those 9: (4 / 2) / 13. Without the two most recent ones nothing changes."""
    made = [Made(user, CRIME, (1, 2, 11 + user % 3)) for user in range(12)]
    own = faithfulness(Copies(), IDS, made, [(1, 2)] * 12, 200, 1)
    assert own is not None
    assert (own.claims, own.users) == (12, 12)
    assert own.evidence.value == pytest.approx(9 / 13)
    assert own.recent.value == 0.0
    assert own.over_random.low > 0
    assert own.over_recent.value == pytest.approx(9 / 13)
    assert lines({"x": own, "y": None})[1] == "y: no claim has evidence beside other items"


def test_a_recommender_that_no_history_moves_shows_no_evidence_at_all() -> None:
    own = faithfulness(Deaf(), IDS, [Made(1, CRIME, (1, 11, 12)), Made(2, CRIME, (2, 11, 12))], [(1,), (2,)], 100, 1)
    assert own is not None
    for interval in (own.evidence, own.at_random, own.recent, own.over_random, own.over_recent):
        assert interval.as_dict() == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_claims_without_evidence_or_without_anything_else_are_left_out() -> None:
    """A history of evidence alone leaves nothing to compare with."""
    made = [Made(1, CRIME, (1, 2)), Made(2, CRIME, (11,)), Made(3, CRIME, ())]
    assert faithfulness(Copies(), IDS, made, [(1, 2), (), ()], 100, 1) is None
    assert DRAWS >= 2
