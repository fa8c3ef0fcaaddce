"""A prepared log as RecTools takes it, and the ten best of the whole catalogue by either side, judged alike.

The environment is one of its own, since RecTools needs numpy 1 and pandas 2, and pyarrow from 23 on needs numpy 2:

    python -m venv rectools
    rectools/bin/pip install 'rectools[torch]==0.19.0' torch==2.13.0 'pyarrow<23' safetensors ruamel.yaml
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models.base import ModelBase

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.recommenders.recommender import Recommender, Request

TOP = 10
Ranking = Callable[[list[Request]], list[list[int]]]  # the TOP best items of each, minus its history


def best_of(recommender: Recommender, catalogue: Items, requests: list[Request]) -> list[list[int]]:
    """Ours: the TOP items of each request minus its history, by partial sorting."""
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


def quality(ranking: Ranking, requests: list[Request], targets: Sequence[int]) -> dict[str, float]:
    """Full-catalogue HR@10 and NDCG@10."""
    lists = ranking(requests)
    ranks = [best.index(target) + 1 if target in best else 0 for best, target in zip(lists, targets, strict=True)]
    gains = [1 / np.log2(1 + rank) if rank else 0.0 for rank in ranks]
    return {"HR@10": float(np.mean([rank > 0 for rank in ranks])), "NDCG@10": float(np.mean(gains))}


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a step, and what it returned."""
    started = time.process_time()
    result = step()
    return time.process_time() - started, result
