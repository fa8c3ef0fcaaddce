"""A world in which a text tells all: each user takes items of one kind, which the history does not show."""

import random
from dataclasses import dataclass
from functools import cache

import pyarrow as pa

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.ranking.rerank import Window, listed_cases
from recalign.recommenders.item_text import TextReader
from recalign.recommenders.knowledge import KnowledgeReranker, Learning, TextEncoding, fit_reranker, new_reranker
from recalign.recommenders.listed import ListedCase
from recalign.recommenders.popularity import Popularity

KINDS = ("western", "musical", "horror", "animation")
ITEMS, LISTED = 40, 20


@dataclass(frozen=True)
class TasteWorld:
    """cases and texts by user; start: the reranker before training; trained: on users 0 … 119, chosen on 120 … 149."""

    items: Items
    cases: dict[int, ListedCase]
    texts: dict[int, str]
    start: KnowledgeReranker
    trained: KnowledgeReranker


def catalogue() -> Items:
    ids = tuple(range(1, ITEMS + 1))
    kinds = {item: {"genre": [KINDS[item % 4]]} for item in ids}
    return Items(ids, {item: f"Story {item}" for item in ids}, kinds, dict.fromkeys(ids, 5))


def events(items: Items, seen: int = 5) -> pa.Table:
    """Equally many events of every item: the first stage knows no better than ids."""
    rows = [(user, item) for user in range(seen) for item in items.ids]
    return pa.table({c.USER: [row[0] for row in rows], c.ITEM: [row[1] for row in rows]})


@cache
def world(users: int = 220) -> TasteWorld:
    items = catalogue()
    first = Popularity.fit(items, events(items))
    windows, texts = [], {}
    for user in range(users):
        draw = random.Random(user)
        kind = draw.randrange(4)
        own = [item for item in items.ids if item % 4 == kind]
        met = draw.sample([item for item in items.ids if item not in own], 3)
        windows.append(Window(user, tuple(met), frozenset(draw.sample(own, 3)), frozenset(met)))
        texts[user] = f"Likes: {KINDS[kind]} films"
    cases = listed_cases(first, items, windows, LISTED)
    start = new_reranker(
        items, first, TextEncoding.open("tfidf", items, TextReader()), [w.history for w in windows], LISTED
    )
    told = [texts[case.user_id] for case in cases]
    trained, _ = fit_reranker(
        start, cases[:120], told[:120], (cases[120:150], told[120:150]), Learning(epochs=12), seed=1
    )
    return TasteWorld(items, {case.user_id: case for case in cases}, texts, start, trained)
