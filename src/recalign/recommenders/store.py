"""What ID recommenders share: item ids as columns, histories as rows, and a state on disk that knows its catalogue.

And an ID recommender on another catalogue than the one it was fitted on, where items are met by title, as in a prompt:
a champion is scored again on the newest log, whose catalogue has other items than the one it learned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import sparse

from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_json, replacing, verify_once, write_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.recommenders.recommender import Recommender, Request, cases_at_once

ARRAYS = "model.safetensors"
SETTINGS = "settings.json"
CELLS = 2**24  # requests × items scored at once: 128 MiB
REACH = 3.0  # pairs further apart than so many `distance`s weigh under 5 % and are left out


def columns_of(catalogue: Items, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Column of each item id in the catalogue's ascending order.

    Raises RecalignError naming the first id that the catalogue does not hold.
    """
    known = catalogue.ascending
    wanted = np.asarray(ids, dtype=np.int64)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    unknown = known[places] != wanted
    if unknown.any():
        raise RecalignError(
            f"item {wanted[unknown][0]} is not among the {len(known)} items of the catalogue; leave it out or add it"
        )
    return places


def bags(catalogue: Items, histories: list[tuple[int, ...]], recency: float | None = None) -> sparse.csr_array:
    """[B, items] of histories (oldest first): each like weighs 1, or fades by e over `recency` later likes.

    A repeated item adds up. Raises RecalignError for an item that the catalogue does not hold.
    """
    lengths = [len(history) for history in histories]
    items = columns_of(catalogue, [item for history in histories for item in history])
    rows = np.repeat(np.arange(len(histories)), lengths)
    weights = np.ones(len(items))
    if recency is not None and len(items):
        back = np.concatenate([np.arange(length)[::-1] for length in lengths])
        weights = np.exp(-back / recency)
    return sparse.csr_array((weights, (rows, items)), shape=(len(histories), len(catalogue.ids)))


def with_clock(events: pa.Table, name: str) -> pa.Table:
    """The events as they are. Raises RecalignError, naming the recommender, where an event has no time."""
    if events[c.TIMESTAMP].null_count:
        raise RecalignError(f"{name} needs a clock, and the log has none: take it out of recommenders.systems")
    return events


def pick(scores: NDArray[np.float64], catalogue: Items, candidates: list[list[int]] | None) -> torch.Tensor:
    """[B, items] scores as they are, or those of equally long candidate lists, [B, C]."""
    if candidates is None:
        return torch.from_numpy(scores)
    flat = columns_of(catalogue, [item for row in candidates for item in row])
    return torch.from_numpy(np.take_along_axis(scores, flat.reshape(len(candidates), -1), axis=1))


def same_for_all(
    values: NDArray[np.float64], catalogue: Items, requests: list[Request], candidates: list[list[int]] | None
) -> torch.Tensor:
    """[B, C] or [B, items]: the same score of an item [items] for everybody; lists need no row of all items."""
    if candidates is None:
        return torch.from_numpy(np.tile(values, (len(requests), 1)))
    return pick(np.broadcast_to(values, (len(requests), len(values))), catalogue, candidates)


def in_blocks(
    catalogue: Items,
    requests: list[Request],
    candidates: list[list[int]] | None,
    score: Callable[[list[tuple[int, ...]]], NDArray[np.float64]],
    cells: int = CELLS,
) -> torch.Tensor:
    """[B, C] or [B, items]: `score`, histories to the whole catalogue [b, items], at most so many `cells` at once."""
    step = max(1, cells // len(catalogue.ids))
    parts = []
    for start in range(0, len(requests), step):
        rows = score([request.history for request in requests[start : start + step]])
        parts.append(pick(rows, catalogue, candidates and candidates[start : start + step]))
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else torch.empty((0, 0), dtype=torch.float64)


def successions(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    size: int,
    reach: int,
    weight: Callable[[int, NDArray[np.bool_]], NDArray[np.float64]],
) -> sparse.csr_array:
    """[items, items] sum over likes up to `reach` places apart, the earlier one's item first; users and items (columns)
    user by user, in each one's order. weight: places apart and which likes have a later one there -> what these add."""
    longest = int(np.unique(users, return_counts=True)[1].max(initial=1))
    summed = sparse.csr_array((size, size))
    for step in range(1, min(reach, longest - 1) + 1):
        same = users[step:] == users[:-step]
        pair = (items[:-step][same], items[step:][same])
        summed = summed + sparse.csr_array((weight(step, same), pair), shape=(size, size))
    return sparse.csr_array(summed)


def sparse_arrays(name: str, matrix: sparse.csr_array) -> dict[str, NDArray[Any]]:
    """A matrix of compressed sparse rows as `save_state` takes it, its values as `name`."""
    return {
        name: matrix.data,
        "columns": matrix.indices.astype(np.int32),
        "row_starts": matrix.indptr.astype(np.int64),
    }


def sparse_matrix(name: str, arrays: dict[str, NDArray[Any]], size: int) -> sparse.csr_array:
    """The [size, size] matrix that `sparse_arrays` took apart."""
    return sparse.csr_array((arrays[name], arrays["columns"], arrays["row_starts"]), shape=(size, size))


def save_state(
    path: Path, name: str, catalogue: Items, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]
) -> None:
    """Write arrays (safetensors) and settings (JSON) with the catalogue's digest into the folder `path`.

    Raises RecalignError, naming the recommender, where it did not learn finite numbers.
    """
    _check_finite(name, arrays, "its training diverged: lower the learning rate in recommenders, or take it out")
    path.mkdir(parents=True, exist_ok=True)
    with replacing(path / ARRAYS) as partial:
        save_file({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}, partial)
    write_json(path / SETTINGS, {"name": name, "catalogue": digest_of(catalogue.ids), "settings": settings})


