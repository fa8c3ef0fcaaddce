"""The fusion as a recommender: a tiny language model and item-kNN on 200 titles, against scoring everything."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from fusion_world import HISTORY, ITEMS, TITLES, item_knn, tiny_llm

from recalign.data.records import Case, Example, hashed_order
from recalign.evaluation.metrics import draw_lots
from recalign.evaluation.ranking_rule import RankingRule
from recalign.params.load import load_params
from recalign.project import BASELINES, Project
from recalign.ranking import fused as under_test
from recalign.ranking.fused import FusedRecommender, catalogue_ranks, fused_recommender
from recalign.ranking.fusion import FittedFusion, Fusion, Part, standardised
from recalign.ranking.language_model import Asked, LanguageModelRecommender
from recalign.ranking.trial import Trial, Trials, rank_catalogue, whole_catalogue
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recommender import Request
from recalign.recommenders.store import Transplanted, on_catalogue
from recalign.stages.fuse import fusion_in_whole_catalogue


@pytest.fixture(scope="module")
def language_model() -> LanguageModelRecommender:
    return tiny_llm(ITEMS)


def recommender(language_model: LanguageModelRecommender, knn: float, llm: float) -> FusedRecommender:
    return FusedRecommender(
        Fusion({"item_knn": knn, "llm-tiny": llm}), {"item_knn": item_knn(ITEMS)}, ITEMS, language_model
    )


def test_a_list_is_ranked_by_the_fused_scores_of_the_evaluation(language_model: LanguageModelRecommender) -> None:
    items = [5, 9, 120, 31, 150]
    fused = recommender(language_model, 1.0, 0.5)
    request = [Request(None, tuple(HISTORY))]
    parts = [part.scores(request, [items]).double().numpy() for part in (item_knn(ITEMS), language_model)]
    expected = standardised(parts[0])[0] + 0.5 * standardised(parts[1])[0]

    assert fused.scores(request, [items])[0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    ranked = fused.rank_items(HISTORY, items, 3)
    assert [scored.item_id for scored in ranked] == [items[place] for place in np.argsort(-expected)[:3]]
    assert [scored.score for scored in ranked] == pytest.approx(sorted(expected, reverse=True)[:3], abs=1e-5)


@pytest.mark.parametrize("llm", [0.2, 1.0, 5.0])
def test_the_best_of_the_catalogue_are_those_of_scoring_all_titles(
    language_model: LanguageModelRecommender, llm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the mean and deviation of the fixed sample, whatever the weight."""
    monkeypatch.setattr(under_test, "SAMPLE", 16)
    left = [item for item in ITEMS.ids if item not in HISTORY]
    request = [Request(None, tuple(HISTORY))]
    by_knn = standardised(item_knn(ITEMS).scores(request, [left]).double().numpy())[0]
    told = dict(zip(left, language_model.scores(request, [left])[0].tolist(), strict=True))
    sample = [told[item] for item in sorted(left, key=hashed_order)[:16]]
    z = (np.array([told[item] for item in left]) - np.mean(sample)) / np.std(sample)
    expected = dict(zip(left, (by_knn + llm * z).tolist(), strict=True))
    best = sorted(left, key=lambda item: -expected[item])[:5]

    fused = recommender(language_model, 1.0, llm)
    found = fused.rank_items(HISTORY, None, 5)
    assert [scored.item_id for scored in found] == best
    assert [scored.score for scored in found] == pytest.approx([expected[item] for item in best], abs=1e-4)
    every = fused.scores(request, None)[0, [item - 1 for item in left]]
    assert every.tolist() == pytest.approx([expected[item] for item in left], abs=1e-4)


