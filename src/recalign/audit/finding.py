"""What each probe of the audit measures, and from which figure on it calls a leak."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recalign.audit.blind import Lookup, first_place_share, nearness_scores, training_counts
from recalign.audit.cases import (
    LONG,
    CaseSet,
    Ids,
    Log,
    joined,
    known_answers,
    near_copies,
    repeated_examples,
    shared_users,
)
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import Interval, bootstrap_interval

# Constants, not parameters: the same file must get the same verdict from everybody.
RESAMPLES, SEED = 2000, 20261121
TESTS = 5  # with a p: lookup, place, and equal targets three times; the other probes are decided by an interval
ALPHA = 0.05  # chance that those tests together call a clean file leaking
GAIN = 0.01  # HR@1 above chance below which a lookup is of no use to anybody
EXCESS = 1.25  # equal targets' overlap over chance: people who like the same item have seen much the same
SORTED = 0.8  # share of a history that stands before its target, from which lists count as sorted
FEW = 10  # users below which an order that all follow may be chance
BEARABLE = 0.01  # share of cases alike under different user ids: by chance, or a household's second account
MULTINOMIALS = 9999

LEAK, WARNING, CLEAN, SKIPPED = "leak", "warning", "clean", "not applicable"


@dataclass(frozen=True)
class Finding:
    """One probe: its figure with 95 % bounds, what chance gives, and what follows.

    kind: the worst that the probe can find, leak or warning; verdict: leak, warning, clean or not applicable; p: times
    the number of tests, None where the interval decides; note: why, in a few words.
    """

    probe: str
    kind: str
    measures: str
    verdict: str
    figure: Interval | None = None
    chance: float | None = None
    p: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON holds it."""
        figure = None if self.figure is None else self.figure.as_dict()
        chance = None if self.chance is None else round(self.chance, 6)
        return vars(self) | {"figure": figure, "chance": chance}


def interval(values: Floats, clusters: Ids) -> Interval:
    """Mean of values [B] with its 95 % bounds, resampling clusters [B]."""
    return bootstrap_interval(values, clusters.tolist(), RESAMPLES, SEED)


def corrected(p: float) -> float:
    """Bonferroni's correction for all tests of the audit."""
    return min(1.0, p * TESTS)


def lookup_finding(cases: CaseSet, lookup: Lookup) -> Finding:
    """HR@1 of the lookup against the same lookup with its memories' lists exchanged among themselves."""

    def reached(swap: Ids | None) -> Floats:
        return first_place_share(lookup.scores(swap), cases.places)

    test = permutation_test(reached, len(lookup.targets), SEED, plus=GAIN)
    p = corrected(test.p)
    leaks = p <= ALPHA
    note = "the candidate lists give their targets away" if leaks else ""
    return Finding(
        "lookup", LEAK, "HR@1 of remembering other users' candidate lists and places", LEAK if leaks else CLEAN,
        interval(reached(None), cases.users), test.chance, p, note,
    )  # fmt: skip


def place_finding(cases: CaseSet, scores: Floats) -> Finding:
    """χ² test of the target's column (Pearson 1900), its p by simulation (few cases do); HR@1 of the best one."""
    width, count = cases.width, len(cases)
    observed = np.bincount(cases.places, minlength=width)
    reached = int((_uniform_squares(count, width) >= (observed**2).sum()).sum())
    p = corrected((reached + 1) / (MULTINOMIALS + 1))
    usual = int(observed.argmax())
    note = f"{observed[usual]} of {count} targets stand at place {usual + 1} of {width}" if p <= ALPHA else ""
    return Finding(
        "place", LEAK, "HR@1 of the places where targets stand most often; χ² test of places",
        LEAK if p <= ALPHA else CLEAN,
        interval(first_place_share(scores, cases.places), cases.users), 1 / width, p, note,
    )  # fmt: skip


@functools.cache
def _uniform_squares(count: int, width: int) -> Ids:
    """Σ n² of drawn uniform places: with equal expectations χ² grows with it."""
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(width, 1.0 / width), size=MULTINOMIALS)
    squares: Ids = (drawn**2).sum(axis=1)
    return squares


