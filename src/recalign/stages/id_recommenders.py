"""What stage evaluate measures of ID recommenders, of the oracle, and of the fusion with a language model."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from recalign.data.records import Items
from recalign.evaluation.scorecard import FUSION, ID, LLM, ORACLE, UNTRAINED, best_by_validation
from recalign.params import Params
from recalign.recommenders.fusion import Fusion
from recalign.recommenders.trial import Ranker, rank_catalogue, rank_sampled, sampled_ranks
from recalign.stages.trials import Measured, Trials, mean_metrics

log = logging.getLogger(__name__)

RANKED_BY = {
    "popularity": "train events",
    "recent_popularity": "train events, newest first",
    "item_knn": "co-occurrence",
    "ease": "linear item weights",
    "markov": "transitions",
    "sasrec": "self-attention",
    "gru4rec": "recurrent states",
    "caser": "convolutions",
    "mcrl": "supervised head",
    "dreamrec": "generated embedding",
    "oracle": "true probability",
}


def id_recommenders(params: Params, catalogue: Items, baselines: Path, interactions: Path) -> list[Ranker]:
    """Those that `recommenders.systems` names, and the oracle where the log is simulated."""
    from recalign.recommenders.fitted import load_fitted
    from recalign.recommenders.oracle import Oracle

    systems = params.recommenders.systems
    found: list[Ranker] = [load_fitted(name, baselines / name, catalogue) for name in systems]
    if params.source == "simulated":
        found.append(Oracle.read(interactions, catalogue))
    return found


def measure_id_recommender(recommender: Ranker, trials: Trials) -> Measured:
    """Ranks of the sampled candidates, of the harder ones and of the whole catalogue: all are cheap."""
    started = time.monotonic()
    uniform, validation = (
        recommender.scores(list(trial.requests), trial.candidates).double().cpu().numpy()
        for trial in (trials.uniform, trials.validation)
    )
    ranks = [
        sampled_ranks(recommender.name, trials.uniform, uniform),
        rank_sampled(recommender, trials.popularity),
        rank_catalogue(recommender, trials.catalogue, trials.uniform),
    ]
    if trials.whole:
        few = rank_catalogue(recommender, trials.catalogue, trials.whole, trials.depth)
        ranks.append(replace(few, manifest=trials.whole.manifest))
    about = {
        "kind": ORACLE if recommender.name == "oracle" else ID,
        "ranked_by": RANKED_BY[recommender.name],
        "prior_weight": None,
        "cases": len(trials.uniform.cases),
        "seconds": round(time.monotonic() - started, 1),
        "validation": mean_metrics(sampled_ranks(recommender.name, trials.validation, validation)),
    }
    return Measured(ranks, about, uniform, validation)


def fuse(measured: dict[str, Measured], trials: Trials) -> Measured:
    """The best ID recommender and the best trained language model in one ranking; no model scores anything again."""
    kinds = {name: system.about for name, system in measured.items()}
    chosen = [
        best_by_validation(kinds, [name for name in kinds if kinds[name]["kind"] == kind and name != UNTRAINED])
        for kind in (ID, LLM)
    ]
    parts = [name for name in chosen if name is not None]
    fusion = Fusion.fit({name: measured[name].validation for name in parts}, trials.validation.target_index)
    scores = fusion.scores({name: measured[name].scores for name in parts})
    validation = fusion.scores({name: measured[name].validation for name in parts})
    about = {
        "kind": FUSION,
        "ranked_by": fusion.sentence,
        "prior_weight": None,
        "weights": {name: round(weight, 6) for name, weight in fusion.weights.items()},
        "cases": len(trials.uniform.cases),
        "seconds": round(sum(kinds[name]["seconds"] for name in parts), 1),
        # the weights were fitted on these
        "validation": mean_metrics(sampled_ranks(FUSION, trials.validation, validation)),
    }
    log.info("fusion: %s, fitted on %d validation cases", fusion.sentence, len(trials.validation.cases))
    return Measured([sampled_ranks(FUSION, trials.uniform, scores)], about, scores, validation)
