"""Is SFT still climbing? NDCG@10 of validation cases by histories and epochs, as a CSV for a DVC plot.

    python benchmarks/learning_curve.py --prepared data/prepared --base data/models/base --work work --out curve.csv
    dvc plots show curve.csv -x histories -y ndcg_at_10

A row a pair of --histories and --epochs: an SFT run of its own from the untrained base (one thread, seed of
params.yaml), ranked on the first --cases warm validation cases by the log-prob, beside popularity on the same cases;
printed with the difference to the row before and its 95 % interval over users. Test is never looked at. Adapters and
log-probs in the work folder are not made again.
"""

import argparse
import csv
import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from new_items import project_of

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.machine import machine
from recalign.data.records import Items, longest_histories, read_outlines
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import bootstrap_interval, signed
from recalign.params.load import Params, load_params
from recalign.project import Project
from recalign.ranking.language_model import Setting, open_recommender
from recalign.ranking.recommenders import open_recommender as open_id
from recalign.ranking.trial import Trial, read_trial, scores_of
from recalign.stages.baselines import baselines
from recalign.stages.sft import sft


@dataclass(frozen=True)
class Row:
    """One point of the curve. low, high: 95 % over users; popularity: of the same cases."""

    histories: int
    epochs: int
    cpu_seconds: float
    best_step: int
    ndcg_at_10: float
    low: float
    high: float
    popularity: float


def measure(params: Params, project: Project, trial: Trial, popularity: float) -> tuple[Row, Floats]:
    """Train and rank once."""
    started = time.process_time()
    count, epochs = params.sft.examples, params.sft.epochs
    out = project.root / f"data/models/curve/{count}-{epochs}"
    if not out.is_dir():
        sft(params, prepared=project.prepared, base=project.base, profiles=project.profiles, out=out,
            cache=project.root / "data/cache")  # fmt: skip
    took = time.process_time() - started
    summary = read_json(project.prepared / "summary.json")
    setting = Setting(params.base, params.prompt, summary["noun"], summary["clock"], params.seed, 1)
    model = open_recommender(
        "llm-sft", project.base, out, setting, Items.read(project.prepared), store=project.logprobs
    )
    values = trial.judged.values(scores_of(model, trial.requests, trial.candidates))
    own = bootstrap_interval(values, trial.users, params.evaluate.resamples, params.seed)
    best = int(read_json(out / "training.json")["best_step"])
    return Row(count, epochs, round(took), best, own.value, own.low, own.high, popularity), values


def write(rows: list[Row], out: Path) -> None:
    """The CSV, as a whole each time."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(asdict(rows[0])))
    table.writeheader()
    table.writerows({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in asdict(row).items()} for row in rows)
    out.write_text(text.getvalue(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--work", type=Path, required=True, help="adapters and log-probs are kept there")
    parser.add_argument("--histories", type=int, nargs="+", default=[40, 80, 160, 320, 0], help="0: all there are")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cases", type=int, default=128, help="warm validation cases (default: 128)")
    parser.add_argument("--out", type=Path, required=True, help="the CSV, written anew after each row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    project, params = project_of(arguments.prepared, arguments.base, arguments.work), load_params()
    params = params.model_copy(update={"threads": 1})
    trial = read_trial(project.prepared, c.VALIDATION, "uniform", arguments.cases, params.seed)
    if not (project.baselines / "popularity").is_dir():
        baselines(params, "popularity", project.prepared, project.baselines, project.costs)
    counts = open_id("popularity", project, Items.read(project.prepared))
    popularity = float(trial.judged.values(scores_of(counts, trial.requests, trial.candidates)).mean())
    every = len(longest_histories(read_outlines(project.prepared, c.TRAIN, seed=params.seed), params.seed))
    asked = sorted({min(every, count or every) for count in arguments.histories})
    rows: list[Row] = []
    print(f"{len(trial.cases)} validation cases, popularity {popularity:.3f}; {machine()}", flush=True)
    for epochs in arguments.epochs:
        before: Floats | None = None
        for count in asked:
            own = params.model_copy(
                update={"sft": params.sft.model_copy(update={"examples": count, "epochs": epochs, "evaluations": 1})}
            )
            row, values = measure(own, project, trial, popularity)
            rows.append(row)
            write(rows, arguments.out)
            users = trial.users
            gain = "" if before is None else signed(bootstrap_interval(values - before, users, 2000, params.seed))
            print(f"{count} histories, {epochs} epochs: {row.ndcg_at_10:.3f}; since the last {gain or '—'}", flush=True)
            before = values


if __name__ == "__main__":
    main()
