"""Settings of the simple recommenders: chosen on a split of train by coordinate descent, then fitted on all of it.

Cases that settings are chosen on, from train alone: its newest tenth with a clock, a tenth of its users without.

Cases are made as preparation makes them: history → target among uniform wrong items, at most ten a user.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.data.preparation.candidates import draw_candidates
from recalign.data.records import Items, hashed_order
from recalign.evaluation.metrics import draw_lots, metric_values, target_ranks
from recalign.recommenders.recommender import Fitting, Recommender, Request, Tuning, key
from recalign.recommenders.store import columns_of

HELD_OUT = 0.1  # share of train that tunes
CASES_PER_USER = 10
CASES = 2000  # more than enough to tell settings apart
CANDIDATES = 20
NEW_ITEMS = 0.2  # share of the trained items that stand for new ones, where a run hides none
MIN_HISTORY = 3
MAX_HISTORY = 50
METRIC = "ndcg_at_10"


@dataclass(frozen=True)
class HeldOut:
    """What settings are compared on: events to fit on, requests with candidates [B, C] and the target's place [B]."""

    events: pa.Table
    requests: list[Request]
    candidates: list[list[int]]
    target_index: NDArray[np.int64]

    def value(self, recommender: Recommender) -> float:
        """Mean METRIC of a recommender that was fitted on `events`."""
        return self.value_of(recommender.scores(self.requests, self.candidates).numpy())

    def value_of(self, scores: NDArray[np.float64]) -> float:
        """Mean METRIC of scores [B, C] of the candidates."""
        targets = [items[place] for items, place in zip(self.candidates, self.target_index, strict=True)]
        names = [f"{request.user_id}-{target}" for request, target in zip(self.requests, targets, strict=True)]
        lots = draw_lots(names, self.candidates)
        return float(metric_values(METRIC, target_ranks(scores, self.target_index, lots)).mean())


def held_out(catalogue: Items, events: pa.Table, clock: bool, seed: int, met: pa.Table | None = None) -> HeldOut:
    """Split a train log (user_id, item_id, timestamp, position); no request where it is too small to be split.

    met: (user_id, item_id) of what users met in training's time, liked or not, which is never a wrong item either.
    """
    order = [(c.USER, "ascending"), (c.POSITION, "ascending")]
    events = events.sort_by(order)
    users, items = events[c.USER].to_numpy(), events[c.ITEM].to_numpy()
    if clock:
        times = events[c.TIMESTAMP].to_numpy().astype("datetime64[us]").astype(np.int64)
        held = times >= np.sort(times)[int(len(times) * (1 - HELD_OUT))]
    else:
        distinct, rows = np.unique(users, return_inverse=True)
        held = np.array([key("tuning", user) < HELD_OUT * 2**64 for user in distinct])[rows]
    examples = []
    most_seen = len(catalogue.ids) - CANDIDATES + 1
    starts = np.flatnonzero(np.diff(users, prepend=users[:1] - 1))
    seen = _seen(catalogue, users, items, met)
    all_seen = Counter(seen[0].tolist())
    for start, end in zip(starts, [*starts[1:], len(users)], strict=True):
        if held[start:end].any() and all_seen[int(users[start])] <= most_seen:
            make = _of_newest if clock else _of_set
            examples += make(int(users[start]), items[start:end].tolist(), held[start:end])
    examples.sort(key=lambda example: hashed_order(seed, example[0].user_id, example[1]))
    examples = examples[:CASES]
    lists, places = _lists(catalogue, *seen, examples, seed)
    return HeldOut(events.filter(pa.array(~held)), [request for request, _ in examples], lists, places)


