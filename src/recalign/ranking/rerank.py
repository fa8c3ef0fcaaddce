"""Reranking: the first stage's n best items, put in another order by any reranker; and what a run of DPO4Rec works on.

A target outside of the n best is a miss for every arm, so arms differ by the reranking alone. DPO4Rec divides users by
hash, so a window may lie before another user's history in time: figures compare arms with one another.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Items, hashed_order
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import Interval, bootstrap_interval
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import closed_statements, strongest_lifts, taste_sentence
from recalign.preferences.reward import GROUPS, Group, Paired, group_of, paired
from recalign.preferences.tastes.writer import Written
from recalign.recommenders import roster
from recalign.recommenders.item_text import TextReader
from recalign.recommenders.knowledge import (
    KnowledgeReranker,
    Learning,
    TextEncoding,
    fit_reranker,
    new_reranker,
    scores_under,
)
from recalign.recommenders.listed import LIST_METRICS, ListedCase, best_columns, list_values
from recalign.recommenders.recommender import Recommender, Request, cases_at_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """A user's history (oldest first), what came right after it, and all that was met before."""

    user_id: int
    history: tuple[int, ...]
    targets: frozenset[int]
    met: frozenset[int]

    @property
    def taken(self) -> frozenset[int]:
        """What no list of this user holds."""
        return self.met | frozenset(self.history)


FEWEST_LISTED = 2  # one item has no order


def listed_length(catalogue: Items, windows: Iterable[Window], n: int) -> int:
    """How long a list of everybody can be: n, or what the user with the fewest unmet items has left.

    Raises RecalignError where that is fewer than FEWEST_LISTED.
    """
    known = frozenset(catalogue.ids)
    left = min((len(known - window.taken) for window in windows), default=n)
    if left < FEWEST_LISTED:
        raise RecalignError(
            f"dpo4rec: a user has met all but {left} of the {len(known)} items of the catalogue, and a list needs "
            f"{FEWEST_LISTED}: raise dpo4rec.window, or bring a log with more items"
        )
    return min(n, left)


def listed_cases(first: Recommender, catalogue: Items, windows: Sequence[Window], n: int) -> list[ListedCase]:
    """Each window with the first stage's n best items that the user had not met, best first, equals by ascending id.

    Lists are equally long: `listed_length`.
    """
    n = listed_length(catalogue, windows, n)
    best: list[list[int]] = []
    step = cases_at_once(len(catalogue.ids))
    for start in range(0, len(windows), step):
        block = windows[start : start + step]
        asked = [Request(w.user_id, w.history, excluded=w.taken) for w in block]
        order = best_columns(first.scores(asked, None).double(), catalogue, asked, n)
        best += [[catalogue.ids[column] for column in row] for row in order.tolist()]
    return [
        ListedCase(w.user_id, w.history, tuple(items), w.targets, w.met) for w, items in zip(windows, best, strict=True)
    ]


def reranked(
    reranker: Recommender, cases: Sequence[ListedCase], texts: Mapping[int, Sequence[str]] | None
) -> dict[str, Floats]:
    """Each metric of each case, [B], under the reranker; texts: of each user, whose lists are measured one by one and
    averaged; None, or a user without any: read without a text."""
    values: dict[str, list[float]] = {metric: [] for metric in LIST_METRICS}
    for case in cases:
        own: list[str | None] = [*(texts or {}).get(case.user_id, ())] or [None]
        scores = scores_under(reranker, case, own)
        for metric in LIST_METRICS:
            values[metric].append(float(list_values(metric, [case] * len(own), list(scores)).mean()))
    return {metric: np.array(found) for metric, found in values.items()}


def unreranked(cases: Sequence[ListedCase]) -> dict[str, Floats]:
    """Each metric of each case, [B], in the first stage's own order."""
    orders = [-np.arange(len(case.listed), dtype=np.float64) for case in cases]
    return {metric: list_values(metric, cases, orders) for metric in LIST_METRICS}


@dataclass(frozen=True)
class Arm:
    """One row of the reranking table: a metric's mean, and its paired difference to the arm `against`."""

    name: str
    metrics: dict[str, Interval]
    gains: dict[str, Interval]


def arms_table(
    arms: Mapping[str, Mapping[str, Floats]], against: str, users: Sequence[int], resamples: int, seed: int
) -> list[Arm]:
    """Every arm's metrics with 95 % intervals, and paired by case against one of them; resampled by user."""
    return [
        Arm(
            name,
            {m: bootstrap_interval(own[m], users, resamples, seed) for m in own},
            {m: bootstrap_interval(own[m] - arms[against][m], users, resamples, seed) for m in own},
        )
        for name, own in arms.items()
    ]


FEWEST_BEFORE = 3  # items of a history; users with fewer before their window are left out


@dataclass(frozen=True)
class World:
    """items, noun and clock of the log; windows of each group's users, in hashed order; events of R before them."""

    items: Items
    noun: str
    clock: bool
    windows: dict[Group, list[Window]]
    events: pa.Table

    def histories(self, group: Group) -> dict[int, tuple[int, ...]]:
        """Each user's items before the window, oldest first."""
        return {window.user_id: window.history for window in self.windows[group]}


class Writes(Protocol):
    """Whoever writes texts: a model, or what is planted (benchmarks/dpo4rec.py)."""

    def write(
        self, histories: Mapping[int, Sequence[int]], count: int, seed: int, *, store: Path | None, batch: int
    ) -> Written:
        """`count` texts of each user, or fewer."""
        ...


