"""Any ID recommender by its name: fitted on train events."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from recalign.common.artifacts import read_json
from recalign.data.records import Items
from recalign.params.load import Params
from recalign.params.recommenders import RecommenderName
from recalign.recommenders.ease import EASE
from recalign.recommenders.item_knn import ItemKNN
from recalign.recommenders.markov import Markov
from recalign.recommenders.neural.dreamrec import DreamRec
from recalign.recommenders.neural.mcrl import MCRL, fit_mcrl
from recalign.recommenders.neural.next_embedding import fit_dreamrec
from recalign.recommenders.neural.next_item import fit_next_item
from recalign.recommenders.neural.sequential import Sequential
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recent_popularity import RecentPopularity
from recalign.recommenders.recommender import Recommender
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


REFUSED = "refused.json"  # in the folder of one that could not be fitted: why


def refusals(systems: Sequence[str], baselines: Path) -> dict[str, str]:
    """Why a system of the list was not fitted, for each that was not."""
    files = {name: baselines / name / REFUSED for name in systems}
    return {name: str(read_json(file)["why"]) for name, file in files.items() if file.is_file()}


def load_fitted(name: RecommenderName, path: Path, catalogue: Items) -> Recommender:
    """Read what the recommender's `save` wrote into the folder `path`; it answers for the whole catalogue.

    Raises RecalignError when the folder holds another recommender, or one fitted on other items than those with train
    events.
    """
    return on_catalogue(_load(name, path, catalogue.trained), catalogue.trained, catalogue)


def _load(name: RecommenderName, path: Path, catalogue: Items) -> Recommender:
    match name:
        case "popularity":
            return Popularity.load(path, catalogue)
        case "recent_popularity":
            return RecentPopularity.load(path, catalogue)
        case "item_knn":
            return ItemKNN.load(path, catalogue)
        case "ease":
            return EASE.load(path, catalogue)
        case "markov":
            return Markov.load(path, catalogue)
        case "sasrec" | "gru4rec" | "caser":
            return Sequential.load(name, path, catalogue)
        case "mcrl":
            return MCRL.load(path, catalogue)
        case "dreamrec":
            return DreamRec.load(path, catalogue)
