"""The reranker that reads a text about the user: its loss, its order, what it learns and what it keeps."""

import math

import numpy as np
import pytest
import torch
from taste_world import ITEMS, LISTED, catalogue, events, world

from recalign.common.artifacts import folder
from recalign.common.errors import RecalignError
from recalign.recommenders.item_text import TextReader
from recalign.recommenders.knowledge import (
    KnowledgeReranker,
    Learning,
    TextEncoding,
    fit_reranker,
    id_vectors,
    listnet_loss,
    new_reranker,
    requests_of,
    standardised,
)
from recalign.recommenders.listed import ListedCase, list_values, ndcg_of_places, target_places
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recommender import Request


def test_listnet_by_hand():
    """Scores 0 and ln 3 of two items give log softmax ln 1/4 and ln 3/4; a list without a target counts nothing."""
    scores = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)], [5.0, 1.0]])
    found = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    expected = (-math.log(3 / 4) - (math.log(1 / 4) + math.log(3 / 4)) / 2) / 2
    assert listnet_loss(scores, found).item() == pytest.approx(expected, rel=1e-6)
    assert listnet_loss(scores[2:], found[2:]).item() == 0.0


def test_likeness_has_mean_0_and_deviation_1_in_a_list_and_is_0_where_all_are_alike():
    """So that no encoder's scale decides."""
    told = standardised(torch.tensor([[1.0, 2.0, 3.0], [0.4, 0.4, 0.4]]))
    assert told[0].tolist() == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert told[1].tolist() == [0.0, 0.0, 0.0]


def test_ndcg_of_several_targets_counts_those_outside_of_the_list():
    """Three targets, of which ranks 1 and 4 are in the list: (1 + 1/log2 5) / (1 + 1/log2 3 + 1/2)."""
    case = ListedCase(1, (7,), (10, 11, 12, 13), frozenset({10, 13, 99}))
    places = target_places(case, [4.0, 3.0, 2.0, 1.0])
    assert places.tolist() == [1, 4]
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_of_places(places, 3, 5) == pytest.approx((1 + 1 / math.log2(5)) / ideal)
    assert ndcg_of_places(places, 3, 3) == pytest.approx(1 / ideal)
    assert ndcg_of_places(np.array([], dtype=np.int64), 3, 5) == 0.0
    assert list_values("mrr", [case], [[1.0, 2.0, 3.0, 0.0]]).tolist() == [1 / 3]
    assert list_values("hr_at_5", [ListedCase(1, (), (1, 2), frozenset({9}))], [[0.0, 1.0]]).tolist() == [0.0]


def test_equal_scores_keep_the_first_stages_order_and_a_nan_is_refused():
    """A tie is no chance to look at the target."""
    case = ListedCase(1, (7,), (10, 11, 12), frozenset({11}))
    assert target_places(case, [0.0, 0.0, 0.0]).tolist() == [2]
    with pytest.raises(RecalignError, match=r"user 1: 3 items are listed, .* NaN"):
        target_places(case, [0.0, float("nan"), 0.0])
    with pytest.raises(RecalignError, match="has no target"):
        ndcg_of_places(np.array([1]), 0, 5)


def test_before_training_the_order_is_the_first_stages_whatever_the_text():
    """So that nothing is lost where nothing is learned."""
    here = world()
    cases = [here.cases[user] for user in range(5)]
    for texts in (["likes horror films"] * 5, [None] * 5):
        scores = here.start.scores(requests_of(cases, texts), [list(case.listed) for case in cases])
        for row, case in zip(scores.tolist(), cases, strict=True):
            order = [item for _, item in sorted(zip(row, case.listed, strict=True), key=lambda pair: -pair[0])]
            assert order == list(case.listed)


def test_a_text_moves_the_items_that_it_describes_up():
    """Learned from other users: the mean rank of horror films under two texts."""
    here = world()
    case = here.cases[200]
    horror = [place for place, item in enumerate(case.listed) if item % 4 == 2]

    def mean_score(text):
        scores = here.trained.scores(requests_of([case], [text]), [list(case.listed)])[0]
        return float(standardised(scores[None].float())[0][horror].mean())

    assert mean_score("Likes: horror films") > mean_score("Likes: musical films") + 0.5