def settings_of(path: Path) -> dict[str, Any]:
    """The settings that `save_state` wrote; empty where there are none. Nothing else of the folder is checked."""
    file = path / SETTINGS
    return dict(read_json(file)["settings"]) if file.is_file() else {}


def load_state(path: Path, name: str, catalogue: Items) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and settings as `save_state` wrote them.

    Raises RecalignError when the folder holds another recommender, one fitted on another catalogue, or one whose files
    were changed since or are not finite.
    """
    verify_once(path)
    state = read_json(path / SETTINGS)
    if state["name"] != name:
        found = state["name"]
        raise RecalignError(f"{path} holds the recommender '{found}', not '{name}'; run 'dvc repro baselines@{name}'")
    if state["catalogue"] != digest_of(catalogue.ids):
        raise RecalignError(f"{path} was fitted on another catalogue than this one; run 'dvc repro baselines@{name}'")
    try:
        arrays = {key: value.numpy() for key, value in load_file(path / ARRAYS).items()}
    except (OSError, SafetensorError) as error:
        said = " ".join(str(error).split())[:160]
        raise RecalignError(f"{path / ARRAYS} cannot be read ({said}); run 'dvc repro baselines@{name}'") from None
    _check_finite(name, arrays, f"run 'dvc repro baselines@{name}'")
    return arrays, state["settings"]


def _check_finite(name: str, arrays: dict[str, NDArray[Any]], fix: str) -> None:
    for key, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise RecalignError(f"the recommender '{name}' holds values that are not finite ({key}); {fix}")


class Transplanted:
    """Scores the items of `catalogue` by what a recommender fitted on `own` says of the item with the same title.

    Titles that it never saw are left out of histories, and score alike and below its lowest item: nothing speaks for
    them. They are below by the deviation of its scores, 1 at most: a wider step would be all that is left of a list
    once a fusion brings it to deviation 1.
    """

    def __init__(self, recommender: Recommender, own: Items, catalogue: Items) -> None:
        self.name = recommender.name
        self.recommender = recommender
        self.catalogue = catalogue
        self._own_id = _met_by_title(own, catalogue)
        self._own_items = len(own.ids)
        self._places = _rows(self._own_id, own, catalogue)
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
            deviation = told.std(dim=1, keepdim=True, correction=0)
            step_down = torch.where(deviation > 0, deviation.clamp(max=1.0), 1.0)
            below = told.min(dim=1, keepdim=True).values - step_down
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


def _met_by_title(own: Items, catalogue: Items) -> dict[int, int]:
    """The item of `own` that each is, by title; of two with one title the one with its id, where that is there."""
    titles = {item: own.titles[item] for item in own.ids}
    ids = {title: item for item, title in titles.items()}
    met: dict[int, int] = {}
    for item, title in catalogue.titles.items():
        other = item if titles.get(item) == title else ids.get(title)
        if other is not None and (other == item or catalogue.titles.get(other) != title):
            met[item] = other
    return met


def rows_by_title(own: Items, catalogue: Items) -> tuple[NDArray[np.int64], list[int]]:
    """The row in `own` of each item of the catalogue by its title, −1 where it has none, and the items without one."""
    rows = _rows(_met_by_title(own, catalogue), own, catalogue)
    return rows, [item for item, row in zip(catalogue.ids, rows, strict=True) if row < 0]


def _rows(met: Mapping[int, int], own: Items, catalogue: Items) -> NDArray[np.int64]:
    """[items] the row in `own` of what each item of the catalogue is there by `met`, −1 where it is nothing."""
    places = {item: place for place, item in enumerate(own.ids)}
    return np.array([places.get(met.get(item, -1), -1) for item in catalogue.ids], dtype=np.int64)


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
