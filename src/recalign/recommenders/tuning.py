"""Settings of the simple recommenders: chosen on a split of train by coordinate descent, then fitted on all of it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recalign.common import columns as c
from recalign.data.records import Items, hashed_order
from recalign.recommenders.held_out import METRIC, HeldOut, held_out
from recalign.recommenders.recommender import Fitting, Recommender, Tuning

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
