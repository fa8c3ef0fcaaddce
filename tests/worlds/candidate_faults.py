"""Candidate cases of an invented world, drawn cleanly or with one of the faults that published files have.

People like one of several genres and popular items more; nothing but the fault itself tells a target from a wrong item.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recalign.audit.cases import CaseSet, case_set

WIDTH = 20
HISTORY = 6
GENRES = 8
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Logs:
    """People's logs [U, L] over items 0 … items − 1, oldest first."""

    users: Ids
    logs: Ids
    items: int


def draw_logs(seed: int, *, users: int = 120, items: int = 400, length: int = 10, first_user: int = 0) -> Logs:
    """Logs without repetition, drawn in proportion to popularity × taste (Gumbel's trick), in the order drawn."""
    generator = np.random.default_rng(seed)
    fame = np.random.default_rng(3).permutation(items)  # ids say nothing about popularity
    popularity = -1.0 * np.log(1.0 + fame)
    taste = 1.5 * (generator.integers(GENRES, size=users)[:, None] == np.arange(items)[None, :] % GENRES)
    keys = popularity + taste + generator.gumbel(size=(users, items))
    return Logs(np.arange(first_user, first_user + users), np.argsort(-keys, axis=1)[:, :length], items)


def sorted_logs(logs: Logs, seed: int) -> Logs:
    """The same logs, each in one hidden order of all items."""
    order = np.random.default_rng(seed).permutation(logs.items)
    return replace(logs, logs=np.take_along_axis(logs.logs, np.argsort(order[logs.logs], axis=1), axis=1))


def draw_cases(
    logs: Logs, seed: int, *, name: str = "cases", seeded: float = 0.0, seeded_place: bool = False, skew: float = 0.0
) -> CaseSet:
    """Windows of HISTORY items and the item after them, among uniform wrong items at a uniform place.

    seeded: share of the wrong items that a stream seeded by the target draws; seeded_place: the place comes from that
    stream as well (both: what `random.seed(target)` does); skew: share of the targets that stand at place 0.
    """
    generator = np.random.default_rng(seed)
    windows = logs.logs.shape[1] - HISTORY
    users, rows = np.repeat(logs.users, windows), np.repeat(np.arange(len(logs.users)), windows)
    start = np.tile(np.arange(windows), len(logs.users))
    histories = logs.logs[rows[:, None], start[:, None] + np.arange(HISTORY)]
    targets = logs.logs[rows, start + HISTORY]
    keys = generator.random((len(rows), logs.items))
    by_target = np.random.default_rng(7).random((logs.items, logs.items))  # one stream a target, in every file
    keys = np.where(generator.random(keys.shape) < seeded, by_target[targets] - 1.0, keys)
    np.put_along_axis(keys, logs.logs[rows], np.inf, axis=1)
    wrong = np.argsort(keys, axis=1)[:, : WIDTH - 1]
    wrong = np.take_along_axis(wrong, np.argsort(generator.random(wrong.shape), axis=1), axis=1)
    places = generator.integers(WIDTH, size=len(rows))
    if seeded_place:
        places = np.random.default_rng(8).integers(WIDTH, size=logs.items)[targets]
    places = np.where(generator.random(len(rows)) < skew, 0, places)
    candidates = np.stack([np.insert(w, p, t) for w, p, t in zip(wrong, places, targets, strict=True)])
    return case_set(name, users.tolist(), histories.tolist(), candidates.tolist(), targets.tolist())


def clean_cases(seed: int, *, users: int = 120, first_user: int = 0, name: str = "cases") -> CaseSet:
    """Four cases a user without any fault."""
    return draw_cases(draw_logs(seed, users=users, first_user=first_user), seed + 1, name=name)


def with_histories(cases: CaseSet, histories: Sequence[Sequence[int]]) -> CaseSet:
    """The cases with other histories."""
    return replace(cases, histories=tuple(tuple(map(int, history)) for history in histories))
