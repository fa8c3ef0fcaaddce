"""What a run of DPO4Rec works on: users divided by hash, their windows, and the reranker that their texts are worth to.

Splitting is by user, so a window may lie before another user's history in time: figures compare arms with one another.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
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
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import closed_statements, strongest_lifts, taste_sentence
from recalign.preferences.reward import GROUPS, Group, Paired, group_of, paired
from recalign.preferences.tastes.writer import Written
from recalign.ranking.rerank import Window, listed_cases
from recalign.recommenders import roster
from recalign.recommenders.item_text import TextReader
from recalign.recommenders.knowledge import KnowledgeReranker, Learning, TextEncoding, fit_reranker, new_reranker
from recalign.recommenders.listed import ListedCase

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


def read_world(params: Params, prepared: Path, *, cut: int | None = None) -> World:
    """The first dpo4rec.users users by hash, each with the last dpo4rec.window items as what is to be foretold.

    cut: most recent items that histories are cut to, None for all. Raises RecalignError where a group is empty.
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
        met = [row[c.ITEM] for row in before]
        group = group_of(user, shares, params.seed)
        kept = before[-cut:] if cut else before
        targets = frozenset(row[c.ITEM] for row in after) - set(met)
        if not targets:
            continue
        windows[group].append(Window(user, tuple(row[c.ITEM] for row in kept), targets, frozenset(met)))
        if group == "R":
            taught += kept
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
        start = new_reranker(world.items, first, encoding, histories, own.listed)
        cases = {group: listed_cases(first, world.items, world.windows[group], own.listed) for group in GROUPS}
        return cls(params, world, cases, start, store)

    def write(self, writer: Writes, groups: Mapping[Group, int]) -> dict[Group, Written]:
        """Texts of these groups, so many a user."""
        return {
            group: writer.write(
                self.world.histories(group), count, self.params.seed, store=self.store, batch=self.params.profiles.batch
            )
            for group, count in groups.items()
        }

    def reranker(self, written: Mapping[Group, Written]) -> tuple[KnowledgeReranker, dict[str, Any]]:
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
