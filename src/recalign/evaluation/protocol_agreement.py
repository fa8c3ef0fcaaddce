"""Whether ranking a few sampled candidates says what ranking the whole catalogue says: Kendall's tau.

Sampled metrics may order systems differently from full ones (Krichene and Rendle 2020), so both are compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from recalign.evaluation.metrics import Floats, Ranks, metric_values
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import Interval, percentile_interval, resampled_means, user_draws

METRIC = "ndcg_at_10"
ORDER = "order of the systems"
MOST_USERS = 3000  # with more there is no interval: it takes tables of users by users (some 300 MB at this number)


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two orders on so many cases of so many users; None where it has no value, or no interval.

    protocol, manifest and digest name both of what is compared.
    """

    system: str
    tau: float | None
    interval: Interval | None
    cases: int
    users: int
    protocol: str
    manifest: str
    digest: str


@dataclass(frozen=True)
class Aligned:
    """Two rankings [B] of the same cases, and the cases' users."""

    one: Ranks
    other: Ranks
    users: list[int]


def aligned(sampled: SystemRanks, full: SystemRanks) -> Aligned:
    """The ranks of the targets that a system ranked both ways, in ascending example id."""
    both = sorted(_common(sampled, full))
    rows = _rows(sampled, both)
    return Aligned(sampled.ranks[rows], full.ranks[_rows(full, both)], [sampled.user_ids[row] for row in rows])


def rank_agreement(sampled: SystemRanks, full: SystemRanks, resamples: int, seed: int) -> Agreement:
    """Of a system's ranks of the targets it ranked both ways; no tau for fewer than two, or where all ranks are one."""
    both = aligned(sampled, full)
    tau, users = tau_b(both.one, both.other), len(set(both.users))
    interval = None
    if tau is not None and users <= MOST_USERS:
        interval = _interval(tau, resampled_taus(both.one, both.other, both.users, resamples, seed), both.users)
    return Agreement(sampled.system, tau, interval, len(both.one), users, *_both(sampled, full))


def order_agreement(
    sampled: Sequence[SystemRanks], full: Sequence[SystemRanks], resamples: int, seed: int
) -> Agreement | None:
    """tau-b between the orders in which the two protocols put the systems by NDCG@10, on the cases that all share.

    None for fewer than three systems: two agree or not.
    """
    by_name = {system.system: system for system in full}
    pairs = [(system, by_name[system.system]) for system in sampled if system.system in by_name]
    if len(pairs) < 3:
        return None
    shared = sorted(set.intersection(*(_common(*pair) for pair in pairs)))
    if not shared:
        return None
    users = [pairs[0][0].user_ids[row] for row in _rows(pairs[0][0], shared)]
    means = []
    for side in zip(*pairs, strict=True):
        values = np.stack([metric_values(METRIC, system.ranks[_rows(system, shared)]) for system in side], axis=1)
        means.append(np.vstack([values.mean(axis=0), resampled_means(values, users, resamples, seed)]))
    taus = _taus_of_rows(*means)
    tau = None if np.isnan(taus[0]) else float(taus[0])
    interval = _interval(tau, taus[1:], users)
    return Agreement(ORDER, tau, interval, len(shared), len(set(users)), *_both(*pairs[0]))


def _interval(tau: float | None, twins: Floats, users: Sequence[int]) -> Interval | None:
    drawn = twins[~np.isnan(twins)]
    return percentile_interval(tau, drawn, len(set(users))) if tau is not None and len(drawn) else None


def resampled_taus(one: ArrayLike, other: ArrayLike, users: Sequence[int], resamples: int, seed: int) -> Floats:
    """tau-b of two rankings [B] of the same cases under `resamples` draws of users: [resamples], NaN where all tie.

    A case that is drawn twice ties with its copy. The draws are those of `resampled_means`.
    """
    _, cluster = np.unique(np.asarray(users), return_inverse=True)
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    first, second = (_signs(np.asarray(ranks)[order]) for ranks in (one, other))

    def by_user(table: Floats) -> Floats:
        rows: Floats = np.add.reduceat(table, starts, axis=0, dtype=np.float64)
        joined: Floats = np.add.reduceat(rows, starts, axis=1)
        return joined

    agreeing, untied, untied_other = by_user(first * second), by_user(np.abs(first)), by_user(np.abs(second))
    taus = []
    for drawn in user_draws(len(starts), resamples, seed):
        weights = drawn.astype(np.float64)
        sums = [np.einsum("rg,rg->r", weights @ table, weights) for table in (agreeing, untied, untied_other)]
        taus.append(_ratio(sums[0], sums[1] * sums[2]))
    return np.concatenate(taus)


def _taus_of_rows(one: Floats, other: Floats) -> Floats:
    """tau-b between the rows of two tables [R, K], [R]; NaN where all of a row tie."""
    first, second = (np.sign(table[:, :, None] - table[:, None, :]) for table in (one, other))
    pairs = (1, 2)
    return _ratio((first * second).sum(axis=pairs), np.abs(first).sum(axis=pairs) * np.abs(second).sum(axis=pairs))


def _ratio(agreeing: Floats, untied: Floats) -> Floats:
    found = np.full(len(agreeing), np.nan)
    np.divide(agreeing, np.sqrt(untied), out=found, where=untied > 0.0)
    return found


def _signs(values: np.ndarray) -> np.ndarray:
    """[B, B]: 1 where a row's value is above a column's, −1 where below, else 0."""
    signs: np.ndarray = np.sign(values[:, None] - values[None, :]).astype(np.int8)
    return signs


def _both(sampled: SystemRanks, full: SystemRanks) -> tuple[str, str, str]:
    return (
        f"{sampled.protocol} against {full.protocol}",
        f"{sampled.manifest}, {full.manifest}",
        f"{sampled.digest}, {full.digest}",
    )


def _common(one: SystemRanks, other: SystemRanks) -> set[str]:
    return set(one.example_ids) & set(other.example_ids)


def _rows(system: SystemRanks, examples: Sequence[str]) -> list[int]:
    """Where the given cases stand."""
    places = {example: place for place, example in enumerate(system.example_ids)}
    return [places[example] for example in examples]


def tau_b(one: ArrayLike, other: ArrayLike) -> float | None:
    """Kendall's tau-b; None for fewer than two cases, or where all of a ranking tie."""
    from scipy.stats import kendalltau

    if len(np.asarray(one)) < 2:
        return None
    tau = float(kendalltau(one, other).statistic)
    return None if math.isnan(tau) else tau
