"""A trial puts the same frozen cases to any recommender."""

import pytest
import torch

from recalign.data.records import Case, Example, Items
from recalign.evaluation.significance import paired_difference
from recalign.recommenders.seam import Request
from recalign.recommenders.trial import Trial, rank_catalogue, rank_sampled, whole_catalogue

ITEMS = Items(
    ids=(1, 2, 3, 4, 5),
    titles={item: f"Film {item}" for item in range(1, 6)},
    attributes={item: {} for item in range(1, 6)},
    popularity=dict.fromkeys(range(1, 6), 1),
)


class Preferring:
    """Scores an item by its place in a fixed order, best first; what a caller can predict."""

    def __init__(self, *order: int) -> None:
        self.name = "preferring"
        self.order = order

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        lists = [list(ITEMS.ids)] * len(requests) if candidates is None else candidates
        return torch.tensor([[-float(self.order.index(item)) for item in items] for items in lists])


def trial(*cases: tuple[tuple[int, ...], tuple[int, ...], int]) -> Trial:
    """A trial of (history, candidates, target), each of a user of its own."""
    made = tuple(
        Case(Example(f"{user}-{target}", user, "test", None, history, target), candidates, candidates.index(target))
        for user, (history, candidates, target) in enumerate(cases, start=1)
    )
    requests = tuple(Request(case.example.user_id, case.example.history) for case in made)
    return Trial("uniform", "d", made, requests)


def test_targets_are_ranked_among_their_own_candidates() -> None:
    asked = trial(((1,), (2, 3, 4), 4), ((5,), (1, 2, 3), 1))
    outcome = rank_sampled(Preferring(3, 2, 1, 4, 5), asked)
    assert (outcome.protocol, outcome.manifest, outcome.ranks.tolist()) == ("sampled-20", "uniform", [3, 3])
    assert outcome.scores.tolist() == [-3.0, -2.0]


def test_in_the_catalogue_the_history_is_out_of_the_ranking_and_the_target_stays_in() -> None:
    asked = trial(((1, 2), (3, 4, 5), 4), ((4, 3), (3, 4, 5), 4))
    outcome = rank_catalogue(Preferring(1, 2, 3, 4, 5), whole_catalogue(asked, ITEMS))
    assert (outcome.protocol, outcome.manifest) == ("full", "catalogue")
    assert outcome.ranks.tolist() == [2, 3]  # only 3 before it; 1 and 2 before it, though the history names the target


def test_many_cases_are_ranked_in_blocks_as_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = trial(*[((1,), (2, 3, 4), target) for target in (2, 3, 4, 2, 3)])
    whole = rank_catalogue(Preferring(5, 4, 3, 2, 1), whole_catalogue(asked, ITEMS))
    monkeypatch.setattr("recalign.recommenders.trial.CASES_AT_ONCE", 2)
    blocks = rank_catalogue(Preferring(5, 4, 3, 2, 1), whole_catalogue(asked, ITEMS))
    assert blocks.ranks.tolist() == whole.ranks.tolist() == [4, 3, 2, 4, 3]
    assert paired_difference(whole, blocks, "mrr", 100, 0).value == 0.0
