"""Ranks and metrics, with expectations worked out by hand and against an independent implementation."""

import math

import numpy as np
import pytest

from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import (
    METRICS,
    best_items,
    chance,
    draw_lots,
    hit_rate,
    metric_values,
    ndcg,
    reciprocal_rank,
    target_places,
    target_ranks,
)

INF = float("inf")


def lots_of(*cases: int, items: int = 20) -> np.ndarray:
    """Lots of the items 0 … in cases of these names."""
    return draw_lots([f"case {case}" for case in cases], range(items))


def test_the_best_scored_target_has_rank_1_and_the_worst_stands_last() -> None:
    assert target_ranks([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], [0, 2], lots_of(1, 2, items=3)).tolist() == [1, 3]


def test_equals_stand_in_the_order_of_their_lots_whichever_is_the_target() -> None:
    scores = [[1.0, 1.0, 5.0, 1.0, 0.0]] * 5
    assert target_ranks(scores, range(5), [[7, 2, 9, 4, 1]] * 5).tolist() == [4, 2, 1, 3, 5]


def test_lots_depend_on_case_and_item_alone_and_are_the_same_on_any_machine() -> None:
    assert draw_lots(["7-3", "8-3"], [3, 9]).tolist() == [
        [9036476737030776271, 125364670538190970],
        [8517518003549565127, 6350292567405290739],
    ]
    assert draw_lots(["7-3"], [[9, 3]]).tolist() == [draw_lots(["7-3"], [3, 9])[0].tolist()[::-1]]
    many = draw_lots(["7-3"], range(100_000))[0]
    assert len(set(many.tolist())) == 100_000


@pytest.mark.parametrize("target", ["drawn", "always the smallest id", "always the first column"])
def test_a_system_that_scores_everything_alike_gets_what_chance_gets(target: str) -> None:
    """Over 20,000 cases the mean NDCG@10 lies within four standard errors (0.0085) of chance among 20, 0.2272."""
    generator = np.random.default_rng(3)
    names = [f"{user}-{user % 97}" for user in range(20_000)]
    items = np.array([generator.choice(500, 20, replace=False) for _ in names])
    places = generator.integers(0, 20, len(names))
    if target == "always the smallest id":
        places = items.argmin(axis=1)
    if target == "always the first column":
        places = np.zeros(len(names), dtype=np.int64)
    values = ndcg(target_ranks(np.zeros(items.shape), places, draw_lots(names, items)), 10)
    assert chance("ndcg_at_10", 20) == pytest.approx(0.227178, abs=1e-6)
    assert values.mean() == pytest.approx(0.227178, abs=4 * values.std() / np.sqrt(len(names)))


def test_whole_numbers_as_scores_lose_nothing_against_the_same_scores_without_ties() -> None:
    """Popularity counts events: with ties broken by other noise the mean is the same within its error."""
    generator = np.random.default_rng(4)
    counts = generator.geometric(0.3, (20_000, 20)).astype(float)
    places = (counts + generator.gumbel(size=counts.shape)).argmax(axis=1)  # popular items are liked more often
    lots = draw_lots([str(case) for case in range(20_000)], np.arange(20))
    ours = ndcg(target_ranks(counts, places, lots), 10)
    apart = ndcg(target_ranks(counts + generator.random(counts.shape) * 0.5, places, lots), 10)
    assert ours.mean() == pytest.approx(apart.mean(), abs=4 * (ours - apart).std() / np.sqrt(20_000))
    after_all_equals = (counts >= np.take_along_axis(counts, places[:, None], axis=1)).sum(axis=1)
    assert ours.mean() > ndcg(after_all_equals, 10).mean() + 0.02


def test_excluded_items_do_not_stand_before_the_target() -> None:
    assert target_ranks([[-INF, 2.0, -INF, 3.0]], [1], lots_of(1, items=4)).tolist() == [2]


def test_a_target_that_is_out_of_the_ranking_is_the_last() -> None:
    assert target_ranks([[-INF, 2.0, -INF, 3.0]], [2], lots_of(1, items=4)).tolist() == [4]


def test_a_single_candidate_has_rank_1() -> None:
    assert target_ranks([[-7.5]], [0], [[1]]).tolist() == [1]


def test_no_cases_give_no_ranks() -> None:
    assert target_ranks(np.zeros((0, 20)), [], lots_of()).tolist() == []


def test_nan_is_refused_and_its_case_named() -> None:
    with pytest.raises(RecalignError, match="a score of case 1 is NaN"):
        target_ranks([[1.0, 2.0], [1.0, math.nan]], [0, 0], lots_of(1, 2, items=2))