def read_world(params: Params, prepared: Path) -> World:
    """The first dpo4rec.users users by hash, each with the last dpo4rec.window items as what is to be foretold.

    Raises RecalignError where a group has fewer than two users.
    """
    own, items, summary = params.dpo4rec, Items.read(prepared).shown, Prepared(prepared)
    items = replace(items, popularity=dict.fromkeys(items.ids, 1))  # R alone teaches, so nothing is known of k-cores
    table = read_parquet(prepared / "events.parquet", [c.USER, c.ITEM, c.TIMESTAMP, c.POSITION])
    table = table.filter(pc.is_in(table[c.ITEM], pa.array(items.ids)))
    users, lengths = np.unique(table[c.USER].to_numpy(), return_counts=True)
    enough = users[lengths >= FEWEST_BEFORE + own.window].tolist()
    chosen = sorted(enough, key=lambda user: hashed_order(params.seed, "dpo4rec-users", user))[: own.users]
    theirs = table.filter(pc.is_in(table[c.USER], pa.array(chosen, pa.int64())))
    by_user: dict[int, list[dict[str, Any]]] = {}
    for row in theirs.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")]).to_pylist():
        by_user.setdefault(row[c.USER], []).append(row)
    shares = dict(zip(GROUPS, own.shares.model_dump().values(), strict=True))
    windows: dict[Group, list[Window]] = {group: [] for group in GROUPS}
    taught = []
    for user in chosen:
        before, after = by_user[user][: -own.window], by_user[user][-own.window :]
        history = tuple(row[c.ITEM] for row in before)
        targets = frozenset(row[c.ITEM] for row in after) - set(history)
        if not targets:
            continue
        group = group_of(user, shares, params.seed)
        windows[group].append(Window(user, history, targets, frozenset(history)))
        if group == "R":
            taught += before
    for group, there in windows.items():
        if len(there) < 2:
            raise RecalignError(
                f"dpo4rec: group {group} has {len(there)} users with {FEWEST_BEFORE + own.window} items or more, of "
                f"{len(chosen)} in all; at least 2 are needed: raise dpo4rec.users, change dpo4rec.shares, or bring a "
                "longer log"
            )
    events = pa.Table.from_pylist(taught, schema=table.schema)
    return World(items, summary.noun, bool(summary.clock), windows, events)


@dataclass
class Loop:
    """One run: what every round shares. cases of each group under the first stage; start: the untrained reranker."""

    params: Params
    world: World
    cases: dict[Group, list[ListedCase]]
    start: KnowledgeReranker
    store: Path | None

    @classmethod
    def open(cls, params: Params, world: World, store: Path | None) -> "Loop":
        """Fit the first stage on R's events before the windows, and list its best items for everybody."""
        own = params.dpo4rec
        first, _ = roster.fit(own.first_stage, world.items, world.events, world.clock, params)
        content = params.recommenders.content
        read = TextReader(content.model, content.revision, params.threads)
        encoding = TextEncoding.open(own.encoder, world.items, read)
        histories = [window.history for window in world.windows["R"]]
        everybody = [window for group in GROUPS for window in world.windows[group]]
        listed = listed_length(world.items, everybody, own.listed)
        if listed < own.listed:
            log.warning(
                "dpo4rec: lists hold %d items, not dpo4rec.listed: of some user no more are left that he has not met",
                listed,
            )
        start = new_reranker(world.items, first, encoding, histories, listed)
        cases = {group: listed_cases(first, world.items, world.windows[group], listed) for group in GROUPS}
        return cls(params, world, cases, start, store)

    def write(self, writer: Writes, groups: Mapping[Group, int]) -> dict[Group, Written]:
        """Texts of these groups, so many a user."""
        written = {}
        for group, count in groups.items():
            histories = self.world.histories(group)
            log.info("texts of group %s: %d of each of %d users", group, count, len(histories))
            written[group] = writer.write(
                histories, count, self.params.seed, store=self.store, batch=self.params.profiles.batch
            )
        return written

    def reranker(self, written: Mapping[Group, Written]) -> tuple[KnowledgeReranker, dict[str, float]]:
        """A reranker trained on R's users with one text each, its pass chosen on V's."""
        looked = (self.cases["V"], self._firsts("V", written["V"]))
        return fit_reranker(
            self.start, self.cases["R"], self._firsts("R", written["R"]), looked, Learning(), self.params.seed
        )

    def _firsts(self, group: Group, written: Written) -> list[str]:
        """The first text of each case's user, empty where there is none."""
        texts = written.read()
        return [(texts.get(case.user_id) or [""])[0] for case in self.cases[group]]

    def paired(self, reranker: KnowledgeReranker, written: Written, group: Group) -> Paired:
        """The group's pairs of texts."""
        return paired(reranker, written.read(), self.cases[group], self.params.dpo4rec.least_gap)

    def counted(self) -> dict[int, list[str]]:
        """T's texts by counting: what is told without any model."""
        counts = Counter(self.world.events[c.ITEM].to_pylist())
        statements = closed_statements(self.world.items.shown, counts, self.world.noun)
        return {
            user: [
                taste_sentence([s.phrase for s, _ in strongest_lifts(statements, history, self.params.profiles.claims)])
            ]
            for user, history in self.world.histories("T").items()
        }
