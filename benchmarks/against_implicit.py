"""Item-kNN against the library below RecTools: seconds to fit from one table of events and to rank, and quality.

In an environment of its own (`rectools_data.py` says how):

    PYTHONPATH=src rectools/bin/python benchmarks/against_implicit.py --prepared data/prepared
    PYTHONPATH=src rectools/bin/python benchmarks/against_implicit.py --simulated 1000000 10000

Each fit starts from the same table of events and ends with a model that ranks: ours takes the columns that it needs,
RecTools builds its data set, and both are counted; tuning is not. "cosine" is the same model on both sides (damping and
context damping of a half, no clock) with the same number of neighbours; implicit counts an item among its own, so it
gets one more. "tuned" has the settings that our pipeline takes, against the cosine with as many neighbours. Fits
alternate in one process, after one of each that warms up; one thread, CPU seconds.
"""

import argparse
import json
import os
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from alternating import alternate, ratio, shown
from implicit.nearest_neighbours import CosineRecommender
from rectools.dataset import IdMap
from rectools.models import ImplicitItemKNNWrapperModel
from rectools.models.base import ModelBase
from rectools_data import best_of, quality, rectools_best_of, rectools_dataset

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.data.records import Items
from recalign.params.load import load_params
from recalign.ranking.trial import read_trial
from recalign.recommenders import item_knn
from recalign.recommenders.recommender import Fitting


def simulated(events: int, items: int, seed: int = 1) -> tuple[Items, pa.Table]:
    """A log of Zipf-like popularity, a hundred events a user on average, each user's items distinct."""
    draw = np.random.default_rng(seed)
    chances = 1 / np.arange(10, items + 10) ** 0.8
    chances /= chances.sum()
    users = max(1, events // 100)
    lengths = np.maximum(2, draw.lognormal(4.2, 0.8, users)).astype(np.int64)
    lengths = np.minimum(np.maximum(2, lengths * events // lengths.sum()), items // 2)
    who = np.repeat(np.arange(users), lengths)
    pairs = np.unique(who * items + draw.choice(items, len(who), p=chances))
    pairs = pairs[np.lexsort((draw.random(len(pairs)), pairs // items))]  # in any order within the user
    who = pairs // items
    starts = np.flatnonzero(np.diff(who, prepend=-1))
    places = np.arange(len(who)) - np.repeat(starts, np.diff(np.append(starts, len(who))))
    table = pa.table({c.USER: who, c.ITEM: pairs % items, c.POSITION: places})
    ids = tuple(range(items))
    return Items(ids, {item: str(item) for item in ids}, {}, {}), table


def their_item_knn(events: pa.Table, neighbours: int) -> tuple[ModelBase[Any], IdMap]:
    """RecTools' item-kNN from the table of events, and the items that it knows."""
    dataset = rectools_dataset(events)
    model = ImplicitItemKNNWrapperModel(CosineRecommender(K=neighbours, num_threads=1))
    return model.fit(dataset), dataset.item_id_map


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    source.add_argument("--simulated", type=int, nargs=2, metavar=("EVENTS", "ITEMS"))
    parser.add_argument("--neighbours", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    models = {f"cosine, {count}": item_knn.Settings(0.5, 0.5, neighbours=count) for count in arguments.neighbours}
    if arguments.simulated:
        (catalogue, train), requests = simulated(*arguments.simulated), []
    else:
        catalogue = Items.read(arguments.prepared)
        events = read_parquet(arguments.prepared / "events.parquet")
        train = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
        clock, params = read_json(arguments.prepared / "summary.json")["clock"], load_params()
        seed = params.seed
        log = Fitting("item_knn", catalogue, train, clock, seed, params.threads, params.recommenders)
        models["tuned"] = item_knn.fit(log)[0].settings
        trial = read_trial(arguments.prepared, c.TEST, "uniform", None, seed)
        requests, targets = list(trial.requests), [case.example.target for case in trial.cases]
    print(f"{len(train):,} events, {len(catalogue.ids):,} items, {arguments.repeats} alternating fits")
    report = {}
    for name, settings in models.items():
        fits = {
            "RecTools": lambda _, count=settings.neighbours: their_item_knn(train, count + 1),
            "ours": lambda _, own=settings: item_knn.ItemKNN.fit(catalogue, train, own),
        }
        found = ratio(alternate(fits, range(arguments.repeats + 1)), "RecTools", "ours")
        print(f"{name}: to fit {shown(found)}", flush=True)
        report[name] = {"settings": asdict(settings), "fit": found}
        if not requests:
            continue
        theirs, known = fits["RecTools"](0)
        rankings = {
            "RecTools": partial(rectools_best_of, theirs, known), "ours": partial(best_of, fits["ours"](0), catalogue)
        }  # fmt: skip
        scored = ratio(alternate(rankings, [requests] * (arguments.repeats + 1)), "RecTools", "ours")
        qualities = {side: quality(ranking, requests, targets) for side, ranking in rankings.items()}
        print(f"{name}: to rank {shown(scored)}; {qualities}", flush=True)
        report[name] |= {"rank": scored, "quality": qualities}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