def test_the_whole_catalogue_is_fused_with_what_ranks_it_by_the_language_model(
    language_model: LanguageModelRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists by the log-prob minus the prior, the catalogue by the log-prob; the sample too, which tells its scale."""
    monkeypatch.setattr(under_test, "SAMPLE", 16)
    mixed = copy(language_model)
    mixed.ranked_by = RankingRule("logprob_less_prior", 0.5)
    fused, plain = recommender(mixed, 1.0, 2.0), recommender(language_model, 1.0, 2.0)
    found, expected = fused.rank_items(HISTORY, None, 5), plain.rank_items(HISTORY, None, 5)
    assert [scored.item_id for scored in found] == [scored.item_id for scored in expected]
    assert [scored.score for scored in found] == pytest.approx([scored.score for scored in expected], abs=1e-4)
    request = [Request(None, tuple(HISTORY))]
    assert torch.allclose(fused.scores(request, None), plain.scores(request, None), atol=1e-4)
    assert not torch.allclose(fused.scores(request, [[5, 9, 120]]), plain.scores(request, [[5, 9, 120]]), atol=1e-4)


def trial(histories: list[tuple[int, ...]], targets: list[int]) -> Trial:
    """A user a case; the lists, the target alone, are not looked at."""
    cases = tuple(
        Case(Example(f"{user}-0", user, "test", None, history, target), (target,), 0)
        for user, (history, target) in enumerate(zip(histories, targets, strict=True))
    )
    return Trial("uniform", "d", cases, tuple(Request(None, history) for history in histories))


def asked_by_many() -> list[Asked]:
    return [
        Asked(HISTORY, None, 5), Asked([8], None, 1), Asked(HISTORY, [5, 9, 120, 31, 150], 3), Asked([], None, 12),
        Asked([3, "A Film Nobody Made"], None, 4), Asked([12, 60], None, 5, profile="Likes storms."),
        Asked([12, 60], None, 5), Asked([1], [9, 2, 9], 5), Asked([1], [], 5), Asked([*ITEMS.ids], None, 3),
        Asked([7, 90, 4], None, 200, None, frozenset({7, 4})), Asked([2], [7, 5], 2, "Old."),
        Asked([1, 2], None, 3, None, frozenset({8}), "9-9"),
    ]  # fmt: skip


@pytest.mark.parametrize("llm", [0.0, 0.2, 2.0])
def test_many_are_answered_as_each_alone(
    language_model: LanguageModelRecommender, llm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "SAMPLE", 16)
    fused, asked = recommender(language_model, 1.0, llm), asked_by_many()
    for each, together in zip(asked, fused.rank_many(asked), strict=True):
        (alone,) = fused.rank_many([each])
        assert [scored.item_id for scored in together] == [scored.item_id for scored in alone]
        assert [scored.score for scored in together] == pytest.approx([scored.score for scored in alone], abs=1e-4)
    assert fused.rank_many([]) == []


def test_a_profile_is_read_by_the_language_model_of_a_fusion(language_model: LanguageModelRecommender) -> None:
    fused = recommender(language_model, 1.0, 2.0)
    plain, told = fused.rank_many([Asked([12, 60], None, 5), Asked([12, 60], None, 5, profile="Likes storms.")])
    assert [scored.score for scored in plain] != pytest.approx([scored.score for scored in told], abs=1e-3)


@pytest.mark.parametrize("rule", [RankingRule(), RankingRule("logprob_less_prior", 0.5), RankingRule("reward")])
@pytest.mark.parametrize("llm", [0.0, 0.2, 2.0])
def test_the_places_in_the_catalogue_are_those_of_every_score(
    language_model: LanguageModelRecommender, llm: float, rule: RankingRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ranks the language model's part; a target that the history holds is ranked."""
    monkeypatch.setattr(under_test, "SAMPLE", 16)
    monkeypatch.setattr(language_model, "over_catalogue", rule)
    monkeypatch.setattr(language_model, "reference", replace(language_model.language_model, model=tiny.model(seed=1)))
    fused = recommender(language_model, 1.0, llm)
    histories, targets = [(3, 40, 77), (8,), (7, 90, 4)], [5, 120, 90]
    asked = trial(histories, targets)
    whole = whole_catalogue(asked, ITEMS, 3)
    for depth in (1, 10, 199):
        found = catalogue_ranks(fused, whole, depth)
        expected = rank_catalogue(fused, whole_catalogue(asked, ITEMS), depth)
        assert (found.ranks.tolist(), found.protocol) == (expected.ranks.tolist(), "full")
        assert [top[:depth] for top in expected.top] == [top[:depth] for top in found.top]
    every = rank_catalogue(fused, whole_catalogue(asked, ITEMS))
    assert catalogue_ranks(fused, whole, None).ranks.tolist() == every.ranks.tolist()


@pytest.mark.parametrize("llm", [0.0, 1.0])
def test_equals_stand_by_lot_and_by_id_without_a_case(llm: float) -> None:
    """Three titles read alike and are liked by nobody."""
    twins = tiny.items(["Same", "Same", "Same", *TITLES[:40]])
    fused = FusedRecommender(
        Fusion({"popularity": 1.0, "llm-tiny": llm}),
        {"popularity": Popularity(twins, np.array([0, 0, 0, *range(1, 41)]))}, twins, tiny_llm(twins),
    )  # fmt: skip
    for case in (None, "a", "b", "c", "d"):
        (found,) = fused.rank_many([Asked((1, 9), None, 43, None, frozenset({9}), case)])
        expected = [1, 2, 3] if case is None else sorted((1, 2, 3), key=lambda item: draw_lots([case], [item])[0, 0])
        assert [scored.item_id for scored in found if scored.item_id <= 3] == expected
        (listed,) = fused.rank_many([Asked((1, 9), [1, 3, 2], 3, case=case)])
        assert [scored.item_id for scored in listed] == expected


def test_a_language_model_without_weight_is_never_asked(
    language_model: LanguageModelRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = recommender(language_model, 1.0, 0.0)
    monkeypatch.delattr(LanguageModelRecommender, "rank_many")
    monkeypatch.delattr(LanguageModelRecommender, "scores")
    votes = item_knn(ITEMS).scores([Request(None, tuple(HISTORY))], None)[0].numpy()
    votes[[item - 1 for item in HISTORY]] = -np.inf
    assert fused.rank_items(HISTORY, None, 1)[0].item_id == int(votes.argmax()) + 1
    assert fused.scores([Request(None, tuple(HISTORY))], [[1, 2]]).shape == (1, 2)


def test_a_title_outside_the_catalogue_is_read_by_the_language_model_alone(
    language_model: LanguageModelRecommender,
) -> None:
    fused = recommender(language_model, 1.0, 1.0)
    known, unknown = (fused.rank_items(history, [5, 9, 31], 3) for history in ([3], [3, "A Film Nobody Made"]))
    assert [scored.score for scored in known] != [scored.score for scored in unknown]
    assert fused.rank_items([*ITEMS.ids], None, 3) == []


def test_on_its_own_catalogue_a_recommender_stays_as_it_is() -> None:
    knn = item_knn(ITEMS)
    assert on_catalogue(knn, ITEMS, tiny.items(TITLES)) is knn


def test_on_another_catalogue_items_are_met_by_title() -> None:
    """Numbered anew and with a film more: known titles score as ever, the new one below the lowest, by no more than
    their own deviation, so that a fusion still hears how the known ones differ."""
    knn, newer = item_knn(ITEMS), tiny.items(["A Newer Film", *TITLES])
    moved = on_catalogue(knn, ITEMS, newer)
    assert isinstance(moved, Transplanted)
    old = knn.scores([Request(1, (3, 40))], None)[0]
    whole = moved.scores([Request(1, (4, 1, 41))], None)[0]
    assert whole[1:].tolist() == old.tolist()
    below = (old.min() - min(1.0, float(np.std(old.numpy())))).item()
    assert whole[0].item() == pytest.approx(below)
    listed = moved.scores([Request(1, (4, 41)), Request(2, ())], [[1, 2], [9, 8]])
    assert listed[0].tolist() == pytest.approx([below, old[0].item()])
    assert listed.shape == (2, 2)


@pytest.mark.parametrize("few", [0, 2])
def test_without_the_language_model_every_test_case_is_ranked_and_no_model_is_read(tmp_path: Path, few: int) -> None:
    """There is no adapter and no base; the places are those of the answer that a user gets."""
    ids = item_knn(ITEMS)
    ids.save(tmp_path / BASELINES / "item_knn")
    asked = trial([(3, 40, 77), (8,), (7, 90, 4)], [5, 120, 90])
    full, whole = (whole_catalogue(asked, ITEMS),), (whole_catalogue(asked, ITEMS, few),) if few else ()
    trials = Trials(asked, asked, (asked,), (), full, whole, 10, ITEMS)
    parts = {"item_knn": Part(weight=1.0, digest=""), "llm-tiny": Part(weight=0.0, digest="")}
    fitted = FittedFusion(
        parts=parts, language_model="llm-tiny", manifest="uniform", manifest_digest="d", cases=3, recommender_cases=3
    )
    every, *shared = fusion_in_whole_catalogue(fitted, {}, load_params(), Project(tmp_path), trials)
    assert (every.system, every.protocol, every.manifest, len(every.ranks)) == ("fusion", "full", "catalogue", 3)
    assert [(own.manifest, len(own.ranks)) for own in shared] == ([("catalogue-cases", 2)] if few else [])
    assert all(set(own.ranks.tolist()) <= {*range(1, 11), len(ITEMS.ids)} for own in shared)
    fused = fused_recommender(fitted, tmp_path / BASELINES, ITEMS)
    for case, request, rank in zip(asked.cases, full[0].requests, every.ranks, strict=True):
        wanted = Asked(request.history, None, 200, None, request.unranked, case.example.example_id)
        (best,) = fused.rank_many([wanted])
        assert best[rank - 1].item_id == case.example.target
