"""Fusion: scores of two systems in one ranking, with weights that validation cases decide."""

import math
from pathlib import Path

import numpy as np
import pytest
from fusion_world import cases, ndcg

from recalign.common.errors import RecalignError
from recalign.ranking.fusion import RIDGE, FittedFusion, Fusion, Part, read_fusion, standardised


def test_a_row_has_mean_zero_and_deviation_one() -> None:
    root = math.sqrt(3 / 2)
    assert standardised(np.array([[1.0, 2.0, 3.0]]))[0].tolist() == pytest.approx([-root, 0.0, root], abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_equal_scores_become_zeros(value: float) -> None:
    assert standardised(np.full((1, 7), value)).tolist() == [[0.0] * 7]


def test_units_do_not_matter() -> None:
    scores, targets = cases({"knn": 1.0, "llm": 1.0})
    other = {"knn": scores["knn"] * 1e3 + 7.0, "llm": scores["llm"] * 1e-3 - 90.0}
    fusion, again = Fusion.fit(scores, targets), Fusion.fit(other, targets)

    assert list(fusion.weights.values()) == pytest.approx(list(again.weights.values()), rel=1e-4)
    assert np.allclose(fusion.scores(scores), again.scores(other), atol=1e-3)


def test_the_weights_are_the_minimum_of_the_penalised_likelihood() -> None:
    scores, targets = cases({"knn": 1.5, "llm": 0.5}, count=60)
    fusion = Fusion.fit(scores, targets)

    def loss(knn: float, llm: float) -> float:
        fused = Fusion({"knn": knn, "llm": llm}).scores(scores)
        chances = np.exp(fused[np.arange(60), targets]) / np.exp(fused).sum(axis=1)
        return float(-np.log(chances).sum() + RIDGE / 2 * (knn**2 + llm**2))

    knn, llm = fusion.weights.values()
    least = loss(knn, llm)
    assert all(loss(knn + a, llm + b) > least for a in (-0.02, 0.02) for b in (-0.02, 0.02))
    assert knn > llm > 0


def test_two_systems_that_know_different_things_are_better_together() -> None:
    scores, targets = cases({"knn": 1.2, "llm": 1.0})
    fusion = Fusion.fit(scores, targets)
    later, answers = cases({"knn": 1.2, "llm": 1.0}, seed=1)

    assert ndcg(fusion.scores(later), answers) > max(ndcg(own, answers) for own in later.values()) + 0.05


def test_noise_gets_next_to_no_weight_and_a_wrong_system_none() -> None:
    scores, targets = cases({"knn": 1.5, "noise": 0.0, "wrong": -1.0})
    weights = Fusion.fit(scores, targets).weights

    assert weights["noise"] < 0.1 * weights["knn"]
    assert weights["wrong"] == 0.0


def test_a_perfect_system_keeps_a_finite_weight() -> None:
    scores, targets = cases({"knn": 100.0}, count=3)
    assert 1.0 < Fusion.fit(scores, targets).weights["knn"] < 10.0


def test_the_sentence_gives_shares() -> None:
    assert Fusion({"item_knn": 1.5, "llm-sdpo": 0.5}).sentence == "0.75 item_knn + 0.25 llm-sdpo"
    assert Fusion({"item_knn": 0.0}).sentence == "0.00 item_knn"
    assert Fusion({"ease": 0.0, "item_knn": 2.0, "llm": 0.0}).sentence == "1.00 item_knn + 0 (ease, llm)"


def test_a_system_that_joins_leaves_the_weights_as_they_are() -> None:
    """Its own is the minimum of the penalised likelihood beside theirs."""
    many, answers = cases({"knn": 1.5, "ease": 1.0})
    first = Fusion.fit(many, answers)
    scores, targets = cases({"knn": 1.5, "ease": 1.0, "llm": 0.8}, count=60, seed=1)
    fusion = first.joined("llm", scores, targets)
    assert {name: fusion.weights[name] for name in ("knn", "ease")} == first.weights

    def loss(weight: float) -> float:
        fused = Fusion(first.weights | {"llm": weight}).scores(scores)
        chances = np.exp(fused[np.arange(60), targets]) / np.exp(fused).sum(axis=1)
        return float(-np.log(chances).sum() + RIDGE / 2 * weight**2)

    least = loss(fusion.weights["llm"])
    assert fusion.weights["llm"] > 0.1
    assert all(loss(fusion.weights["llm"] + step) > least for step in (-0.02, 0.02))


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
        Fusion.fit({"a": np.zeros((1, 3)), "b": np.zeros((1, 2))}, [0])
    with pytest.raises(RecalignError, match="the scores of b are missing"):
        Fusion({"a": 1.0, "b": 1.0}).scores({"a": np.zeros((1, 3))})
