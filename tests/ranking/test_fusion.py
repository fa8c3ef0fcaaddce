"""Fusion: scores of two systems in one ranking, with weights that validation cases decide."""

import math
from pathlib import Path

import numpy as np
import pytest
from fusion_world import cases, judged, ndcg

from recalign.common.errors import RecalignError
from recalign.ranking.fusion import (
    FACTORS,
    RIDGE,
    FittedFusion,
    Floats,
    Fusion,
    Judged,
    Part,
    read_fusion,
    standardised,
)


def test_a_row_has_mean_zero_and_deviation_one() -> None:
    root = math.sqrt(3 / 2)
    assert standardised(np.array([[1.0, 2.0, 3.0]]))[0].tolist() == pytest.approx([-root, 0.0, root], abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_equal_scores_become_zeros(value: float) -> None:
    assert standardised(np.full((1, 7), value)).tolist() == [[0.0] * 7]


def test_units_do_not_matter() -> None:
    scores, targets = cases({"knn": 1.0, "llm": 1.0})
    other = {"knn": scores["knn"] * 1e3 + 7.0, "llm": scores["llm"] * 1e-3 - 90.0}
    fusion, again = Fusion.fit(scores, judged(targets)), Fusion.fit(other, judged(targets))

    assert list(fusion.weights.values()) == pytest.approx(list(again.weights.values()), rel=1e-4)
    assert np.allclose(fusion.scores(scores), again.scores(other), atol=1e-3)


def test_the_scale_is_the_minimum_of_the_penalised_likelihood() -> None:
    scores, targets = cases({"knn": 1.5, "llm": 0.5}, count=60)
    fusion = Fusion.fit(scores, judged(targets))

    def loss(factor: float) -> float:
        weights = {name: factor * weight for name, weight in fusion.weights.items()}
        fused, scale = Fusion(weights).scores(scores), factor * fusion.weights["knn"]
        chances = np.exp(fused[np.arange(60), targets]) / np.exp(fused).sum(axis=1)
        return float(-np.log(chances).sum() + RIDGE / 2 * scale**2)

    least = loss(1.0)
    assert all(loss(factor) > least for factor in (0.97, 1.03))


def test_two_systems_that_know_different_things_are_better_together() -> None:
    scores, targets = cases({"knn": 1.2, "llm": 1.0})
    fusion = Fusion.fit(scores, judged(targets))
    later, answers = cases({"knn": 1.2, "llm": 1.0}, seed=1)

    assert ndcg(fusion.scores(later), answers) > max(ndcg(own, answers) for own in later.values()) + 0.05


def test_noise_and_a_wrong_system_get_no_weight() -> None:
    scores, targets = cases({"knn": 1.5, "noise": 0.0, "wrong": -1.0})
    weights = Fusion.fit(scores, judged(targets)).weights

    assert weights["knn"] > 1.0
    assert weights["noise"] == weights["wrong"] == 0.0


def heavy_tailed(count: int, seed: int) -> tuple[dict[str, Floats], list[int]]:
    """A part that is silent but for one large score, most often the target's, beside a worse one of normal noise."""
    rng = np.random.default_rng(seed)
    scores, targets = cases({"loud": 0.0, "plain": 0.9}, count, seed)
    loud = rng.normal(scale=0.01, size=(count, 10))
    hit = rng.random(count) < 0.75
    loud[np.arange(count), np.where(hit, targets, rng.integers(10, size=count))] += np.exp(rng.normal(size=count))
    return scores | {"loud": loud}, targets


def test_a_fusion_is_never_worse_than_its_best_part_by_what_its_cases_show() -> None:
    """The scores of `loud` in a logit are worth little, its ranks much: likelihood is not what a list is judged by."""
    scores, targets = heavy_tailed(600, seed=0)
    fusion = Fusion.fit(scores, judged(targets))
    later, answers = heavy_tailed(2000, seed=1)
    best = max(ndcg(own, answers) for own in later.values())

    assert max(fusion.weights, key=lambda name: fusion.weights[name]) == "loud"
    assert ndcg(fusion.scores(later), answers) > best - 0.001


def test_what_adds_no_more_than_noise_is_mostly_left_out() -> None:
    """The second part is a noisier copy of the first. One standard error lets noise in about once in six tries."""
    joined = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores, targets = cases({"knn": 1.5}, count=80, seed=seed)
        scores["copy"] = scores["knn"] + rng.normal(scale=2.0, size=(80, 10))
        joined += Fusion.fit(scores, judged(targets)).weights["copy"] > 0.0
    assert joined <= 5


def test_a_gain_is_measured_over_users_and_not_over_cases() -> None:
    """One user with most of the cases, who is better served by `own`, decides nothing for all the others."""
    scores, targets = cases({"knn": 1.2, "own": 0.0}, count=200)
    scores["own"][np.arange(60), targets[:60]] += 3.0
    one = Judged(targets, [0] * 60 + list(range(1, 141)), judged(targets).lots)
    each = Judged(targets, list(range(200)), judged(targets).lots)

    assert Fusion.fit(scores, one).weights["own"] == 0.0
    assert Fusion.fit(scores, each).weights["own"] > 0.0


def test_of_one_user_nothing_can_be_held_out_so_nothing_joins() -> None:
    scores, targets = cases({"knn": 1.2, "llm": 1.0}, count=30)
    alone = Judged(targets, [7] * 30, judged(targets).lots)
    fusion = Fusion.fit(scores, alone)
    assert sorted(weight > 0 for weight in fusion.weights.values()) == [False, True]
    assert Fusion.fit({"knn": scores["knn"]}, alone).joined("llm", scores, alone).weights["llm"] == 0.0


def test_a_perfect_system_keeps_a_finite_weight() -> None:
    scores, targets = cases({"knn": 100.0}, count=3)
    assert 1.0 < Fusion.fit(scores, judged(targets)).weights["knn"] < 10.0


def test_the_sentence_gives_shares() -> None:
    assert Fusion({"item_knn": 1.5, "llm-sdpo": 0.5}).sentence == "0.75 item_knn + 0.25 llm-sdpo"
    assert Fusion({"item_knn": 0.0}).sentence == "0.00 item_knn"
    assert Fusion({"ease": 0.0, "item_knn": 2.0, "llm": 0.0}).sentence == "1.00 item_knn + 0 (ease, llm)"


def test_a_system_that_joins_leaves_the_weights_as_they_are() -> None:
    """Its own is what serves its few cases best of the factors tried; noise stays out."""
    many, answers = cases({"knn": 1.5, "ease": 1.0})
    first = Fusion.fit(many, judged(answers))
    scores, targets = cases({"knn": 1.5, "ease": 1.0, "llm": 1.2, "noise": 0.0}, count=100, seed=1)
    fusion = first.joined("llm", scores, judged(targets))
    assert {name: fusion.weights[name] for name in ("knn", "ease")} == first.weights

    total = sum(first.weights.values())
    tried = {
        factor: ndcg(Fusion({**first.weights, "llm": factor * total}).scores(scores), targets) for factor in FACTORS
    }
    assert fusion.weights["llm"] == pytest.approx(max(tried, key=lambda factor: tried[factor]) * total)
    assert first.joined("noise", scores, judged(targets)).weights["noise"] == 0.0


def test_a_part_without_weight_need_not_score() -> None:
    scores, _ = cases({"knn": 1.0}, count=3)
    assert Fusion({"knn": 1.0, "llm": 0.0}).scores(scores).tolist() == standardised(scores["knn"]).tolist()


def test_a_fitted_fusion_comes_back_from_its_file(tmp_path: Path) -> None:
    parts = {"item_knn": Part(weight=1.5, digest="a"), "ease": Part(weight=0.0, digest="b"),
             "llm-sft": Part(weight=0.25, digest="c")}  # fmt: skip
    fitted = FittedFusion(
        parts=parts, language_model="llm-sft", manifest="uniform", manifest_digest="d", cases=64, recommender_cases=900
    )
    fitted.write(tmp_path)
    assert read_fusion(tmp_path) == fitted
    assert fitted.recommenders == ["item_knn"]
    assert fitted.fusion.sentence == "0.86 item_knn + 0.14 llm-sft + 0 (ease)"
    with pytest.raises(RecalignError, match=r"fusion\.json is missing"):
        read_fusion(tmp_path / "nowhere")


def test_scores_of_other_lists_and_missing_systems_are_refused() -> None:
    with pytest.raises(RecalignError, match=r"same cases and candidates.*\(1, 3\).*\(1, 2\)"):
        Fusion.fit({"a": np.zeros((1, 3)), "b": np.zeros((1, 2))}, judged([0]))
    with pytest.raises(RecalignError, match="the scores of b are missing"):
        Fusion({"a": 1.0, "b": 1.0}).scores({"a": np.zeros((1, 3))})
