"""The bootstrap against a plain loop, and how often its 95 % intervals hold the truth.

    python benchmarks/evaluation.py --users 100000 --resamples 1000
    python benchmarks/evaluation.py --coverage 1000

The first prints seconds, peak memory and the ratio to a loop over resamples and users, timed on fewer resamples and
scaled up, since it is the same work each time; both give the same means on those. The second draws samples of clustered
users from three laws whose truth is known, each user with a level of his own:

hits        chance to be hit of 0.375 on average, one to ten cases a user, more for users who are hit more often; the
            second system misses a fifth of the first one's hits
rare hits   chance of 0.1 on average, one case for most users and at the most three; the second system has half of it
NDCG@10     ranks among 20 candidates, one to ten cases a user; both systems are about as good and meet the same users
"""

import argparse
import resource
import time

import numpy as np
from scipy.special import ndtr

from recalign.evaluation.metrics import metric_values
from recalign.evaluation.significance import bootstrap_interval, bootstrap_intervals, resampled_means

LOOPED = 5  # resamples that the plain loop is timed on


def plain_loop(values: np.ndarray, users: np.ndarray, resamples: int, seed: int) -> list[float]:
    """The resampled means, one resample and one user at a time."""
    cases: dict[int, list[float]] = {}
    for value, user in zip(values.tolist(), users.tolist(), strict=True):
        cases.setdefault(user, []).append(value)
    lists = [cases[user] for user in sorted(cases)]
    counts = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = counts.multinomial(len(lists), np.full(len(lists), 1.0 / len(lists))).tolist()
        total = size = 0.0
        for times, own in zip(drawn, lists, strict=True):
            total += times * sum(own)
            size += times * len(own)
        means.append(total / size)
    return means


def speed(users: int, resamples: int) -> None:
    """Print the time of one interval and its ratio to the plain loop."""
    generator = np.random.default_rng(0)
    owners = np.concatenate([np.arange(users), generator.integers(0, users, users // 2)])
    values = generator.random(len(owners))
    started, spent = time.perf_counter(), time.process_time()
    bootstrap_interval(values, owners, resamples, 1)
    wall, cpu = time.perf_counter() - started, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = time.process_time()
    slow = plain_loop(values, owners, LOOPED, 1)
    loop = (time.process_time() - spent) * resamples / LOOPED
    fast = resampled_means(values[:, None], owners, LOOPED, 1)[:, 0]
    assert np.allclose(slow, fast, rtol=1e-12), (slow, fast)
    print(f"{users} users, {len(owners)} cases, {resamples} resamples: {wall:.1f} s ({cpu:.1f} CPU s), {peak:.0f} MiB")
    print(f"plain loop: {loop:.1f} CPU s, {loop / cpu:.1f} times as long")


def hits(users: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values [B, 2] of two systems and the users [B]."""
    chance = generator.beta(1.5, 3.0, users)
    owners = np.repeat(np.arange(users), 1 + generator.binomial(9, 0.2 + 0.5 * chance))
    first = generator.random(len(owners)) < chance[owners]
    second = first & (generator.random(len(owners)) < 0.8)
    return np.stack([first, second], axis=1).astype(float), owners


def rare_hits(users: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values [B, 2] of two systems and the users [B]."""
    chance = generator.beta(0.6, 5.4, users)
    owners = np.repeat(np.arange(users), 1 + generator.binomial(2, 0.15, users))
    drawn = generator.random((len(owners), 2)) < chance[owners, None] * [1.0, 0.5]
    return drawn.astype(float), owners


def ndcg(users: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values [B, 2] of two systems and the users [B]."""
    level = generator.normal(size=users)
    owners = np.repeat(np.arange(users), 1 + generator.binomial(9, 0.3, users))
    place = level[owners, None] + generator.normal(size=(len(owners), 2)) + [0.3, 0.4]
    ranks = np.clip(np.ceil(20 * ndtr(place / 1.4)), 1, 20).astype(np.int64)
    return np.stack([metric_values("ndcg_at_10", own) for own in ranks.T], axis=1), owners


LAWS = {"hits": hits, "rare hits": rare_hits, "NDCG@10": ndcg}


def coverage(law: str, simulations: int, users: int, resamples: int) -> tuple[float, float]:
    """Share of simulations whose interval holds the true mean of the first system, and the true paired difference."""
    generator = np.random.default_rng(20261121)
    sample = LAWS[law]
    many, _ = sample(2_000_000, generator)
    truth = np.array([many[:, 0].mean(), (many[:, 0] - many[:, 1]).mean()])
    held = np.zeros(2)
    for seed in range(simulations):
        values, owners = sample(users, generator)
        shown = np.stack([values[:, 0], values[:, 0] - values[:, 1]], axis=1)
        intervals = bootstrap_intervals(shown, owners, resamples, seed)
        held += [interval.low <= true <= interval.high for interval, true in zip(intervals, truth, strict=True)]
    return held[0] / simulations, held[1] / simulations


def main() -> None:
    """Read the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--coverage", type=int, default=0, metavar="SIMULATIONS")
    arguments = parser.parse_args()
    if not arguments.coverage:
        speed(arguments.users, arguments.resamples)
        return
    for law in LAWS:
        for users in (30, 100, 300):
            mean, difference = coverage(law, arguments.coverage, users, arguments.resamples)
            print(f"{law}, {users} users: {mean:.1%} of the means, {difference:.1%} of the differences", flush=True)


if __name__ == "__main__":
    main()
