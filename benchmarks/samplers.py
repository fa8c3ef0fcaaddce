"""What fewer steps cost and gain DreamRec: CPU seconds to rank 1,000 users, and quality, against the full chain.

    python benchmarks/samplers.py --prepared data/prepared --json samplers.json

Reads what `dvc repro prepare` made; fits once on train events with params.yaml's settings on one thread, then ranks the
cases of --split with each sampler and number of steps. Choose on validation; test is for the record. Seconds are CPU
seconds of the process, so that other work on the machine does not count; they rank the whole catalogue.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow.compute as pc

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.data.records import Items, read_met
from recalign.evaluation.metrics import hit_rate, ndcg
from recalign.params.load import load_params
from recalign.ranking.trial import Trial, rank_catalogue, rank_sampled, read_trial, whole_catalogue
from recalign.recommenders.neural.diffusion import SamplerName
from recalign.recommenders.neural.dreamrec import DreamRec, fit
from recalign.recommenders.recommender import Fitting

COLUMNS = ("sampler", "steps", "s a 1,000 users", "HR@1", "NDCG@10", "full HR@10", "full NDCG@10")
STEPS = (1, 2, 5, 20, 100)  # and the whole chain


def measured(model: DreamRec, sampler: SamplerName, steps: int, trial: Trial, whole: Trial) -> dict[str, Any]:
    """One row of COLUMNS; the two "full" figures are over the whole catalogue minus what the user met before."""
    other = DreamRec(model.condition, model.denoiser, replace(model.settings, sampler=sampler, sampler_steps=steps))
    started = time.process_time()
    full = rank_catalogue(other, whole).ranks
    seconds = (time.process_time() - started) / len(trial.cases) * 1000
    sampled = rank_sampled(other, trial).ranks
    quality = (hit_rate(sampled, 1), ndcg(sampled, 10), hit_rate(full, 10), ndcg(full, 10))
    figures = [round(seconds, 2), *(round(float(q.mean()), 3) for q in quality)]
    return dict(zip(COLUMNS, [sampler, steps, *figures], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    parser.add_argument("--split", choices=(c.VALIDATION, c.TEST), default=c.VALIDATION)
    parser.add_argument("--model", type=Path, help="a fitted one (data/baselines/dreamrec) instead of a new one")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    params = load_params()
    catalogue = Items.read(arguments.prepared)
    started = time.process_time()
    if arguments.model:
        model = DreamRec.load(arguments.model, catalogue)
    else:
        events = read_parquet(arguments.prepared / "events.parquet")
        train = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
        clock = read_json(arguments.prepared / "summary.json")["clock"]
        model, _ = fit(Fitting(DreamRec.name, catalogue, train, clock, params.seed, 1, params.recommenders))
    trial = read_trial(arguments.prepared, arguments.split, "uniform", None, params.seed)
    met = read_met(arguments.prepared, [case.example.user_id for case in trial.cases])
    whole = whole_catalogue(trial, catalogue, None, met)
    ready = f"ready after {time.process_time() - started:.0f} CPU seconds"
    print(f"{len(trial.cases)} {arguments.split} cases, {len(catalogue.ids)} items; {ready}\n")
    print("| " + " | ".join(COLUMNS) + " |\n|---" + "|---:" * (len(COLUMNS) - 1) + "|")
    rows = []
    for sampler in get_args(SamplerName):
        for steps in sorted({*(n for n in STEPS if n < model.settings.steps), model.settings.steps}):
            rows.append(measured(model, sampler, steps, trial, whole))
            print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
