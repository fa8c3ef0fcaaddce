"""The fusion as a recommender: a tiny language model and item-kNN on 200 titles, against scoring everything."""

import numpy as np
import pyarrow as pa
import pytest
import torch

import tiny
from recalign.data.records import Items, hashed_order
from recalign.llm.base import LanguageModel
from recalign.params import PromptParams
from recalign.prompts import PromptBuilder
from recalign.recommenders import fused as under_test
from recalign.recommenders.fused import FusedRecommender
from recalign.recommenders.fusion import Fusion, standardised
from recalign.recommenders.item_knn import ItemKNN, Settings, fitter
from recalign.recommenders.language_model import LanguageModelRecommender
from recalign.recommenders.seam import Request
from recalign.recommenders.transplanted import Transplanted, on_catalogue

FIRST = ("House", "Secret", "Last", "Winter", "Return", "King", "Story", "Fall", "Legend", "Heart")
SECOND = ("River", "Fire", "Night", "Stone", "Glass", "Road", "Song", "Dream", "Storm", "Gate")
TITLES = [f"{place} {one} of {other}" for place in ("The", "A") for one in FIRST for other in SECOND]
ITEMS = tiny.items(TITLES)
HISTORY = [3, 40, 77]


def item_knn(catalogue: Items) -> ItemKNN:
    """Fitted on 60 users who like eight items each."""
    rng = np.random.default_rng(0)
    liked = np.concatenate([rng.choice(catalogue.ids, 8, replace=False) for _ in range(60)])
    events = pa.table({"user_id": np.repeat(np.arange(60), 8), "item_id": liked, "position": np.tile(np.arange(8), 60)})
    return fitter(catalogue, events)(Settings())


@pytest.fixture(scope="module")
def language_model() -> LanguageModelRecommender:
    identity = {"id": "tiny", "revision": "1", "sha256": "0"}
    model = LanguageModel(tiny.model(), tiny.tokenizer(), torch.device("cpu"), "fp32", "none", identity, "digest")
    params = PromptParams(form="history", history=8, training_history=8, profile=False, max_title_tokens=24)
    builder = PromptBuilder(model.tokenizer, ITEMS, params, "films")
    return LanguageModelRecommender(model, builder, ITEMS, "llm-tiny")


def recommender(language_model: LanguageModelRecommender, knn: float, llm: float) -> FusedRecommender:
    return FusedRecommender(
        Fusion({"item_knn": knn, "llm-tiny": llm}), {"item_knn": item_knn(ITEMS)}, language_model
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
    """Under the mean and deviation of the fixed sample, whatever the weight; and not all titles are read."""
    monkeypatch.setattr(under_test, "SAMPLE", 16)
    monkeypatch.setattr(under_test, "SEARCHED", 12)
    left = [item for item in ITEMS.ids if item not in HISTORY]
    request = [Request(None, tuple(HISTORY))]
    by_knn = standardised(item_knn(ITEMS).scores(request, [left]).double().numpy())[0]
    told = dict(zip(left, language_model.scores(request, [left])[0].tolist(), strict=True))
    sample = [told[item] for item in sorted(left, key=hashed_order)[:16]]
    z = (np.array([told[item] for item in left]) - np.mean(sample)) / np.std(sample)
    expected = dict(zip(left, (by_knn + llm * z).tolist(), strict=True))
    best = sorted(left, key=lambda item: -expected[item])[:5]

    found = recommender(language_model, 1.0, llm).rank_items(HISTORY, None, 5)
    assert [scored.item_id for scored in found] == best
    assert [scored.score for scored in found] == pytest.approx([expected[item] for item in best], abs=1e-4)


def test_a_language_model_without_weight_is_never_asked(
    language_model: LanguageModelRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = recommender(language_model, 1.0, 0.0)
    monkeypatch.delattr(LanguageModelRecommender, "rank_items")
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
    """Numbered anew and with a film more: known titles score as ever, the new one as low as the lowest."""
    knn, newer = item_knn(ITEMS), tiny.items(["A Newer Film", *TITLES])
    moved = on_catalogue(knn, ITEMS, newer)
    assert isinstance(moved, Transplanted)
    old = knn.scores([Request(1, (3, 40))], None)[0]
    whole = moved.scores([Request(1, (4, 1, 41))], None)[0]
    assert whole[1:].tolist() == old.tolist()
    assert whole[0] == old.min()
    listed = moved.scores([Request(1, (4, 41)), Request(2, ())], [[1, 2], [9, 8]])
    assert listed[0].tolist() == [old.min().item(), old[0].item()]
    assert listed.shape == (2, 2)
