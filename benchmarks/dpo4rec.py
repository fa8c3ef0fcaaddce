"""What the machinery of DPO4Rec finds where texts must help: the simulator's planted tastes as texts.

    python benchmarks/dpo4rec.py [--users 300] [--cut 3] [--seeds 1 2 3]
    python benchmarks/dpo4rec.py --texts statements --base data/models/base

Each seed is a world of its own. Histories are cut to their last `cut` items, so that they hide what the text tells:
what is planted in the user, at the time of the window; with --texts statements or counting what that engine infers from
the history before it was cut. Measured on T, users whom neither first stage nor reranker met:
the text against none and against other users' (swap control), and whether of four texts (the whole text, two with
a part of another user's, and another user's whole) the reward prefers the truer ones. Prints worlds one by one and all
pooled, with 95 % intervals over users, and the difference that so many users could show (power 0.8).
"""

import argparse
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.data.simulator import START, Taste, days_since_start, load_catalogue, simulate
from recalign.evaluation.significance import Interval, bootstrap_interval, signed
from recalign.llm.model.base import load_language_model
from recalign.params.load import Params, load_params
from recalign.preferences.inference.engines import StatementScorer
from recalign.preferences.profiles.profiles import COUNTING, closed_statements, strongest_lifts
from recalign.preferences.reward import GROUPS, Group, group_of, mean_rewards, paired, swapped
from recalign.preferences.tastes.text import TasteText, truthful_text
from recalign.preferences.tastes.writer import Written
from recalign.ranking.rerank import Loop, Window, World, reranked, unreranked

TRUTHFUL = "truth"
TRUTH = {0: 1.0, 1: 0.75, 2: 0.25, 3: 0.0}  # share of the five planted values that a text of each place keeps, about


@dataclass
class TruthWriter:
    """Writes what is planted. In place 0 the truth; further places put another user's values in place of own ones."""

    tastes: Mapping[int, dict[str, tuple[str, ...]]]
    titles: Mapping[int, str]
    fidelity: dict[str, float] = field(default_factory=dict)

    def write(
        self, histories: Mapping[int, Sequence[int]], count: int, seed: int, *, store: Path | None, batch: int
    ) -> Written:
        """Texts of each user; `fidelity` keeps which share of its values a text says truly."""
        written = Written({user: [] for user in histories})
        users = sorted(self.tastes)
        for user, history in histories.items():
            for place in range(count):
                draw = random.Random(f"{seed}-{user}-{place}")
                other = draw.choice([own for own in users if own != user])
                text, kept = self._text(user, other, TRUTH[place % len(TRUTH)], draw, self.titles[history[-1]])
                self.fidelity[text.read()] = kept
                written.texts[user].append(text)
        return written

    def _text(self, user: int, other: int, share: float, draw: random.Random, title: str) -> tuple[TasteText, float]:
        told, kept, total = {}, 0, 0
        for attribute, values in self.tastes[user].items():
            own = [draw.random() < share for _ in values]
            told[attribute] = tuple(
                mine if true else theirs
                for mine, theirs, true in zip(values, self.tastes[other][attribute], own, strict=True)
            )
            kept += sum(value in values for value in told[attribute])
            total += len(values)
        return truthful_text(told, [title], "films"), kept / total


@dataclass
class ClaimWriter(TruthWriter):
    """Writes what an engine claims, likewise: further places put another user's claims in place of own ones.

    claims: phrases by user, best first; `tastes` is not read.
    """

    claims: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def _text(self, user: int, other: int, share: float, draw: random.Random, title: str) -> tuple[TasteText, float]:
        mine, theirs = self.claims[user], self.claims[other]
        told = [
            own if draw.random() < share or place >= len(theirs) else theirs[place] for place, own in enumerate(mine)
        ]
        said = ", ".join(told) or "nothing in particular"
        kept = sum(phrase in mine for phrase in told) / max(len(told), 1)
        return TasteText(said, "nothing in particular", (("genre", said),), (title,), f"Likes {said}."), kept


def claims_of(
    engine: str, base: Path, params: Params, world: World, whole: Mapping[int, tuple[int, ...]]
) -> dict[int, tuple[str, ...]]:
    """What an engine claims of each user from the history before it was cut; base rates are of R's histories."""
    taught = Counter(item for window in world.windows["R"] for item in whole[window.user_id])
    statements = closed_statements(world.items.shown, taught, world.noun)
    if engine == COUNTING:
        found = {user: strongest_lifts(statements, history, params.profiles.claims) for user, history in whole.items()}
    else:
        model = load_language_model(base, params.base, threads=1)
        scorer = StatementScorer(model, world.items, world.noun)
        found = scorer.claims(statements, whole, params.profiles.claims, store=None, batch=params.profiles.batch)
    return {user: tuple(statement.phrase for statement, _ in own) for user, own in found.items()}


@dataclass(frozen=True)
class Planted:
    """A simulated world, who writes what is planted in it, and each user's history before it was cut."""

    world: World
    writer: TruthWriter
    whole: Mapping[int, tuple[int, ...]]


