"""Sequence encoders that read item text: `next_item.text` none, split and delta, on new and on known items.

    python benchmarks/text_next_item.py --prepared draw1/prepared draw2/prepared --out text.md

Reads what `dvc repro prepare` made with `prepare.hidden_items` above 0, once a draw of them (another `seed`). Epochs
are chosen on a held-out part of train; nothing is chosen on the cases that are shown: all test cases of the warm and
of the hidden view. `content` is fitted beside them, with its encoder chosen on hidden validation cases. Intervals are
95 %, over the users of all draws. Seconds are CPU seconds a fit.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.common.origin import machine
from recalign.data.records import Items
from recalign.evaluation.significance import bootstrap_interval, signed
from recalign.params.load import load_params
from recalign.ranking.trial import read_trial, scores_of
from recalign.recommenders.content import hidden_cases
from recalign.recommenders.roster import fit
from recalign.report.table import plain

VIEWS = (c.WARM, c.HIDDEN)
CONTENT = "content"
TEXTS = ("none", "split", "delta")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, nargs="+", required=True, help="a folder a draw of the hidden items")
    parser.add_argument("--systems", nargs="+", default=["sasrec"], choices=["sasrec", "gru4rec"])
    parser.add_argument("--texts", nargs="+", default=list(TEXTS), choices=TEXTS, help="settings of next_item.text")
    parser.add_argument("--encoder", default="attributes+tfidf", help="what reads the text")
    parser.add_argument("--out", type=Path, help="write the Markdown there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = load_params().model_copy(update={"threads": 1})
    values: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    users: dict[str, list[int]] = {view: [] for view in VIEWS}
    seconds: dict[str, float] = {}
    told = []
    for prepared in arguments.prepared:
        catalogue, summary = Items.read(prepared), read_json(prepared / "summary.json")
        events = read_parquet(prepared / "events.parquet")
        train = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
        trials = {view: read_trial(prepared, c.TEST, "uniform", None, params.seed, view=view) for view in VIEWS}
        told.append(f"- {summary['source']}, data {summary['data_digest'][:8]}")
        asked = [(name, f"{name}, {text}", text) for name in arguments.systems for text in arguments.texts]
        for name, label, text in [*asked, (CONTENT, CONTENT, "none")]:
            own = params.recommenders.next_item.model_copy(update={"text": text, "text_encoder": arguments.encoder})
            recommenders = params.recommenders.model_copy(update={"next_item": own})
            hidden = hidden_cases(prepared, train, params.seed) if name == CONTENT else None
            started = time.process_time()
            with_text = params.model_copy(update={"recommenders": recommenders})
            model, _ = fit(name, catalogue, train, summary["clock"], with_text, None, hidden)
            seconds[label] = seconds.get(label, 0.0) + time.process_time() - started
            for view, trial in trials.items():
                scores = scores_of(model, trial.requests, trial.candidates)
                values.setdefault((label, view), []).append(trial.judged.values(scores))
            print(prepared, label, {view: round(values[label, view][-1].mean(), 4) for view in VIEWS}, flush=True)
        for view, trial in trials.items():
            users[view] += trial.users
    lines = [
        "| system | warm NDCG@10 | item-cold-hidden NDCG@10 | hidden, minus none | fit s |",
        "|---|---:|---:|---:|---:|",
    ]
    for label in seconds:
        columns, (name, _, text) = [], label.partition(", ")
        for view in VIEWS:
            each = np.concatenate(values[label, view])
            columns.append(plain(bootstrap_interval(each, users[view], params.evaluate.resamples, params.seed)))
        apart = ""
        if text not in ("", "none"):
            gained = np.concatenate(values[label, c.HIDDEN]) - np.concatenate(values[f"{name}, none", c.HIDDEN])
            apart = signed(bootstrap_interval(gained, users[c.HIDDEN], params.evaluate.resamples, params.seed))
        lines.append(f"| {label} | {' | '.join(columns)} | {apart} | {seconds[label] / len(told):.0f} |")
    cases = {view: len(users[view]) for view in VIEWS}
    text = "\n".join([*told, f"- cases {cases}; text by {arguments.encoder}; {machine()}", "", *lines]) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