def equal_target_findings(cases: CaseSet, fit: CaseSet | None = None) -> list[Finding]:
    """Cases with equal targets, of both files: equal sets, equal places, common negatives.

    Against lists exchanged among the cases of one file: each file may draw from items of its own, as the hidden ones
    of validation and test are.
    """
    equal = EqualTargets.of(joined(cases, fit), np.arange(len(cases) + (len(fit) if fit else 0)) >= len(cases))
    rows = (
        ("equal sets", "cases with equal targets: same candidate set", equal.same_set, 1.0),
        ("equal places", "cases with equal targets: target at the same place", equal.same_place, 1.0),
        ("overlap", "cases with equal targets: share of common wrong candidates", equal.common_negatives, EXCESS),
    )
    if not len(equal):
        note = "no target stands in two users' cases"
        return [Finding(probe, LEAK, measures, SKIPPED, note=note) for probe, measures, _, _ in rows]
    found = []
    for probe, measures, agreement, times in rows:
        test = permutation_test(agreement, len(equal), SEED, times=times, within=equal.files)
        p = corrected(test.p)
        leaks = p <= ALPHA
        note = "lists are drawn from a stream that the target seeds" if leaks else ""
        figure = interval(agreement(None), equal.groups)
        found.append(Finding(probe, LEAK, measures, LEAK if leaks else CLEAN, figure, test.chance, p, note))
    return found


def order_finding(cases: CaseSet, follows: Floats, scores: Floats, learned_from: str) -> Finding:
    """Share of the history before the target, in an order learned elsewhere; sorted lists leave nothing to predict."""
    measures = f"share of a history that stands before its target in an item order learned from {learned_from}"
    known = ~np.isnan(follows)
    if len(np.unique(cases.users[known])) < FEW:
        return Finding("order", LEAK, measures, SKIPPED, note=f"fewer than {FEW} users' lists share items with others")
    figure = interval(follows[known], cases.users[known])
    hits = first_place_share(scores, cases.places).mean()
    note = f"taking the next item in that order reaches HR@1 {hits:.2f}"
    if figure.low >= SORTED:
        return Finding("order", LEAK, measures, LEAK, figure, 0.5, note=f"lists are sorted: {note}")
    above = figure.low > 0.5
    return Finding("order", LEAK, measures, WARNING if above else CLEAN, figure, 0.5, note=note if above else "")


def seen_finding(cases: CaseSet, scores: Floats) -> Finding:
    """HR@1 of choosing the candidate that the history holds."""
    figure = interval(first_place_share(scores, cases.places), cases.users)
    chance = 1 / cases.width
    leaks = figure.low > chance + GAIN
    note = "histories hold their own target" if leaks else ""
    verdict = LEAK if leaks else CLEAN
    return Finding("seen", LEAK, "HR@1 of a candidate that stands in the history", verdict, figure, chance, note=note)


def shared_findings(cases: CaseSet, fit: CaseSet | None, log: Log | None, by_user: bool) -> list[Finding]:
    """Answers, examples, users and near-copies of users that the cases share with what systems are fitted on."""
    with_users = cases.has_users and (fit is None or fit.has_users)
    others = " and ".join(part.name for part in (fit, log) if part is not None)
    found = []
    if with_users and others:
        answers = interval(known_answers(cases, fit, log), cases.users)
        users = interval(shared_users(cases, fit, log), cases.users)
        found.append(_count("answers", f"cases whose user has the target in {others}", answers, 0.0))
        measures = f"cases whose user stands in {others}"
        if by_user:
            found.append(_count("users", measures, users, 0.0))
        else:
            found.append(Finding("users", LEAK, measures, SKIPPED, users, note="splits are by time"))
    if fit is not None or cases.has_users:
        where = fit.name if fit is not None else "another user's case"
        examples = interval(repeated_examples(cases, fit), cases.users)
        copies = interval(near_copies(cases, fit), cases.users)
        measures = f"cases whose history (from {LONG} items) and target stand in {where}"
        found.append(_count("examples", measures, examples, BEARABLE))
        measures = f"cases whose user's items are nearly those of another user{f' in {fit.name}' if fit else ''}"
        found.append(_count("copies", measures, copies, BEARABLE))
    return found


def _count(probe: str, measures: str, figure: Interval, bearable: float) -> Finding:
    verdict = CLEAN if figure.value == 0 else LEAK if figure.value > bearable else WARNING
    return Finding(probe, LEAK, measures, verdict, figure, 0.0)


def popularity_finding(cases: CaseSet, fit: CaseSet | None, log: Log | None) -> Finding:
    """HR@1 of the most popular candidate: above chance wherever candidates are drawn uniformly."""
    counts = training_counts(cases, fit, log)
    source = log.name if log is not None else fit.name if fit is not None else "other users' cases"
    figure = interval(first_place_share(counts, cases.places), cases.users)
    return _warning("popularity", f"HR@1 of the candidate most popular in {source}", figure, 1 / cases.width)


def counts_finding(cases: CaseSet, scores: Floats) -> Finding:
    """HR@1 of the rule on training counts: where lists are drawn by popularity, counts should say nothing any more."""
    figure = interval(first_place_share(scores, cases.places), cases.users)
    measures = "HR@1 of the best rule on training counts alone (rare, frequent or in between first)"
    return _warning("training count", measures, figure, 1 / cases.width)


