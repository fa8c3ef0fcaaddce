"""Which items an example's user is said to have declined: eight ways to draw the K rejected items.

Every draw comes from a stream seeded by (seed, example id), so neither the order of rows nor the other examples
change it. An item that nobody took in training is never drawn: before the cutoff there was nothing to decline, and
a model that meets new items only as rejected ones learns to bury what is new. What the user has met is never drawn as
unseen; what of it was disliked, by the strategy `disliked` alone.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items, Taken, hashed_batches, hashed_order
from recalign.params.pairs import PairsParams, Strategy
from recalign.recommenders.recommender import Recommender, Request

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
IN_BATCH: Strategy = "in_batch"
FALLBACK: Strategy = "uniform"  # takes the place of a strategy that has nothing left
GUESSES = 512  # weighted draws before the rest is drawn exactly; only a user who took most of the catalogue gets there
CHUNK = 64  # draws at once
SCORED_AT_ONCE = 256  # examples whose catalogue scores are held together


@dataclass(frozen=True)
class Negative:
    """A rejected item, the strategy that drew it, and the one that had been asked for."""

    item_id: int
    strategy: Strategy
    asked: Strategy


@dataclass(frozen=True)
class Pool:
    """The items that can be declined, in ascending id, and the running sum of their popularity^alpha; both [items].

    available_from: when an item could first be declined, for those of which it is known.
    """

    ids: NDArray[np.int64]
    cumulative: NDArray[np.float64]
    available_from: Mapping[int, datetime] = field(default_factory=dict)
    popularity: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, items: Items, alpha: float) -> "Pool":
        """The items with at least one train event, weighted by popularity^alpha."""
        ids = [item for item in items.ids if items.popularity[item] > 0]
        weights = np.array([items.popularity[item] for item in ids], dtype=np.float64) ** alpha
        return cls(np.array(ids, dtype=np.int64), np.cumsum(weights), items.available_from, items.popularity)

    @cached_property
    def uniform(self) -> "Pool":
        """The same items, each with weight 1."""
        return Pool(self.ids, np.arange(1, len(self.ids) + 1, dtype=np.float64), self.available_from)

    @cached_property
    def known(self) -> frozenset[int]:
        """The same items as a set."""
        return frozenset(self.ids.tolist())

    def alike(self, target: int, size: int, rng: np.random.Generator) -> list[int]:
        """The `size` items whose popularity is nearest to the target's, by the difference of logs; equals by lot."""
        others = rng.permutation(self.ids[self.ids != target])
        counts = np.array([self.popularity[item] for item in others.tolist()], dtype=np.float64)
        apart = np.abs(np.log1p(counts) - np.log1p(self.popularity.get(target, 0)))
        nearest: list[int] = others[np.argsort(apart, kind="stable")[:size]].tolist()
        return nearest

    def could_be_had(self, item: int, cutoff: datetime | None) -> bool:
        """Whether an item was there at the cutoff, as far as is known."""
        since = self.available_from.get(item)
        return since is None or cutoff is None or since <= cutoff


def strategy_shares(params: PairsParams) -> NDArray[np.float64]:
    """The probability of each of STRATEGIES for one rejected item; sums to 1.

    Raises RecalignError when pairs.shares has a negative share, one of `in_batch`, or does not sum to 1.
    """
    if params.strategy != "mixed":
        return np.array([float(name == params.strategy) for name in STRATEGIES])
    shares = np.array([params.shares.get(name, 0.0) for name in STRATEGIES])
    if shares.min() < 0 or abs(shares.sum() - 1.0) > 1e-6:
        raise RecalignError(
            f"pairs.shares is {dict(params.shares)}, which sums to {shares.sum():g}; "
            "give shares of 0 or more that sum to 1"
        )
    if params.shares.get(IN_BATCH, 0.0) > 0:
        raise RecalignError(
            f"pairs.shares has {params.shares[IN_BATCH]:g} of '{IN_BATCH}', whose correction for popularity is that of "
            f"one law; set pairs.strategy to {IN_BATCH}, or that share to 0"
        )
    return shares / shares.sum()


def draw_negatives(
    example: Example,
    taken: Taken,
    pool: Pool,
    params: PairsParams,
    seed: int,
    *,
    listed: Sequence[int] = (),
    plausible: Mapping[int, int] | None = None,
) -> list[Negative]:
    """Draw up to params.negatives distinct items of the pool, none of them in `taken` but for what was disliked.

    Each place draws its strategy by `strategy_shares`, then an item by that strategy: `uniform`; `popularity` in
    proportion to popularity^alpha; `hard` and `in_batch` uniformly from `listed` (`hard_items`, `batch_mates`); `alike`
    uniformly from the params.hard_pool items that are about as popular as the target; `profile` in proportion to
    `plausible` (item -> number of the user's claims that hold for it); `disliked` uniformly from what the user disliked
    before the cutoff.
    A strategy with nothing left gives its place to one that still has something, drawn by the shares of those
    (`mixed`), and where none of the shares has, to `uniform`. Fewer than K come back only when the pool has no more, or
    (`in_batch`, which nothing takes the place of) the batch.
    """
    places = min(params.negatives, len({*listed})) if params.strategy == IN_BATCH else params.negatives
    rng = np.random.default_rng(int(hashed_order(seed, example.example_id), 16))
    shares = strategy_shares(params)
    names = rng.choice(len(STRATEGIES), size=places, p=shares)
    left = dict(zip(STRATEGIES, shares.tolist(), strict=True))
    streams: dict[Strategy, Iterator[int]] = {}
    drawn: list[Negative] = []
    chosen: set[int] = set()

    def next_of(strategy: Strategy) -> int | None:
        if strategy not in streams:
            own = pool.alike(example.target, params.hard_pool, rng) if strategy == "alike" else listed
            streams[strategy] = _stream(strategy, rng, pool, own, plausible or {}, taken.disliked)
        barred = frozenset() if strategy == "disliked" else taken.items
        for item in streams[strategy]:
            if item not in chosen and item not in barred and pool.could_be_had(item, example.cutoff):
                return item
        return None

    for asked in (STRATEGIES[name] for name in names):
        strategy = asked if left[asked] > 0 else _another(left, rng)
        while (item := next_of(strategy)) is None and (strategy != FALLBACK or any(left.values())):
            left[strategy] = 0.0
            strategy = _another(left, rng)
        if item is not None:
            chosen.add(item)
            drawn.append(Negative(item, strategy, asked))
    return drawn


