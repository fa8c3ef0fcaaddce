"""The promises of the rejected items: whose they never are, how often each is drawn, and that a seed fixes them."""

import math
from collections import Counter
from dataclasses import replace
from datetime import datetime

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items, Taken
from recalign.params.pairs import PairsParams
from recalign.preferences.pairs.negatives import Pool, batch_mates, draw_negatives, hard_items, log_shares
from recalign.recommenders.recommender import Request
from recalign.training.loop import Passes

SHARES = dict.fromkeys(("uniform", "popularity", "hard", "profile", "disliked"), 0.2)


def params(strategy: str = "mixed", k: int = 5, alpha: float = 0.75, **shares: float) -> PairsParams:
    return PairsParams(
        examples=1, negatives=k, strategy=strategy, popularity_alpha=alpha, hard_pool=4, shares=shares or SHARES
    )


def catalogue(popularity: list[int]) -> Items:
    ids = tuple(range(1, len(popularity) + 1))
    return Items(ids, {i: f"Title {i}" for i in ids}, {i: {} for i in ids}, dict(zip(ids, popularity, strict=True)))


def met(*items: int, disliked: tuple[int, ...] = ()) -> Taken:
    """A user who met these items, and disliked some of them."""
    return Taken(frozenset({*items, *disliked}), disliked)


def example(number: int = 0, history: tuple[int, ...] = (1, 2), target: int = 3) -> Example:
    return Example(f"{number}-{target}", number, "train", None, history, target)


class Told:
    """An example as the training loop reads it."""

    tokens = 1

    def __init__(self, own: Example) -> None:
        self.example_id, self.target = own.example_id, own.target


class ByItemNumber:
    """A recommender that ranks items by their id, the largest first."""

    name = "by_item_number"

    def __init__(self, items: Items) -> None:
        self.items = items

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        return torch.tensor([[float(item) for item in self.items.ids] for _ in requests])

    def save(self, path: object) -> None:
        raise NotImplementedError


