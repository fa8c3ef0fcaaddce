"""What a language model of molecules has to beat, each fitted on its subset of training pairs and on all of them.

Settings are chosen on validation where there are several; test pairs are never looked at. Ids, Morgan counts and
descriptors go through linear models as in the figures that were given with the data (logistic regression with C 0.1;
ridge regression for numbers).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn.functional import cross_entropy

from moltc.chemistry import descriptors, morgan_counts, tanimoto
from moltc.gin import Gin
from moltc.graphs import graph_of, joined
from moltc.prepared import PairSet
from recalign.data.records import hashed_order
from recalign.evaluation.metrics import Floats

Predict = Callable[[PairSet], Floats]  # pairs → [N, T] log-probs or scores of the types, [N, 1] numbers
C_LOGISTIC, RIDGE = 0.1, 1.0
POWERS = (1, 2, 4, 8)  # of the Tanimoto similarity in kNN, chosen on validation
TREES = 150
GIN_EPOCHS, GIN_BATCH, GIN_RATE = 20, 64, 3e-4  # the rate: of three, the best on validation of the bundled pairs
GIN_PASSES = 60_000  # pairs that the graph network reads at most, whatever the epochs


@dataclass(frozen=True)
class Fitting:
    """Pairs to learn from and to choose on; width, layers: of the graph network; seed: of what is drawn."""

    train: PairSet
    validation: PairSet
    width: int
    layers: int
    seed: int


def most_frequent(fit: Fitting) -> Predict:
    """The most frequent answer, or the mean: what reads nothing at all."""
    truth = fit.train.truth
    if fit.train.kind == "number":
        return lambda pairs: np.full((len(pairs), 1), truth.mean())
    counts = np.bincount(truth, minlength=len(fit.train.answers.types)) + 0.5
    return lambda pairs: np.tile(np.log(counts / counts.sum()), (len(pairs), 1))


def ids_only(fit: Fitting) -> Predict:
    """One-hot molecules, first and second apart: no chemistry."""
    size = len(fit.train.molecules)

    def features(pairs: PairSet) -> Any:
        rows = np.arange(len(pairs))
        return sparse.csr_matrix(
            (np.ones(2 * len(pairs)), (np.tile(rows, 2), np.concatenate([pairs.first, size + pairs.second]))),
            shape=(len(pairs), 2 * size),
        )

    return _linear(fit, features)


def morgan(fit: Fitting) -> Predict:
    """Morgan counts of both molecules, next to each other."""
    return _linear(fit, _of_morgan(fit))


def descriptor_linear(fit: Fitting) -> Predict:
    """The descriptors of `descriptor_trees`, in units of their spread in training."""
    return _linear(fit, _scaled(fit, _of_descriptors(fit)))


def fingerprints_and_descriptors(fit: Fitting) -> Predict:
    """Both: Morgan counts, and descriptors in units of their spread."""
    counts, told = _of_morgan(fit), _scaled(fit, _of_descriptors(fit))
    return _linear(fit, lambda pairs: sparse.hstack([counts(pairs), sparse.csr_matrix(told(pairs))], format="csr"))


def descriptor_trees(fit: Fitting) -> Predict:
    """Gradient-boosted trees on RDKit's descriptors of both molecules, their products and distances."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    features = _of_descriptors(fit)
    options = {"max_iter": TREES, "learning_rate": 0.05, "min_samples_leaf": 5, "random_state": fit.seed,
               "early_stopping": False}  # fmt: skip
    if fit.train.kind == "number":
        model = HistGradientBoostingRegressor(**options).fit(features(fit.train), fit.train.truth)
        return lambda pairs: model.predict(features(pairs))[:, None]
    return _classes(fit, HistGradientBoostingClassifier(**options), features)


def _of_morgan(fit: Fitting) -> Callable[[PairSet], Any]:
    counts = sparse.csr_matrix(morgan_counts(fit.train.molecules))
    return lambda pairs: sparse.hstack([counts[pairs.first], counts[pairs.second]], format="csr")


def _of_descriptors(fit: Fitting) -> Callable[[PairSet], Floats]:
    table = np.array([descriptors(smiles) for smiles in fit.train.molecules])

    def features(pairs: PairSet) -> Floats:
        one, other = table[pairs.first], table[pairs.second]
        return np.hstack([one, other, one * other, np.abs(one - other)])

    return features


def _scaled(fit: Fitting, features: Callable[[PairSet], Floats]) -> Callable[[PairSet], Floats]:
    known = features(fit.train)
    middle, spread = known.mean(axis=0), known.std(axis=0)
    spread[spread == 0] = 1.0
    return lambda pairs: (features(pairs) - middle) / spread


def neighbours(fit: Fitting) -> Predict:
    """k nearest neighbours over pairs: S·Y·S with S the Tanimoto similarity to a power, Y the training labels.

    Of closed answers the type with the largest sum; of numbers the weighted mean. The power is chosen on validation.
    """
    similarity = tanimoto(fit.train.molecules)
    predictors = [_neighbours(fit.train, similarity**power) for power in POWERS]
    return min(predictors, key=lambda predict: fit.validation.cases.badness(predict(fit.validation)))


