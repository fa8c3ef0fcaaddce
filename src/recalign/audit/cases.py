"""Candidate cases as arrays: what the audit's probes read, whatever file or table they came from.

And what a file of cases shares with the data that systems are fitted on: answers, examples, users and near-copies.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats, target_places

Ids = NDArray[np.int64]
LARGEST = 5000  # cases that the probes read; beyond it more cases change no verdict, only the time
EVENTS = 200_000  # of a log, from which an order is learned: minutes beyond
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads user ids over the sample


@dataclass(frozen=True)
class CaseSet:
    """Cases of one file: users [B], histories [B] (ragged, oldest first), candidates [B, C], targets' places [B].

    name is the file's name, or the split's. has_users is False where user ids are only a guess at which cases belong
    together: then nothing is said about users.
    """

    name: str
    users: Ids
    histories: tuple[tuple[int, ...], ...]
    candidates: Ids
    places: Ids
    has_users: bool = True

    @property
    def targets(self) -> Ids:
        """The target of each case [B]."""
        return self.candidates[np.arange(len(self.places)), self.places]

    @property
    def width(self) -> int:
        """Candidates in a case, C."""
        return int(self.candidates.shape[1])

    def __len__(self) -> int:
        return len(self.places)

    def take(self, rows: Ids) -> "CaseSet":
        """The cases of these rows, in their order."""
        histories = tuple(self.histories[row] for row in rows)
        return CaseSet(self.name, self.users[rows], histories, self.candidates[rows], self.places[rows], self.has_users)

    def sample(self, limit: int = LARGEST) -> "CaseSet":
        """At most `limit` cases, whole users in a hashed order of their ids; the set itself where it is smaller."""
        if len(self) <= limit:
            return self
        return self.take(np.sort(np.lexsort((self.users, _hashed(self.users)))[:limit]))


def case_set(
    name: str,
    users: Sequence[int],
    histories: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    targets: Sequence[int],
    *,
    has_users: bool = True,
) -> CaseSet:
    """Cases from plain lists; every candidate list equally long, holding its target once.

    Raises RecalignError naming the set and the case where that is not so, or where there is none.
    """
    if not candidates:
        raise RecalignError(f"{name} holds no case; the audit needs at least one")
    odd = next((row for row, items in enumerate(candidates) if len(items) != len(candidates[0])), None)
    if odd is not None:
        raise RecalignError(
            f"{name}: case {odd} has {len(candidates[odd])} candidates, but {len(candidates[0])} in the first case; "
            "audit one protocol at a time"
        )
    try:
        places = target_places(candidates, targets)
    except RecalignError as error:
        raise RecalignError(f"{name}: {error}") from None
    return CaseSet(
        name,
        np.asarray(users, dtype=np.int64),
        tuple(tuple(history) for history in histories),
        np.asarray(candidates, dtype=np.int64),
        np.asarray(places, dtype=np.int64),
        has_users,
    )


def joined(first: CaseSet, second: CaseSet | None) -> CaseSet:
    """Both sets as one, the first one's cases first."""
    if second is None:
        return first
    return CaseSet(
        f"{first.name} and {second.name}",
        np.concatenate([first.users, second.users]),
        first.histories + second.histories,
        np.concatenate([first.candidates, second.candidates]),
        np.concatenate([first.places, second.places]),
        first.has_users and second.has_users,
    )


@dataclass(frozen=True)
class Log:
    """An interaction log: parallel users and items [N], each user's events in the order of the list."""

    name: str
    users: Ids
    items: Ids

    def sequences(self, limit: int = EVENTS) -> list[Ids]:
        """Each user's items in order; whole users in the order of a hash of their ids, some `limit` events of them."""
        order = np.argsort(self.users, kind="stable")
        starts = np.flatnonzero(np.diff(self.users[order])) + 1
        lists = np.split(self.items[order], starts)
        users = self.users[order][np.concatenate([[0], starts])]
        lists = [lists[row] for row in np.argsort(_hashed(users), kind="stable")]
        ends = np.cumsum([len(items) for items in lists])
        return lists[: int(np.searchsorted(ends, limit)) + 1]


def _hashed(users: Ids) -> NDArray[np.uint64]:
    """A number for each user id in which neighbours lie far apart: samples must not follow the ids."""
    mixed = (users.astype(np.uint64) + np.uint64(1)) * _MIX
    return (mixed ^ (mixed >> np.uint64(29))) * _MIX


