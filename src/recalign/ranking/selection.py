"""Which parts a fusion hears, and how loud: forward selection by NDCG@10 on validation cases.

It begins with the best single part. Another joins, at one of FACTORS of what weighs already, where that raises NDCG@10
by more than one standard error; then again, until none does. So a fusion that is not better than its best part by more
than noise is that part. What a part would add is measured on cases that did not choose its factor (FOLDS folds); the
factor itself is then chosen on all cases. Cases that are alike go into one fold and count as one draw of the error:
those of a user, and among new items, of which there are fewer than users, those that ask for one item. Sources: greedy
selection on the metric itself, Caruana et al. 2004, Ensemble selection from libraries of models; the bound of one
error, Breiman et al. 1984, Classification and Regression Trees, 3.4.3. The two together are ours.

Why not the likelihood: item-kNN scores most of a list 0 and a few items high, so that a logit that is linear in
standardised scores gives it no weight beside EASE, though NDCG@10 rises with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recalign.data.records import hashed_order
from recalign.evaluation.metrics import Floats, Lots, metric_values, target_ranks
from recalign.evaluation.significance import cluster_spread, sums_by_user

METRIC = "ndcg_at_10"
FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
FOLDS = 8


@dataclass(frozen=True)
class Judged:
    """What validation cases say of scores: target_index [B], the target's column; clusters [B], equal where cases are
    alike (a user's, or a new item's); lots [B, C] of equals."""

    target_index: Sequence[int]
    clusters: Sequence[int]
    lots: Lots

    def values(self, scores: Floats) -> Floats:
        """NDCG@10 of each case [B] under scores [B, C]."""
        values: Floats = metric_values(METRIC, target_ranks(scores, self.target_index, self.lots))
        return values


def selected(parts: Floats, judged: Judged) -> Floats:
    """[S] weights of parts [B, C, S], the best single one's 1 before others joined; 0 of those that add nothing."""
    weights = np.zeros(parts.shape[2])
    best = int(np.argmax([judged.values(part).mean() for part in np.moveaxis(parts, 2, 0)]))
    weights[best] = 1.0
    left = [place for place in range(len(weights)) if place != best]
    while left:
        now = parts @ weights
        steps = {place: step(now, parts[:, :, place], weights.sum(), judged) for place in left}
        place = max(steps, key=lambda each: steps[each].gain)
        if not steps[place].weight:
            break
        weights[place] = steps[place].weight
        left.remove(place)
    return weights


@dataclass(frozen=True)
class Step:
    """What a part adds: its weight, 0 where that is noise; gain: in NDCG@10, −inf with a weight of 0."""

    weight: float
    gain: float


def step(now: Floats, part: Floats, total: float, judged: Judged) -> Step:
    """Whether a part [B, C] joins the scores [B, C] of now, whose weights sum to `total`."""
    values = np.stack([judged.values(now + factor * total * part) for factor in (0.0, *FACTORS)])
    fold = _folds(judged.clusters)
    others = [number for number in range(FOLDS) if (fold == number).any() and (fold != number).any()]
    if not others:
        return Step(0.0, -np.inf)  # of one cluster nothing can be held out
    gains = np.zeros(len(fold))
    for number in others:
        held_out = fold == number
        factor = int(np.argmax(values[:, ~held_out].mean(axis=1)))
        gains[held_out] = values[factor, held_out] - values[0, held_out]
    (error,), _ = cluster_spread(*sums_by_user(gains[:, None], judged.clusters))
    factor = int(np.argmax(values.mean(axis=1)))
    if not factor or gains.mean() <= error + 1e-12:
        return Step(0.0, -np.inf)
    return Step(FACTORS[factor - 1] * total, float(gains.mean()))


def _folds(clusters: Sequence[int]) -> NDArray[np.int64]:
    """[B]: the fold of each case; all of a cluster's are in one."""
    ordered = sorted(set(clusters), key=lambda cluster: hashed_order("fold", cluster))
    fold = {cluster: place % FOLDS for place, cluster in enumerate(ordered)}
    return np.array([fold[cluster] for cluster in clusters], dtype=np.int64)
