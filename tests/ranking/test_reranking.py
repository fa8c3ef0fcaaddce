"""Reranking of what is shown too often: its formula, γ = 0, and what is chosen on validation cases."""

import numpy as np
import pytest
import torch
from fusion_world import ITEMS, item_knn

from recalign.common.errors import RecalignError
from recalign.common.item_groups import group_items
from recalign.data.records import Case, Example, Items
from recalign.evaluation.systems import Choice, Tried, best_strength, read_choices, write_choices
from recalign.params.load import Params, load_params, parse_params
from recalign.ranking.exposure import (
    FairRecommender,
    choose,
    grouping_of,
    reranked,
)
from recalign.ranking.trial import Trial, rank_catalogue, whole_catalogue
from recalign.recommenders.recommender import Request

SCORES = np.array([[4.0, 3.0, 2.0, 0.0]])
EXPOSURE = np.array([0.2, 0.2, -0.1, 0.0])


def test_the_punished_distance_is_the_formula_by_hand() -> None:
    """d = [0, 1/4, 1/2, 1]; only what is over-exposed is punished: (1 + 0.2)² on the second item."""
    assert reranked(SCORES, EXPOSURE, 2.0)[0] == pytest.approx([0.0, -0.25 * 1.44, -0.5, -1.0])


def test_enough_of_it_moves_an_over_exposed_item_behind_another() -> None:
    """(1 + 0.2)^γ > 2 from γ = 3.81 on; the best item has distance 0 and stays."""
    order = [np.argsort(-reranked(SCORES, EXPOSURE, gamma))[0].tolist() for gamma in (3.8, 3.9)]
    assert order == [[0, 1, 2, 3], [0, 2, 1, 3]]


def test_what_is_not_ranked_says_nothing_of_distance() -> None:
    """The first item is excluded: the second is the best one then; −inf stays out."""
    scores = np.array([[4.0, 3.0, 2.0, 1.0, -np.inf]])
    over = np.array([[False, True, True, True, True]])
    assert reranked(scores, np.zeros(5), 1.0, over)[0].tolist() == [-np.inf, 0.0, -0.5, -1.0, -np.inf]


def test_equal_scores_stay_equal() -> None:
    assert reranked(np.full((1, 3), 2.0), np.array([0.5, 0.0, 0.1]), 8.0)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("gamma", [-0.5, float("nan")])
def test_a_strength_below_0_is_refused(gamma: float) -> None:
    with pytest.raises(RecalignError, match=r"gamma is .*: give no less than 0"):
        reranked(SCORES, EXPOSURE, gamma)


@pytest.mark.parametrize(
    ("gammas", "said"), [([-1.0, 0.0], "fairness.gammas"), ([1.0, 2.0], "rise from 0.0"), ([0.0, 2.0, 2.0], "once")]
)
def test_strengths_in_params_rise_from_0(tree, gammas, said) -> None:
    tree["fairness"]["gammas"] = gammas
    with pytest.raises(RecalignError, match=said):
        parse_params(tree)


def test_params_without_the_section_rerank_nothing(tree) -> None:
    """As params.yaml files of before are: what is shipped holds."""
    del tree["fairness"], tree["hybrid"], tree["dpo4rec"]
    found = parse_params(tree)
    assert found.fairness.by is None
    assert found.hybrid.teachers == ()
    assert found == load_params()


class Planted:
    """Scores the catalogue by popularity and a little taste: the case's target gets `taste` more."""

    name = "planted"

    def __init__(self, catalogue: Items, taste: float) -> None:
        self.catalogue, self.taste = catalogue, taste

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        popular = torch.tensor([float(self.catalogue.popularity[item]) for item in self.catalogue.ids])
        rows = popular.repeat(len(requests), 1)
        for row, request in enumerate(requests):
            rng = np.random.default_rng(request.user_id)
            rows[row] += torch.from_numpy(rng.normal(size=len(popular)) * 4.0).float()
            rows[row, (request.user_id or 0) * 7 % len(popular)] += self.taste
        if candidates is None:
            return rows
        columns = {item: place for place, item in enumerate(self.catalogue.ids)}
        return torch.stack([rows[row, [columns[i] for i in items]] for row, items in enumerate(candidates)])