def held_out_items(catalogue: Items, events: pa.Table, clock: bool, seed: int, met: pa.Table | None = None) -> HeldOut:
    """Cases on new items: a hash-chosen NEW_ITEMS of the trained items is taken out of the events and of histories.

    A target is such an item, its wrong items are others of them; the history is what came before (without a clock:
    everything else). No request where they are too few.
    """
    events = events.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
    users, items = events[c.USER].to_numpy(), events[c.ITEM].to_numpy()
    trained = np.unique(items)
    new = trained[[key("new items", seed, item) < NEW_ITEMS * 2**64 for item in trained.tolist()]]
    held = np.isin(items, new)
    rest = events.filter(pa.array(~held))
    if len(new) < CANDIDATES or not len(rest):
        return HeldOut(rest, [], [], np.zeros(0, dtype=np.int64))
    pool = replace(catalogue, ids=tuple(new.tolist()))
    seen = _seen(pool, users[held], items[held], met)
    all_seen = Counter(seen[0].tolist())
    examples = []
    starts = np.flatnonzero(np.diff(users, prepend=users[:1] - 1))
    for start, end in zip(starts, [*starts[1:], len(users)], strict=True):
        user = int(users[start])
        if all_seen[user] <= len(new) - CANDIDATES + 1:
            examples += _of_new_items(user, items[start:end].tolist(), held[start:end], clock)
    examples.sort(key=lambda example: hashed_order(seed, example[0].user_id, example[1]))
    examples = examples[:CASES]
    lists, places = _lists(pool, *seen, examples, seed)
    return HeldOut(rest, [request for request, _ in examples], lists, places)


def _of_new_items(user: int, items: list[int], held: NDArray[np.bool_], clock: bool) -> list[tuple[Request, int]]:
    """(request, target) of a user's likes of held-out items; histories hold none of them."""
    cases = []
    for place in sorted(np.flatnonzero(held).tolist(), key=lambda place: hashed_order("new items", user, items[place])):
        before = items[:place] if clock else items
        history = [item for item, out in zip(before, held, strict=False) if not out][-MAX_HISTORY:]
        if len(history) >= MIN_HISTORY:
            cases.append((Request(user, tuple(history)), items[place]))
    return cases[:CASES_PER_USER]


