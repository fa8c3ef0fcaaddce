"""SASRec and item-kNN against RecTools' on one split: quality over seeds, rows and users a CPU second.

    python -m venv rectools
    rectools/bin/pip install 'rectools[torch]==0.19.0' torch==2.13.0 pyarrow safetensors ruamel.yaml
    PYTHONPATH=src rectools/bin/python benchmarks/against_rectools.py --prepared data/prepared --json out.json

An environment of its own, since RecTools needs numpy 1 and pandas 2. Both learn from the same rows, each user's latest
`max_history` + 1 train events, with the same width, blocks, head, dropout, batch, rate, length and loss (full
cross-entropy); how many epochs is chosen for each on the held-out part of train (NDCG@10 over the whole catalogue),
never on test cases. Then, seed by seed in turn, both learn all of train and rank the whole catalogue less the history
for each test case. Item-kNN is the settings that our tuning takes, against the cosine of the library below RecTools.
"""

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from alternating import Seconds, ratio, shown
from implicit.nearest_neighbours import CosineRecommender
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models import ImplicitItemKNNWrapperModel, SASRecModel
from rectools.models.base import ModelBase

from recalign import columns as c
from recalign.artifacts import read_json, read_parquet
from recalign.data.records import Items
from recalign.params import NextItemParams, load_params
from recalign.recommenders import item_knn
from recalign.recommenders.held_out import held_out
from recalign.recommenders.next_item import Training
from recalign.recommenders.seam import Recommender, Request
from recalign.recommenders.sequential import Settings
from recalign.recommenders.trial import read_trial
from recalign.recommenders.tuning import tuned_item_knn

TOP = 10
Ranking = Callable[[list[Request]], list[list[int]]]  # the TOP best items of each, less its history


def best_of(recommender: Recommender, catalogue: Items, requests: list[Request]) -> list[list[int]]:
    """Ours: the TOP items of each request less its history, by partial sorting."""
    ids, rows = np.array(catalogue.ids), []
    for start in range(0, len(requests), 256):
        block = requests[start : start + 256]
        scores = recommender.scores(block, None)
        for row, request in enumerate(block):
            scores[row, torch.from_numpy(np.searchsorted(ids, request.history))] = -torch.inf
        rows += ids[scores.topk(TOP, dim=1).indices.numpy()].tolist()
    return rows


def rectools_best_of(model: ModelBase[Any], items: IdMap, requests: list[Request]) -> list[list[int]]:
    """RecTools': the TOP items of each request, which stands as a user of its own with its history as interactions.

    Items that it has not learned are left out of histories; a request without any other item gets an empty list.
    """
    known = set(items.external_ids.tolist())
    histories = [[item for item in request.history if item in known] for request in requests]
    lengths = [len(history) for history in histories]
    users = IdMap.from_values(np.flatnonzero(lengths))
    table = pd.DataFrame({
        Columns.User: users.convert_to_internal(np.repeat(np.arange(len(requests)), lengths)),
        Columns.Item: items.convert_to_internal([item for history in histories for item in history]),
        Columns.Weight: 1.0, Columns.Datetime: days(np.concatenate([np.arange(length) for length in lengths])),
    })  # fmt: skip
    found = model.recommend(users.external_ids, Dataset(users, items, Interactions(table)), TOP, filter_viewed=True)
    found = found.sort_values([Columns.User, Columns.Rank])
    lists = dict(iter(found.groupby(Columns.User)[Columns.Item]))
    return [list(lists.get(row, [])) for row in range(len(requests))]


def days(places: np.ndarray) -> pd.DatetimeIndex:
    """A time for each place in a user's order: RecTools sorts by time."""
    return pd.to_datetime("2000-01-01") + pd.to_timedelta(places, unit="D")


def rectools_dataset(events: pa.Table) -> Dataset:
    """The events as RecTools takes them, in the users' own order."""
    return Dataset.construct(pd.DataFrame({
        Columns.User: events[c.USER].to_numpy(), Columns.Item: events[c.ITEM].to_numpy(), Columns.Weight: 1.0,
        Columns.Datetime: days(events[c.POSITION].to_numpy()),
    }))  # fmt: skip


