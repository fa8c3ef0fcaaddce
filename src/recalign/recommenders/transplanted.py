"""An ID recommender on another catalogue than the one it was fitted on: items are met by title, as in a prompt.

A champion is scored again on the newest log, whose catalogue has other items than the one it learned.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from recalign.data.records import Items
from recalign.recommenders.recommender import Recommender, Request, cases_at_once


class Transplanted:
    """Scores the items of `catalogue` by what a recommender fitted on `own` says of the item with the same title.

    Titles that it never saw are left out of histories, and score alike and below its lowest item: nothing speaks for
    them.
    """

    def __init__(self, recommender: Recommender, own: Items, catalogue: Items) -> None:
        self.name = recommender.name
        self.recommender = recommender
        self.catalogue = catalogue
        ids = {own.titles[item]: item for item in own.ids}
        self._own_id = {item: ids[title] for item, title in catalogue.titles.items() if title in ids}
        self._own_items = len(own.ids)
        places = {item: place for place, item in enumerate(own.ids)}
        self._places = np.array([places.get(self._own_id.get(item, -1), -1) for item in catalogue.ids], dtype=np.int64)
        self._column = {item: column for column, item in enumerate(catalogue.ids)}

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] scores of equally long candidate lists, or [B, items] over the catalogue in ascending item id."""
        parts = []
        step = cases_at_once(max(self._own_items, len(self._places)))
        for start in range(0, len(requests), step):
            block = slice(start, start + step)
            told = self.recommender.scores([self._met(request) for request in requests[block]], None).double().cpu()
            columns = self._columns(len(told), candidates and candidates[block])
            picked = told.gather(1, torch.from_numpy(np.maximum(columns, 0)))
            below = told.min(dim=1, keepdim=True).values - 1.0
            parts.append(torch.where(torch.from_numpy(columns < 0), below, picked))
        return torch.cat(parts)

    def save(self, path: Path) -> None:
        """Write the recommender as it was fitted."""
        self.recommender.save(path)

    def _met(self, request: Request) -> Request:
        return replace(request, history=tuple(self._own_id[i] for i in request.history if i in self._own_id))

    def _columns(self, rows: int, candidates: Sequence[Sequence[int]] | None) -> NDArray[np.int64]:
        """The recommender's own column of each wanted item, −1 where it has none."""
        if candidates is None:
            return np.tile(self._places, (rows, 1))
        return self._places[np.array([[self._column[item] for item in items] for items in candidates], dtype=np.int64)]


@runtime_checkable
class ReadsItems(Protocol):
    """A recommender that ranks items which it never saw by what is written of them."""

    def on(self, catalogue: Items) -> Recommender:
        """Itself on another catalogue: items of the same title as it knows them, all others read."""
        ...


def on_catalogue(recommender: Recommender, own: Items, catalogue: Items) -> Recommender:
    """The recommender as it is where the catalogue is its own; else by reading what is new, or transplanted."""
    if own.ids == catalogue.ids and own.titles == catalogue.titles:
        return recommender
    if isinstance(recommender, ReadsItems):
        return recommender.on(catalogue)
    return Transplanted(recommender, own, catalogue)