@settings(deadline=None)  # how long a draw takes is the machine's affair
@given(
    taken=st.sets(st.integers(1, 30)),
    strategy=st.sampled_from(["uniform", "popularity", "hard", "profile", "disliked", "alike", "mixed"]),
    k=st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_rejected_items_are_distinct_never_taken_and_as_many_as_there_are(
    taken: set[int], strategy: str, k: int, seed: int
) -> None:
    items = catalogue([n % 7 for n in range(30)])
    pool = Pool.of(items, 0.75)
    hard = [item for item in (7, 9) if item not in taken]
    drawn = draw_negatives(
        example(), met(*taken), pool, params(strategy, k), seed, listed=hard, plausible={11: 1, 12: 2, 1: 3}
    )
    ids = [negative.item_id for negative in drawn]
    free = {item for item in items.ids if items.popularity[item] > 0} - taken
    assert len(set(ids)) == len(ids)
    assert not set(ids) & taken
    assert set(ids) <= free  # item 1 is plausible, but nobody took it in training
    assert len(ids) == k or free <= set(ids)


def test_items_without_a_train_event_are_never_rejected() -> None:
    pool = Pool.of(catalogue([5, 0, 3, 0, 9]), 1.0)
    drawn = {n.item_id for i in range(50) for n in draw_negatives(example(i), met(1), pool, params("uniform", 5), 0)}
    assert drawn == {3, 5}


def test_popularity_draws_in_proportion_to_popularity_to_the_alpha() -> None:
    """16, 4 and 1 to the 0.5 are 4, 2 and 1: shares 4/7, 2/7, 1/7 within 3 standard errors of 4,000 draws."""
    pool = Pool.of(catalogue([16, 4, 1]), 0.5)
    counts = Counter(
        draw_negatives(example(i), met(), pool, params("popularity", 1), 0)[0].item_id for i in range(4000)
    )
    assert counts[1] / 4000 == pytest.approx(4 / 7, abs=0.024)
    assert counts[2] / 4000 == pytest.approx(2 / 7, abs=0.022)
    assert counts[3] / 4000 == pytest.approx(1 / 7, abs=0.017)


def test_popularity_without_replacement_keeps_its_proportions_when_the_popular_items_are_taken() -> None:
    """The head of 10^6 is taken, so guesses never hit the rest: the exact draw serves, 3 to 1."""
    pool = Pool.of(catalogue([10**6, 3, 1]), 1.0)
    own = params("popularity", 1)
    counts = Counter(draw_negatives(example(i), met(1), pool, own, 0)[0].item_id for i in range(2000))
    assert counts[2] / 2000 == pytest.approx(3 / 4, abs=0.03)
    assert counts[2] + counts[3] == 2000


def test_mixed_draws_each_strategy_by_its_share() -> None:
    pool = Pool.of(catalogue([1] * 200), 1.0)
    drawn = Counter(
        negative.strategy
        for i in range(500)
        for negative in draw_negatives(
            example(i), met(), pool, params("mixed", 4, uniform=0.5, popularity=0.2, hard=0.3), 0, listed=range(1, 41)
        )
    )
    assert drawn["uniform"] / 2000 == pytest.approx(0.5, abs=0.034)
    assert drawn["popularity"] / 2000 == pytest.approx(0.2, abs=0.027)
    assert drawn["hard"] / 2000 == pytest.approx(0.3, abs=0.031)


def test_a_strategy_with_nothing_left_gives_its_place_to_uniform_and_says_so() -> None:
    pool = Pool.of(catalogue([1] * 50), 1.0)
    drawn = draw_negatives(example(), met(), pool, params("hard", 4), 0, listed=[20, 21])
    assert [n.strategy for n in drawn] == ["hard", "hard", "uniform", "uniform"]
    assert {n.item_id for n in drawn[:2]} == {20, 21}
    assert [n.strategy for n in draw_negatives(example(), met(), pool, params("profile", 2), 0)] == ["uniform"] * 2


def test_alike_draws_what_is_about_as_popular_as_the_target() -> None:
    """Four items are nearest to the target's 8 events (7, 9, 10 and 6); a met one among them is never drawn."""
    pool = Pool.of(catalogue([100, 90, 8, 7, 9, 10, 6, 1, 1, 0, 300]), 0.75)
    drawn = {
        n.item_id
        for number in range(50)
        for n in draw_negatives(example(number), met(1, 2), pool, params("alike", 2), 0)
    }
    assert drawn == {4, 5, 6, 7}
    without = [draw_negatives(example(number), met(5, 6), pool, params("alike", 3), 0) for number in range(50)]
    assert {n.item_id for own in without for n in own if n.strategy == "alike"} == {4, 7}
    assert all([n.strategy for n in own].count("uniform") == 1 for own in without)


def test_of_equally_rare_items_alike_draws_each_as_often() -> None:
    pool = Pool.of(catalogue([50, 50, 5, *[5] * 12]), 0.75)
    drawn = Counter(
        n.item_id for number in range(1200) for n in draw_negatives(example(number), met(), pool, params("alike", 1), 0)
    )
    assert set(drawn) == set(range(4, 16))
    assert all(abs(count - 100) < 40 for count in drawn.values())


def test_disliked_draws_what_the_user_disliked_and_nothing_else_of_what_was_met() -> None:
    """7 and 9 were disliked, 8 merely met; 50 was disliked too, but nobody took it in training."""
    pool = Pool.of(catalogue([1] * 49 + [0]), 1.0)
    own = met(7, 8, 9, disliked=(7, 9, 50))
    for number in range(50):
        drawn = draw_negatives(example(number), own, pool, params("disliked", 3), 0)
        assert [n.strategy for n in drawn] == ["disliked", "disliked", "uniform"]
        assert {n.item_id for n in drawn[:2]} == {7, 9}
        assert drawn[2].item_id not in {7, 8, 9, 50}
        assert [n.asked for n in drawn] == ["disliked"] * 3


@pytest.mark.parametrize("strategy", ["uniform", "popularity", "hard", "profile"])
def test_what_was_met_or_disliked_is_never_drawn_as_unseen(strategy: str) -> None:
    """Whatever ranks it first: only 10 was never met."""
    pool = Pool.of(catalogue([9] * 10), 1.0)
    own = met(1, 2, 3, 4, 5, 6, disliked=(7, 8, 9))
    hard, plausible = [7, 8, 9, 10], dict.fromkeys(range(1, 11), 1)
    drawn = draw_negatives(example(), own, pool, params(strategy, 5), 0, listed=hard, plausible=plausible)
    assert [(n.item_id, n.strategy) for n in drawn] == [(10, strategy)]


def test_mixed_shares_what_a_strategy_cannot_draw_among_those_that_can() -> None:
    """Without dislikes and claims, popularity and hard stand 2 to 1 among themselves; uniform has no share."""
    pool = Pool.of(catalogue([1] * 200), 1.0)
    drawn = Counter(
        (negative.asked, negative.strategy)
        for i in range(1000)
        for negative in draw_negatives(
            example(i), met(), pool, params("mixed", 2, disliked=0.4, profile=0.3, popularity=0.2, hard=0.1), 0,
            listed=range(1, 41),
        )
    )  # fmt: skip
    by_strategy = Counter({name: sum(n for (_, s), n in drawn.items() if s == name) for _, name in drawn})
    assert set(by_strategy) == {"popularity", "hard"}
    assert by_strategy["popularity"] / 2000 == pytest.approx(2 / 3, abs=0.032)
    assert sum(n for (asked, _), n in drawn.items() if asked == "disliked") / 2000 == pytest.approx(0.4, abs=0.033)


def chose(number: int, target: int) -> Example:
    return example(number, history=(), target=target)


def test_in_batch_offers_what_the_others_chose_as_often_as_they_chose_it() -> None:
    """Targets 5, 5, 6 and 7 in one batch; nobody is offered their own target or what they met."""
    pool = Pool.of(catalogue([1] * 8), 1.0)
    examples = [chose(0, 5), chose(1, 5), chose(2, 6), chose(3, 7)]
    lists = batch_mates(examples, [met(), met(7), met(), met(5)], pool, 4, 0)
    assert [sorted(own) for own in lists] == [[6, 7], [6], [5, 5, 7], [6]]
    first = Counter(
        draw_negatives(chose(number, 6), met(), pool, params("in_batch", 1), 0, listed=lists[2])[0].item_id
        for number in range(2000)
    )
    assert first[5] / 2000 == pytest.approx(2 / 3, abs=0.032)
    assert first[5] + first[7] == 2000


def test_in_batch_gives_fewer_items_where_the_batch_has_no_more_and_never_others() -> None:
    """K = 7 of two distinct items: both, each once, though the catalogue has eight."""
    pool = Pool.of(catalogue([1] * 8), 1.0)
    drawn = draw_negatives(chose(2, 6), met(), pool, params("in_batch", 7), 0, listed=[5, 5, 7])
    assert sorted(n.item_id for n in drawn) == [5, 7]
    assert {(n.asked, n.strategy) for n in drawn} == {("in_batch", "in_batch")}
    assert draw_negatives(chose(2, 6), met(), pool, params("in_batch", 7), 0, listed=[]) == []


def test_an_example_that_may_decline_nothing_of_its_batch_is_in_none() -> None:
    """Everybody chose 5 but one, who has met it: that one goes, then the others have nothing left either."""
    pool = Pool.of(catalogue([1] * 8), 1.0)
    assert batch_mates([chose(0, 5), chose(1, 5), chose(2, 6)], [met(), met(), met(5)], pool, 3, 0) == [(), (), ()]
    assert batch_mates([chose(0, 5), chose(1, 6)], [met(), met()], pool, 1, 0) == [(), ()]  # batches of one


def test_batches_are_those_that_training_reads_first() -> None:
    """By (seed, 0, example id), as the loop draws them; each example's list is of its own batch alone."""
    pool = Pool.of(catalogue([1] * 40), 1.0)
    examples = [chose(number, 1 + number) for number in range(40)]
    read = [sorted(one.target for one in batch) for batch in Passes([Told(e) for e in examples], 1, 3).batches(8)]
    lists = batch_mates(examples, [met()] * 40, pool, 8, 3)
    offered = {tuple(sorted((own.target, *mates))) for own, mates in zip(examples, lists, strict=True)}
    assert sorted(map(list, offered)) == sorted(read)
    assert [len(batch) for batch in read] == [8] * 5


def test_the_chance_of_being_offered_is_the_share_among_chosen_items() -> None:
    assert log_shares([5, 5, 6, 7]) == pytest.approx({5: math.log(0.5), 6: math.log(0.25), 7: math.log(0.25)})
    assert log_shares([]) == {}


def test_a_share_of_in_batch_among_mixed_strategies_is_refused() -> None:
    pool = Pool.of(catalogue([1, 1]), 1.0)
    with pytest.raises(RecalignError, match=r"pairs\.shares has 0\.5 of 'in_batch'.*set pairs\.strategy to in_batch"):
        draw_negatives(example(), met(), pool, params("mixed", 1, uniform=0.5, in_batch=0.5), 0)


def test_an_item_that_was_not_there_at_the_cutoff_was_not_declined() -> None:
    """Items 1 to 9 came in 2020, 10 in 2022; the case is of 2021, and without a clock nothing came later."""
    items = replace(catalogue([1] * 10), available_from={10: datetime(2022, 1, 1)} | {1: datetime(2020, 1, 1)})
    pool = Pool.of(items, 1.0)
    dated = replace(example(), cutoff=datetime(2021, 1, 1))
    asked = {"listed": range(1, 11), "plausible": dict.fromkeys(range(1, 11), 1)}
    for strategy in ("uniform", "popularity", "hard", "profile"):
        drawn = draw_negatives(dated, met(), pool, params(strategy, 10), 0, **asked)
        assert {n.item_id for n in drawn} == set(range(1, 10))
    assert len(draw_negatives(example(), met(), pool, params("uniform", 10), 0)) == 10
    assert list(hard_items(ByItemNumber(items), items, [dated, example()], [met(), met()], 2)) == [(9, 8), (10, 9)]


def test_profile_prefers_items_that_more_claims_hold_for() -> None:
    pool = Pool.of(catalogue([1] * 50), 1.0)
    first = Counter(
        draw_negatives(example(i), met(), pool, params("profile", 1), 0, plausible={40: 3, 41: 1})[0].item_id
        for i in range(2000)
    )
    assert first[40] / 2000 == pytest.approx(3 / 4, abs=0.03)
    assert first[40] + first[41] == 2000


def test_a_draw_depends_on_the_seed_and_the_example_alone() -> None:
    pool = Pool.of(catalogue([3, 1, 4, 1, 5, 9, 2, 6]), 1.0)
    draws = [draw_negatives(example(4), met(1), pool, params("uniform", 4), seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != draw_negatives(example(5), met(1), pool, params("uniform", 4), 0)


def test_hard_items_are_the_best_ranked_that_the_user_did_not_take() -> None:
    items = catalogue([1, 1, 1, 1, 1, 0])
    hard = list(hard_items(ByItemNumber(items), items, [example(0), example(1)], [met(5, 3), met()], 2))
    assert hard == [(4, 2), (5, 4)]  # 6 has no train event


@pytest.mark.parametrize("shares", [{"uniform": 0.9}, {"uniform": 1.5, "hard": -0.5}])
def test_shares_that_do_not_sum_to_one_are_refused(shares: dict[str, float]) -> None:
    pool = Pool.of(catalogue([1, 1]), 1.0)
    with pytest.raises(RecalignError, match=r"pairs\.shares is .* sums to .* sum to 1"):
        draw_negatives(example(), met(), pool, params("mixed", 1, **shares), 0)
