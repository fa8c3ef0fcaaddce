"""Equal targets: do their candidate lists agree more than lists of different targets do? They must not."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recalign.evaluation.case_set import CaseSet, Ids
from recalign.evaluation.ranking import Floats

DRAWS = 999      # permutations of a test that finds something
CELLS = 10_000_000  # counters of (group, label) held at once: 80 MB; beyond it they are sorted, which is slower
EXCEEDANCES = 10  # a test stops when so many permutations reach the figure: it is then no small p


@dataclass(frozen=True)
class Permuted:
    """A figure against its permutations: their mean is what chance gives; p is one-sided."""

    figure: float
    chance: float
    p: float


def permutation_test(
    values: Callable[[Ids | None], Floats], count: int, seed: int, *, times: float = 1.0, plus: float = 0.0
) -> Permuted:
    """Compare the mean of values(None) with that of values(a permutation of `count` rows), times `times` plus `plus`.

    The last two say how far above chance a figure must lie to matter; p is that of lying further.

    A sequential Monte Carlo p-value (Besag and Clifford, Biometrika 1991): exact at any level, and quick where there is
    nothing to find.
    """
    generator = np.random.default_rng(seed)
    figure = float(values(None).mean())
    drawn: list[float] = []
    reached = 0
    while len(drawn) < DRAWS and reached < EXCEEDANCES:
        drawn.append(float(values(generator.permutation(count)).mean()))
        reached += drawn[-1] * times + plus >= figure
    p = reached / len(drawn) if reached >= EXCEEDANCES else (reached + 1) / (len(drawn) + 1)
    return Permuted(figure, float(np.mean(drawn)), p)


@dataclass(frozen=True)
class EqualTargets:
    """Cases whose target another user's case has as well: their group [G], place, list and negatives [G, C − 1].

    lists [G] names the candidate set as a whole: equal numbers, equal sets.
    """

    groups: Ids
    places: Ids
    lists: Ids
    negatives: Ids

    @classmethod
    def of(cls, cases: CaseSet) -> "EqualTargets":
        """One case a user and target: what a user shares with himself says nothing."""
        _, first = np.unique(np.stack([cases.users, cases.targets]), axis=1, return_index=True)
        kept = cases.take(np.sort(first))
        _, group, size = np.unique(kept.targets, return_inverse=True, return_counts=True)
        kept, group = kept.take(np.flatnonzero(size[group] > 1)), group[size[group] > 1]
        wrong = np.arange(kept.width)[None, :] != kept.places[:, None]
        negatives = kept.candidates[wrong].reshape(len(kept), kept.width - 1)
        _, sets = np.unique(np.sort(kept.candidates, axis=1), axis=0, return_inverse=True)
        return cls(group, kept.places, sets.ravel(), negatives)

    def __len__(self) -> int:
        return len(self.groups)

    def same_set(self, swap: Ids | None = None) -> Floats:
        """For each case the share of the others with its target that have its candidate set, [G].

        `swap` [G] gives every case another case's list.
        """
        return self._agreement(self.lists if swap is None else self.lists[swap])

    def same_place(self, swap: Ids | None = None) -> Floats:
        """For each case the share of the others with its target whose target stands in the same column, [G]."""
        return self._agreement(self.places if swap is None else self.places[swap])

    def common_negatives(self, swap: Ids | None = None) -> Floats:
        """For each case the mean share of its negatives that another case with its target has too, [G]."""
        negatives = self.negatives if swap is None else self.negatives[swap]
        width = negatives.shape[1]
        found = _others(np.repeat(self.groups, width), negatives.ravel()).reshape(-1, width)
        return np.asarray(found.mean(axis=1) / self._company, dtype=np.float64)

    def _agreement(self, labels: Ids) -> Floats:
        return _others(self.groups, labels) / self._company

    @property
    def _company(self) -> Floats:
        """How many other cases have a case's target, [G]: at least one."""
        others: Floats = np.bincount(self.groups).astype(np.float64)[self.groups] - 1.0
        return others


def _others(groups: Ids, labels: Ids) -> Floats:
    """How many other rows have a row's group and label."""
    low, width = int(labels.min()), int(np.ptp(labels)) + 1
    cell = groups * width + labels - low
    if (int(groups.max()) + 1) * width <= CELLS:
        return np.bincount(cell).astype(np.float64)[cell] - 1.0
    _, cell, counts = np.unique(cell, return_inverse=True, return_counts=True)
    return counts.astype(np.float64)[cell] - 1.0
