"""What can be had from pairs without any chemistry: the audit of pair data.

A leak lets a system score without reading a molecule; a warning is a property of honest data that a reader should
know. The published ChCh-Miner draws its negatives from 363 of its 959 drugs and writes positives in the order of ids: a
drug's share of positives in training alone reaches AUC 0.999.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moltc.evaluation import METRICS, Cases
from moltc.validation import Clean
from recalign.audit.finding import CLEAN, LEAK, SEED, SKIPPED, WARNING, Finding
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import Interval

# Constants, not parameters: the same file must get the same verdict from everybody.
DEGREES_TELL = 0.9  # AUC of the molecules' shares from which they, not the molecules, are the answer
ORDER_TELLS = 0.55  # AUC of the order in which the file writes a pair: honest files are at 0.5
SMOOTHING = 1.0  # pseudo-pairs with the whole training set's shares, for molecules with few pairs
FEWER = 400  # resamples of an AUC, which is slower than a mean


def audit_pairs(clean: Clean, kind: str, train: np.ndarray, test: np.ndarray) -> tuple[Finding, ...]:
    """Every probe, learned on the pairs `train` [N] and measured on the pairs `test` [N] (both bool)."""
    if not train.any() or not test.any():
        measures = "what a molecule's other pairs say"
        return (Finding("molecules alone", LEAK, measures, SKIPPED, note="no pairs to learn from or to test"),)
    return (_alone(clean, kind, train, test), _order(clean, kind), _met(clean, train, test))


def share_outputs(cases: Cases, train: np.ndarray, answers: int) -> Floats:
    """[N, C] what the training labels of each pair's two molecules say together; [N, 1] for numbers.

    Naive Bayes on ids: log P(y) + Σ log P(y | molecule) / P(y), smoothed; of numbers the mean plus both molecules' mean
    distances from it. No chemistry is read, and a molecule without training pairs says nothing.
    """
    count = int(max(cases.first.max(), cases.second.max())) + 1
    ends, truth = (cases.first, cases.second), cases.truth[train]
    if cases.kind == "number":
        middle = truth.mean()
        total, seen = np.zeros(count), np.zeros(count)
        for end in ends:
            np.add.at(total, end[train], truth - middle)
            np.add.at(seen, end[train], 1.0)
        own = total / (seen + SMOOTHING)
        number: Floats = (middle + own[cases.first] + own[cases.second])[:, None]
        return number
    shares = np.bincount(truth.astype(np.int64), minlength=answers) + 1.0
    shares /= shares.sum()
    table = np.tile(SMOOTHING * shares, (count, 1))
    for end in ends:
        np.add.at(table, (end[train], truth.astype(np.int64)), 1.0)
    lift = np.log(table / table.sum(axis=1, keepdims=True)) - np.log(shares)
    outputs: Floats = np.log(shares) + lift[cases.first] + lift[cases.second]
    return outputs


def _alone(clean: Clean, kind: str, train: np.ndarray, test: np.ndarray) -> Finding:
    """How far the molecules' other pairs go; the figure is AUC, accuracy, or the mean's MAE minus that of the probe."""
    cases = Cases(kind, clean.first, clean.second, clean.truth)
    outputs = share_outputs(cases, train, len(clean.answers.types))[test]
    held = Cases(kind, clean.first[test], clean.second[test], clean.truth[test])
    name = next(iter(METRICS[kind]))
    if kind == "yes-no":
        found = held.figures(outputs, FEWER, SEED).get(name)
        if found is None:
            note = "the test pairs are of one class"
            return Finding("molecules alone", LEAK, "what a molecule's other pairs say", SKIPPED, note=note)
        figure, chance = found, 0.5
    else:
        naive = _naive(clean.truth[train], kind, outputs)
        figure = held.gains(outputs, naive, FEWER, SEED)[name]
        figure, chance = (_negative(figure) if kind == "number" else figure), 0.0
    measures = {
        "yes-no": "AUC of the share of positives that a pair's two molecules have in training",
        "types": "accuracy of the types that the two molecules have in training, minus that of the most frequent type",
        "number": "MAE of the mean minus that of the two molecules' means in training",
    }[kind]
    if kind == "yes-no" and figure.low > DEGREES_TELL:
        note = "the molecules give the label away: negatives were drawn from other molecules than positives"
        return Finding("molecules alone", LEAK, measures, LEAK, figure, chance, note=note)
    verdict = WARNING if figure.low > chance else CLEAN
    note = "figures on pairs of known molecules say little about reading chemistry" if verdict == WARNING else ""
    return Finding("molecules alone", LEAK, measures, verdict, figure, chance, note=note)


def _naive(labels: np.ndarray, kind: str, like: Floats) -> Floats:
    """The outputs of the most frequent answer, or of the mean."""
    if kind == "number":
        return np.full_like(like, labels.mean())
    naive = np.zeros_like(like)
    naive[:, np.bincount(labels.astype(np.int64)).argmax()] = 1.0
    return naive


def _negative(figure: Interval) -> Interval:
    return replace(figure, value=-figure.value, low=-figure.high, high=-figure.low)


def _order(clean: Clean, kind: str) -> Finding:
    """Whether the file writes pairs of one label in the order of their ids, and others not."""
    measures = "AUC of whether a file names the lower id first"
    if kind != "yes-no":
        return Finding("order of ids", LEAK, measures, SKIPPED, note="only pairs of yes and no are probed")
    outputs = np.stack([np.zeros(len(clean.labels)), clean.as_written.astype(np.float64)], axis=1)
    figure = Cases(kind, clean.first, clean.second, clean.truth).figures(outputs, FEWER, SEED).get("auroc")
    if figure is None:
        return Finding("order of ids", LEAK, measures, SKIPPED, note="all pairs are of one class")
    told = figure.low > ORDER_TELLS or figure.high < 1 - ORDER_TELLS
    note = "positives and negatives come from two programs; turn pairs by a hash, as recalign does" if told else ""
    return Finding("order of ids", LEAK, measures, LEAK if told else CLEAN, figure, 0.5, note=note)


def _met(clean: Clean, train: np.ndarray, test: np.ndarray) -> Finding:
    """Share of the test pairs both of whose molecules are in training."""
    known = np.union1d(clean.first[train], clean.second[train])
    met = (np.isin(clean.first[test], known) & np.isin(clean.second[test], known)).astype(np.float64)
    value = float(met.mean())
    note = "the views one-new and both-new measure what is new" if value > 0 else ""
    measures = "share of the test pairs whose two molecules are both in training"
    figure = Interval(value, value, value, "a count")
    return Finding("molecules met", WARNING, measures, WARNING if value > 0 else CLEAN, figure, 0.0, note=note)


def given_split(given: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) of a file's own split column: rows that say train, and rows that say test.

    Raises RecalignError where one of the two is missing.
    """
    said = np.array([(each or "").strip().casefold() for each in given])
    train, test = said == "train", said == "test"
    if not train.any() or not test.any():
        found = ", ".join(repr(each) for each in sorted(set(said.tolist()))[:5])
        raise RecalignError(f"data.split: the column has to say train and test, but says {found}; null uses our split")
    return train, test