def _neighbours(train: PairSet, similarity: Floats) -> Predict:
    shape = similarity.shape
    if train.kind == "number":
        ones = sparse.csr_matrix((np.ones(len(train)), (train.first, train.second)), shape=shape)
        labels = sparse.csr_matrix((train.truth, (train.first, train.second)), shape=shape)
        total, weight = (similarity @ (part @ similarity.T) for part in (labels, ones))
        middle = train.truth.mean()

        def number(pairs: PairSet) -> Floats:
            heavy = weight[pairs.first, pairs.second]
            return np.where(heavy > 0, total[pairs.first, pairs.second] / np.maximum(heavy, 1e-300), middle)[:, None]

        return number
    tables = []
    for place in range(len(train.answers.types)):
        here = train.truth == place
        own = sparse.csr_matrix((np.ones(here.sum()), (train.first[here], train.second[here])), shape=shape)
        tables.append(similarity @ (own @ similarity.T))
    return lambda pairs: np.log(np.stack([each[pairs.first, pairs.second] for each in tables], axis=1) + 1e-12)


def _linear(fit: Fitting, features: Callable[[PairSet], Any]) -> Predict:
    from sklearn.linear_model import LogisticRegression, Ridge

    if fit.train.kind == "number":
        model = Ridge(alpha=RIDGE).fit(features(fit.train), fit.train.truth)
        return lambda pairs: np.asarray(model.predict(features(pairs)), dtype=np.float64)[:, None]
    return _classes(fit, LogisticRegression(C=C_LOGISTIC, max_iter=400), features)


def _classes(fit: Fitting, model: Any, features: Callable[[PairSet], Any]) -> Predict:
    """Log-probs of all types from a classifier that knows those of training; the others get almost nothing."""
    if len(np.unique(fit.train.truth)) == 1:  # nothing to tell apart
        return most_frequent(fit)
    model.fit(features(fit.train), fit.train.truth)

    def predict(pairs: PairSet) -> Floats:
        found = np.full((len(pairs), len(fit.train.answers.types)), np.log(1e-12))
        found[:, model.classes_] = np.log(np.maximum(model.predict_proba(features(pairs)), 1e-12))
        return found

    return predict


class _PairNetwork(nn.Module):
    """A graph network for both molecules, and a small network on [h1, h2, h1·h2, |h1 − h2|]."""

    def __init__(self, width: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.gin = Gin(width, layers)
        self.out = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, outputs))

    def forward(self, pairs: PairSet) -> torch.Tensor:
        """[N, outputs]."""
        molecules, places = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
        graphs = joined([graph_of(pairs.molecules[molecule]) for molecule in molecules])
        hidden = self.gin.pooled(self.gin(graphs), graphs)[torch.from_numpy(places)]
        one, other = hidden[: len(pairs)], hidden[len(pairs) :]
        out: torch.Tensor = self.out(torch.cat([one, other, one * other, (one - other).abs()], dim=1))
        return out


def gin_alone(fit: Fitting) -> Predict:
    """The graph network without a language model, trained from scratch; the epoch is chosen on validation."""
    train, number = fit.train, fit.train.kind == "number"
    middle, spread = (train.truth.mean(), train.truth.std() or 1.0) if number else (0.0, 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        network = _PairNetwork(fit.width, fit.layers, 1 if number else len(train.answers.types))
    optimiser = torch.optim.AdamW(network.parameters(), lr=GIN_RATE, weight_decay=0.01)

    def predict(pairs: PairSet) -> Floats:
        with torch.no_grad():
            parts = [network(pairs.take(range(s, min(s + 512, len(pairs))))) for s in range(0, len(pairs), 512)]
        return torch.cat(parts).double().numpy() * spread + middle

    def badness() -> float:
        return fit.validation.cases.badness(predict(fit.validation))

    best, kept = badness(), {k: v.clone() for k, v in network.state_dict().items()}
    for epoch in range(max(2, min(GIN_EPOCHS, GIN_PASSES // len(train)))):
        order = sorted(range(len(train)), key=lambda place: hashed_order(fit.seed, epoch, train.pair_id(place)))
        for start in range(0, len(order), GIN_BATCH):
            batch = train.take(order[start : start + GIN_BATCH])
            out, truth = network(batch), torch.from_numpy(batch.truth)
            loss = ((out[:, 0] - (truth - middle) / spread) ** 2).mean() if number else cross_entropy(out, truth.long())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        if (now := badness()) < best or now == float("inf"):  # ∞: validation cannot say, so the last one stays
            best, kept = now, {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(kept)
    return predict


def fitted(name: str, fit: Fitting) -> Predict:
    """A baseline by its name, which of closed answers learns every pair in both orders and answers with the mean of
    both, so that the order of a file says nothing."""
    predict = BASELINES[name](replace(fit, train=fit.train.both_orders()))
    if fit.train.kind == "number":
        return predict
    return lambda pairs: 0.5 * (predict(pairs) + predict(pairs.turned()))


BASELINES: dict[str, Callable[[Fitting], Predict]] = {
    "most frequent": most_frequent,
    "ids only": ids_only,
    "Morgan, linear": morgan,
    "descriptors, linear": descriptor_linear,
    "fingerprints and descriptors, linear": fingerprints_and_descriptors,
    "Tanimoto kNN": neighbours,
    "descriptors, trees": descriptor_trees,
    "GIN alone": gin_alone,
}
