"""SASRec against RecTools' on one split: settings chosen for each on train, then quality over seeds, rows a CPU second.

In an environment of its own (`rectools_data.py` says how):

    PYTHONPATH=src rectools/bin/python benchmarks/against_rectools.py --prepared data/prepared --json out.json

Both learn from the same rows, each user's latest `max_history` + 1 train events, with equal width, blocks and length.
Settings and epochs are chosen for each by one sweep of coordinate descent from the same START over the same GRID (and
RecTools' own defaults), by NDCG@10 over the whole catalogue on the held-out part of train, never on test cases. Then,
seed by seed in turn, both learn all of train and rank the whole catalogue minus the history for each test case.
"""

import argparse
import json
import logging
import os
import statistics
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from alternating import Seconds, ratio, shown
from pytorch_lightning import Trainer
from rectools.models import SASRecModel
from rectools_data import Ranking, best_of, quality, rectools_best_of, rectools_dataset, timed

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.data.records import Items
from recalign.params.load import load_params
from recalign.params.recommenders import NextItemParams
from recalign.ranking.trial import read_trial
from recalign.recommenders.neural.next_item import Training
from recalign.recommenders.neural.sequential import Settings
from recalign.recommenders.tuning import held_out

START = {"learning_rate": 3e-3, "dropout": 0.5, "batch": 16, "loss": "full"}
GRID: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1e-3, 3e-3), "dropout": (0.2, 0.5), "batch": (16, 128), "loss": ("full", "sampled")
}  # fmt: skip
# what SASRecModel() takes where nothing is said, but for the length
RECTOOLS_DEFAULTS = {
    "learning_rate": 1e-3, "dropout": 0.2, "batch": 128, "loss": "full", "dimension": 256, "heads": 4
}  # fmt: skip
LOSSES = {"full": "softmax", "sampled": "sampled_softmax", "binary": "BCE"}  # ours: RecTools' name


def our_sasrec(catalogue: Items, clock: bool, params: NextItemParams, events: pa.Table, seed: int) -> Iterator[Ranking]:
    """A ranking after each epoch; the same object every time."""
    training = Training("sasrec", catalogue, Settings.of(params, clock), seed, params)
    for model, _ in training.epochs(events, lambda _: None):
        yield partial(best_of, model, catalogue)


def their_sasrec(
    clock: bool, params: NextItemParams, events: pa.Table, seed: int, heads: int = 1, **further: Any
) -> Iterator[Ranking]:
    """The same of RecTools'; further: what else its SASRecModel takes."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 — the generator that RecTools draws from
    dataset = rectools_dataset(events)

    def trainer() -> Trainer:
        return Trainer(
            min_epochs=1, max_epochs=1, accelerator="cpu", deterministic=True, enable_progress_bar=False,
            enable_model_summary=False, logger=False, enable_checkpointing=False,
        )  # fmt: skip

    model = SASRecModel(
        n_blocks=2, n_heads=heads, n_factors=params.dimension, dropout_rate=params.dropout, use_pos_emb=clock,
        session_max_len=params.max_history, loss=LOSSES[params.loss], lr=params.learning_rate,
        n_negatives=1 if params.loss == "full" else params.negatives, batch_size=params.batch, recommend_n_threads=1,
        recommend_torch_device="cpu", get_trainer_func=trainer, **further,
    )  # fmt: skip
    for _ in range(params.epochs):
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        yield partial(rectools_best_of, model, dataset.item_id_map)


class Side:
    """One of the two: how it is fitted with some settings, and what was tried on the held-out part of train."""

    def __init__(self, name: str, catalogue: Items, clock: bool, base: NextItemParams) -> None:
        self.name, self.catalogue, self.clock, self.base = name, catalogue, clock, base
        self.tried: list[dict[str, Any]] = []

    def rankings(self, events: pa.Table, seed: int, settings: dict[str, Any]) -> Iterator[Ranking]:
        """A ranking after each epoch."""
        own = {name: value for name, value in settings.items() if name != "heads"}
        params = self.base.model_copy(update=own)
        if self.name == "ours":
            return our_sasrec(self.catalogue, self.clock, params, events, seed)
        return their_sasrec(self.clock, params, events, seed, settings.get("heads", 1))

    def value(self, cases: Any, settings: dict[str, Any]) -> float:
        """The best held-out NDCG@10 of any epoch; training ends `patience` epochs after it."""
        known = [found["NDCG@10"] for found in self.tried if found["settings"] == settings]
        if known:
            return float(known[0])
        curve: list[float] = []
        events, requests, targets = cases
        for ranking in self.rankings(events, 0, settings):
            curve.append(quality(ranking, requests, targets)["NDCG@10"])
            best = int(np.argmax(curve))
            if len(curve) - 1 - best >= self.base.patience:
                break
        self.tried.append({"settings": settings, "epochs": best + 1, "NDCG@10": curve[best]})
        print(f"{self.name}, {settings}: epoch {best + 1} of {len(curve)}, {curve[best]:.4f}", flush=True)
        return curve[best]

    def choose(self, cases: Any) -> dict[str, Any]:
        """The best of one sweep over GRID, setting after setting, and of RecTools' defaults where it is RecTools."""
        best: dict[str, Any] = dict(START)
        for name, choices in GRID.items():
            best = max([best, *({**best, name: choice} for choice in choices)], key=partial(self.value, cases))
        if self.name != "ours":
            best = max([best, RECTOOLS_DEFAULTS], key=partial(self.value, cases))
        return next(found for found in self.tried if found["settings"] == best)


