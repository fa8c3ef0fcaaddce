"""Top-k for everyone: users a second and peak memory of `recalign batch`'s path, against RecTools at equal settings.

    PYTHONPATH=src python benchmarks/batch.py
    PYTHONPATH=src rectools/bin/python benchmarks/batch.py --rectools

The second runs in an environment of its own (`rectools_data.py` says how) and times both sides there. A simulated log
of 100,000 users × 10,000 items, 20 likes a user on average (Zipf-like popularity). Each side gets fitted models:
item-kNN as the cosine with 100 neighbours, EASE with one ridge on both sides, SASRec with random weights of one shape
(speed does not depend on what it learned, and lists differ). Timed is what makes the lists: ours from the Parquet
tables of a prepared log to a Parquet file with reasons, RecTools' `recommend` from its data set in memory to its table,
without what a user has already liked. Every run is a process of its own; memory is its peak, fitted model and data
included. "lists equal": the share of places at which both have the same item. One thread; seconds are CPU seconds of
the process, so that other work on the machine does not count.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recalign.common import columns as c
from recalign.data.ids import RawIds
from recalign.data.records import Items

MODELS = ("item_knn", "ease", "sasrec")
NEIGHBOURS, RIDGE, DIMENSION, LENGTH = 100, 300.0, 64, 50
K = 20
ROWS = 131_072  # of a row group, as preparation writes them


def write_log(prepared: Path, users: int, items: int, seed: int = 1) -> None:
    """events.parquet, met.parquet and items.parquet as stage prepare leaves them; ids from 1 on."""
    draw = np.random.default_rng(seed)
    chances = 1 / np.arange(10, items + 10) ** 0.8
    lengths = np.clip(draw.lognormal(2.8, 0.6, users).astype(np.int64), 2, 200)
    who = np.repeat(np.arange(users), lengths)
    pairs = np.unique(who * items + draw.choice(items, len(who), p=chances / chances.sum()))
    met = pa.table({c.USER: pairs // items + 1, c.ITEM: pairs % items + 1})
    pairs = pairs[np.lexsort((draw.random(len(pairs)), pairs // items))]  # in any order within the user
    who = pairs // items
    starts = np.flatnonzero(np.diff(who, prepend=-1))
    places = np.arange(len(who)) - np.repeat(starts, np.diff(np.append(starts, len(who))))
    events = pa.table({c.USER: who + 1, c.ITEM: pairs % items + 1, c.POSITION: places})
    pq.write_table(events, prepared / "events.parquet", row_group_size=ROWS)
    pq.write_table(met, prepared / "met.parquet", row_group_size=ROWS)
    counts = np.bincount(pairs % items, minlength=items)
    pq.write_table(pa.table({c.ITEM: np.arange(items) + 1, c.POPULARITY: counts}), prepared / "counts.parquet")


def catalogue_of(prepared: Path) -> Items:
    """Every item with a title; all are liked by somebody, or count as if they were."""
    counts = pq.read_table(prepared / "counts.parquet").to_pydict()
    ids = tuple(counts[c.ITEM])
    return Items(
        ids, {i: f"Item {i}" for i in ids}, {}, dict(zip(ids, [max(1, n) for n in counts[c.POPULARITY]], strict=True))
    )


def ours(name: str, prepared: Path, out: Path) -> Callable[[], None]:
    """What ranks everyone and writes the file; the model is fitted."""
    from recalign.ranking.batch import FirstStage, Rows, top_for_everyone, write_lists
    from recalign.ranking.reasons import explainer

    catalogue = catalogue_of(prepared)
    events = pq.read_table(prepared / "events.parquet")
    users = np.unique(events[c.USER].to_numpy()).tolist()
    model = our_model(name, catalogue, events)
    popularity = np.array([catalogue.popularity[item] for item in catalogue.ids], dtype=np.float64)
    stage = FirstStage(model, f"{name}@benchmark", frozenset(catalogue.ids), explainer(model, catalogue), popularity)
    rows = Rows.of(users, RawIds({}), catalogue, RawIds({}), datetime(2026, 1, 1))
    allowed = np.ones(len(catalogue.ids), dtype=bool)
    del events

    def run() -> None:
        write_lists(out, rows, top_for_everyone(stage, prepared, catalogue, users, allowed, K))

    return run


def our_model(name: str, catalogue: Items, events: pa.Table) -> Any:
    """Fitted, or of random weights."""
    if name == "item_knn":
        from recalign.recommenders.item_knn import ItemKNN, Settings

        return ItemKNN.fit(catalogue, events, Settings(damping=0.5, context_damping=0.5, neighbours=NEIGHBOURS))
    if name == "ease":
        from recalign.recommenders.ease import EASE
        from recalign.recommenders.ease import Settings as Ridge

        return EASE.fit(catalogue, events, Ridge(ridge=RIDGE, damping=0.0))
    import torch

    from recalign.recommenders.neural.sequential import Sequential, build_encoder
    from recalign.recommenders.neural.sequential import Settings as Shape

    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = Shape(dimension=DIMENSION, dropout=0.1, length=LENGTH, window=5, ordered=True)
    return Sequential(catalogue, "sasrec", build_encoder("sasrec", len(catalogue.ids), shape).eval(), shape)


def theirs(name: str, prepared: Path, out: Path) -> Callable[[], None]:
    """RecTools' `recommend` for every user, and its table as Parquet."""
    import torch
    from rectools_data import rectools_dataset

    torch.set_num_threads(1)
    events = pq.read_table(prepared / "events.parquet")
    dataset = rectools_dataset(events)
    users = np.unique(events[c.USER].to_numpy())
    model = their_model(name)
    model.fit(dataset)
    if name == "ease":  # 0.19.0 multiplies a history by the transpose of the weights that it fits; here by them
        model.weight = np.ascontiguousarray(model.weight.T)
    del events

    def run() -> None:
        reco = model.recommend(users=users, dataset=dataset, k=K, filter_viewed=True)
        reco.to_parquet(out)

    return run


