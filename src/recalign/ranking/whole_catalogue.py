"""Ranks in the whole catalogue of what needs a model: of language models and of the fusion."""

from pathlib import Path
from typing import TYPE_CHECKING

from recalign.data.records import Items
from recalign.evaluation.ranks import SystemRanks
from recalign.ranking.fusion import FittedFusion
from recalign.ranking.trial import Trial, full_ranks, scores_of, searched_ranks
from recalign.recommenders.recommender import Asked

if TYPE_CHECKING:
    from recalign.ranking.fused import FusedRecommender
    from recalign.ranking.language_model import LanguageModelRecommender


def fused_recommender(
    fusion: FittedFusion, baselines: Path, catalogue: Items, language_model: "LanguageModelRecommender | None" = None
) -> "FusedRecommender":
    """The fusion, its ID recommenders read once more: they need not stay in memory while language models score."""
    from recalign.ranking.fused import FusedRecommender
    from recalign.recommenders.roster import load_fitted

    ids = {name: load_fitted(name, baselines / name, catalogue) for name in fusion.recommenders}
    return FusedRecommender(fusion.fusion, ids, catalogue, language_model, fusion.new_items(catalogue))


def catalogue_ranks(
    recommender: "LanguageModelRecommender | FusedRecommender", trial: Trial, depth: int | None
) -> SystemRanks:
    """By search down to a depth; all places (None), and those of the reward, which no search bounds, by every score."""
    if depth is None or recommender.over_catalogue.kind == "reward":
        scores = scores_of(recommender, trial.requests, None)
        return full_ranks(recommender.name, trial, scores, depth)
    asked = [
        Asked(request.history, None, depth, request.profile, request.unranked, case.example.example_id)
        for case, request in zip(trial.cases, trial.requests, strict=True)
    ]
    return searched_ranks(recommender.name, trial, recommender.rank_many(asked), depth)
