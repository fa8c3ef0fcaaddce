"""What stage evaluate measures on the whole catalogue of language models and of the fusion: of what needs a model the
first places of a few test cases."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.data.records import Items
from recalign.evaluation.ranking_rule import RankingRule
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.scorecard import FUSION, TUNED
from recalign.params.load import Params
from recalign.ranking.adapters import open_language_model
from recalign.ranking.fusion import FittedFusion
from recalign.ranking.recommenders import whole_catalogue_ranks
from recalign.ranking.trial import Trial, full_ranks, scores_of, searched_ranks
from recalign.ranking.trials import Measured, Trials

if TYPE_CHECKING:
    from recalign.ranking.fused import FusedRecommender
    from recalign.ranking.language_model import LanguageModelRecommender


def rank_whole_catalogue(
    measured: Mapping[str, Measured], adapters: Mapping[str, Path | None], params: Params, base: Path, prepared: Path,
    trials: Trials, store: Path | None, fusion: FittedFusion | None, baselines: Path,
) -> None:  # fmt: skip
    """Add each language model's ranks on the trials of `trials.whole`, by what `ranking_rule.catalogue_rule` says.

    The fusion is ranked beside the language model that it hears, and where it hears none as an ID recommender, on all
    test cases. adapters: folder by system. A model is loaded again for it: its rule is not known while it scores the
    sampled cases.
    """
    if fusion and fusion.heard is None:
        fused = fused_recommender(fusion, baselines, trials.catalogue)
        measured[FUSION].ranks.extend(whole_catalogue_ranks(fused, trials))
    if not trials.whole:
        return
    for name, adapter in adapters.items():
        rule = RankingRule(measured[name].about["catalogue_ranked_by"], measured[name].about["prior_weight"])
        reference = adapters[TUNED] if rule.kind == "reward" else None
        recommender = open_language_model(name, adapter, params, base, prepared, trials, store, rule, reference)
        measured[name].ranks.extend(catalogue_ranks(recommender, trial, trials.depth) for trial in trials.whole)
        if fusion and name == fusion.heard:
            fused = fused_recommender(fusion, baselines, trials.catalogue, recommender)
            measured[FUSION].ranks.extend(catalogue_ranks(fused, trial, trials.depth) for trial in trials.whole)


def fused_recommender(
    fusion: FittedFusion, baselines: Path, catalogue: Items, language_model: "LanguageModelRecommender | None" = None
) -> "FusedRecommender":
    """The fusion, its ID recommenders read once more: they need not stay in memory while language models score."""
    from recalign.ranking.fused import FusedRecommender
    from recalign.recommenders.roster import load_fitted

    ids = {name: load_fitted(name, baselines / name, catalogue) for name in fusion.recommenders}
    return FusedRecommender(fusion.fusion, ids, catalogue, language_model)


def catalogue_ranks(
    recommender: "LanguageModelRecommender | FusedRecommender", trial: Trial, depth: int | None
) -> SystemRanks:
    """By search down to a depth; all places (None), and those of the reward, which no search bounds, by every score."""
    from recalign.ranking.language_model import Asked

    if depth is None or recommender.over_catalogue.kind == "reward":
        scores = scores_of(recommender, trial.requests, None)
        return full_ranks(recommender.name, trial, scores, depth)
    asked = [
        Asked(request.history, None, depth, request.profile, request.unranked, case.example.example_id)
        for case, request in zip(trial.cases, trial.requests, strict=True)
    ]
    return searched_ranks(recommender.name, trial, recommender.rank_many(asked), depth)
