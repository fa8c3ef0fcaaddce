"""Why an item is on a list, in a few words: the liked items that speak for it where the model adds them up.

Item-kNN and EASE score an item by a sum over the history, so the two largest terms are the reason, exactly. Of the
other systems only what they rank by is said: nothing is made up for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recalign.data.records import Items
from recalign.evaluation.metrics import Floats
from recalign.evaluation.systems import FUSION
from recalign.ranking.trial import Ranker
from recalign.recommenders.ease import EASE
from recalign.recommenders.item_knn import ItemKNN
from recalign.recommenders.store import Transplanted

Ids = NDArray[np.int64]
Explain = Callable[[Sequence[tuple[int, ...]], Sequence[Sequence[int]]], list[list[str]]]  # histories, listed items

POPULAR = "popular"
COLD = "popular; nothing is known of this person's taste"
LIKE, LATELY = "like what this person liked", "like what this person liked lately"
NOTHING = "nothing that this person liked points to it"
RERANKED = "chosen by the language model from the first stage's best"
REASONS = {
    "popularity": POPULAR,
    "recent_popularity": "popular lately",
    "item_knn": f"{POPULAR}; {NOTHING}",  # where no liked item votes
    "ease": NOTHING,
    "markov": "often follows what this person liked lately",
    "sasrec": LATELY,
    "gru4rec": LATELY,
    "caser": LATELY,
    "mcrl": LATELY,
    "dreamrec": LATELY,
    "content": "described like what this person liked",
    "content_prior": "popular, or described like what is",
    FUSION: LIKE,
}
NAMED = 2  # liked items in a reason
PAIRS = 2**20  # of a liked and a listed item that are looked up at once


def explainer(ranker: Ranker, catalogue: Items) -> Explain:
    """What gives the reasons of a system's lists."""
    model = ranker.recommender if isinstance(ranker, Transplanted) else ranker
    words = REASONS[ranker.name]
    if isinstance(model, ItemKNN | EASE):
        return Contributions(model, catalogue, words)
    return lambda histories, lists: [[words] * len(items) for items in lists]


@dataclass(frozen=True)
class Contributions:
    """Names the liked items that add most to the score of a listed one; `words` where none adds anything."""

    model: ItemKNN | EASE
    catalogue: Items
    words: str

    def __call__(self, histories: Sequence[tuple[int, ...]], lists: Sequence[Sequence[int]]) -> list[list[str]]:
        """A reason for each listed item of each history (oldest first); of equal terms the later like is named."""
        found: list[list[str]] = []
        start = pairs = 0
        for end, (history, items) in enumerate(zip(histories, lists, strict=True), start=1):
            pairs += len(history) * len(items)
            if pairs >= PAIRS or end == len(histories):
                found += self._explained(histories[start:end], lists[start:end])
                start, pairs = end, 0
        return found

    def _explained(self, histories: Sequence[tuple[int, ...]], lists: Sequence[Sequence[int]]) -> list[list[str]]:
        liked = np.array([item for history in histories for item in reversed(history)], dtype=np.int64)
        listed = np.array([item for items in lists for item in items], dtype=np.int64)
        lengths = np.array([len(history) for history in histories])
        owner = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
        spans = lengths[owner]  # pairs of each listed item
        firsts = np.cumsum(spans) - spans
        places = np.arange(spans.sum()) - np.repeat(firsts, spans)  # 0 is the latest like
        which = np.repeat((np.cumsum(lengths) - lengths)[owner], spans) + places
        terms = self._terms(liked[which], np.repeat(listed, spans), places)
        named: list[list[str]] = [[] for _ in listed]
        for _ in range(NAMED):
            for item, pair in _largest(terms, spans):
                named[item].append(self.catalogue.titles[int(liked[which[pair]])])
                terms[pair] = 0.0
        texts = iter([f"because of {' and '.join(titles)}" if titles else self.words for titles in named])
        return [[next(texts) for _ in items] for items in lists]

    def _terms(self, liked: Ids, listed: Ids, back: Ids) -> Floats:
        """[pairs] what each liked item, `back` likes ago, adds to the score of a listed one; 0 where one is unknown."""
        known = np.array(self.model.catalogue.ids, dtype=np.int64)
        rows, columns = _places(known, liked), _places(known, listed)
        both = (rows >= 0) & (columns >= 0)
        terms = np.zeros(len(liked))
        if isinstance(self.model, EASE):
            terms[both] = self.model.weights[rows[both], columns[both]]
            return terms
        votes = self.model.votes
        votes.sort_indices()  # looked up by halving then, not by reading whole rows
        picked = votes[rows[both], columns[both]]
        terms[both] = picked.toarray().ravel() if hasattr(picked, "toarray") else np.asarray(picked).ravel()
        recency = self.model.settings.recency
        return terms if recency is None else terms * np.exp(-back / recency)


def _places(known: Ids, wanted: Ids) -> Ids:
    """The place of each wanted id among the known ones (ascending), −1 where it is none."""
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[places] == wanted, places, -1)


def _largest(terms: Floats, spans: Ids) -> list[tuple[int, int]]:
    """(group, place of its largest term) of each group of so many terms; groups without one above 0 are left out."""
    filled = np.flatnonzero(spans)
    if not len(filled):
        return []
    starts = (np.cumsum(spans) - spans)[filled]
    best = np.maximum.reduceat(terms, starts)
    groups = np.repeat(np.arange(len(filled)), spans[filled])
    at_best = np.flatnonzero((terms == best[groups]) & (terms > 0))
    own = groups[at_best]
    first = np.diff(own, prepend=-1) > 0  # of equal ones
    return list(zip(filled[own[first]].tolist(), at_best[first].tolist(), strict=True))
