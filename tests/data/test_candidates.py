"""Drawing candidate lists: without replacement, by weight, never from the log, each list from its own stream."""

import hashlib
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from recalign.data.preparation.candidates import Lists, draw_candidates, uniforms

ITEMS = 30


def keys(count: int, salt: str = "") -> NDArray[np.uint64]:
    """Keys as preparation makes them: 64 bits of an md5."""
    digests = [hashlib.md5(f"{salt}{n}".encode(), usedforsecurity=False).digest() for n in range(count)]
    return np.array([int.from_bytes(digest[:8], "little") for digest in digests], dtype=np.uint64)


def draw(count: int, log: list[int], size: int, weights: list[float] | None = None, salt: str = "") -> Lists:
    """`count` lists of one user whose log is `log`; the target is its first item."""
    zeros = np.zeros(count, dtype=np.int64)
    weight = np.array(weights or [1.0] * ITEMS)
    return draw_candidates(keys(count, salt), zeros + log[0], zeros, np.sort(np.array(log)), weight, size)


def wrong_items(lists: Lists) -> NDArray[np.int64]:
    """The candidates without the target, [B, C − 1]."""
    keep = np.arange(lists.candidates.shape[1])[None, :] != lists.target_index[:, None]
    return lists.candidates[keep].reshape(len(lists.candidates), -1)


def test_the_stream_is_uniform_and_its_numbers_are_not_correlated() -> None:
    numbers = uniforms(keys(2000), np.arange(50, dtype=np.uint64))

    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    expected = numbers.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 4 / np.sqrt(2000)
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 4 / np.sqrt(2000)


def test_a_list_does_not_depend_on_those_drawn_beside_it() -> None:
    rng = np.random.default_rng(0)
    logs = [np.sort(rng.choice(ITEMS, size=int(n), replace=False)) for n in rng.integers(3, 20, size=40)]
    seen = np.concatenate([row * ITEMS + log for row, log in enumerate(logs)])
    targets = np.array([log[0] for log in logs])
    weights = np.arange(1.0, ITEMS + 1)
    together = draw_candidates(keys(40), targets, np.arange(40), seen, weights, 8)

    for row, log in enumerate(logs):
        alone = draw_candidates(keys(40)[row : row + 1], targets[row : row + 1], np.zeros(1, int), log, weights, 8)
        assert alone.candidates[0].tolist() == together.candidates[row].tolist()
        assert alone.target_index[0] == together.target_index[row]


def test_lists_hold_the_target_and_distinct_items_outside_of_the_log() -> None:
    log = [4, 7, 20, 21]
    lists = draw(500, log, 20)

    assert (lists.candidates[np.arange(500), lists.target_index] == 4).all()
    assert not np.isin(wrong_items(lists), log).any()
    assert all(len(set(row)) == 20 for row in lists.candidates.tolist())


def test_the_target_stands_anywhere_and_popular_items_do_not_stand_first() -> None:
    lists = draw(4000, [0], 5, [1.0 + 9 * (item < 5) for item in range(ITEMS)])

    places = np.bincount(lists.target_index, minlength=5)
    assert np.abs(places - 800).max() < 4 * np.sqrt(4000 * 0.2 * 0.8)
    popular = np.isin(lists.candidates, [1, 2, 3, 4]).sum(axis=0)
    assert np.abs(popular - popular.mean()).max() < 4 * np.sqrt(popular.mean())


def successive_inclusion(weights: dict[int, float], count: int) -> dict[int, float]:
    """Probability of each item to be among `count` weighted draws without replacement, by enumeration."""
    inclusion = dict.fromkeys(weights, 0.0)
    for order in permutations(weights, count):
        probability, left = 1.0, sum(weights.values())
        for item in order:
            probability *= weights[item] / left
            left -= weights[item]
        for item in order:
            inclusion[item] += probability
    return inclusion


@pytest.mark.parametrize("heavy_log", [False, True], ids=["by rejection", "exactly, where rejection cannot finish"])
def test_items_are_drawn_in_proportion_to_their_weight(heavy_log: bool) -> None:
    free = {25: 1.0, 26: 2.0, 27: 3.0, 28: 4.0, 29: 10.0}
    log = list(range(25))
    weights = [1e6 if heavy_log else 0.01] * 25 + list(free.values())
    lists = draw(6000, log, 4, weights, salt=str(heavy_log))

    share = np.bincount(wrong_items(lists).ravel(), minlength=ITEMS) / 6000
    for item, probability in successive_inclusion(free, 3).items():
        assert share[item] == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / 6000))


def test_a_user_with_just_enough_unmet_items_gets_all_of_them() -> None:
    lists = draw(50, list(range(11)), 20)

    assert {tuple(sorted(row)) for row in wrong_items(lists).tolist()} == {tuple(range(11, 30))}


def test_a_user_who_met_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 19 of 30 items"):
        draw(1, list(range(12)), 20)
