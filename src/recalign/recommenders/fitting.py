"""Any ID recommender by its name: fitted on train events."""

from typing import Any

import pyarrow as pa

from recalign.data.records import Items
from recalign.params import Params, RecommenderName
from recalign.recommenders.mcrl import fit_mcrl
from recalign.recommenders.next_embedding import fit_dreamrec
from recalign.recommenders.next_item import fit_next_item
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.seam import Recommender
from recalign.recommenders.transplanted import on_catalogue
from recalign.recommenders.tuning import tuned_ease, tuned_item_knn, tuned_markov, tuned_recent_popularity


def fit(
    name: RecommenderName,
    catalogue: Items,
    events: pa.Table,
    clock: bool,
    params: Params,
    met: pa.Table | None = None,
) -> tuple[Recommender, dict[str, Any]]:
    """Fit a recommender on train events (user_id, item_id, timestamp, position); also what was tried to choose it.

    It learns the items that train knows, and answers for the whole catalogue (`transplanted`).
    met: (user_id, item_id) of what users met in training's time, liked or not: no wrong item where it is tuned.
    Raises RecalignError where the recommender needs a clock that the log lacks, or a smaller catalogue.
    """
    recommender, tuning = _fit(name, catalogue.trained, events, clock, params, met)
    return on_catalogue(recommender, catalogue.trained, catalogue), tuning


def _fit(
    name: RecommenderName, catalogue: Items, events: pa.Table, clock: bool, params: Params, met: pa.Table | None
) -> tuple[Recommender, dict[str, Any]]:
    seed = params.seed
    match name:
        case "popularity":
            return Popularity.fit(catalogue, events), {"chosen": {}, "tried": []}
        case "recent_popularity":
            return tuned_recent_popularity(catalogue, events, clock, seed, met)
        case "item_knn":
            return tuned_item_knn(catalogue, events, clock, seed, met)
        case "ease":
            return tuned_ease(catalogue, events, clock, seed, met)
        case "markov":
            return tuned_markov(catalogue, events, clock, seed, met)
        case "sasrec" | "gru4rec" | "caser":
            settings = params.recommenders.next_item
            return fit_next_item(name, catalogue, events, clock, seed, settings, params.threads, met)
        case "mcrl":
            return fit_mcrl(catalogue, events, clock, seed, params.recommenders, params.threads, met)
        case "dreamrec":
            return fit_dreamrec(catalogue, events, clock, seed, params.recommenders, params.threads, met)
