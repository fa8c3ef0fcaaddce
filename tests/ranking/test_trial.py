"""A trial puts the same frozen cases to any recommender."""

import tracemalloc
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch

from recalign.common.errors import RecalignError
from recalign.data.records import Case, Example, Items, Met
from recalign.evaluation.metrics import metric_values
from recalign.evaluation.significance import paired_difference
from recalign.ranking.trial import Trial, rank_catalogue, rank_sampled, whole_catalogue
from recalign.recommenders.recommender import Request
from recalign.recommenders.store import on_catalogue

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


class Indifferent:
    """Scores everything alike."""

    name = "indifferent"

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        return torch.zeros(len(requests), len(candidates[0] if candidates else ITEMS.ids))


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


def test_the_whole_catalogue_is_ranked_without_all_that_was_met_before_and_what_was_not_there_yet() -> None:
    """The history shows the item 2 alone; 1 was met, and disliked, long before; 4 comes out after the cutoff."""
    cutoff, before, after = datetime(2024, 5, 1), datetime(2020, 1, 1), datetime(2024, 5, 2)
    case = Case(Example("7-5", 7, "test", cutoff, (2,), 5), (3, 5), 1)
    asked = Trial("uniform", "d", (case,), (Request(7, (2,), cutoff),))
    met = {7: Met({1: before, 2: before, 3: after, 5: cutoff}, frozenset({1}), frozenset({5}))}
    late = replace(ITEMS, available_from={4: after, 5: after, 3: before})
    system = Preferring(1, 2, 4, 3, 5)
    assert rank_catalogue(system, whole_catalogue(asked, ITEMS)).top == ((1, 4, 3, 5),)
    assert rank_catalogue(system, whole_catalogue(asked, ITEMS, None, met)).top == ((4, 3, 5),)
    assert rank_catalogue(system, whole_catalogue(asked, late, None, met)).top == ((3, 5),)


def test_the_digest_of_the_whole_catalogue_covers_cases_titles_and_what_is_excluded() -> None:
    asked = trial(((1,), (2, 3, 4), 4))
    met = {1: Met({1: None, 2: None}, frozenset(), frozenset({4}))}
    retitled = replace(ITEMS, titles=ITEMS.titles | {5: "Another"})
    made = [
        whole_catalogue(asked, ITEMS), whole_catalogue(asked, ITEMS, None, met), whole_catalogue(asked, retitled),
        whole_catalogue(replace(asked, digest="other histories"), ITEMS),
    ]  # fmt: skip
    assert len({whole.digest for whole in made}) == 4
    assert whole_catalogue(asked, ITEMS).digest == made[0].digest


def test_a_system_without_an_opinion_is_ranked_as_chance_ranks_in_the_whole_catalogue_too() -> None:
    """Four items are open to each case: the mean of 1 / rank is (1 + 1/2 + 1/3 + 1/4) / 4, whichever is the target."""
    many = tuple(((5,), (1, 2, 3, 4), 1) for _ in range(4000))
    outcome = rank_catalogue(Indifferent(), whole_catalogue(trial(*many), ITEMS))
    assert metric_values("mrr", outcome.ranks).mean() == pytest.approx(25 / 48, abs=0.02)
    places = [top.index(1) + 1 for top in outcome.top]
    assert places == outcome.ranks.tolist()


def test_many_cases_are_ranked_in_blocks_as_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = trial(*[((1,), (2, 3, 4), target) for target in (2, 3, 4, 2, 3)])
    whole = rank_catalogue(Preferring(5, 4, 3, 2, 1), whole_catalogue(asked, ITEMS))
    monkeypatch.setattr("recalign.recommenders.recommender.CASES_AT_ONCE", 2)
    blocks = rank_catalogue(Preferring(5, 4, 3, 2, 1), whole_catalogue(asked, ITEMS))
    assert blocks.ranks.tolist() == whole.ranks.tolist() == [4, 3, 2, 4, 3]
    assert paired_difference(whole, blocks, "mrr", 100, 0).value == 0.0


def test_a_large_catalogue_is_ranked_in_the_memory_of_a_small_part_of_it() -> None:
    """200 cases × 60,000 items are 96 MB a matrix of scores, of which several stand side by side; a part is 33 MB."""
    ids = tuple(range(1, 60_001))
    many = replace(ITEMS, ids=ids, titles={item: f"Film {item}" for item in ids})

    class Ordered:
        name = "ordered"
        most = 0

        def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
            self.most = max(self.most, len(requests))
            return torch.arange(len(ids), 0, -1, dtype=torch.float64).repeat(len(requests), 1)

    system, asked = Ordered(), whole_catalogue(trial(*[((2,), (1, 3), 3)] * 200), many)
    tracemalloc.start()
    outcome = rank_catalogue(system, asked)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome.ranks.tolist() == [2] * 200  # 1 stands before it; 2 is in the history
    assert outcome.top[0][:3] == (1, 3, 4)
    assert system.most * len(ids) <= 2**22
    assert peak < 300e6


def test_a_moved_recommender_scores_a_large_catalogue_in_parts() -> None:
    """Whatever list is asked for, its own rows of all items are bounded."""
    own = replace(ITEMS, ids=tuple(range(1, 60_001)), titles={item: f"Film {item}" for item in range(1, 60_001)})
    most = []

    class Counting:
        name = "counting"

        def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
            most.append(len(requests))
            return torch.arange(60_000, dtype=torch.float64).repeat(len(requests), 1)

        def save(self, path: Path) -> None:
            raise AssertionError(path)

    asked = [Request(user, (1,)) for user in range(150)]
    scores = on_catalogue(Counting(), own, ITEMS).scores(asked, [[2, 5]] * 150)
    assert scores.tolist() == [[1.0, 4.0]] * 150
    assert sum(most) == 150
    assert max(most) * 60_000 <= 2**22


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_rank_nothing_are_refused_by_the_name_of_the_system(bad: float) -> None:
    """A NaN sorts anywhere, and a target beside infinities is first by lot."""

    class Diverged(Preferring):
        def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
            return torch.full_like(super().scores(requests, candidates), bad)

    cases = trial(((1,), (2, 3), 3), ((2,), (1, 3), 1))
    for rank in (lambda: rank_sampled(Diverged(1, 2, 3, 4, 5), cases),
                 lambda: rank_catalogue(Diverged(1, 2, 3, 4, 5), whole_catalogue(cases, ITEMS))):  # fmt: skip
        with pytest.raises(RecalignError, match=r"'preferring' gives scores that are not finite for 2 of 2 cases"):
            rank()


def test_an_item_that_is_never_ranked_may_score_minus_infinity() -> None:
    class Leaving(Preferring):
        def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
            return torch.tensor([[-torch.inf, 1.0]])

    assert rank_sampled(Leaving(1), trial(((1,), (2, 3), 3))).ranks.tolist() == [1]