@pytest.fixture(scope="module")
def catalogue() -> Items:
    """60 items; item i has i² train events, the last third is called "hit"."""
    ids = tuple(range(1, 61))
    kinds = {item: {"kind": ["hit" if item > 40 else "other"]} for item in ids}
    return Items(ids, {item: f"title {item}" for item in ids}, kinds, {item: item**2 // 40 for item in ids})


@pytest.fixture(scope="module")
def trial(catalogue: Items) -> Trial:
    """80 users with one case each: the target is what `Planted` likes, the history two other items."""
    cases, requests = [], []
    for user in range(80):
        target = catalogue.ids[user * 7 % 60]
        history = tuple(item for item in (1 + user % 60, 1 + (user + 3) % 60) if item != target)
        example = Example(f"{user:03d}", user, "validation", None, history, target)
        cases.append(Case(example, (target,), 0))
        requests.append(Request(user, history))
    return whole_catalogue(Trial("uniform", "d", tuple(cases), tuple(requests)), catalogue)


def params_with(tree, **fairness) -> Params:
    tree["fairness"] |= fairness
    tree["evaluate"]["resamples"] = 200
    return parse_params(tree)


def test_strength_0_ranks_exactly_as_the_system_does(catalogue, trial) -> None:
    """Ranks, scores and lists alike, for a real recommender too."""
    grouping = group_items("kind", catalogue.popularity, catalogue.attributes)
    planted = Planted(catalogue, 40.0)
    fair, plain = (
        rank_catalogue(own, trial)
        for own in (FairRecommender(planted, catalogue, grouping, np.array([0.4, -0.4]), 0.0), planted)
    )
    assert (fair.ranks == plain.ranks).all()
    assert (fair.scores == plain.scores).all()
    assert fair.top == plain.top
    assert (fair.system, plain.system) == ("fair(planted)", "planted")
    knn = item_knn(ITEMS)
    groups = {item: {"kind": ["a" if item % 2 else "b"]} for item in ITEMS.ids}
    two = group_items("kind", dict.fromkeys(ITEMS.ids, 1), groups)
    asked = [Request(1, (3, 40, 77)), Request(2, (5,))]
    for lists in (None, [[1, 2, 3], [9, 8, 7]]):
        same = FairRecommender(knn, ITEMS, two, np.array([0.3, -0.3]), 0.0).scores(asked, lists)
        assert torch.equal(same, knn.scores(asked, lists).double())


def test_what_validation_chooses_cuts_unfairness_within_the_tolerance(tree, catalogue, trial) -> None:
    """The targets stand out by taste, so that hits can be punished for long without a loss."""
    params = params_with(tree, by="kind", gammas=[0.0, 1.0, 4.0, 16.0], tolerance=0.02)
    choice = choose(Planted(catalogue, 80.0), trial, catalogue, grouping_of(params, catalogue), params)
    before, chosen = choice.tried[0], next(own for own in choice.tried if own.gamma == choice.gamma)
    assert choice.gu["hit"] > 0.2
    assert before.mgu == pytest.approx(choice.gu["hit"])  # two groups: |GU| is the same for both
    assert (before.difference, before.low, before.high) == (0.0, 0.0, 0.0)
    assert chosen.gamma > 0
    assert chosen.mgu < before.mgu
    assert chosen.low > -0.02
    assert (choice.cases, choice.users) == (80, 80)


def tried(gamma: float, mgu: float, low: float) -> Tried:
    return Tried(gamma=gamma, ndcg=0.1, mgu=mgu, dgu=2 * mgu, difference=low + 0.01, low=low, high=low + 0.02)


@pytest.mark.parametrize(
    ("strengths", "chosen"),
    [
        ([(0.0, 0.2, 0.0), (1.0, 0.15, -0.004), (2.0, 0.1, -0.009), (4.0, 0.05, -0.02)], 2.0),
        ([(0.0, 0.2, 0.0), (1.0, 0.1, -0.01)], 0.0),  # not above −tolerance
        ([(0.0, 0.1, 0.0), (1.0, 0.12, 0.001)], 0.0),  # it would be less fair
        ([(0.0, 0.2, 0.0), (1.0, 0.1, -0.001), (2.0, 0.1, 0.0)], 1.0),  # the smaller of equals
    ],
)
def test_the_largest_cut_within_the_tolerance_wins(strengths, chosen) -> None:
    assert best_strength([tried(*own) for own in strengths], 0.01).gamma == chosen


def test_an_attribute_that_cannot_be_grouped_by_is_told_with_its_key(tree, catalogue) -> None:
    with pytest.raises(RecalignError, match=r"fairness\.by: no item has the attribute 'author'"):
        grouping_of(params_with(tree, by="author"), catalogue)


def test_choices_are_read_as_they_were_written(tmp_path) -> None:
    own = Choice(system="ease", by="genre", gu={"War": 0.1}, gamma=2.0, tried=(tried(0.0, 0.2, 0.0),), cases=9, users=8)
    assert read_choices(tmp_path) == {}
    write_choices(tmp_path, {"ease": own})
    assert read_choices(tmp_path) == {"ease": own}
    assert own.sentence == "ease, groups by genre that are shown too often punished (γ = 2)"
