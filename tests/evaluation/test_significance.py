"""Intervals clustered by user, and the refusal to compare what cannot be compared."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t, ttest_1samp

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import metric_values
from recalign.evaluation.ranks import (
    SAMPLED,
    CaseList,
    SystemRanks,
    in_case_order,
    read_system_ranks,
    write_system_ranks,
)
from recalign.evaluation.significance import (
    bootstrap_interval,
    bootstrap_intervals,
    degrees_of_freedom,
    holm,
    metric_interval,
    paired_difference,
    paired_gains,
    resampled_means,
    wilson_interval,
)


def system(name: str, ranks: list[int], users: list[int] | None = None) -> SystemRanks:
    users = users or list(range(len(ranks)))
    cases = [(f"{user}-{row:03d}", user) for row, user in enumerate(users)]
    return in_case_order(name, CaseList("sampled-20", "uniform", "d1", cases), np.array(ranks), np.zeros(len(ranks)))


def test_the_value_is_the_mean_over_cases_not_over_users() -> None:
    interval = bootstrap_interval(np.array([1.0, 1.0, 1.0, 0.0]), [1, 1, 1, 2], 200, 0)
    assert interval.value == 3 / 4


def test_equal_values_have_an_interval_without_width() -> None:
    interval = bootstrap_interval(np.full(6, 0.5), [1, 1, 2, 2, 3, 3], 200, 0)
    assert (interval.low, interval.high) == (0.5, 0.5)


def test_the_interval_equals_a_slow_loop_over_resamples() -> None:
    generator = np.random.default_rng(3)
    values, users = generator.random(40), generator.integers(0, 9, 40)
    fast = bootstrap_interval(values, users.tolist(), 400, 5)
    counts = np.random.default_rng(5).multinomial(9, np.full(9, 1 / 9), size=400)
    means = []
    for drawn in counts:
        rows = [row for user, times in enumerate(drawn) for _ in range(times) for row in np.flatnonzero(users == user)]
        means.append(values[rows].mean())
    tail = norm.cdf(t.ppf(0.025, slow_degrees(values, users)) * np.sqrt(9 / 8))
    assert 0.005 < tail < 0.02
    assert [fast.low, fast.high] == pytest.approx(np.quantile(means, [tail, 1 - tail]).tolist(), abs=1e-12)


def slow_degrees(values: np.ndarray, users: np.ndarray) -> float:
    """Degrees of freedom, one user at a time."""
    names = sorted(set(users.tolist()))
    influence = [sum(values[row] - values.mean() for row in np.flatnonzero(users == user)) for user in names]
    squares = sum(u**2 for u in influence)
    return min(len(names) - 1, 2 * squares**2 / (sum(u**4 for u in influence) - squares**2 / len(names)))


def test_degrees_of_freedom_are_few_where_few_users_differ() -> None:
    """By hand, one hit among ten: u is 0.9 and nine times −0.1, so 2 · 0.81 / (0.657 − 0.081) = 2.8125."""
    rare = np.array([1.0] + [0.0] * 9)
    assert degrees_of_freedom(rare[:, None], list(range(10))) == pytest.approx([2.8125])
    even = np.array([1.0, 0.0] * 5)
    assert degrees_of_freedom(np.stack([rare, even, 0 * even], axis=1), list(range(10))).tolist() == [
        pytest.approx(2.8125), 9.0, 9.0,
    ]  # fmt: skip
    assert degrees_of_freedom(np.array([[0.0], [1.0]]), [3, 4]).tolist() == [1.0]


def test_with_many_users_the_bounds_are_the_plain_percentiles() -> None:
    values = np.random.default_rng(0).random(3000)
    interval = bootstrap_interval(values, list(range(3000)), 400, 1)
    means = resampled_means(values[:, None], list(range(3000)), 400, 1)[:, 0]
    assert [interval.low, interval.high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=2e-5)


def test_the_interval_of_a_share_stays_within_zero_and_one() -> None:
    for hits in ([1.0] * 7 + [0.0], [0.0] * 7 + [1.0]):
        interval = bootstrap_interval(np.array(hits), [1, 1, 2, 3, 4, 5, 6, 7], 2000, 0)
        assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


def test_one_user_has_bounds_that_are_the_value_and_no_finding() -> None:
    assert bootstrap_interval(np.array([0.2, 0.6]), [1, 1], 100, 0).high == pytest.approx(0.4)
    alone = paired_gains([(system("a", [1, 1], [5, 5]), system("b", [2, 2], [5, 5]))], "mrr", 100, 0)[0]
    assert (alone.interval.value, alone.p) == (0.5, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("users", "simulations"), [(30, 4000), (100, 1000)])
@pytest.mark.parametrize("law", ["hits", "rare hits", "NDCG@10"])
def test_the_interval_holds_the_truth_about_95_times_in_100(law: str, users: int, simulations: int) -> None:
    """Coverage over samples of clustered users, of a metric and of a paired difference, ± 2 simulation errors."""
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "evaluation.py"))
    error = 2 * np.sqrt(0.05 * 0.95 / simulations)
    for share in benchmark["coverage"](law, simulations, users, 1000):
        assert 0.93 - error <= share <= 0.97 + error


def test_a_share_at_one_case_a_user_has_wilsons_interval() -> None:
    """Golden: 7 of 20 (Newcombe 1998's formula by hand): 0.1812 to 0.5671; none of 40 does not end at 0."""
    told = metric_interval(system("a", [1] * 7 + [9] * 13), "hr_at_1", 200, 0)
    assert (told.value, told.method) == (0.35, "Wilson")
    assert (told.low, told.high) == pytest.approx((0.1811918, 0.5671457), abs=1e-6)
    none = metric_interval(system("a", [9] * 40), "hr_at_1", 200, 0)
    assert (none.low, none.high) == (0.0, pytest.approx(0.0876216, abs=1e-6))


def test_a_share_of_all_or_none_has_wilsons_interval_of_as_many_cases_as_users() -> None:
    """Six cases of three users without a miss: Wilson's lower bound of 3 in 3 is 3 / (3 + 1.96²)."""
    told = metric_interval(system("a", [1] * 6, [1, 1, 2, 2, 3, 3]), "hr_at_5", 200, 0)
    assert (told.value, told.low, told.high, told.method) == (1.0, pytest.approx(0.438503, abs=1e-6), 1.0, "Wilson")


def test_wilsons_interval_is_scipys() -> None:
    for hits, cases in ((0, 1), (1, 3), (50, 120), (40, 40)):
        theirs = binomtest(hits, cases).proportion_ci(method="wilson")
        own = wilson_interval(hits, cases)
        assert (own.low, own.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_share_with_several_cases_a_user_and_a_mean_that_is_no_share_are_resampled() -> None:
    assert metric_interval(system("a", [1, 9, 1], [4, 4, 5]), "hr_at_1", 200, 0).method == "bootstrap over users"
    assert metric_interval(system("a", [1, 9, 1]), "mrr", 200, 0).method == "bootstrap over users"


def test_several_columns_from_one_set_of_draws_equal_each_alone() -> None:
    generator = np.random.default_rng(4)
    values, users = generator.random((30, 3)), generator.integers(0, 8, 30).tolist()
    for column, interval in enumerate(bootstrap_intervals(values, users, 300, 2)):
        alone = bootstrap_interval(values[:, column], users, 300, 2)
        assert (interval.low, interval.high) == pytest.approx((alone.low, alone.high), abs=1e-12)


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    """By hand: 0.01 × 3, 0.03 × 2, then 0.04 × 1, which may not fall below 0.06."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_systems_have_p_1_and_systems_apart_everywhere_p_0() -> None:
    a, b = system("a", [1, 4, 2, 7]), system("b", [2, 8, 3, 9])
    same, apart = paired_gains([(a, a), (system("c", [1] * 4), system("d", [2] * 4))], "mrr", 200, 0)
    assert (same.p, apart.p) == (1.0, 0.0)
    assert 0.0 < paired_gains([(a, b)], "ndcg_at_10", 200, 0)[0].p < 0.2


def test_the_p_of_a_pair_is_that_of_a_t_test_when_there_are_many_users() -> None:
    generator = np.random.default_rng(6)
    a, b = (system(name, generator.integers(1, 20, 800).tolist()) for name in "ab")
    gains = metric_values("mrr", a.ranks) - metric_values("mrr", b.ranks)
    assert paired_gains([(a, b)], "mrr", 2000, 0)[0].p == pytest.approx(ttest_1samp(gains, 0.0).pvalue, abs=0.02)


def test_cases_of_one_user_widen_the_interval_when_they_are_alike() -> None:
    values = np.repeat(np.random.default_rng(1).random(20), 5)
    apart = bootstrap_interval(values, list(range(100)), 1000, 0)
    together = bootstrap_interval(values, np.repeat(np.arange(20), 5).tolist(), 1000, 0)
    assert (together.high - together.low) > 1.8 * (apart.high - apart.low)


def test_users_in_small_and_large_chunks_of_resamples_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    values, users = np.random.default_rng(2).random(50), list(range(50))
    whole = bootstrap_interval(values, users, 300, 4)
    monkeypatch.setattr("recalign.evaluation.significance.CELLS_AT_ONCE", 700)
    assert bootstrap_interval(values, users, 300, 4) == whole


def test_no_case_has_no_interval() -> None:
    with pytest.raises(RecalignError, match="0 values with 0 users"):
        bootstrap_interval(np.array([]), [], 100, 0)


def test_a_nan_is_refused_by_its_place() -> None:
    with pytest.raises(RecalignError, match="value 1 is NaN"):
        bootstrap_interval(np.array([0.0, np.nan]), [1, 2], 100, 0)


def test_a_system_that_is_better_everywhere_differs_by_its_interval() -> None:
    interval = paired_difference(system("a", [1] * 30), system("b", [2] * 30), "mrr", 200, 0)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_the_paired_difference_is_the_difference_of_the_means_and_turns_its_sign() -> None:
    first, second = system("a", [1, 4, 2, 9, 1, 3]), system("b", [2, 1, 2, 5, 6, 3])
    there = paired_difference(first, second, "ndcg_at_10", 500, 3)
    back = paired_difference(second, first, "ndcg_at_10", 500, 3)
    means = [metric_values("ndcg_at_10", s.ranks).mean() for s in (first, second)]
    assert there.value == pytest.approx(means[0] - means[1], abs=1e-12)
    assert [back.value, back.low, back.high] == pytest.approx([-there.value, -there.high, -there.low], abs=1e-12)


@pytest.mark.parametrize("field", ["protocol", "manifest", "digest"])
def test_systems_with_different_lists_cannot_be_compared_and_the_field_is_named(field: str) -> None:
    first = system("a", [1, 2])
    with pytest.raises(RecalignError, match=f"'a' and 'b' cannot be compared: {field} is "):
        paired_difference(first, replace(system("b", [1, 2]), **{field: "other"}), "mrr", 100, 0)


def test_systems_with_different_cases_cannot_be_compared_and_a_case_is_named() -> None:
    with pytest.raises(RecalignError, match=r"example_id 2-002 was ranked by one of them only \(2 and 3 cases\)"):
        paired_difference(system("a", [1, 2]), system("b", [1, 2, 3]), "mrr", 100, 0)


def test_ranks_read_back_as_they_were_written(tmp_path: Path) -> None:
    written = [system("a", [1, 4, 2], [7, 7, 3]), system("b", [3, 3, 3], [7, 7, 3])]
    write_system_ranks(tmp_path / "ranks.parquet", written)
    read = read_system_ranks(tmp_path / "ranks.parquet", {"uniform": "d1"})
    assert [(s.system, s.example_ids, s.user_ids, s.ranks.tolist()) for s in read] == [
        ("a", ("3-002", "7-000", "7-001"), (3, 7, 7), [2, 1, 4]),
        ("b", ("3-002", "7-000", "7-001"), (3, 7, 7), [3, 3, 3]),
    ]
    assert metric_interval(read[0], "mrr", 200, 1) == metric_interval(written[0], "mrr", 200, 1)


def test_an_example_that_was_ranked_twice_is_refused() -> None:
    with pytest.raises(RecalignError, match="example_id 1-1 was ranked twice by 'a'"):
        in_case_order(
            "a", CaseList("sampled-20", "uniform", "d", [("1-1", 1), ("1-1", 1)]), np.array([1, 2]), np.zeros(2)
        )


def on_new_items(ranks: list[int], targets: list[int], view: str = c.HIDDEN) -> SystemRanks:
    """A case a user; targets repeat."""
    keys = [(f"{user}-{target}", user, target) for user, target in enumerate(targets, start=1)]
    return in_case_order("s", CaseList(SAMPLED, "uniform", "d", keys, view), np.array(ranks), np.zeros(len(ranks)))


def test_on_new_items_the_items_asked_for_are_drawn() -> None:
    """Forty users ask for four items, and what is asked decides: forty cases say no more than four."""
    targets = [1, 2, 3, 4] * 10
    ranks = [1 if target < 3 else 9 for target in targets]
    few, many = on_new_items(ranks, targets), on_new_items(ranks, targets, view=c.WARM)
    assert (few.drawn, many.drawn) == ("the items asked for", "users")
    wide, narrow = (metric_interval(own, "ndcg_at_10", 2000, 0) for own in (few, many))
    assert wide.value == narrow.value
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    level = on_new_items([5] * 40, targets)
    assert paired_difference(few, level, "ndcg_at_10", 2000, 0).low < 0
    assert paired_difference(many, replace(level, view=c.WARM), "ndcg_at_10", 2000, 0).low > 0


def test_ranks_without_targets_or_with_more_of_them_than_users_go_by_users(tmp_path: Path) -> None:
    targets = [1, 2, 3, 4] * 10
    own = on_new_items([1] * 40, targets)
    assert replace(own, target_ids=()).clusters == own.user_ids
    assert on_new_items([1] * 4, [5, 6, 7, 8]).clusters == (1, 2, 3, 4)
    write_system_ranks(tmp_path / "ranks.parquet", [own])
    (read,) = read_system_ranks(tmp_path / "ranks.parquet", {"uniform": {c.HIDDEN: "d"}})
    assert (read.target_ids, read.clusters, read.keys) == (own.target_ids, own.clusters, own.keys)