LONG = 5  # items: two people may well share a shorter history and target by chance
ALIKE = 0.8  # Jaccard index of two users' items from which they count as near-copies
AT_ONCE = 512  # users compared with all others at once: bounds the memory


def known_answers(cases: CaseSet, fit: CaseSet | None, log: Log | None) -> Floats:
    """1 for each case [B] whose user has the target in `fit` (as target or in a history) or in the log, else 0."""
    known: set[tuple[int, int]] = set()
    if fit is not None:
        known |= _pairs(fit)
    if log is not None:
        known |= set(zip(log.users.tolist(), log.items.tolist(), strict=True))
    pairs = zip(cases.users.tolist(), cases.targets.tolist(), strict=True)
    return np.array([pair in known for pair in pairs], dtype=np.float64)


def repeated_examples(cases: CaseSet, fit: CaseSet | None) -> Floats:
    """1 for each case [B] whose history (as a set, of at least LONG items) and target are in `fit` too, else 0.

    Without `fit`: in a case of another user of the same file.
    """
    source = cases if fit is None else fit
    owners: dict[tuple[frozenset[int], int], set[int]] = defaultdict(set)
    for user, example in zip(source.users.tolist(), _examples(source), strict=True):
        owners[example].add(user)
    found = []
    for user, example in zip(cases.users.tolist(), _examples(cases), strict=True):
        others = owners.get(example, set()) - (set() if fit is not None else {user})
        found.append(len(example[0]) >= LONG and bool(others))
    return np.array(found, dtype=np.float64)


def shared_users(cases: CaseSet, fit: CaseSet | None, log: Log | None) -> Floats:
    """1 for each case [B] whose user stands in `fit` or in the log as well, else 0."""
    others = [part.users for part in (fit, log) if part is not None]
    return np.isin(cases.users, np.concatenate(others)).astype(np.float64)


@dataclass(frozen=True)
class _Baskets:
    users: Ids
    starts: Ids  # of each user in items
    items: Ids


def near_copies(cases: CaseSet, fit: CaseSet | None) -> Floats:
    """1 for each case [B] whose user has nearly the items of a user of another id, else 0.

    Nearly: a Jaccard index of at least ALIKE between all items that the cases show of them, both having LONG or more.
    Compared with the users of `fit`, else with the others of the same file.
    """
    from scipy.sparse import csr_matrix

    own, other = _baskets(_pairs(cases)), _baskets(_pairs(cases if fit is None else fit))
    catalogue, index = np.unique(np.concatenate([own.items, other.items]), return_inverse=True)

    def indicator(baskets: _Baskets, columns: Ids) -> csr_matrix:
        return csr_matrix(
            (np.ones(len(columns), np.int32), columns, baskets.starts), shape=(len(baskets.users), len(catalogue))
        )

    mine, theirs = indicator(own, index[: len(own.items)]), indicator(other, index[len(own.items) :])
    sizes, their_sizes = np.diff(own.starts), np.diff(other.starts)
    copies = np.zeros(len(own.users), dtype=bool)
    for start in range(0, len(own.users), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        common = (mine[rows] @ theirs.T).toarray()
        either = sizes[rows, None] + their_sizes[None, :] - common
        alike = (common >= ALIKE * either) & (own.users[rows, None] != other.users[None, :])
        alike &= np.minimum(sizes[rows, None], their_sizes[None, :]) >= LONG
        copies[rows] = alike.any(axis=1)
    return copies[np.searchsorted(own.users, cases.users)].astype(np.float64)


def _examples(cases: CaseSet) -> Iterable[tuple[frozenset[int], int]]:
    return [(frozenset(h), int(t)) for h, t in zip(cases.histories, cases.targets, strict=True)]


def _pairs(cases: CaseSet) -> set[tuple[int, int]]:
    """(user, item) of every history and target."""
    rows = zip(cases.users.tolist(), cases.histories, cases.targets.tolist(), strict=True)
    return {(user, item) for user, history, target in rows for item in (*history, target)}


def _baskets(pairs: set[tuple[int, int]]) -> _Baskets:
    listed = np.array(sorted(pairs), dtype=np.int64)
    users, starts = np.unique(listed[:, 0], return_index=True)
    return _Baskets(users, np.append(starts, len(listed)), listed[:, 1])