def quality(ranking: Ranking, requests: list[Request], targets: list[int]) -> dict[str, float]:
    """Full-catalogue HR@10 and NDCG@10."""
    lists = ranking(requests)
    ranks = [best.index(target) + 1 if target in best else 0 for best, target in zip(lists, targets, strict=True)]
    gains = [1 / np.log2(1 + rank) if rank else 0.0 for rank in ranks]
    return {"HR@10": float(np.mean([rank > 0 for rank in ranks])), "NDCG@10": float(np.mean(gains))}


def our_sasrec(catalogue: Items, events: pa.Table, clock: bool, params: NextItemParams, seed: int) -> Any:
    """A generator of rankings, one after each epoch."""
    training = Training("sasrec", catalogue, Settings.of(params, clock), seed, params)
    for model, _ in training.epochs(events, lambda _: None):
        yield partial(best_of, model, catalogue)


def their_sasrec(events: pa.Table, clock: bool, params: NextItemParams, seed: int) -> Any:
    """The same of RecTools'."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 — the generator that RecTools draws from
    dataset = rectools_dataset(events)

    def trainer() -> Trainer:
        return Trainer(
            min_epochs=1, max_epochs=1, accelerator="cpu", deterministic=True, enable_progress_bar=False,
            enable_model_summary=False, logger=False, enable_checkpointing=False,
        )  # fmt: skip

    model = SASRecModel(
        n_blocks=2, n_heads=1, n_factors=params.dimension, dropout_rate=params.dropout, use_pos_emb=clock,
        session_max_len=params.max_history, loss="softmax", lr=params.learning_rate, batch_size=params.batch,
        recommend_n_threads=1, recommend_torch_device="cpu", get_trainer_func=trainer,
    )  # fmt: skip
    for _ in range(params.epochs):
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        yield partial(rectools_best_of, model, dataset.item_id_map)


def their_item_knn(events: pa.Table, neighbours: int) -> tuple[ModelBase[Any], IdMap]:
    """RecTools' item-kNN from the table of events, as ours starts from it, and the items that it knows."""
    dataset = rectools_dataset(events)
    model = ImplicitItemKNNWrapperModel(CosineRecommender(K=neighbours, num_threads=1))
    return model.fit(dataset), dataset.item_id_map


def after(epochs: int, rankings: Any) -> Ranking:
    """The ranking after so many epochs."""
    for _ in range(epochs - 1):
        next(rankings)
    found: Ranking = next(rankings)
    return found