def test_a_score_depends_on_the_items_of_the_list_and_not_on_their_order():
    """The first stage's rank comes from its scores; here it has an order of its own among all items."""
    items = catalogue()
    counted = Popularity(items, np.arange(ITEMS, 0, -1))
    reranker = new_reranker(items, counted, TextEncoding.open("tfidf", items, TextReader()), [(1, 2)], LISTED)
    torch.nn.init.normal_(reranker.model.head[2].weight)
    row = list(range(1, LISTED + 1))
    request = Request(1, (30,), profile="horror")
    straight = reranker.scores([request], [row])[0]
    turned = reranker.scores([request], [row[::-1]])[0]
    assert torch.allclose(straight, turned.flip(0), atol=1e-5)
    assert straight.std() > 0.1


def test_over_the_whole_catalogue_the_n_best_are_reranked_and_stay_above_the_rest():
    """A recommender like any other."""
    here = world()
    request = Request(1, (1, 2, 3), profile="Likes: horror films")
    scores = here.trained.scores([request], None)[0]
    assert scores.shape == (ITEMS,)
    open_items = [item for item in here.items.ids if item not in request.history]
    best = sorted(open_items, key=lambda item: -scores[here.items.ids.index(item)])[:LISTED]
    first = here.trained.first.scores([request], None)[0]
    kept = sorted(open_items, key=lambda item: (-first[here.items.ids.index(item)], item))[:LISTED]
    assert set(best) == set(kept)
    listed = here.trained.scores([request], [kept])[0].tolist()
    assert best == [item for _, item in sorted(zip(listed, kept, strict=True), key=lambda pair: -pair[0])]


def test_an_empty_text_is_no_text():
    """Bit for bit, also where text dropout was trained."""
    here = world()
    case = here.cases[201]
    rows = here.trained.scores(requests_of([case] * 3, [None, "", "  "]), [list(case.listed)] * 3)
    assert rows[0].tolist() == rows[1].tolist() == rows[2].tolist()


def test_what_is_saved_scores_alike(tmp_path):
    """With its first stage and its encoder."""
    here = world()
    with folder(tmp_path / "kept") as partial:
        here.trained.save(partial)
    loaded = KnowledgeReranker.load(tmp_path / "kept", here.items)
    cases = [here.cases[user] for user in range(150, 160)]
    asked = requests_of(cases, [here.texts[case.user_id] for case in cases]), [list(case.listed) for case in cases]
    assert torch.equal(loaded.scores(*asked), here.trained.scores(*asked))
    assert loaded.listed == LISTED


def test_the_same_cases_and_seed_give_the_same_weights():
    """And torch's own random state is left alone."""
    here = world()
    cases = [here.cases[user] for user in range(40)]
    told = [here.texts[case.user_id] for case in cases]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    weights = [
        fit_reranker(here.start, cases[:30], told[:30], (cases[30:], told[30:]), Learning(epochs=2), seed=3)[
            0
        ].model.state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert torch.equal(before, torch.get_rng_state())


def test_lists_without_any_target_teach_nothing():
    """The error names what to raise."""
    here = world()
    empty = [ListedCase(1, (1,), here.cases[0].listed, frozenset({999}))]
    with pytest.raises(RecalignError, match=r"none of the 1 lists .* raise dpo4rec\.listed"):
        fit_reranker(here.start, empty, ["x"], (empty, ["x"]), Learning(), seed=1)


def test_no_pass_is_chosen_by_lists_without_any_target():
    """Each would lose nothing there, and the start would be kept as if texts were not read."""
    here = world()
    cases, texts = [here.cases[user] for user in range(9)], [here.texts[user] for user in range(9)]
    empty = [ListedCase(1, (1,), here.cases[0].listed, frozenset({999}))]
    with pytest.raises(RecalignError, match=r"none of V's 1 lists .* dpo4rec\.users or dpo4rec\.shares\.validation"):
        fit_reranker(here.start, cases, texts, (empty, ["x"]), Learning(), seed=1)


def test_a_list_longer_than_the_catalogue_is_refused():
    """By its key."""
    items = catalogue()
    with pytest.raises(RecalignError, match=r"dpo4rec\.listed is 41, and the catalogue has 40 items"):
        new_reranker(items, Popularity.fit(items, events(items)), world().start.encoding, [(1,)], 41)


def test_id_vectors_without_a_log_are_zeros():
    """An empty history is no error."""
    items = catalogue()
    first = Popularity.fit(items, events(items))
    assert id_vectors(first, items, [(), ()]).tolist() == [[0.0]] * ITEMS
    assert id_vectors(first, items, [(1, 2), (2, 3), (1, 3)]).shape == (ITEMS, 3)
