"""baselines: fit the ID recommenders on train events, tune item-kNN there, and show both on validation."""

import logging
from pathlib import Path

import pyarrow.compute as pc

from recalign import artifacts
from recalign import columns as c
from recalign.data.records import Items, read_cases
from recalign.evaluation.ranking import LABELS, metric_values, target_ranks
from recalign.layout import BASELINES, PREPARED
from recalign.params import Params
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.seam import Recommender, Request
from recalign.recommenders.tuning import tuned_item_knn

log = logging.getLogger(__name__)
MANIFEST = "uniform"
SHOWN = ("hr_at_1", "ndcg_at_10")


def baselines(params: Params, prepared: Path = PREPARED, out: Path = BASELINES) -> None:
    """Fit popularity and item-kNN on the train events of `prepared`; write them and tuning.json into `out`."""
    catalogue = Items.read(prepared)
    clock = artifacts.read_json(prepared / "summary.json")["clock"]
    events = artifacts.read_parquet(prepared / "events.parquet")
    train = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
    popularity = Popularity.fit(catalogue, train)
    item_knn, tuning = tuned_item_knn(catalogue, train, clock, params.seed)
    with artifacts.folder(out) as folder:
        popularity.save(folder / popularity.name)
        item_knn.save(folder / item_knn.name)
        artifacts.write_json(folder / "tuning.json", tuning)
    for recommender in (popularity, item_knn):
        log.info("%s on validation (%s candidates): %s", recommender.name, MANIFEST, _figures(recommender, prepared))


def _figures(recommender: Recommender, prepared: Path) -> str:
    cases = read_cases(prepared, c.VALIDATION, MANIFEST)
    requests = [Request(case.example.user_id, case.example.history, case.example.cutoff) for case in cases]
    scores = recommender.scores(requests, [list(case.candidates) for case in cases])
    ranks = target_ranks(scores.numpy(), [case.target_index for case in cases])
    return ", ".join(f"{LABELS[metric]} {metric_values(metric, ranks).mean():.3f}" for metric in SHOWN)
