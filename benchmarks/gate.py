"""How often the gate lets a model pass that is no better, in a year of weekly tries, and what power it has left.

    python benchmarks/gate.py --ranks data/ranks/ranks.parquet --first item_knn --second ease
    python benchmarks/gate.py --ranks data/ranks/ranks.parquet --first item_knn --second ease --users
    python benchmarks/gate.py --ranks data/ranks/ranks.parquet --first item_knn --second ease --guards --worse caser

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

`--guards` prints how often the guards refuse an equal model: the users of all views are drawn with replacement, and on
each of them challenger and champion are, by lot, the first system and the second or the other way round, with their
ranks and lists of all views; what is no rank (answers, seconds, megabytes) is not in it. The hardest case is that every
bound is 0. `--worse` is a system that is to be refused: as the challenger against the first one. `--prepared` holds the
items with their train events and attributes.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from recalign.common import columns as c
from recalign.data.records import Items, hashed_order
from recalign.evaluation.metrics import Floats, metric_values
from recalign.evaluation.ranks import SAMPLED, SystemRanks, read_system_ranks
from recalign.evaluation.significance import lower_bounds
from recalign.params.load import Params, load_params
from recalign.project import PREPARED
from recalign.registry.gate import share_of_error
from recalign.registry.guards import VIEWS, Measured, broken, guards

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
        if (ranks.view, ranks.protocol, ranks.manifest) == (c.WARM, SAMPLED, MANIFEST)
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


Views = Mapping[str, SystemRanks]


def read_views(path: Path, system: str) -> dict[str, SystemRanks]:
    """A system's ranks of each view that guards look at."""
    return {
        ranks.view: ranks
        for ranks in read_system_ranks(path, {})
        if (ranks.system, ranks.protocol, ranks.manifest) == (system, SAMPLED, MANIFEST)
        and ranks.view in (c.WARM, *VIEWS.values())
    }


def drawn(first: Views, second: Views, users: Sequence[int], lot: Sequence[bool]) -> dict[str, SystemRanks]:
    """A model that ranks for each drawn user as the first system (lot: true) or as the second, in every view."""
    made = {}
    for view, one in first.items():
        rows: dict[int, list[int]] = {}
        for row, user in enumerate(one.user_ids):
            rows.setdefault(user, []).append(row)
        chosen = [(place, row) for place, user in enumerate(users) for row in rows.get(user, ())]
        if not chosen:
            continue
        own = [(one if lot[place] else second[view], row) for place, row in chosen]
        made[view] = SystemRanks(
            "model", one.protocol, one.manifest, one.digest, tuple(f"{place}-{row}" for place, row in chosen),
            tuple(place for place, _ in chosen), np.array([ranks.ranks[row] for ranks, row in own]),
            np.zeros(len(own)), tuple(ranks.top[row] for ranks, row in own), view,
        )  # fmt: skip
    return made


def refusals(
    params: Params, first: Views, second: Views, items: Items, count: int, seed: int, *, equal: bool
) -> tuple[int, Counter[str], float]:
    """How many of `count` challengers any guard refuses, how many each does, and guards judged on average.

    equal: challenger and champion are each system by lot; else the challenger is the first and the champion the second.
    """
    generator = np.random.default_rng(seed)
    known = sorted({user for ranks in first.values() for user in ranks.user_ids})
    refused, by_guard, judged = 0, Counter[str](), 0
    for _ in range(count):
        users = generator.choice(known, len(known)).tolist()
        lot = (generator.random(len(users)) < 0.5) if equal else np.ones(len(users), dtype=bool)
        new, old = drawn(first, second, users, lot.tolist()), drawn(first, second, users, (~lot).tolist())
        told = guards(params, Measured("new", new), Measured("old", old), items, "")
        names = [guard.name for guard in broken(told)]
        refused += bool(names)
        by_guard.update(names)
        judged += sum(guard.outcome != "not judged" for guard in told) - 1  # the leak probes are no comparison
    return refused, by_guard, judged / count


def with_bounds_of_0(params: Params) -> Params:
    """No change for the worse is allowed: what the guards' error alone keeps from refusing."""
    strict = dict.fromkeys((*VIEWS, "popularity_lift", "mgu", "dgu"), 0.0)
    own = params.registry.model_copy(update={"guards": params.registry.guards.model_copy(update=strict)})
    return params.model_copy(update={"registry": own})


def print_guards(arguments: argparse.Namespace, params: Params) -> None:
    """Refusals of equal models, and of one that is to be refused."""
    items = Items.read(arguments.prepared)
    first, second = (read_views(arguments.ranks, name) for name in (arguments.first, arguments.second))
    counts = ", ".join(f"{view} {len(own.ranks)} of {len(set(own.user_ids))}" for view, own in first.items())
    print(f"cases of users: {counts}; {arguments.draws} draws\n")
    print("| challenger | champion | bounds | refused | 95 % upper bound | guards judged | by |")
    print("|---|---|---|---:|---:|---:|---|")
    runs = [("either by lot", "the other", first, second, strict) for strict in (False, True)]
    if arguments.worse:
        runs.append((arguments.worse, arguments.first, read_views(arguments.ranks, arguments.worse), first, False))
    for new, old, one, other, strict in runs:
        asked, equal = with_bounds_of_0(params) if strict else params, other is not first
        count, by, judged = refusals(asked, one, other, items, arguments.draws, arguments.seed, equal=equal)
        bound = binomtest(count, arguments.draws, alternative="less").proportion_ci(0.95, "exact").high
        told = ", ".join(f"{name} {hits}" for name, hits in by.most_common()) or "none"
        bounds = "all 0" if strict else "of params.yaml"
        share = f"{bounds} | {count / arguments.draws:.1%} | {bound:.1%} | {judged:.1f}"
        print(f"| {new} | {old} | {share} | {told} |", flush=True)


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
    parser.add_argument("--guards", action="store_true", help="how often the guards refuse an equal model instead")
    parser.add_argument("--worse", help="--guards: a system that they are to refuse as well")
    parser.add_argument("--prepared", type=Path, default=PREPARED, help="--guards: where items.parquet lies")
    parser.add_argument("--draws", type=int, default=1000, help="--guards: challengers that are drawn")
    arguments = parser.parse_args()
    if arguments.guards:
        print_guards(arguments, load_params())
        return
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
