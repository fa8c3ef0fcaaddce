"""What fusions are tried on: planted scores of two systems, and item-kNN beside a tiny language model on 200 titles."""

from typing import Any

import numpy as np
import pyarrow as pa
import tiny
import torch

from recalign.data.records import Items
from recalign.evaluation.metrics import draw_lots
from recalign.llm.model.base import LanguageModel
from recalign.llm.prompts import PromptBuilder
from recalign.params.prompt import PromptParams
from recalign.ranking.fusion import Judged
from recalign.ranking.language_model import LanguageModelRecommender
from recalign.recommenders.item_knn import ItemKNN, Settings, fitter

Floats = np.ndarray[Any, np.dtype[np.float64]]
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


def tiny_llm(catalogue: Items) -> LanguageModelRecommender:
    identity = {"id": "tiny", "revision": "1", "sha256": "0"}
    model = LanguageModel(tiny.model(), tiny.tokenizer(), torch.device("cpu"), "fp32", "none", identity, "digest")
    params = PromptParams(form="history", history=8, training_history=8, profile=False, max_title_tokens=24)
    builder = PromptBuilder(model.tokenizer, catalogue, params, "films")
    return LanguageModelRecommender(model, builder, catalogue, "llm-tiny")


def cases(strengths: dict[str, float], count: int = 400, seed: int = 0) -> tuple[dict[str, Floats], list[int]]:
    """Noise of 10 candidates a system, to which the target's own strength is added."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(10, size=count)
    scores = {name: rng.normal(size=(count, 10)) for name in strengths}
    for name, strength in strengths.items():
        scores[name][np.arange(count), targets] += strength
    return scores, targets.tolist()


def judged(targets: list[int], cases_a_user: int = 2) -> Judged:
    """The targets of lists of 10, a few of them a user's."""
    lots = draw_lots([str(case) for case in range(len(targets))], np.arange(10))
    return Judged(targets, [case // cases_a_user for case in range(len(targets))], lots)


def ndcg(scores: Floats, targets: list[int]) -> float:
    return float(judged(targets).values(scores).mean())
