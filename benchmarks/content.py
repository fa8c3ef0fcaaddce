"""What is written of new items: `content` by encoder against its history-blind prior and the ID recommenders.

    python benchmarks/content.py --prepared draw1/prepared draw2/prepared draw3/prepared --out content.md

Reads what `dvc repro prepare` made with `prepare.hidden_items` above 0, once a draw of them (another `seed`).
Every encoder's dimension and ridge, and of the row "chosen" the encoder too, are chosen on the hidden validation items;
the figures are of the hidden test items: the target and all its wrong candidates are without one train event.
"by events" weighs each case alike; "by items" each target item alike, so that a popular one counts no more than a rare
one. Intervals are 95 %, over users by events and over items by items, of all draws together. Seconds are CPU seconds.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.common.origin import machine
from recalign.data.records import Items
from recalign.evaluation.metrics import metric_values, target_ranks
from recalign.evaluation.significance import Interval, bootstrap_interval
from recalign.params.load import Params, load_params
from recalign.params.recommenders import RecommenderName
from recalign.ranking.trial import read_trial, scores_of
from recalign.recommenders.content import hidden_cases
from recalign.recommenders.roster import ROSTER, fit
from recalign.report.table import plain

METRICS = {"ndcg_at_10": "NDCG@10", "hr_at_1": "HR@1"}
ENCODERS = ("attributes", "tfidf", "attributes+tfidf", "attributes+minilm")
CHOSEN = "content (encoder chosen)"


@dataclass
class Row:
    """A system over all draws. values: by metric and draw, a value a case; seconds of fitting, of all draws."""

    values: dict[str, list[NDArray[np.float64]]] = field(default_factory=lambda: {name: [] for name in METRICS})
    seconds: float = 0.0
    chosen: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Draw:
    """Who is asked and for what: users and targets [cases]; told: what the figures are about."""

    users: list[int]
    targets: list[int]
    told: str


def measure(
    prepared: Path, params: Params, encoders: Sequence[str], others: Sequence[RecommenderName]
) -> tuple[Draw, dict[str, Row]]:
    """Fit and rank every system on one draw."""
    torch.set_num_threads(1)
    rows: dict[str, Row] = {}
    summary = read_json(prepared / "summary.json")
    catalogue = Items.read(prepared)
    events = read_parquet(prepared / "events.parquet")
    train = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
    trial = read_trial(prepared, c.TEST, "uniform", None, params.seed, view=c.HIDDEN)
    hidden = hidden_cases(prepared, train, params.seed)
    content: list[tuple[str, RecommenderName, tuple[str, ...]]] = [
        *((name, name, ()) for name in others),
        ("content_prior", "content_prior", tuple(encoders)),
        *((f"content {encoder}", "content", (encoder,)) for encoder in encoders),
        (CHOSEN, "content", tuple(encoders)),
    ]
    for label, name, tried in content:
        own = params.recommenders.content.model_copy(update={"encoders": tried or params.recommenders.content.encoders})
        asked = params.model_copy(update={"recommenders": params.recommenders.model_copy(update={"content": own})})
        started = time.process_time()
        model, tuning = fit(name, catalogue, train, summary["clock"], asked, None, hidden)
        row = rows.setdefault(label, Row())
        row.seconds += time.process_time() - started
        row.chosen.append(tuning["chosen"])
        scores = scores_of(model, trial.requests, trial.candidates)
        ranks = target_ranks(scores, np.array(trial.target_index), trial.lots)
        for metric in METRICS:
            row.values[metric].append(metric_values(metric, ranks))
        print(f"{prepared}: {label} {row.values['ndcg_at_10'][-1].mean():.3f} {tuning['chosen']}", flush=True)
    told = (
        f"{summary['source']}, data {summary['data_digest'][:8]}, manifest {trial.manifest} {trial.digest[:8]}: "
        f"{len(trial.cases)} cases"
    )
    return Draw(trial.users, [case.example.target for case in trial.cases], told), rows


def together(draws: Sequence[Mapping[str, Row]]) -> dict[str, Row]:
    """The rows of all draws, a row a system."""
    rows = {label: Row() for label in draws[0]}
    for label, row in rows.items():
        for own in draws:
            row.seconds += own[label].seconds
            row.chosen += own[label].chosen
            for metric in METRICS:
                row.values[metric] += own[label].values[metric]
    return rows


def by_items(values: Sequence[NDArray[np.float64]], draws: Sequence[Draw], params: Params) -> Interval:
    """The mean over target items of each one's mean, items of all draws resampled."""
    means: list[float] = []
    for own, draw in zip(values, draws, strict=True):
        _, place, count = np.unique(draw.targets, return_inverse=True, return_counts=True)
        means += (np.bincount(place, weights=own) / count).tolist()
    return bootstrap_interval(np.array(means), range(len(means)), params.evaluate.resamples, params.seed)


def by_events(values: Sequence[NDArray[np.float64]], draws: Sequence[Draw], params: Params) -> Interval:
    """The mean over cases, users resampled with their cases of all draws."""
    users = [user for draw in draws for user in draw.users]
    return bootstrap_interval(np.concatenate(values), users, params.evaluate.resamples, params.seed)


def markdown(rows: Mapping[str, Row], draws: Sequence[Draw], params: Params) -> str:
    """A line a system: each draw, all of them by events and by items, and what it has above the prior."""
    head = ["system", *(f"draw {place + 1}" for place in range(len(draws))), "NDCG@10 by events", "by items"]
    head += ["HR@1 by events", "NDCG@10 − prior, by events", "by items", "fit s"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    prior = rows["content_prior"].values["ndcg_at_10"]
    for label, row in rows.items():
        own = row.values["ndcg_at_10"]
        above = [one - other for one, other in zip(own, prior, strict=True)]
        gains = ["", ""]
        if label != "content_prior":
            gains = [plain(measure(above, draws, params)) for measure in (by_events, by_items)]
        shown = [f"{values.mean():.3f}" for values in own]
        shown += [plain(by_events(own, draws, params)), plain(by_items(own, draws, params))]
        shown += [plain(by_events(row.values["hr_at_1"], draws, params)), *gains, f"{row.seconds / len(draws):.1f}"]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, nargs="+", required=True, help="a folder a draw of the hidden items")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="as recommenders.content.encoders names them")
    parser.add_argument(
        "--others", nargs="+", choices=ROSTER, default=("popularity",),
        help="ID recommenders beside it; all of them give every new item one score, and rank by lot",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=1, help="draws that are measured at once")
    parser.add_argument("--out", type=Path, help="write the Markdown there as well")
    parser.add_argument("--json", type=Path, help="write what was chosen there")
    arguments = parser.parse_args()
    params = load_params().model_copy(update={"threads": 1})
    put = partial(measure, params=params, encoders=arguments.encoders, others=arguments.others)
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        draws, found = zip(*pool.map(put, arguments.prepared), strict=True)
    rows = together(found)
    told = "\n".join(f"- {draw.told}" for draw in draws)
    text = f"{told}\n- {machine()}\n\n{markdown(rows, draws, params)}"
    print(f"\n{text}")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.json:
        chosen = {label: row.chosen for label, row in rows.items()}
        arguments.json.write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
