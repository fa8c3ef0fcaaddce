"""The first stage's best items, reranked: what is listed, what is missed, and the table of the arms."""

import numpy as np
import pytest
from taste_world import catalogue, events, world

from recalign.common.errors import RecalignError
from recalign.preferences.reward import swapped
from recalign.ranking.rerank import Window, arms_table, listed_cases, reranked, unreranked
from recalign.recommenders.popularity import Popularity


def test_the_list_holds_the_first_stages_best_that_the_user_has_not_met():
    """Also what the history no longer shows; equals stand by ascending id."""
    items = catalogue()
    first = Popularity(items, np.array([9, 9, 8, 7] + [1] * 36))
    (case,) = listed_cases(first, items, [Window(1, (3,), frozenset({4, 40}), frozenset({1, 3}))], 4)
    assert case.listed == (2, 4, 5, 6)
    assert case.targets == {4, 40}


def test_an_empty_history_has_a_list_too():
    """Somebody new gets what the first stage gives to everybody."""
    items = catalogue()
    (case,) = listed_cases(Popularity.fit(items, events(items)), items, [Window(1, (), frozenset({2}), frozenset())], 3)
    assert case.listed == (1, 2, 3)


def test_nobodys_list_holds_an_item_that_was_met():
    """All lists are as long as that of the user with the fewest items left, who needs two at least."""
    items = catalogue()
    first = Popularity.fit(items, events(items))
    many = Window(1, (1,), frozenset({39}), frozenset(range(1, 38)))
    few = Window(2, (1,), frozenset({2}), frozenset({1}))
    assert [case.listed for case in listed_cases(first, items, [many, few], 20)] == [(38, 39, 40), (2, 3, 4)]
    assert len(listed_cases(first, items, [few], 50)[0].listed) == 39
    most = Window(3, (38, 39), frozenset({40}), frozenset(range(1, 38)))
    with pytest.raises(RecalignError, match=r"has met all but 1 of the 40 items .* raise dpo4rec\.window"):
        listed_cases(first, items, [few, most], 20)


def test_a_target_outside_of_the_list_is_a_miss_for_every_arm():
    """However well the text describes it."""
    here = world()
    items = here.items
    (case,) = listed_cases(here.trained.first, items, [Window(1, (1,), frozenset({40}), frozenset({1}))], 20)
    assert 40 not in case.listed
    for values in (unreranked([case]), reranked(here.trained, [case], {1: ["Likes: western films"]})):
        assert {metric: found.tolist() for metric, found in values.items()} == {
            "ndcg_at_10": [0.0], "hr_at_5": [0.0], "mrr": [0.0],
        }  # fmt: skip


def test_several_texts_of_a_user_are_averaged():
    """Each is a list of its own."""
    here = world()
    case = here.cases[160]
    one, other = (reranked(here.trained, [case], {160: [text]})["mrr"][0] for text in ("horror", "musical"))
    both = reranked(here.trained, [case], {160: ["horror", "musical"]})["mrr"][0]
    assert both == pytest.approx((one + other) / 2)


def test_the_table_pairs_every_arm_with_one_of_them():
    """True texts beat none and another user's, on users that nothing was learned from."""
    here = world()
    users = list(range(150, 220))
    cases = [here.cases[user] for user in users]
    texts = {user: [here.texts[user]] for user in users}
    arms = {
        "unreranked": unreranked(cases),
        "no text": reranked(here.trained, cases, None),
        "text": reranked(here.trained, cases, texts),
        "swapped": reranked(here.trained, cases, swapped(texts, 1)),
    }
    table = {arm.name: arm for arm in arms_table(arms, "text", users, 400, 1)}
    assert list(table) == list(arms)
    assert table["text"].gains["ndcg_at_10"].value == 0.0
    for name in ("unreranked", "no text", "swapped"):
        assert table[name].gains["ndcg_at_10"].high < 0
    expected = float((arms["swapped"]["mrr"] - arms["text"]["mrr"]).mean())
    assert table["swapped"].gains["mrr"].value == pytest.approx(expected)
