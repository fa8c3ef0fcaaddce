"""A global order of items: is there one that all lists follow, so that "what comes next" is the next in the order?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recalign.audit.cases import CaseSet, Ids, Log
from recalign.evaluation.metrics import Floats

FOLDS = 5  # parts of the users; each is judged by an order learned from the others
RIDGE = 1e-3  # weak, for a perfect order has no finite solution; 0.1 blurs it
ITERATIONS = 200  # of L-BFGS
_WRONG_SIDE = 1e9  # below every candidate on the right side of the last item


@dataclass(frozen=True)
class ItemOrder:
    """Positions of items along one line; `known` marks the items that the lists say anything about."""

    items: Ids
    positions: Floats
    known: NDArray[np.bool_]

    def at(self, items: Ids) -> tuple[Floats, NDArray[np.bool_]]:
        """Positions of items of any shape, and whether they are known; an unknown item stands at 0."""
        if not len(self.items):
            return np.zeros(items.shape), np.zeros(items.shape, dtype=bool)
        place = np.minimum(np.searchsorted(self.items, items), len(self.items) - 1)
        known = (self.items[place] == items) & self.known[place]
        return np.where(known, self.positions[place], 0.0), known


def learn_order(sequences: Sequence[Sequence[int] | Ids]) -> ItemOrder:
    """The order that the steps of the sequences follow best: a Bradley-Terry model of "a stands before b".

    Minimises Σ log(1 + exp(s_a − s_b)) over the distinct steps a → b of each sequence, with a weak ridge (Bradley and
    Terry, Biometrika 1952). A perfect order is recovered from steps that share items.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    pairs = [np.stack([seq[:-1], seq[1:]]) for seq in map(np.asarray, sequences) if len(seq) > 1]
    if not pairs:
        return ItemOrder(np.empty(0, np.int64), np.empty(0), np.empty(0, bool))
    items, index = np.unique(np.concatenate(pairs, axis=1), return_inverse=True)
    before, after = index.reshape(2, -1)
    moves = before != after
    before, after = before[moves], after[moves]
    count = len(items)

    def loss(positions: Floats) -> tuple[float, Floats]:
        gaps = positions[after] - positions[before]
        wrong = expit(-gaps)
        gradient = np.bincount(before, wrong, count) - np.bincount(after, wrong, count) + RIDGE * positions
        return float(np.logaddexp(0.0, -gaps).sum() + RIDGE / 2 * positions @ positions), gradient

    found = minimize(loss, np.zeros(count), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return ItemOrder(items, found.x, np.ones(count, dtype=bool))


def user_sequences(cases: CaseSet, rows: Ids) -> list[Ids]:
    """The lists that these cases show, as distinct steps of each user: windows over one list repeat each other."""
    steps = {
        (int(cases.users[row]), before, after)
        for row in rows
        for before, after in pairwise((*cases.histories[row], int(cases.targets[row])))
    }
    return [np.array([before, after]) for _, before, after in sorted(steps)]


def orders_for(cases: CaseSet, fit: CaseSet | None, log: Log | None) -> list[tuple[Ids, ItemOrder]]:
    """Rows of `cases` with the order that judges them: learned from the log, else from other users' cases.

    With neither log nor fit the users are cut into folds, so that no list is judged by an order learned from itself.
    """
    everyone = np.arange(len(cases))
    if log is not None:
        return [(everyone, learn_order(log.sequences()))]
    if fit is not None:
        return [(everyone, learn_order(user_sequences(fit, np.arange(len(fit)))))]
    users, row_user = np.unique(cases.users, return_inverse=True)
    fold = np.random.default_rng(len(users)).permutation(len(users))[row_user] % FOLDS
    held = [np.flatnonzero(fold == part) for part in range(FOLDS)]
    return [(rows, learn_order(user_sequences(cases, np.setdiff1d(everyone, rows)))) for rows in held if len(rows)]


def follow_shares(cases: CaseSet, orders: Sequence[tuple[Ids, ItemOrder]]) -> Floats:
    """Share of each case's history that stands before its target, [B]; 1/2 is what shuffled lists give.

    NaN where the order knows the target or the whole history not.
    """
    shares = np.full(len(cases), np.nan)
    targets = cases.targets
    for rows, order in orders:
        ends, known_end = order.at(targets[rows])
        for row, end, is_known in zip(rows, ends, known_end, strict=True):
            before, known = order.at(np.asarray(cases.histories[row], dtype=np.int64))
            if is_known and known.any():
                gaps = end - before[known]
                shares[row] = np.mean((gaps > 0) + 0.5 * (gaps == 0))
    return shares


def nearest_after(cases: CaseSet, orders: Sequence[tuple[Ids, ItemOrder]]) -> Floats:
    """Scores [B, C]: the candidate that follows the last history item most closely in the order comes first."""
    scores = np.zeros(cases.candidates.shape)
    for rows, order in orders:
        last = np.array([cases.histories[row][-1] if cases.histories[row] else -1 for row in rows], dtype=np.int64)
        start, known_start = order.at(last)
        positions, known = order.at(cases.candidates[rows])
        gaps = positions - start[:, None]
        nearest = np.where(gaps > 0, -gaps, gaps - _WRONG_SIDE)
        scores[rows] = np.where(known & known_start[:, None], nearest, -2 * _WRONG_SIDE)
    return scores
