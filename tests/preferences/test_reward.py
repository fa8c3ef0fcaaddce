"""What texts are worth, which of them make a pair, and whether the reward reads them at all."""

import pytest
from taste_world import KINDS, world

from recalign.common.errors import RecalignError
from recalign.evaluation.significance import Interval, bootstrap_interval
from recalign.preferences.reward import SwapControl, best_worst, group_of, paired, reward, swapped
from recalign.recommenders.listed import ListedCase

SHARES = {"R": 0.4, "P": 0.2, "V": 0.1, "T": 0.3}


@pytest.mark.parametrize(
    ("rewards", "least", "expected"),
    [
        ([0.2, 0.9, 0.1], 0.0, (1, 2)),
        ([0.5, 0.5, 0.5], 0.0, None),
        ([0.7], 0.0, None),
        ([], 0.0, None),
        ([0.5, 0.1, 0.5, 0.1], 0.0, (0, 1)),
        ([0.5, 0.3], 0.2, (0, 1)),
        ([0.5, 0.31], 0.2, None),
        ([0.5, 0.5 + 1e-13], 0.0, None),
    ],
)
def test_best_and_worst(rewards, least, expected):
    """Ties give no pair, nor does one text; of equals the first; δ is the least difference in NDCG@5."""
    assert best_worst(rewards, least) == expected


def test_a_reward_that_is_not_finite_is_refused():
    """Not taken for the best or the worst."""
    with pytest.raises(RecalignError, match="not finite"):
        best_worst([0.1, float("nan")])


def test_groups_are_disjoint_shares_that_other_users_do_not_change():
    """By hash of seed and id."""
    groups = [group_of(user, SHARES, 5) for user in range(4000)]
    for name, share in SHARES.items():
        assert groups.count(name) / 4000 == pytest.approx(share, abs=0.03)
    assert groups[17] == group_of(17, SHARES, 5)
    assert groups != [group_of(user, SHARES, 6) for user in range(4000)]


def test_the_text_that_tells_the_taste_is_worth_most():
    """Of one text of each kind, on average over users that the reranker never met."""
    here = world()
    right, wrong = [], []
    for user in range(150, 220):
        texts = [f"Likes: {kind} films" for kind in KINDS]
        own = texts.index(here.texts[user])
        values = reward(here.trained, texts, here.cases[user])
        assert values.shape == (4,)
        right.append(values[own])
        wrong.append(sum(values[place] for place in range(4) if place != own) / 3)
    gain = bootstrap_interval([a - b for a, b in zip(right, wrong, strict=True)], range(70), 500, 1)
    assert gain.low > 0.1


def test_no_texts_have_no_rewards():
    """And no error."""
    here = world()
    assert reward(here.trained, [], here.cases[0]).tolist() == []


def test_texts_that_change_places_between_users_lower_the_reward_by_its_interval():
    """The control without which a reward may not read its texts at all."""
    here = world()
    users = list(range(150, 220))
    texts = {user: [here.texts[user]] for user in users}
    other = swapped(texts, 1)
    assert set(other) == set(texts)
    own = [reward(here.trained, texts[user], here.cases[user])[0] for user in users]
    given = [reward(here.trained, other[user], here.cases[user])[0] for user in users]
    assert bootstrap_interval([a - b for a, b in zip(own, given, strict=True)], users, 500, 1).low > 0


def test_nobody_keeps_his_own_texts_and_one_user_has_nobody_to_swap_with():
    """Every text is used once."""
    texts = {user: [f"text of {user}"] for user in range(9)}
    given = swapped(texts, 3)
    assert all(given[user] != texts[user] for user in texts)
    assert sorted(given.values()) == sorted(texts.values())
    with pytest.raises(RecalignError, match="1 users cannot be swapped"):
        swapped({1: ["x"]}, 3)


def test_a_few_users_do_not_show_that_texts_are_read():
    """Five whose rewards all fall may do so by chance; six are taken at their interval."""
    above = Interval(0.4, 0.2, 0.6)
    assert [SwapControl(above, users).reads_texts for users in (2, 5, 6, 70)] == [False, False, True, True]
    assert not SwapControl(Interval(0.4, 0.0, 0.6), 70).reads_texts


def test_pairs_name_the_best_and_the_worst_text_and_count_who_gave_none(caplog):
    """A user with one text, one with equal texts, one without any, and one with two kinds."""
    caplog.set_level("INFO")
    here = world()
    texts = {
        150: ["Likes: horror films", *(f"Likes: {kind} films" for kind in KINDS)],
        151: ["same", "same"],
        152: [],
        153: ["Likes: one", "Likes: two"],
    }
    flat = ListedCase(153, (1,), here.cases[153].listed, frozenset({999}))  # no target in the list: all worth nothing
    told = paired(here.trained, texts, [here.cases[150], here.cases[151], here.cases[152], flat], 0.0)
    assert [pair.user_id for pair in told.pairs] == [150]
    assert told.pairs[0].chosen == here.texts[150]
    assert told.pairs[0].chosen_reward > told.pairs[0].rejected_reward
    assert (told.few, told.tied, told.skipped) == (2, 1, 0.75)
    assert "1 of 4 users give one" in caplog.text
    assert "75 % skipped" in caplog.text
