"""Why an item is on a list, in a few words: the liked items that speak for it where the model adds them up.

Item-kNN and EASE score an item by a sum over the history, so the two largest terms are the reason, exactly. Of the
other systems only what they rank by is said: nothing is made up for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

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
PAIRS = 2**16  # of a liked and a listed item that are looked up at once: bounds the dense part of the votes


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

    @cached_property
    def _titles(self) -> NDArray[np.object_]:
        """The titles of the model's items, then None."""
        return np.array([*(self.catalogue.titles[item] for item in self.model.catalogue.ids), None], dtype=object)

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
        back = np.arange(spans.sum()) - np.repeat(firsts, spans)  # 0 is the latest like
        which = np.repeat((np.cumsum(lengths) - lengths)[owner], spans) + back
        terms = self._terms(liked, listed, which, np.repeat(np.arange(len(listed)), spans))
        if isinstance(self.model, ItemKNN) and self.model.settings.recency is not None:
            terms *= np.exp(-back / self.model.settings.recency)
        rows = _places(self.model.catalogue.ascending, liked)
        named = []
        for _ in range(NAMED):
            pairs = _largest(terms, spans)
            some = pairs >= 0
            chosen = np.full(len(listed), -1)  # the last title is none
            chosen[some] = rows[which[pairs[some]]]
            terms[pairs[some]] = 0.0
            named.append(self._titles[chosen].tolist())
        texts = [
            self.words if one is None else f"because of {one}" if other is None else f"because of {one} and {other}"
            for one, other in zip(*named, strict=True)
        ]
        ends = np.cumsum([len(items) for items in lists]).tolist()
        return [texts[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _terms(self, liked: Ids, listed: Ids, which: Ids, whose: Ids) -> Floats:
        """[pairs] what liked item `which` adds to the score of listed item `whose`, by their places; 0 where one is
        unknown."""
        (rows, row), (columns, column) = (
            np.unique(_places(self.model.catalogue.ascending, wanted), return_inverse=True)
            for wanted in (liked, listed)
        )
        if isinstance(self.model, EASE):
            terms = self.model.weights[rows[row][which], columns[column][whose]].astype(np.float64)
        else:  # a small dense part: looking up pair by pair would search each row anew
            part = self.model.votes[rows][:, columns].toarray()
            terms = part.ravel()[(row * len(columns))[which] + column[whose]].astype(np.float64)
        if min(rows.min(initial=0), columns.min(initial=0)) < 0:
            terms[(rows[row][which] < 0) | (columns[column][whose] < 0)] = 0.0
        return terms


def _places(known: Ids, wanted: Ids) -> Ids:
    """The place of each wanted id among the known ones (ascending), −1 where it is none."""
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[places] == wanted, places, -1)


def _largest(terms: Floats, spans: Ids) -> Ids:
    """[groups] the place of the largest term, the first of equal ones, of each group of so many terms; −1 without one
    above 0."""
    found = np.full(len(spans), -1)
    filled = np.flatnonzero(spans)
    if not len(filled):
        return found
    starts = (np.cumsum(spans) - spans)[filled]
    best = np.maximum.reduceat(terms, starts)
    at_best = np.flatnonzero((terms == np.repeat(best, spans[filled])) & (terms > 0))
    own = np.searchsorted(starts, at_best, side="right") - 1
    first = np.diff(own, prepend=-1) > 0  # of equal ones
    found[filled[own[first]]] = at_best[first]
    return found
