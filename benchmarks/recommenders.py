"""What each ID recommender costs and gains: CPU seconds to fit and to rank, size on disk, quality on the test cases.

    python benchmarks/recommenders.py --prepared data/prepared --systems item_knn ease sasrec --json recommenders.json

Reads what `dvc repro prepare` made; fits on train events with params.yaml's settings, on one thread. "fit" includes the
choice of settings. Seconds are CPU seconds of the process, so that other work on the machine does not count.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import pyarrow.compute as pc

from recalign import columns as c
from recalign.artifacts import read_json, read_parquet
from recalign.data.records import Items
from recalign.evaluation.ranking import hit_rate, ndcg
from recalign.params import Params, RecommenderName, load_params
from recalign.recommenders.fitting import fit
from recalign.recommenders.trial import Trial, rank_catalogue, rank_sampled, read_trial

COLUMNS = ("system", "fit s", "MB", "s a 1,000 users", "HR@1", "NDCG@10", "full HR@10", "full NDCG@10")


def measured(name: RecommenderName, prepared: Path, catalogue: Items, trial: Trial, params: Params) -> dict[str, Any]:
    """One row of COLUMNS; the two "full" figures are over the whole catalogue less the history."""
    events = read_parquet(prepared / "events.parquet")
    train = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
    started = time.process_time()
    model, _ = fit(name, catalogue, train, read_json(prepared / "summary.json")["clock"], params)
    fitted = time.process_time()
    full = rank_catalogue(model, catalogue, trial).ranks
    ranked = time.process_time()
    sampled = rank_sampled(model, trial).ranks
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    seconds = (ranked - fitted) / len(trial.cases) * 1000
    quality = (hit_rate(sampled, 1), ndcg(sampled, 10), hit_rate(full, 10), ndcg(full, 10))
    figures = [round(fitted - started, 2), round(size / 1e6, 2), round(seconds, 3)]
    return dict(zip(COLUMNS, [name, *figures, *(round(float(q.mean()), 3) for q in quality)], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    parser.add_argument("--systems", nargs="+", choices=get_args(RecommenderName), default=get_args(RecommenderName))
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    params = load_params().model_copy(update={"threads": 1})
    catalogue = Items.read(arguments.prepared)
    trial = read_trial(arguments.prepared, c.TEST, "uniform", None, params.seed)
    print(f"{len(trial.cases)} test cases, {len(catalogue.ids)} items\n")
    print("| " + " | ".join(COLUMNS) + " |\n|---" + "|---:" * (len(COLUMNS) - 1) + "|")
    rows = []
    for name in arguments.systems:
        rows.append(measured(name, arguments.prepared, catalogue, trial, params))
        print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