def _another(left: Mapping[Strategy, float], rng: np.random.Generator) -> Strategy:
    """One of the strategies that may have something left, by their shares; the fallback where none has."""
    total = sum(left.values())
    if not total:
        return FALLBACK
    return STRATEGIES[rng.choice(len(STRATEGIES), p=np.array([left[name] for name in STRATEGIES]) / total)]


def _stream(
    strategy: Strategy,
    rng: np.random.Generator,
    pool: Pool,
    listed: Sequence[int],
    plausible: Mapping[int, int],
    disliked: Sequence[int],
) -> Iterator[int]:
    match strategy:
        case "uniform":
            return _weighted(rng, pool.uniform)
        case "popularity":
            return _weighted(rng, pool)
        case "hard" | "alike" | "in_batch":
            return iter(rng.permutation(np.array(listed, dtype=np.int64)).tolist())
        case "profile":
            ids = np.intersect1d(pool.ids, np.array(list(plausible), dtype=np.int64))
            return _exact(rng, Pool(ids, np.cumsum([float(plausible[item]) for item in ids.tolist()])))
        case "disliked":
            return iter(rng.permutation([item for item in disliked if item in pool.known]).tolist())


def _weighted(rng: np.random.Generator, pool: Pool) -> Iterator[int]:
    """Items by weight, with repeats at first; who skips the repeats draws by weight without replacement."""
    for _ in range(GUESSES // CHUNK if len(pool.ids) else 0):
        places = np.searchsorted(pool.cumulative, rng.random(CHUNK) * pool.cumulative[-1], side="right")
        yield from pool.ids[np.minimum(places, len(pool.ids) - 1)].tolist()
    yield from _exact(rng, pool)


def _exact(rng: np.random.Generator, pool: Pool) -> Iterator[int]:
    """Every item once, in an order drawn by weight without replacement (Efraimidis and Spirakis 2006, algorithm A)."""
    weights = np.diff(pool.cumulative, prepend=0.0)
    yield from pool.ids[np.argsort(rng.exponential(size=len(weights)) / weights, kind="stable")].tolist()


def hard_items(
    recommender: Recommender, items: Items, examples: Sequence[Example], taken: Iterable[Taken], size: int
) -> Iterator[tuple[int, ...]]:
    """For each example, the `size` items outside its `taken` that the recommender ranks highest, best first.

    Only items with train events count, and such as were there at the cutoff. `examples` and `taken` run in step; scores
    are made SCORED_AT_ONCE examples at a time, so memory is SCORED_AT_ONCE × items.
    """
    place = {item: column for column, item in enumerate(items.ids)}
    unseen = np.array([items.popularity[item] == 0 for item in items.ids])
    since = [items.available_from.get(item) for item in items.ids]
    excluded = iter(taken)
    for start in range(0, len(examples), SCORED_AT_ONCE):
        chunk = examples[start : start + SCORED_AT_ONCE]
        requests = [Request(example.user_id, example.history, example.cutoff) for example in chunk]
        scores = recommender.scores(requests, None).numpy().astype(np.float64)
        scores[:, unseen] = -np.inf
        for example, row in zip(chunk, scores, strict=True):
            row[[place[item] for item in next(excluded).items if item in place]] = -np.inf
            if items.available_from and example.cutoff is not None:
                row[[time is not None and time > example.cutoff for time in since]] = -np.inf
            best = np.argsort(-row, kind="stable")[:size]  # stable: equal scores by ascending id
            yield tuple(items.ids[column] for column in best if np.isfinite(row[column]))


def batch_mates(
    examples: Sequence[Example], taken: Sequence[Taken], pool: Pool, size: int, seed: int
) -> list[tuple[int, ...]]:
    """For each example, what the others of its batch chose and it may decline, as often as they chose it.

    Batches are those of the training loop's first epoch: `size` examples each, by (seed, example id). What the
    example's user took or met is left out, and what was not there at the cutoff. An example with nothing left gets ()
    and is in no batch, since nothing will be learned from it; the others' batches are then drawn without it.
    """
    place = {example.example_id: row for row, example in enumerate(examples)}
    names = list(place)
    while True:
        found: list[tuple[int, ...]] = [()] * len(examples)
        for batch in hashed_batches(names, size, seed, 0):
            rows = [place[name] for name in batch]
            for row in rows:
                others = (examples[other].target for other in rows if other != row)
                own, cutoff = taken[row].items | {examples[row].target}, examples[row].cutoff
                found[row] = tuple(
                    item
                    for item in others
                    if item not in own and item in pool.known and pool.could_be_had(item, cutoff)
                )
        left = [name for name in names if found[place[name]]]
        if len(left) == len(names):
            return found
        names = left


def log_shares(chosen: Sequence[int]) -> dict[int, float]:
    """log q of each item: its share among the chosen items, by which the others of a batch offer it to be rejected."""
    return {item: math.log(count / len(chosen)) for item, count in Counter(chosen).items()}