def _seen(
    catalogue: Items, users: NDArray[np.int64], items: NDArray[np.int64], met: pa.Table | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What each user liked in train or met in its time, of the catalogue: users and items [pairs], each pair once."""
    if met is not None:
        known = np.isin(met[c.ITEM].to_numpy(), catalogue.ids) & np.isin(met[c.USER].to_numpy(), users)
        users = np.concatenate([users, met[c.USER].to_numpy()[known]])
        items = np.concatenate([items, met[c.ITEM].to_numpy()[known]])
    pairs = np.unique(np.stack([users, items]), axis=1)
    return pairs[0], pairs[1]


def _of_newest(user: int, items: list[int], held: NDArray[np.bool_]) -> list[tuple[Request, int]]:
    """(request, target) of a user's held-out likes: history is what came before."""
    places = [place for place in np.flatnonzero(held).tolist() if place >= MIN_HISTORY]
    places.sort(key=lambda place: hashed_order("tuning", user, items[place]))
    return [
        (Request(user, tuple(items[max(0, place - MAX_HISTORY) : place])), items[place])
        for place in places[:CASES_PER_USER]
    ]


def _of_set(user: int, items: list[int], _: NDArray[np.bool_]) -> list[tuple[Request, int]]:
    """(request, target) of a held-out user: at most half of the items are targets, the rest are every one's history."""
    shuffled = sorted(items, key=lambda item: hashed_order("tuning", user, item))
    targets = max(0, min(CASES_PER_USER, len(items) // 2, len(items) - MIN_HISTORY))
    history = tuple(shuffled[targets:][:MAX_HISTORY])
    return [(Request(user, history), target) for target in shuffled[:targets]]


def _lists(
    catalogue: Items,
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    examples: list[tuple[Request, int]],
    seed: int,
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Uniform candidate lists of the examples, none of whose wrong items the user has seen (users, items)."""
    if not examples:
        return [], np.zeros(0, dtype=np.int64)
    asked = [request.user_id or 0 for request, _ in examples]
    distinct = np.unique(asked)
    of_asked = np.isin(users, distinct)
    rows = np.searchsorted(distinct, users[of_asked])
    size = len(catalogue.ids)
    drawn = draw_candidates(
        keys=np.array([key(seed, request.user_id, target) for request, target in examples], dtype=np.uint64),
        targets=columns_of(catalogue, [target for _, target in examples]),
        rows=np.searchsorted(distinct, asked),
        seen=np.sort(rows * size + columns_of(catalogue, items[of_asked])),
        weights=np.ones(size),
        size=CANDIDATES,
    )
    return catalogue.ascending[drawn.candidates].tolist(), drawn.target_index


logger = logging.getLogger(__name__)
SWEEPS = 2  # of coordinate descent: one setting after the other, the rest held
Fitter = Callable[[Items, pa.Table], Callable[[Any], Any]]  # (catalogue, events) -> (settings -> recommender)


def tuned(
    words: str,
    fitter: Fitter,
    start: Any,
    grid: Mapping[str, tuple[Any, ...]],
    log: Fitting,
    most: int | None = None,
) -> tuple[Any, Tuning]:
    """Choose settings (a dataclass) on a split of the log's train events, then fit on all; also what was tried.

    words: the recommender's name in messages; most: so many events at most are chosen on, of whole users; None:
    all. A log too small to split keeps `start`.
    """
    catalogue, events = log.catalogue, log.events
    fit = fitter(catalogue, events)
    sample = whole_users(events, most) if most else events
    logger.info(
        f"{words}: {len(events):,} train events, {len(catalogue.ids):,} items; tuning tries at most "
        f"{SWEEPS * sum(map(len, grid.values()))} settings on {len(sample):,} events"
    )
    cases = held_out(catalogue, sample, log.clock, log.seed, log.met)
    if not cases.requests or not len(cases.events):
        logger.info("%s keeps its default settings: train is too small to split", words)
        return fit(start), {"chosen": asdict(start), "metric": METRIC, "tried": []}
    chosen, tried = _descend(fitter(catalogue, cases.events), cases, start, grid)
    shown = ", ".join(f"{field.name} {getattr(chosen, field.name)}" for field in fields(chosen))
    logger.info("%s: %s; %d settings tried on %d cases of train", words, shown, len(tried), len(cases.requests))
    report = {
        "chosen": asdict(chosen),
        "metric": METRIC,
        "cases": len(cases.requests),
        "tried": [asdict(settings) | {METRIC: value} for settings, value in tried.items()],
    }
    if len(sample) < len(events):
        report["events"] = len(sample)
    return fit(chosen), report


def whole_users(events: pa.Table, most: int) -> pa.Table:
    """The events of users in hashed order, all of each, for as long as they are `most` at most; one user at least.

    So histories stay whole, and equal logs give equal samples, whatever the order of their rows.
    """
    if len(events) <= most:
        return events
    users, counts = np.unique(events[c.USER].to_numpy(), return_counts=True)
    order = sorted(range(len(users)), key=lambda place: hashed_order("tuning", users[place]))
    fitting = max(1, int(np.searchsorted(np.cumsum(counts[order]), most, side="right")))
    return events.filter(pc.is_in(events[c.USER], pa.array(users[order[:fitting]])))


def _descend(
    fit: Callable[[Any], Recommender], cases: HeldOut, start: Any, grid: Mapping[str, tuple[Any, ...]]
) -> tuple[Any, dict[Any, float]]:
    """Coordinate descent over the grid; of equal settings the first one tried stays."""
    tried: dict[Any, float] = {}

    def value(settings: Any) -> float:
        if settings not in tried:
            tried[settings] = cases.value(fit(settings))
        return tried[settings]

    best = start
    for _ in range(SWEEPS):
        for name, choices in grid.items():
            best = max([best, *(replace(best, **{name: choice}) for choice in choices)], key=value)
    return best, tried
