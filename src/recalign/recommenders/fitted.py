"""Any fitted ID recommender by its name, read back from its folder."""

from collections.abc import Sequence
from pathlib import Path

from recalign.artifacts import read_json
from recalign.data.records import Items
from recalign.params import RecommenderName
from recalign.recommenders.dreamrec import DreamRec
from recalign.recommenders.ease import EASE
from recalign.recommenders.item_knn import ItemKNN
from recalign.recommenders.markov import Markov
from recalign.recommenders.mcrl import MCRL
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recent_popularity import RecentPopularity
from recalign.recommenders.seam import Recommender
from recalign.recommenders.sequential import Sequential
from recalign.recommenders.transplanted import on_catalogue

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