def test_a_target_outside_of_its_list_is_refused() -> None:
    with pytest.raises(RecalignError, match="target_index of case 1 is 2; 0 … 1 is allowed"):
        target_ranks([[1.0, 2.0], [1.0, 2.0]], [0, 2], lots_of(1, 2, items=2))


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(RecalignError, match="a list of candidates is empty"):
        target_ranks(np.zeros((1, 0)), [0], np.zeros((1, 0)))


def test_places_of_targets() -> None:
    assert target_places([[5, 6, 7], [9, 5]], [7, 9]) == [2, 0]


def test_a_missing_target_is_named() -> None:
    with pytest.raises(RecalignError, match="candidates of case 1 lack the target 8"):
        target_places([[5, 6], [5, 6]], [5, 8])


def test_a_candidate_that_stands_twice_is_named() -> None:
    with pytest.raises(RecalignError, match="candidates of case 0 hold item 6 twice"):
        target_places([[5, 6, 6]], [5])


def test_metrics_of_known_ranks() -> None:
    ranks = np.array([1, 3, 7, 20])
    assert hit_rate(ranks, 1).mean() == 1 / 4
    assert hit_rate(ranks, 5).mean() == 2 / 4
    assert ndcg(ranks, 10).tolist() == [1.0, 1 / 2, 1 / 3, 0.0]
    assert reciprocal_rank(ranks).mean() == pytest.approx((1 + 1 / 3 + 1 / 7 + 1 / 20) / 4, abs=1e-15)


def test_ndcg_at_10_ends_after_rank_10() -> None:
    assert ndcg(np.array([10, 11]), 10).tolist() == [1 / math.log2(11), 0.0]


def test_metrics_of_no_cases_are_refused() -> None:
    with pytest.raises(RecalignError, match="mrr of no cases"):
        metric_values("mrr", np.array([], dtype=np.int64))


def test_a_rank_below_1_is_refused() -> None:
    with pytest.raises(RecalignError, match="a rank is 0"):
        metric_values("mrr", np.array([1, 0]))


def test_the_best_items_stand_in_the_order_of_the_ranks_with_equals_by_lot() -> None:
    scores = [[1.0, 3.0, 3.0, 2.0], [0.0, -np.inf, 5.0, 0.0]]
    items, lots = [[10, 20, 30, 40], [11, 21, 31, 41]], [[1, 9, 4, 2], [8, 1, 3, 5]]
    assert best_items(scores, items, lots, 3) == [(30, 20, 40), (31, 41, 11)]
    assert best_items(scores, items, lots, 9) == [(30, 20, 40, 10), (31, 41, 11)]


def test_the_best_items_hold_the_target_exactly_where_its_rank_is_among_them() -> None:
    generator = np.random.default_rng(1)
    scores, targets = generator.integers(0, 4, (200, 12)).astype(float), generator.integers(0, 12, 200)
    scores[generator.random(scores.shape) < 0.1] = -np.inf
    lots = lots_of(*range(200), items=12)
    best = best_items(scores, [range(12)] * 200, lots, 5)
    ranks = target_ranks(scores, targets, lots)
    places = [list(row).index(target) + 1 if target in row else 0 for row, target in zip(best, targets, strict=True)]
    inside = [rank if rank <= 5 and score > -np.inf else 0
              for rank, score in zip(ranks, scores[np.arange(200), targets], strict=True)]  # fmt: skip
    assert places == inside


def test_an_unknown_metric_names_the_allowed_ones() -> None:
    with pytest.raises(RecalignError, match="'hr_at_3' is unknown; allowed are hr_at_1, hr_at_5, ndcg_at_10, mrr"):
        metric_values("hr_at_3", np.array([1]))


def test_metrics_equal_those_of_ir_measures() -> None:
    """Independent implementation: trec_eval through ir-measures, on scores without ties."""
    import ir_measures
    from ir_measures import RR, Success, nDCG

    generator = np.random.default_rng(7)
    scores = generator.permuted(np.tile(np.arange(20.0), (300, 1)), axis=1)
    targets = generator.integers(0, 20, 300)
    ranks = target_ranks(scores, targets, lots_of(*range(300)))
    qrels = [ir_measures.Qrel(str(q), str(t), 1) for q, t in enumerate(targets)]
    run = [ir_measures.ScoredDoc(str(q), str(d), s) for q, row in enumerate(scores) for d, s in enumerate(row)]
    theirs = ir_measures.calc_aggregate([Success @ 1, Success @ 5, nDCG @ 10, RR], qrels, run)
    ours = [METRICS[key](ranks).mean() for key in ("hr_at_1", "hr_at_5", "ndcg_at_10", "mrr")]
    assert ours == pytest.approx([theirs[m] for m in (Success @ 1, Success @ 5, nDCG @ 10, RR)], abs=1e-9)
