"""Any ID recommender by its name: fitted on train events."""

from typing import Any

import pyarrow as pa

from recalign.data.records import Items
from recalign.params import RecommenderName
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.seam import Recommender
from recalign.recommenders.tuning import tuned_ease, tuned_item_knn, tuned_markov, tuned_recent_popularity


def fit(
    name: RecommenderName, catalogue: Items, events: pa.Table, clock: bool, seed: int
) -> tuple[Recommender, dict[str, Any]]:
    """Fit a recommender on train events (user_id, item_id, timestamp, position); also what was tried to choose it.

    Raises RecalignError where the recommender needs a clock that the log lacks, or a smaller catalogue.
    """
    match name:
        case "popularity":
            return Popularity.fit(catalogue, events), {"chosen": {}, "tried": []}
        case "recent_popularity":
            return tuned_recent_popularity(catalogue, events, clock, seed)
        case "item_knn":
            return tuned_item_knn(catalogue, events, clock, seed)
        case "ease":
            return tuned_ease(catalogue, events, clock, seed)
        case "markov":
            return tuned_markov(catalogue, events, clock, seed)
