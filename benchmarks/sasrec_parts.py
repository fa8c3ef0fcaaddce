"""What sets SASRec apart from RecTools'? Ours with RecTools' parts, one after another and together.

In RecTools' environment (`rectools_data.py` says how), after `against_rectools.py … --json out.json`:

    PYTHONPATH=src rectools/bin/python benchmarks/sasrec_parts.py --prepared data/prepared --chosen out.json --seeds 1 4

Trains with the settings and epochs that were chosen for ours, nothing chosen anew: `end` counts positions from the
latest item, `block` adds each layer to its normalised input, `xavier` draws weights more widely, `no-bias` leaves items
without one, `full` takes RecTools' settings, loss and epochs; `--parts end+full` is two together, `all` the five. Test
cases, NDCG@10 in the whole catalogue, also by how many items the history has.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.compute as pc
import torch
from against_rectools import after, latest, our_sasrec
from rectools_data import Ranking
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.data.records import Items
from recalign.params.load import load_params
from recalign.ranking.trial import read_trial
from recalign.recommenders.neural.encoders import Block, SASRec
from recalign.recommenders.neural.sequential import Settings

PARTS = ("end", "block", "xavier", "no-bias", "full")


class AddedToNormalised(Block):
    """RecTools' block: queries are normalised, keys and values are not; each layer adds to its normalised input."""

    def forward(self, inputs: Tensor) -> Tensor:
        rows, length, width = inputs.shape

        def split(values: Tensor) -> Tensor:
            return values.view(rows, length, self.heads, -1).transpose(1, 2)

        normal = self.before_attention(inputs)
        key, value = self.key_value(inputs).chunk(2, dim=-1)
        attended = scaled_dot_product_attention(split(self.query(normal)), split(key), split(value), is_causal=True)
        inputs = normal + self.dropout(self.out(attended.transpose(1, 2).reshape(rows, length, width)))
        normal = self.before_network(inputs)
        return normal + self.dropout(self.network(normal))


class FromTheEnd(SASRec):
    """Positions count from the latest item, which has the last one."""

    def forward(self, items: Tensor) -> Tensor:
        longest, width = len(self.positions), items.shape[1]
        real = items != self.embedding.num_embeddings - 1
        lengths = torch.where(real.any(dim=1), width - real.flip(1).int().argmax(dim=1), 1)
        places = (longest - lengths[:, None] + torch.arange(width)).clamp(max=longest - 1)
        states = self.dropout(self.embedding(items) + self.positions[places])
        for block in self.blocks:
            states = block(states)
        return self.last(states)


def encoder_with(parts: set[str], _: str, items: int, settings: Settings) -> SASRec:
    """A new SASRec with some of RecTools' parts; stands for `build_encoder`."""
    made = FromTheEnd if "end" in parts else SASRec
    encoder = made(items, settings.dimension, settings.dropout, settings.length, ordered=True)
    for block in encoder.blocks if "block" in parts else ():
        block.__class__ = AddedToNormalised  # the same weights, read in another order
    for weights in encoder.parameters() if "xavier" in parts else ():
        if weights.dim() > 1:
            nn.init.xavier_normal_(weights.data)
    encoder.bias.requires_grad_("no-bias" not in parts)
    return encoder


def gains(ranking: Ranking, requests: list[Any], targets: list[int]) -> np.ndarray:
    """NDCG@10 of each case."""
    lists = ranking(requests)
    return np.array([1 / np.log2(2 + row.index(t)) if t in row else 0.0 for row, t in zip(lists, targets, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    parser.add_argument("--chosen", type=Path, required=True, help="what against_rectools.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--parts", nargs="+", default=["none", *PARTS, "all"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params, chosen = load_params(), read_json(arguments.chosen)["chosen"]
    catalogue = Items.read(arguments.prepared)
    events = read_parquet(arguments.prepared / "events.parquet")
    train = latest(events.filter(pc.equal(events[c.SPLIT], c.TRAIN)), params.recommenders.next_item.max_history + 1)
    trial = read_trial(arguments.prepared, c.TEST, "uniform", None, params.seed)
    requests, targets = list(trial.requests), [case.example.target for case in trial.cases]
    lengths = np.array([len(request.history) for request in requests])
    for name in arguments.parts:
        parts = {"none": set(), "all": set(PARTS)}.get(name, set(name.split("+")))
        if parts - set(PARTS):
            parser.error(f"--parts {name}: not none, all or some of {', '.join(PARTS)} joined by +")
        side = chosen["RecTools" if "full" in parts else "ours"]
        settings = params.recommenders.next_item.model_copy(update=side["settings"])
        for seed in arguments.seeds:
            with patch("recalign.recommenders.neural.next_item.build_encoder", partial(encoder_with, parts)):
                ranking = after(side["epochs"], our_sasrec(catalogue, True, settings, train, seed))
            found = gains(ranking, requests, targets)
            spans = {"1 to 19": lengths < 20, "20 to 49": (lengths >= 20) & (lengths < 50), "50": lengths == 50}
            shown = ", ".join(f"{span}: {found[held].mean():.4f} ({held.sum()})" for span, held in spans.items())
            print(f"{name}, seed {seed}: NDCG@10 {found.mean():.4f}; histories of {shown}", flush=True)


if __name__ == "__main__":
    main()
