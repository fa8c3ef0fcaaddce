"""What is shown, group by group: golden numbers, groupings and what they refuse, and two systems compared."""

from collections.abc import Sequence

import numpy as np
import pytest

from recalign.common.errors import RecalignError
from recalign.common.item_groups import POPULARITY, group_items, membership
from recalign.evaluation.exposure import fairness_gain, group_unfairness, measure_exposure, unfairness
from recalign.evaluation.ranks import FULL, SAMPLED, CaseList, SystemRanks, in_case_order

COUNTS = {1: 4, 2: 3, 3: 2, 4: 1}
GENRES = {1: {"genre": ["War", "Drama"]}, 2: {"genre": ["Drama"]}, 3: {"genre": ["War"]}, 4: {}}


def system(name: str, ranks: list[int], top: Sequence[tuple[int, ...]] = (), protocol: str = SAMPLED) -> SystemRanks:
    cases = [(f"{row:03d}", row // 2) for row in range(len(ranks))]  # two cases a user
    return in_case_order(name, CaseList(protocol, "uniform", "d", cases), np.array(ranks), np.zeros(len(ranks)), top)


def test_group_unfairness_has_its_golden_numbers() -> None:
    gu, mgu, dgu = group_unfairness(np.array([50.0, 30.0, 20.0]), np.array([70.0, 20.0, 10.0]))
    assert gu == pytest.approx([0.2, -0.1, -0.1])
    assert (mgu, dgu) == (pytest.approx(0.1333333333), pytest.approx(0.3))
    assert group_unfairness(np.array([2.0, 1.0]), np.array([4.0, 2.0]))[1:] == (0.0, 0.0)


def test_no_shown_item_has_no_fairness() -> None:
    with pytest.raises(RecalignError, match="a distribution over groups is empty"):
        group_unfairness(np.array([1.0]), np.array([0.0]))


def test_an_item_of_several_groups_counts_in_each_with_its_share() -> None:
    names, shares = membership([1, 2, 3], {1: ["War", "Drama"], 2: ["Drama"]})
    assert names == ["Drama", "War", "none"]
    assert shares.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_exposure_of_lists_made_by_hand() -> None:
    """Item 1 has 3 of 4 train events; every list shows item 2 alone, so that "b" is over-exposed by 3/4."""
    groups = {"kind": {1: ["a"], 2: ["b"]}}
    made = measure_exposure(system("s", [1, 1], [(2,), (2,)]), {1: 3, 2: 1, 3: 0}, groups, 200, 1)
    assert made is not None
    fair = made.fairness["kind"]
    assert {name: gu.value for name, gu in fair.gu.items()} == {"a": -0.75, "b": 0.75, "none": 0.0}
    assert (fair.mgu.value, fair.dgu.value, made.coverage) == (0.5, 1.5, 1 / 3)
    assert made.lift.value == pytest.approx(1 / (10 / 4) - 1)
    assert measure_exposure(system("s", [1, 1]), {1: 3}, groups, 200, 1) is None


def test_mgu_and_dgu_of_rows_are_those_of_each_row() -> None:
    mgu, dgu = unfairness(np.array([[0.2, -0.1, -0.1], [0.0, 0.0, 0.0]]))
    assert mgu == pytest.approx([0.1333333333, 0.0])
    assert dgu == pytest.approx([0.3, 0.0])


def test_items_by_an_attribute_share_their_train_events_among_their_groups() -> None:
    """4 events of War and Drama, 3 of Drama, 2 of War, 1 of none: Drama (2 + 3) / 10, War (2 + 2) / 10."""
    made = group_items("genre", COUNTS, GENRES)
    assert made.names == ("Drama", "War", "none")
    assert made.history == pytest.approx([0.5, 0.4, 0.1])
    assert made.share_of([[1, 3], [4]]).tolist() == [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]


def test_items_by_popularity_are_fifths_of_the_catalogue_not_of_the_events() -> None:
    made = group_items(POPULARITY, {item: 2**item for item in range(10)}, {})
    assert len(made.names) == 5
    assert made.shares.sum(axis=0).tolist() == [2.0] * 5
    most = made.names.index("most popular fifth")
    assert made.history[most] == pytest.approx((2**8 + 2**9) / (2**10 - 1))


@pytest.mark.parametrize(
    ("by", "counts", "attributes", "said"),
    [
        ("author", COUNTS, GENRES, "no item has the attribute 'author'; items are grouped by popularity, genre"),
        ("genre", {**COUNTS, 4: 20}, GENRES, "only 31% of the train events are of items that have 'genre', and 50%"),
        ("genre", {1: 4, 2: 3}, {1: {"genre": ["War"]}, 2: {"genre": ["War"]}}, r"of one group \(War\)"),
        (POPULARITY, {1: 3, 2: 3}, {}, r"of one group \(least popular fifth\)"),
        (POPULARITY, {1: 0, 2: 0}, {}, "of one group"),
    ],
)
def test_a_grouping_that_cannot_tell_fair_from_unfair_is_refused(by, counts, attributes, said) -> None:
    with pytest.raises(RecalignError, match=said):
        group_items(by, counts, attributes)


def test_a_group_without_a_train_event_is_a_group_all_the_same() -> None:
    """Nobody liked it, so that whatever shows it shows it too often."""
    made = group_items("kind", {1: 3, 2: 1, 3: 0}, {1: {"kind": ["a"]}, 2: {"kind": ["b"]}, 3: {"kind": ["new"]}})
    assert made.history.tolist() == [0.75, 0.25, 0.0]
    with pytest.raises(RecalignError, match="list 1 shows no item"):
        made.share_of([[1], []])


def test_ten_items_of_a_whole_catalogue_are_shown_and_five_of_candidates() -> None:
    counts = dict.fromkeys(range(1, 12), 1)
    top = [tuple(range(1, 11))] * 2
    for protocol, told in ((FULL, 10), (SAMPLED, 5)):
        made = measure_exposure(system("s", [1, 1], top, protocol), counts, {}, 200, 1)
        assert made is not None
        assert (made.top, made.coverage) == (told, told / 11)


def test_two_systems_are_compared_on_the_same_resamples() -> None:
    """The first shows what was liked, the second one group alone: 0.5 of DGU 1 and MGU 0.5 apart, without spread."""
    grouping = group_items("kind", {1: 1, 2: 1}, {1: {"kind": ["a"]}, 2: {"kind": ["b"]}})
    fair, unfair = system("f", [1] * 4, [(1, 2)] * 4), system("u", [1] * 4, [(1,)] * 4)
    gain = fairness_gain(fair, unfair, grouping, 200, 1)
    assert (gain.mgu.value, gain.mgu.low, gain.mgu.high) == (-0.5, -0.5, -0.5)
    assert gain.dgu.value == -1.0
    same = fairness_gain(unfair, unfair, grouping, 200, 1)
    assert (same.mgu.low, same.mgu.high, same.dgu.value) == (0.0, 0.0, 0.0)
    with pytest.raises(RecalignError, match="the lists of 'f' or 'bare' were not kept"):
        fairness_gain(fair, system("bare", [1] * 4), grouping, 200, 1)


def test_a_mean_of_unfair_users_can_be_fair_and_its_interval_says_how_sure_that_is() -> None:
    """Half of the users see one group, half the other: GU is 0, and resamples of few users differ from it."""
    grouping = group_items("kind", {1: 1, 2: 1}, {1: {"kind": ["a"]}, 2: {"kind": ["b"]}})
    mixed, even = system("m", [1] * 8, [(1,)] * 4 + [(2,)] * 4), system("e", [1] * 8, [(1, 2)] * 8)
    gain = fairness_gain(mixed, even, grouping, 500, 1)
    assert gain.mgu.value == 0.0
    assert gain.mgu.high > 0.2
    wider = fairness_gain(mixed, even, grouping, 500, 1, confidence=0.999)
    assert wider.mgu.high >= gain.mgu.high
