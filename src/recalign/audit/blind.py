"""Rankers that know nobody's taste: what they reach, the candidate lists alone give away.

One goes by a global order of items: is there one that all lists follow, so that "what comes next" is the next in it?
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recalign.audit.cases import CaseSet, Ids, Log
from recalign.evaluation.metrics import Floats

UNSEEN = -1e9  # score of a candidate that was no target in what the lookup remembers
CLASSES = 20  # of training counts: each holds some twentieth of the candidates
NARROW = 0.3  # least spread of an overlap, in items: with large catalogues most overlaps are 0 and the spread tiny


def first_place_share(scores: Floats, places: Ids) -> Floats:
    """Expected HR@1 of each case, [B], when equals at the top are drawn by lot."""
    best = scores.max(axis=1, keepdims=True)
    top = scores == best
    hit: Floats = top[np.arange(len(places)), places] / top.sum(axis=1)
    return hit


def place_scores(cases: CaseSet, fit: CaseSet | None) -> Floats:
    """Scores [B, C] by how often the target stood in that column, in `fit` or else in other users' cases."""
    columns = np.arange(cases.width)
    if fit is not None:
        counts = np.bincount(fit.places, minlength=cases.width).astype(np.float64)
        return np.broadcast_to(counts, cases.candidates.shape)
    users, row_user = np.unique(cases.users, return_inverse=True)
    own = np.zeros((len(users), cases.width))
    np.add.at(own, (row_user, cases.places), 1.0)
    others: Floats = (own.sum(axis=0) - own)[row_user][:, columns]
    return others


def seen_scores(cases: CaseSet) -> Floats:
    """Scores [B, C]: 1 for a candidate that the history holds, else 0."""
    rows = [np.isin(items, history) for items, history in zip(cases.candidates, cases.histories, strict=True)]
    return np.array(rows, dtype=np.float64)


def target_counts(cases: CaseSet, fit: CaseSet | None) -> Floats:
    """Scores [B, C]: how often a candidate was a target or in a history, in `fit` or else of other users.

    An item counts once a user.
    """
    source = cases if fit is None else fit
    pairs = {
        (int(user), int(item))
        for user, target, history in zip(source.users, source.targets, source.histories, strict=True)
        for item in (*history, target)
    }
    items, counts = np.unique([item for _, item in sorted(pairs)], return_counts=True)
    scores = _lookup(items, counts.astype(np.float64), cases.candidates)
    if fit is None:
        for row, user in enumerate(cases.users):
            scores[row] -= [(int(user), int(item)) in pairs for item in cases.candidates[row]]
    return scores


def event_counts(cases: CaseSet, items: Ids) -> Floats:
    """Scores [B, C]: how often a candidate stands in `items`, the items of a log's events."""
    distinct, counts = np.unique(items, return_counts=True)
    return _lookup(distinct, counts.astype(np.float64), cases.candidates)


def training_counts(cases: CaseSet, fit: CaseSet | None, log: Log | None) -> Floats:
    """Scores [B, C]: a candidate's events in the log, else its users in `fit`, else its other users in the cases."""
    return target_counts(cases, fit) if log is None else event_counts(cases, log.items)


def count_scores(cases: CaseSet, fit: CaseSet | None, log: Log | None) -> Floats:
    """Scores [B, C] of the rule on training counts alone that `fit`, or else half of the other users, teaches.

    Candidates are put into some CLASSES classes by their counts; a class scores by how often a member was the target
    against how often it would be by chance. So "seldom trained on first", "most popular first" and all in between are
    one rule, and which of them helps is not chosen on the cases that it is measured on.
    """
    counts = training_counts(cases, fit, log)
    if fit is not None:
        return _by_class(counts, training_counts(fit, None, log), fit.places)
    users, row_user = np.unique(cases.users, return_inverse=True)
    second = np.random.default_rng(len(users)).permutation(len(users))[row_user] % 2 == 1
    scores = np.zeros(counts.shape)
    for half in (second, ~second):
        if half.any() and not half.all():
            scores[half] = _by_class(counts[half], counts[~half], cases.places[~half])
    return scores


def _by_class(counts: Floats, learned: Floats, places: Ids) -> Floats:
    """Scores [B, C] of counts, from learned counts [L, C] and the targets' places [L]: log odds, smoothed by a case."""
    bounds = np.unique(np.quantile(learned, np.arange(1, CLASSES) / CLASSES, method="lower"))
    targets = np.searchsorted(bounds, learned[np.arange(len(places)), places], side="right")
    every = np.searchsorted(bounds, learned, side="right")
    found = np.bincount(targets, minlength=len(bounds) + 1)
    expected = np.bincount(every.ravel(), minlength=len(bounds) + 1) / learned.shape[1]
    odds: Floats = np.log((found + 1.0) / (expected + 1.0))
    return odds[np.searchsorted(bounds, counts, side="right")]