def after(epochs: int, rankings: Iterator[Ranking]) -> Ranking:
    """The ranking after so many epochs."""
    for _ in range(epochs - 1):
        next(rankings)
    return next(rankings)


def latest(events: pa.Table, count: int) -> pa.Table:
    """Each user's latest `count` events."""
    table = events.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")]).to_pandas()
    return pa.Table.from_pandas(table.groupby(c.USER).tail(count), schema=events.schema, preserve_index=False)


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
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    parser.add_argument("--chosen", type=Path, help="what an earlier run wrote: take the settings that it chose")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    params = load_params()
    base = params.recommenders.next_item
    catalogue = Items.read(arguments.prepared)
    events = read_parquet(arguments.prepared / "events.parquet")
    clock = read_json(arguments.prepared / "summary.json")["clock"]
    whole = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
    sides = {name: Side(name, catalogue, clock, base) for name in ("ours", "RecTools")}

    if arguments.chosen:
        report: dict[str, Any] = {"chosen": read_json(arguments.chosen)["chosen"]}
    else:
        held = held_out(catalogue, whole, clock, params.seed)
        aims = [row[place] for row, place in zip(held.candidates, held.target_index, strict=True)]
        cases = latest(held.events, base.max_history + 1), held.requests, aims
        report = {"chosen": {name: side.choose(cases) for name, side in sides.items()}}
        report["tried"] = {name: side.tried for name, side in sides.items()}
        if arguments.json:  # choosing takes the longest
            arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    train = latest(whole, base.max_history + 1)
    trial = read_trial(arguments.prepared, c.TEST, "uniform", None, params.seed)
    test = list(trial.requests), [case.example.target for case in trial.cases]
    seconds: dict[str, Seconds] = {what: {name: [] for name in sides} for what in ("an epoch", "scoring")}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for seed in arguments.seeds:
        for name, side in sides.items():
            chosen = report["chosen"][name]
            spent, ranking = timed(partial(after, chosen["epochs"], side.rankings(train, seed, chosen["settings"])))
            scored, found = timed(partial(quality, ranking, *test))
            seconds["an epoch"][name].append(spent / chosen["epochs"])
            seconds["scoring"][name].append(scored)
            runs[name].append(found)
            print(f"seed {seed}, {name}: {found}, {spent:.1f} s to train, {scored:.1f} s to rank", flush=True)
    if not arguments.seeds:
        return

    print(f"\n{len(train):,} rows to train; {len(trial.cases):,} test cases")
    for name, found in runs.items():
        print(told(f"{name}, {report['chosen'][name]}", found))
    report |= {"runs": runs, "seconds": {}}
    for what, rows in (("an epoch", len(train)), ("scoring", len(trial.cases))):
        report["seconds"][what] = found = ratio(seconds[what], "RecTools", "ours")
        rates = ", ".join(f"{name} {rows / value:,.0f}" for name, value in found["seconds"].items())
        print(f"{what}: {shown(found)}; a CPU second: {rates} {'rows' if what == 'an epoch' else 'users'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
