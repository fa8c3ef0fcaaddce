"""Frozen candidate lists: a target among wrong items, drawn once per example from a stream of the example's own.

The stream is a counter-based generator: number `c` of the stream with key `k` is a hash of (k, c). So a list depends on
its key, its user's log and the weights, never on which other examples are drawn beside it; thousands are drawn at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Indices = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: the step of a Weyl sequence
_SPARE = 8  # extra draws of the first round: few lists need more
_SECOND_ROUND = 16  # draws per wanted item before the exact way, which visits every item


@dataclass(frozen=True)
class Lists:
    """Candidate lists as item indices [B, C] and the target's place in each [B]."""

    candidates: Indices
    target_index: Indices


def uniforms(keys: Keys, counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of streams `keys` [B] at `counters` [M]: [B, M].

    SplitMix64's output function over key + counter × golden step (Steele, Lea & Flood, OOPSLA 2014, "Fast splittable
    pseudorandom number generators"); the upper 53 bits become a float.
    """
    x = keys[:, None] + (counters[None, :] + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_candidates(
    keys: Keys, targets: Indices, rows: Indices, seen: Indices, weights: NDArray[np.float64], size: int
) -> Lists:
    """Draw lists of `size` items without replacement, one item after the other in proportion to `weights`.

    keys [B]: one stream an example. targets [B]: item indices. rows [B]: which user's log forbids items.
    seen: sorted codes `row × items + item` of every user's whole log (the target in it). weights [items]: positive.
    Raises ValueError where a user has left fewer than `size` − 1 items.
    """
    wrong = np.full((len(keys), size - 1), -1, dtype=np.int64)
    cumulative = np.cumsum(weights)
    pending = np.arange(len(keys))
    for width in (size + _SPARE, size * _SECOND_ROUND):
        if not len(pending):
            break
        drawn = _draws(keys[pending], size, width, cumulative)
        usable = _usable(drawn, rows[pending], seen, len(weights))
        wrong[pending] = _first(drawn, usable, size - 1)
        pending = pending[wrong[pending, -1] < 0]
    for example in pending:
        offset = size * (1 + _SECOND_ROUND)
        _complete(wrong[example], keys[example : example + 1], rows[example], seen, weights, offset)
    return _shuffled(keys, targets, wrong)


def _draws(keys: Keys, first_counter: int, width: int, cumulative: NDArray[np.float64]) -> Indices:
    counters = np.arange(first_counter, first_counter + width, dtype=np.uint64)
    points = uniforms(keys, counters) * cumulative[-1]
    return np.minimum(np.searchsorted(cumulative, points, side="right"), len(cumulative) - 1)


def _usable(drawn: Indices, rows: Indices, seen: Indices, items: int) -> NDArray[np.bool_]:
    """True where a draw is neither in the user's log nor a repetition of an earlier draw of its list."""
    codes = rows[:, None] * items + drawn
    places = np.minimum(np.searchsorted(seen, codes), len(seen) - 1)
    order = np.argsort(drawn, axis=1, kind="stable")
    ordered = np.take_along_axis(drawn, order, axis=1)
    repeated = np.zeros(drawn.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return (seen[places] != codes) & ~repeated


def _first(drawn: Indices, usable: NDArray[np.bool_], count: int) -> Indices:
    """The first `count` usable draws of each row, −1 where there are fewer."""
    place = np.cumsum(usable, axis=1) - 1
    row, column = np.nonzero(usable & (place < count))
    taken = np.full((len(drawn), count), -1, dtype=np.int64)
    taken[row, place[row, column]] = drawn[row, column]
    return taken


def _complete(
    wrong: Indices, key: Keys, row: np.int64, seen: Indices, weights: NDArray[np.float64], offset: int
) -> None:
    """Fill the −1 left in one list exactly: the items with the smallest exponential clocks of rate `weight` come first.

    The order in which such clocks ring is that of drawing without replacement (Efraimidis & Spirakis, IPL 2006).
    """
    items = len(weights)
    clocks = -np.log1p(-uniforms(key, np.arange(offset, offset + items, dtype=np.uint64))[0]) / weights
    low, high = np.searchsorted(seen, [row * items, (row + 1) * items])
    have = wrong[wrong >= 0]
    clocks[seen[low:high] - row * items] = np.inf
    clocks[have] = np.inf
    missing = len(wrong) - len(have)
    best = np.argsort(clocks, kind="stable")[:missing]
    if len(best) < missing or np.isinf(clocks[best]).any():
        raise ValueError(f"row {row}: fewer than {len(wrong)} of {items} items are not in the user's log")
    wrong[len(have) :] = best


def _shuffled(keys: Keys, targets: Indices, wrong: Indices) -> Lists:
    """Put each target at a random place: weighted draws come popular ones first, which must not show."""
    size = wrong.shape[1] + 1
    order = np.argsort(uniforms(keys, np.arange(size, dtype=np.uint64)), axis=1, kind="stable")
    candidates = np.take_along_axis(np.concatenate([targets[:, None], wrong], axis=1), order, axis=1)
    return Lists(candidates, np.argmin(order, axis=1))
