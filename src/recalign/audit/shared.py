"""What a file of cases shares with the data that systems are fitted on: answers, examples, users and near-copies."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recalign.audit.cases import CaseSet, Ids, Log
from recalign.evaluation.metrics import Floats

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
    """1 for each case [B] whose history (as a set, of at least LONG items) and target stand in `fit` too, else 0.

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