def their_model(name: str) -> Any:
    """Unfitted."""
    if name == "item_knn":
        from implicit.nearest_neighbours import CosineRecommender
        from rectools.models import ImplicitItemKNNWrapperModel

        return ImplicitItemKNNWrapperModel(CosineRecommender(K=NEIGHBOURS + 1, num_threads=1))  # itself is one of them
    if name == "ease":
        from rectools.models import EASEModel

        return EASEModel(regularization=RIDGE, recommend_n_threads=1)
    from pytorch_lightning import Trainer
    from rectools.models import SASRecModel

    def trainer() -> Trainer:
        return Trainer(
            max_steps=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False,
            enable_checkpointing=False,
        )  # fmt: skip

    return SASRecModel(
        n_blocks=2, n_heads=1, n_factors=DIMENSION, session_max_len=LENGTH, loss="sampled_softmax", n_negatives=64,
        batch_size=128, recommend_n_threads=1, recommend_torch_device="cpu", get_trainer_func=trainer,
    )  # fmt: skip


def measured(side: str, name: str, prepared: Path, out: Path) -> dict[str, float]:
    """Seconds and peak MB of making the lists once."""
    run = (ours if side == "ours" else theirs)(name, prepared, out)
    fitted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, wall = time.process_time(), time.monotonic()
    run()
    return {
        "cpu": time.process_time() - started,
        "wall": time.monotonic() - wall,
        "fitted_mb": fitted,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def agreement(first: Path, second: Path) -> float:
    """The share of (user, rank) at which both files have the same item."""
    ours_, theirs_ = pq.read_table(first).to_pandas(), pq.read_table(second).to_pandas()
    joined = ours_.merge(theirs_, left_on=["user", "rank"], right_on=["user_id", "rank"])
    return float((joined["item"] == joined["item_id"]).sum() / len(ours_))


def main() -> None:
    """Every model on each side, a process each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rectools", action="store_true", help="RecTools too, in its own environment")
    parser.add_argument("--one", nargs=4, metavar=("SIDE", "MODEL", "PREPARED", "OUT"), help="one run, printed as JSON")
    asked = parser.parse_args()
    if asked.one:
        side, name, prepared, out = asked.one
        print(json.dumps(measured(side, name, Path(prepared), Path(out))))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_log(place, asked.users, asked.items)
        for name in asked.models:
            for side in ("ours", "rectools") if asked.rectools else ("ours",):
                out = place / f"{side}-{name}.parquet"
                command = [sys.executable, __file__, "--one", side, name, str(place), str(out)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{name}, {side}: failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{name}, {side}: {asked.users / found['cpu']:,.0f} users a CPU second ({found['cpu']:.1f} s, wall "
                    f"{found['wall']:.1f} s), peak {found['peak_mb']:,.0f} MB (fitted: {found['fitted_mb']:,.0f} MB)",
                    flush=True,
                )
            if asked.rectools and all((place / f"{side}-{name}.parquet").is_file() for side in ("ours", "rectools")):
                both = (place / f"{side}-{name}.parquet" for side in ("ours", "rectools"))
                print(f"{name}: lists equal {agreement(*both):.3f}", flush=True)


if __name__ == "__main__":
    main()