def ids_finding(cases: CaseSet) -> Finding:
    """HR@1 of the candidate whose id is nearest to one of the history: ids numbered along the log keep its company."""
    figure = interval(first_place_share(nearness_scores(cases), cases.places), cases.users)
    chance = 1 / cases.width
    return _warning("ids", "HR@1 of the candidate whose id is nearest to the history's ids", figure, chance)


def titles_finding(cases: CaseSet, titles: Mapping[int, str] | None) -> Finding:
    """Share of the wrong candidates whose title is shorter than the target's, equals by half."""
    measures = "share of wrong candidates with a shorter title than the target's"
    if titles is None:
        return Finding("title length", WARNING, measures, SKIPPED, note="give --items for the titles")
    lengths = np.array([[len(titles[item]) for item in row] for row in cases.candidates.tolist()], dtype=np.float64)
    own = lengths[np.arange(len(cases)), cases.places][:, None]
    shorter = ((lengths < own).sum(axis=1) + 0.5 * ((lengths == own).sum(axis=1) - 1)) / (cases.width - 1)
    return _warning("title length", measures, interval(shorter, cases.users), 0.5, two_sided=True)


def _warning(probe: str, measures: str, figure: Interval, chance: float, *, two_sided: bool = False) -> Finding:
    odd = figure.low > chance or (two_sided and figure.high < chance)
    return Finding(probe, WARNING, measures, WARNING if odd else CLEAN, figure, chance)


DRAWS = 999  # permutations of a test that finds something
CELLS = 10_000_000  # counters of (group, label) held at once: 80 MB; beyond it they are sorted, which is slower
EXCEEDANCES = 10  # a test stops when so many permutations reach the figure: it is then no small p


@dataclass(frozen=True)
class Permuted:
    """A figure against its permutations: their mean is what chance gives; p is one-sided."""

    figure: float
    chance: float
    p: float


def permutation_test(
    values: Callable[[Ids | None], Floats], count: int, seed: int, *, times: float = 1.0, plus: float = 0.0,
    within: Ids | None = None,
) -> Permuted:  # fmt: skip
    """Compare the mean of values(None) with that of values(a permutation of `count` rows), times `times` plus `plus`.

    The last two say how far above chance a figure must lie to matter; p is that of lying further. within [count]: rows
    change places with rows of the same number alone.

    A sequential Monte Carlo p-value (Besag and Clifford, Biometrika 1991): exact at any level, and quick where there is
    nothing to find.
    """
    generator = np.random.default_rng(seed)
    figure = float(values(None).mean())
    drawn: list[float] = []
    reached = 0
    blocks = np.zeros(count) if within is None else within
    places = np.argsort(blocks, kind="stable")
    while len(drawn) < DRAWS and reached < EXCEEDANCES:
        order = generator.permutation(count)
        swap = np.empty_like(order)
        swap[places] = order[np.argsort(blocks[order], kind="stable")]
        drawn.append(float(values(swap).mean()))
        reached += drawn[-1] * times + plus >= figure
    p = reached / len(drawn) if reached >= EXCEEDANCES else (reached + 1) / (len(drawn) + 1)
    return Permuted(figure, float(np.mean(drawn)), p)


@dataclass(frozen=True)
class EqualTargets:
    """Cases whose target another user's case has as well: their group [G], place, list and negatives [G, C − 1].

    lists [G] names the candidate set as a whole: equal numbers, equal sets; files [G] the file that a case is of.
    """

    groups: Ids
    places: Ids
    lists: Ids
    negatives: Ids
    files: Ids

    @classmethod
    def of(cls, cases: CaseSet, files: NDArray[np.bool_] | None = None) -> "EqualTargets":
        """One case a user and target: what a user shares with himself says nothing. files [N]: of each case."""
        _, first = np.unique(np.stack([cases.users, cases.targets]), axis=1, return_index=True)
        rows = np.sort(first)
        _, group, size = np.unique(cases.targets[rows], return_inverse=True, return_counts=True)
        rows, group = rows[size[group] > 1], group[size[group] > 1]
        kept = cases.take(rows)
        wrong = np.arange(kept.width)[None, :] != kept.places[:, None]
        negatives = kept.candidates[wrong].reshape(len(kept), kept.width - 1)
        _, sets = np.unique(np.sort(kept.candidates, axis=1), axis=0, return_inverse=True)
        of = np.zeros(len(rows), dtype=np.int64) if files is None else files[rows].astype(np.int64)
        return cls(group, kept.places, sets.ravel(), negatives, of)

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