def world_of(params: Params, seed: int, users: int, cut: int) -> Planted:
    """A simulated world: so many users, the last dpo4rec.window films of each to be foretold."""
    tastes, events = simulate(users * 2, 1440, seed)
    shown, window = load_catalogue(), params.dpo4rec.window
    attributes = {
        item: {
            "genre": [name for name, there in zip(shown.genre_names, shown.genres[row], strict=True) if there],
            "director": [str(shown.directors[row])],
            "year": [str(int(shown.years[row]))],
        }
        for row, item in enumerate(shown.ids)
    }
    titles = dict(zip(shown.ids, shown.titles, strict=True))
    items = Items(shown.ids, titles, attributes, dict.fromkeys(shown.ids, 1))
    by_user: dict[int, list[tuple[int, float]]] = {}
    for user, item, time in events:
        by_user.setdefault(user, []).append((item, days_since_start(time)))
    chosen = [user for user in sorted(by_user) if len(by_user[user]) >= window + 10][:users]
    shares = dict(zip(GROUPS, params.dpo4rec.shares.model_dump().values(), strict=True))
    windows: dict[Group, list[Window]] = {group: [] for group in GROUPS}
    rows, planted, whole = [], {}, {}
    known: dict[int, Taste] = {taste.user_id: taste for taste in tastes}
    for user in chosen:
        before, after = by_user[user][:-window], by_user[user][-window:]
        met, group = [item for item, _ in before], group_of(user, shares, seed)
        whole[user] = tuple(met)
        windows[group].append(Window(user, tuple(met[-cut:]), frozenset(i for i, _ in after), frozenset(met)))
        planted[user] = known[user].likes(after[0][1])
        if group == "R":
            rows += [(user, item, day, place) for place, (item, day) in enumerate(before[-cut:])]
    users_, items_, days, places = zip(*rows, strict=True)
    times = pa.array([int(day * 86400e6) + int(START.timestamp() * 1e6) for day in days], pa.timestamp("us"))
    taught = pa.table({c.USER: users_, c.ITEM: items_, c.TIMESTAMP: times, c.POSITION: places})
    return Planted(World(items, "films", True, windows, taught), TruthWriter(planted, titles), whole)


@dataclass(frozen=True)
class Measured:
    """Per user of T: the text's metric minus another arm's; per pair of P: fidelity of chosen minus rejected."""

    users: list[str]
    gains: dict[str, list[float]]
    pair_users: list[str]
    fidelity: list[float]
    given: int


def measure(params: Params, seed: int, users: int, cut: int, texts: str, base: Path) -> Measured:
    """One world."""
    planted = world_of(params, seed, users, cut)
    world, writer = planted.world, planted.writer
    if texts != TRUTHFUL:
        claims = claims_of(texts, base, params, world, planted.whole)
        writer = ClaimWriter(writer.tastes, writer.titles, claims=claims)
    loop = Loop.open(replace_seed(params, seed), world, None)
    written = loop.write(writer, {"R": 1, "P": 4, "V": 1, "T": 1})
    reranker, _ = loop.reranker(written)
    cases, truth = loop.cases["T"], written["T"].read()
    other = swapped(truth, seed)
    own = reranked(reranker, cases, truth)["ndcg_at_10"]
    gains = {
        "text − no text, NDCG@10": own - reranked(reranker, cases, None)["ndcg_at_10"],
        "text − swapped, NDCG@10": own - reranked(reranker, cases, other)["ndcg_at_10"],
        "text − unreranked, NDCG@10": own - unreranked(cases)["ndcg_at_10"],
        "text − swapped, NDCG@5": mean_rewards(reranker, truth, cases) - mean_rewards(reranker, other, cases),
    }
    found = paired(reranker, written["P"].read(), loop.cases["P"], params.dpo4rec.least_gap)
    fidelity = [writer.fidelity[pair.chosen] - writer.fidelity[pair.rejected] for pair in found.pairs]
    return Measured(
        [f"{seed}-{case.user_id}" for case in cases],
        {name: values.tolist() for name, values in gains.items()},
        [f"{seed}-{pair.user_id}" for pair in found.pairs],
        fidelity,
        len(found.rewards),
    )


def replace_seed(params: Params, seed: int) -> Params:
    """The params with another seed."""
    return params.model_copy(update={"seed": seed})


def pooled(parts: Sequence[Measured]) -> Measured:
    """All worlds as one sample of users."""
    first = parts[0]
    for part in parts[1:]:
        first = replace(
            first,
            users=first.users + part.users,
            gains={name: first.gains[name] + part.gains[name] for name in first.gains},
            pair_users=first.pair_users + part.pair_users,
            fidelity=first.fidelity + part.fidelity,
            given=first.given + part.given,
        )
    return first


def interval(values: Sequence[float], users: Sequence[str]) -> Interval:
    """Mean with its interval over users."""
    number = {user: place for place, user in enumerate(users)}
    return bootstrap_interval(np.array(values), [number[user] for user in users], 2000, 1)


def lines(name: str, found: Measured) -> list[str]:
    """What is printed of a world."""
    told = [f"{name}: {len(found.users)} users in T, {len(found.pair_users)} of {found.given} in P give a pair"]
    for what, values in found.gains.items():
        detectable = 2.8 * float(np.std(values, ddof=1)) / len(values) ** 0.5
        told.append(f"  {what:<28} {signed(interval(values, found.users))}   could show {detectable:.3f}")
    if found.fidelity:
        told.append(f"  fidelity, chosen − rejected   {signed(interval(found.fidelity, found.pair_users))}")
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--cut", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--encoder", choices=("tfidf", "minilm"), default="tfidf")
    parser.add_argument("--listed", type=int, default=100)
    parser.add_argument("--texts", choices=(TRUTHFUL, COUNTING, "statements"), default=TRUTHFUL)
    parser.add_argument("--base", type=Path, default=Path("data/models/base"))
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    changed = {"encoder": asked.encoder, "listed": asked.listed}
    params = params.model_copy(update={"dpo4rec": params.dpo4rec.model_copy(update=changed)})
    parts = []
    for seed in asked.seeds:
        parts.append(measure(params, seed, asked.users, asked.cut, asked.texts, asked.base))
        print("\n".join(lines(f"world {seed}", parts[-1])), flush=True)
    print("\n".join(lines("all", pooled(parts))))


if __name__ == "__main__":
    main()
