"""How often the gate lets a model pass that is no better, in a year of weekly tries, and what power it has left.

    python benchmarks/gate.py --ranks data/ranks/ranks.parquet --first item_knn --second ease
    python benchmarks/gate.py --ranks data/ranks/ranks.parquet --first item_knn --second ease --users

A year is 52 tries against one champion. Its cases come from stored ranks: as many as asked for are taken in the order
in which evaluation takes them, and their users are drawn, with replacement, with all their cases; every week the oldest
tenth of the users leaves and as many new ones come, so that two weeks share nine tenths of their cases. A try is judged
by the gate's own functions.

A model that is no better is made of two stored systems, so that differences, ties and users' habits are real ones:

swapped     on each user it is, by lot, better by what the first system gains on the second, or worse by as much
lopsided    on each user it is, by lot, the champion itself, or differs by what the first gains on the second minus
            the mean of that: equal on average, with the skewness of the real difference

`--kept 0` draws a new lot for every user each week (every try is another model: the hardest for one budget), `--kept
0.9` for a tenth of them. A model that is 5 % better is the same, and ranks besides a share of the cases first by lot,
as large as lifts the champion's mean by 5 %. `--users` prints how often one try lets an equal model pass, by the number
of users (of the first 120 cases), also without lots ("shifted": the real difference minus its mean): where
`registry.min_users` comes from.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from recalign.data.records import hashed_order
from recalign.evaluation.metrics import Floats, metric_values
from recalign.evaluation.ranks import SAMPLED, read_system_ranks
from recalign.evaluation.significance import lower_bounds
from recalign.registry.gate import share_of_error

WEEKS, RENEWED = 52, 10  # tries a year; weeks after which no case is left
LIFT = 0.05
CASES = (120, 500, 2000)
NOTHING = 1e-12  # a shifted difference that is zero but for rounding
MANIFEST = "uniform"


@dataclass(frozen=True)
class Population:
    """Stored users: cases [U], the first system's gain on the second [U], and each case's value (NaN: none) [U, C]."""

    sizes: Floats
    gains: Floats
    values: Floats

    @property
    def mean(self) -> float:
        """The first system's metric: the champion's."""
        return float(np.nansum(self.values) / self.sizes.sum())

    @property
    def said(self) -> str:
        """How many cases of how many users."""
        return f"{int(self.sizes.sum()):,} of {len(self.sizes)}"


def read_population(path: Path, first: str, second: str, metric: str, cases: int | None = None) -> Population:
    """The first `cases` cases, in the order in which evaluation takes them, of two systems on uniform candidates."""
    systems = {
        ranks.system: ranks
        for ranks in read_system_ranks(path, {})
        if (ranks.protocol, ranks.manifest) == (SAMPLED, MANIFEST)
    }
    one, other = systems[first], systems[second]
    one.check_comparable(other)
    rows = sorted(range(len(one.ranks)), key=lambda row: hashed_order(one.example_ids[row]))[:cases]
    values, seconds = metric_values(metric, one.ranks[rows]), metric_values(metric, other.ranks[rows])
    _, user = np.unique(np.asarray(one.user_ids)[rows], return_inverse=True)
    sizes = np.bincount(user)
    table = np.full((len(sizes), sizes.max()), np.nan)
    order = np.argsort(user, kind="stable")
    place = np.arange(len(user)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    table[user[order], place] = values[order]
    return Population(sizes.astype(float), np.bincount(user, weights=values - seconds), table)


def no_better(population: Population, law: str, users: np.ndarray, lot: np.ndarray) -> Floats:
    """What a model gains on each drawn user (lot: true or false, half of the time each); zero on average."""
    gains, sizes = population.gains, population.sizes
    if law == "swapped":
        return np.where(lot, gains[users], -gains[users])
    shifted: Floats = gains - sizes * (gains.sum() / sizes.sum())
    return shifted[users] if law == "shifted" else np.where(lot, shifted[users], 0.0)


def lifted(population: Population, users: np.ndarray, generator: np.random.Generator) -> Floats:
    """What ranking a share of a drawn user's cases first, by lot, adds: LIFT of the champion's mean on average."""
    share = LIFT * population.mean / (1.0 - population.mean)
    added = np.zeros(users.shape)
    for column in population.values.T:
        missing = np.nan_to_num(1.0 - column)
        added += np.where(generator.random(users.shape) < share, missing[users], 0.0)
    return added


def years(
    population: Population, law: str, kept: float, count: int, *, better: bool, seed: int, weeks: int = WEEKS
) -> tuple[np.ndarray, np.ndarray]:
    """Which tries of `count` years pass: by the gate's budget, and each at 2.5 % as before; both [weeks, count]."""
    generator = np.random.default_rng(seed)
    group = len(population.sizes)
    shape = (group, count)
    users = generator.integers(0, group, shape)
    lot = generator.random(shape) < 0.5
    added = lifted(population, users, generator) if better else np.zeros(shape)
    passed = np.zeros((2, weeks, count), dtype=bool)
    for week in range(weeks):
        if week:
            gone = np.arange(group) % RENEWED == week % RENEWED
            users[gone] = generator.integers(0, group, (gone.sum(), count))
            if better:
                added[gone] = lifted(population, users[gone], generator)
            redrawn = (generator.random(shape) >= kept) | gone[:, None]
            lot = np.where(redrawn, generator.random(shape) < 0.5, lot)
        sums = no_better(population, law, users, lot) + added
        sizes = population.sizes[users]
        for rule, chance in enumerate((share_of_error(0.05, week + 1), 0.025)):
            passed[rule, week] = lower_bounds(sums, sizes, chance) > NOTHING
    return passed[0], passed[1]