def nearness_scores(cases: CaseSet) -> Floats:
    """Scores [B, C]: minus the least distance of the candidate's id to an id of the history."""
    scores = np.zeros(cases.candidates.shape)
    for row, history in enumerate(cases.histories):
        if history:
            gaps = np.abs(cases.candidates[row][:, None] - np.asarray(history)[None, :])
            scores[row] = -gaps.min(axis=1)
    return scores


def _lookup(items: Ids, values: Floats, wanted: Ids) -> Floats:
    if not len(items):
        return np.zeros(wanted.shape)
    place = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
    return np.where(items[place] == wanted, values[place], 0.0)


@dataclass(frozen=True)
class Lookup:
    """Remembers (candidate set, place) of each target, and ranks a candidate by how well its memories fit the list.

    For every audited case i and every remembered case j of another user whose target is among i's candidates, `case`,
    `memory` and `column` [P] name i, j and that candidate's column; `overlaps` [B, M] counts the items that list i has
    in common with the negatives of j; `own` [M] and `foreign` name the memories' targets and negatives.
    """

    places: Ids
    shape: tuple[int, int]
    case: Ids
    memory: Ids
    column: Ids
    overlaps: NDArray[np.int16]
    users: Ids
    memory_users: Ids
    memory_places: Ids
    negatives: Ids
    targets: Ids

    @classmethod
    def of(cls, cases: CaseSet, fit: CaseSet | None) -> "Lookup":
        """Memories from `fit`, else from the cases of other users."""
        source = cases if fit is None else fit
        everything = np.concatenate([cases.candidates.ravel(), source.candidates.ravel()])
        items, index = np.unique(everything, return_inverse=True)
        lists = index[: cases.candidates.size].reshape(cases.candidates.shape)
        remembered = index[cases.candidates.size :].reshape(source.candidates.shape)
        targets = remembered[np.arange(len(source)), source.places]
        keep = np.arange(source.width)[None, :] != source.places[:, None]
        negatives = remembered[keep].reshape(len(source), source.width - 1)
        case, memory, column = _matches(lists, targets, len(items))
        foreign = cases.users[case] != source.users[memory]
        return cls(
            places=cases.places,
            shape=(len(cases), cases.width),
            case=case[foreign],
            memory=memory[foreign],
            column=column[foreign],
            overlaps=_overlaps(lists, negatives, len(items)),
            users=cases.users,
            memory_users=source.users,
            memory_places=source.places,
            negatives=negatives,
            targets=targets,
        )

    def scores(self, swap: Ids | None = None) -> Floats:
        """Scores [B, C]: the best memory's overlap in standard deviations, plus log C where its place agrees.

        `swap` [M] gives each remembered target another memory's negatives and place: what a lookup reaches when lists
        say nothing about targets, with the targets as popular as they are.
        """
        scores = np.full(self.shape, UNSEEN)
        source = self.memory if swap is None else swap[self.memory]
        usable = slice(None) if swap is None else np.flatnonzero(self.users[self.case] != self.memory_users[source])
        case, memory, column, source = (part[usable] for part in (self.case, self.memory, self.column, source))
        if not len(case):
            return scores
        common = self.overlaps[case, source].astype(np.float64)
        if swap is not None:
            holds = (self.negatives[swap] == self.targets[:, None]).any(axis=1)
            common -= holds[memory]
        mean, spread = self._usual
        fits = (common - mean) / spread + np.log(self.shape[1]) * (self.memory_places[source] == column)
        np.maximum.at(scores, (case, column), fits)
        return scores

    @functools.cached_property  # a permutation test asks for it a thousand times
    def _usual(self) -> tuple[float, float]:
        """Mean and spread of the overlap of a list with anyone's negatives, from a strided sample of all pairs."""
        flat = self.overlaps.ravel()[:: max(1, self.overlaps.size // 100_000)]
        return float(flat.mean()), max(float(flat.std()), NARROW)


def _matches(lists: Ids, targets: Ids, items: int) -> tuple[Ids, Ids, Ids]:
    """Rows, memories and columns [P] where a list holds a memory's target."""
    order = np.argsort(targets, kind="stable")
    counts = np.bincount(targets, minlength=items)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    flat = lists.ravel()
    repeats = counts[flat]
    cell = np.repeat(np.arange(flat.size), repeats)
    offset = np.arange(len(cell)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    memory = order[starts[flat[cell]] + offset]
    return cell // lists.shape[1], memory, cell % lists.shape[1]


def _overlaps(lists: Ids, negatives: Ids, items: int) -> NDArray[np.int16]:
    """Number of common items of every list with every set of negatives, [B, M]."""
    from scipy.sparse import csr_matrix

    def indicator(rows: Ids) -> csr_matrix:
        ends = np.arange(0, rows.size + 1, rows.shape[1])
        return csr_matrix((np.ones(rows.size, np.int16), rows.ravel(), ends), shape=(len(rows), items))

    found: NDArray[np.int16] = (indicator(lists) @ indicator(negatives).T).toarray()
    return found


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