def latest(events: pa.Table, count: int) -> pa.Table:
    """Each user's latest `count` events."""
    table = events.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")]).to_pandas()
    return pa.Table.from_pandas(table.groupby(c.USER).tail(count), schema=events.schema, preserve_index=False)


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a step, and what it returned."""
    started = time.process_time()
    result = step()
    return time.process_time() - started, result


def best_epoch(name: str, rankings: Any, requests: list[Request], targets: list[int], patience: int) -> int:
    """The epoch of the best held-out NDCG@10; stops `patience` epochs after it."""
    curve: list[float] = []
    for ranking in rankings:
        curve.append(quality(ranking, requests, targets)["NDCG@10"])
        best = int(np.argmax(curve))
        if len(curve) - 1 - best >= patience:
            break
    print(f"{name}: epoch {best + 1} of {len(curve)} is best on train's held-out part, {curve[best]:.4f}", flush=True)
    return best + 1


def told(name: str, runs: list[dict[str, float]]) -> str:
    """Mean, standard deviation and extremes of the qualities."""
    parts = []
    for metric in runs[0]:
        values = [run[metric] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        parts.append(f"{metric} {statistics.mean(values):.4f} ± {spread:.4f} ({min(values):.4f} to {max(values):.4f})")
    return f"{name}: {'; '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, nargs=2, metavar=("OURS", "THEIRS"), help="take these")
    parser.add_argument("--rate", type=float, default=2e-3, help="Adam's, of both")
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    params = load_params()
    chosen = params.recommenders.next_item.model_copy(update={
        "dimension": arguments.dimension, "learning_rate": arguments.rate, "loss": "full"
    })  # fmt: skip
    catalogue = Items.read(arguments.prepared)
    events = read_parquet(arguments.prepared / "events.parquet")
    clock = read_json(arguments.prepared / "summary.json")["clock"]
    whole = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
    train = latest(whole, chosen.max_history + 1)
    trial = read_trial(arguments.prepared, c.TEST, "uniform", None, params.seed)
    test = list(trial.requests), [case.example.target for case in trial.cases]

    makers = {
        "ours": lambda rows, seed: our_sasrec(catalogue, rows, clock, chosen, seed),
        "RecTools": lambda rows, seed: their_sasrec(rows, clock, chosen, seed),
    }
    if arguments.epochs:
        epochs = dict(zip(makers, arguments.epochs, strict=True))
    else:
        cases = held_out(catalogue, whole, clock, params.seed)
        aims = [row[place] for row, place in zip(cases.candidates, cases.target_index, strict=True)]
        held = latest(cases.events, chosen.max_history + 1)
        epochs = {
            name: best_epoch(name, make(held, 0), cases.requests, aims, chosen.patience)
            for name, make in makers.items()
        }
    seconds: dict[str, Seconds] = {what: {name: [] for name in makers} for what in ("an epoch", "scoring")}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in makers}
    for seed in arguments.seeds:
        for name, make in makers.items():
            spent, ranking = timed(partial(after, epochs[name], make(train, seed)))
            scored, found = timed(partial(quality, ranking, *test))
            seconds["an epoch"][name].append(spent / epochs[name])
            seconds["scoring"][name].append(scored)
            runs[name].append(found)
            print(f"seed {seed}, {name}: {found}, {spent:.1f} s to train, {scored:.1f} s to rank", flush=True)

    settings = item_knn.Settings(**tuned_item_knn(catalogue, whole, clock, params.seed)[1]["chosen"])
    neighbours: dict[str, Seconds] = {what: {name: [] for name in makers} for what in ("fitting", "scoring")}
    knn_quality = {}
    for turn in range(1 + len(arguments.seeds)):
        own, model = timed(lambda: item_knn.fitter(catalogue, whole)(settings))
        other, (theirs, items) = timed(partial(their_item_knn, whole, settings.neighbours))
        rankings = {"ours": partial(best_of, model, catalogue), "RecTools": partial(rectools_best_of, theirs, items)}
        for name, spent in (("ours", own), ("RecTools", other)):
            scored, knn_quality[name] = timed(partial(quality, rankings[name], *test))
            if turn:  # the first one warms up
                neighbours["fitting"][name].append(spent)
                neighbours["scoring"][name].append(scored)

    report: dict[str, Any] = {"epochs": epochs, "sasrec": runs, "item_knn": knn_quality, "seconds": {}}
    print(f"\n{len(train):,} rows to train SASRec, {len(whole):,} item-kNN; {len(trial.cases):,} test cases")
    for name, found in runs.items():
        print(told(f"SASRec, {name}, {epochs[name]} epochs", found))
    for what, rows in (("an epoch", len(train)), ("scoring", len(trial.cases))):
        report["seconds"][f"sasrec {what}"] = found = ratio(seconds[what], "RecTools", "ours")
        rates = ", ".join(f"{name} {rows / value:,.0f}" for name, value in found["seconds"].items())
        print(f"SASRec, {what}: {shown(found)}; a CPU second: {rates} {'rows' if what == 'an epoch' else 'users'}")
    for name, found in knn_quality.items():
        print(told(f"item-kNN, {name}", [found]))
    for what, rows in (("fitting", len(whole)), ("scoring", len(trial.cases))):
        report["seconds"][f"item_knn {what}"] = found = ratio(neighbours[what], "RecTools", "ours")
        rates = ", ".join(f"{name} {rows / value:,.0f}" for name, value in found["seconds"].items())
        print(f"item-kNN, {what}: {shown(found)}; a CPU second: {rates} {'rows' if what == 'fitting' else 'users'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