def false_promotions(passed: np.ndarray) -> tuple[float, float, int]:
    """Share of years with a promotion, its one-sided 95 % lower bound (Clopper and Pearson 1934), and how many."""
    hits = int(passed.any(axis=0).sum())
    bound = binomtest(hits, passed.shape[1], alternative="greater").proportion_ci(0.95, "exact").low
    return hits / passed.shape[1], float(bound), hits


def print_years(populations: list[Population], count: int, seed: int) -> None:
    """The two tables: false promotions, and power."""
    print("| no better | lots kept | cases of users | half-years, 2.5 % a try | years | one budget | lower bound |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for law in ("swapped", "lopsided"):
        for kept in (0.0, 0.9):
            for population in populations:
                budget, each = years(population, law, kept, count, better=False, seed=seed)
                rate, bound, _ = false_promotions(budget)
                half, whole = each[: WEEKS // 2].any(axis=0).mean(), each.any(axis=0).mean()
                row = f"{population.said} | {half:.1%} | {whole:.1%} | {rate:.1%} | {bound:.1%}"
                print(f"| {law} | {kept:g} | {row} |", flush=True)
    print("\n| cases of users | try 1 | try 4 | try 13 | try 26 | try 52 | by try 4 | by try 13 | by try 52 |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for population in populations:
        passed, _ = years(population, "swapped", 0.9, count, better=True, seed=seed)
        alone = " | ".join(f"{passed[week - 1].mean():.0%}" for week in (1, 4, 13, 26, 52))
        by = " | ".join(f"{passed[:week].any(axis=0).mean():.0%}" for week in (4, 13, 52))
        print(f"| {population.said} | {alone} | {by} |", flush=True)


def print_users(population: Population, count: int, seed: int) -> None:
    """How often a single try passes an equal model, by users and by the chance that it is allowed."""
    generator = np.random.default_rng(seed)
    chances = [share_of_error(0.05, attempt) for attempt in (1, 10, 52)]
    print("| users | law | " + " | ".join(f"allowed {chance:.3%}" for chance in chances) + " |")
    print("|---:|---|---:|---:|---:|")
    for group in (2, 3, 5, 10, 20, 30, 50, 100):
        for law in ("swapped", "shifted"):
            users = generator.integers(0, len(population.sizes), (group, count))
            sums = no_better(population, law, users, generator.random(users.shape) < 0.5)
            shares = [(lower_bounds(sums, population.sizes[users], chance) > NOTHING).mean() for chance in chances]
            print(f"| {group} | {law} | " + " | ".join(f"{share:.3%}" for share in shares) + " |", flush=True)


def main() -> None:
    """Read the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=Path, default=Path("data/ranks/ranks.parquet"))
    parser.add_argument("--first", default="item_knn", help="the champion")
    parser.add_argument("--second", default="ease")
    parser.add_argument("--metric", default="ndcg_at_10")
    parser.add_argument("--years", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--users", action="store_true", help="one try by the number of users instead")
    arguments = parser.parse_args()
    asked = arguments.ranks, arguments.first, arguments.second, arguments.metric
    population = read_population(*asked)
    print(
        f"{arguments.ranks}: {arguments.first} and {arguments.second}, {arguments.metric}, cases: "
        f"{population.said} users\n"
    )
    if arguments.users:
        print_users(read_population(*asked, CASES[0]), 200_000, arguments.seed)
    else:
        print_years([read_population(*asked, cases) for cases in CASES], arguments.years, arguments.seed)


if __name__ == "__main__":
    main()
