"""Sequence encoders that read item text: `next_item.text` none, split and delta, on new and on known items.

    python benchmarks/text_next_item.py --prepared draw1/prepared draw2/prepared --out text.md

Reads what `dvc repro prepare` made with `prepare.hidden_items` above 0, once a draw of them (another `seed`). Epochs
are chosen on a held-out part of train; nothing is chosen on the cases that are shown: all test cases of the warm and
of the hidden view. `content` is fitted beside them, with its encoder chosen on hidden validation cases. Intervals are
95 %, over the users of all draws. Seconds are CPU seconds a fit.

`--unisrec` adds RecTools' UniSRecModel, which reads text alone, in the environment that `rectools_data.py` describes.
It gets the same text vectors (before our whitening), rows and lists. Its rate and epochs are chosen on the same part of
train as ours, batches of 16 as ours; the rest is its default (whitening, MLP, two blocks, width 256, full softmax).
Left alone it takes ten epochs of 128 users at 1e-4, made for large logs, and its `patience` looks at training rows.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.common.origin import machine
from recalign.data.records import Items
from recalign.evaluation.significance import bootstrap_interval, signed
from recalign.params.load import Params, load_params
from recalign.ranking.trial import read_trial, scores_of
from recalign.recommenders.content import hidden_cases
from recalign.recommenders.item_text import TextReader, fit_description
from recalign.recommenders.recommender import Recommender, Request
from recalign.recommenders.roster import fit
from recalign.recommenders.tuning import held_out
from recalign.report.table import plain

VIEWS = (c.WARM, c.HIDDEN)
CONTENT, UNISREC = "content", "UniSRec"
RATES = (1e-4, 3e-4, 1e-3)  # of UniSRec; 1e-4 is its own
TEXTS = ("none", "split", "delta")


class UniSRec:
    """RecTools' UniSRecModel as a recommender: an item that it has not seen is read by its text, as any other is."""

    def __init__(self, catalogue: Items, events: pa.Table, params: Params) -> None:
        next_item = params.recommenders.next_item
        self.catalogue, self.seed = catalogue, params.seed
        self.length, self.batch = next_item.max_history, next_item.batch
        known = catalogue.trained.ids
        described = fit_description(next_item.text_encoder, catalogue, known, TextReader(threads=1))
        self.vectors = torch.from_numpy(np.asarray(described.vectors(catalogue, catalogue.ids))).float()
        rows = events.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
        places = np.searchsorted(catalogue.ids, rows[c.ITEM].to_numpy()) + 1
        columns = rows[c.USER].to_numpy(), places, rows[c.POSITION].to_numpy()
        self.rows = [torch.from_numpy(np.array(own, dtype=np.int64)) for own in columns]
        self.model: Any = None

    @classmethod
    def chosen(cls, catalogue: Items, events: pa.Table, clock: bool, params: Params) -> "UniSRec":
        """Fitted on all events, with the rate and epochs that are best on the held-out part of them."""
        cases = held_out(catalogue, events, clock, params.seed)
        part, tried = cls(catalogue, cases.events, params), {}
        most, patience = params.recommenders.next_item.epochs, params.recommenders.next_item.patience
        for rate in RATES:
            curve: list[float] = []

            def go_on(curve: list[float] = curve) -> bool:
                curve.append(cases.value(part))
                return len(curve) - 1 - int(np.argmax(curve)) < patience

            part.fit(rate, most, go_on)
            tried[rate] = max(curve), int(np.argmax(curve)) + 1
            print(f"{UNISREC}, rate {rate:g}: held-out NDCG@10 {max(curve):.4f} in epoch {tried[rate][1]}", flush=True)
        rate = max(tried, key=lambda own: tried[own][0])
        whole = cls(catalogue, events, params)
        whole.fit(rate, tried[rate][1], lambda: True)
        return whole

    def fit(self, rate: float, epochs: int, go_on: Callable[[], bool]) -> None:
        """Train anew; `go_on` is asked after each epoch, when `scores` gives what has been learned so far."""
        from pytorch_lightning import Callback, Trainer
        from rectools.fast_transformers.unisrec import UniSRecModel

        own = self

        class Asked(Callback):
            def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
                own.net = module.net.eval()
                trainer.should_stop = not go_on()
                module.net.train()

        class Watched(UniSRecModel):
            def _make_trainer(self, max_epochs: int, val_dl: Any = None) -> Trainer:
                return Trainer(
                    max_epochs=max_epochs, gradient_clip_val=self.grad_clip, callbacks=[Asked()], accelerator="cpu",
                    logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
                )  # fmt: skip

        torch.manual_seed(self.seed)
        table = torch.cat([torch.zeros(1, self.vectors.shape[1]), self.vectors])
        self.model = Watched(
            table, session_max_len=self.length, lr=rate, batch_size=self.batch, device="cpu", epochs=epochs
        )
        self.ids = self.rows[1].unique()  # what build_sequences numbers from 1 on, ascending
        self.model.fit(*self.rows)
        self.net = self.model.net.eval()

    @torch.no_grad()
    def scores(self, requests: Sequence[Request], candidates: Sequence[Sequence[int]] | None) -> torch.Tensor:
        """[B, C]; a request without any item that was learned gets zeros."""
        assert candidates is not None
        read = torch.zeros(len(requests), self.length, dtype=torch.long)
        for row, request in enumerate(requests):
            places = torch.from_numpy(np.searchsorted(self.catalogue.ids, request.history)) + 1
            known = torch.searchsorted(self.ids, places[torch.isin(places, self.ids)]) + 1
            last = known[-self.length :]
            read[row, self.length - len(last) :] = last
        states = torch.cat([self.net.encode_last(part) for part in read.split(256)])
        states[read[:, -1] == 0] = 0.0
        items = self.net._adapt_score(self.vectors)
        columns = torch.from_numpy(np.searchsorted(self.catalogue.ids, np.array(candidates)))
        return (items[columns] @ states[:, :, None]).squeeze(2).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, nargs="+", required=True, help="a folder a draw of the hidden items")
    parser.add_argument("--systems", nargs="+", default=["sasrec"], choices=["sasrec", "gru4rec"])
    parser.add_argument("--texts", nargs="*", default=list(TEXTS), choices=TEXTS, help="settings of next_item.text")
    parser.add_argument("--encoder", default="attributes+tfidf", help="what reads the text")
    parser.add_argument("--unisrec", action="store_true", help="RecTools' UniSRecModel too, in RecTools' environment")
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
        theirs = [(UNISREC, UNISREC, "none")] if arguments.unisrec else []
        for name, label, text in [*asked, *theirs, (CONTENT, CONTENT, "none")]:
            own = params.recommenders.next_item.model_copy(update={"text": text, "text_encoder": arguments.encoder})
            recommenders = params.recommenders.model_copy(update={"next_item": own})
            hidden = hidden_cases(prepared, train, params.seed) if name == CONTENT else None
            started = time.process_time()
            with_text = params.model_copy(update={"recommenders": recommenders})
            if name == UNISREC:
                model: Recommender = UniSRec.chosen(catalogue, train, summary["clock"], with_text)
            else:
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
