"""A fitted fusion as a recommender: ID recommenders and a language model that answer together.

Lists of candidates are ranked as in the evaluation: each part's scores are standardised over the list. The best of the
whole catalogue are found without asking the language model for every title. Its deviation comes from a fixed sample of
titles; its best titles bound the scores of all others; only where that bound leaves a title a chance is it scored too
(the idea of the threshold algorithm, Fagin, Lotem and Naor 2003), so that the answer is that of scoring everything.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from recalign.data.records import hashed_order
from recalign.evaluation.ranking import Floats
from recalign.evaluation.scorecard import FUSION
from recalign.params import RecommenderName
from recalign.recommenders.fusion import Fusion, standardised
from recalign.recommenders.language_model import Asked, LanguageModelRecommender
from recalign.recommenders.seam import Recommender, Request, Scored
from recalign.recommenders.trial import Ranker, scores_of

log = logging.getLogger(__name__)
SAMPLE = 64  # titles that tell the mean and deviation of a language model's scores over the catalogue
SEARCHED = 50  # of its best titles; what is not among them is bounded by the last one


class FusedRecommender:
    """Ranks by the weighted sum of standardised scores. `fusion` names the parts: `ids` and the language model."""

    name = FUSION

    def __init__(
        self, fusion: Fusion, ids: Mapping[RecommenderName, Recommender], language_model: LanguageModelRecommender
    ) -> None:
        """`ids` by name; the language model's part is called by its own name."""
        self.fusion = fusion
        self.ids: dict[str, Recommender] = {name: part for name, part in ids.items() if name in fusion.used}
        self.language_model = language_model
        self.catalogue = language_model.catalogue

    @property
    def weight(self) -> float:
        """The language model's weight; at 0 it is never asked."""
        return self.fusion.used.get(self.language_model.name, 0.0)

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] fused scores of equally long candidate lists, or [B, items] of the catalogue in ascending item id."""
        parts: dict[str, Ranker] = dict(self.ids)
        if self.weight:
            parts[self.language_model.name] = self.language_model
        scored = {name: scores_of(part, requests, candidates) for name, part in parts.items()}
        return torch.from_numpy(self.fusion.scores(scored))

    def rank_many(self, asked: Sequence[Asked]) -> list[list[Scored]]:
        """The k best items of each, best first; one after the other."""
        return [self.rank_items(each.history, each.candidates, each.k, profile=each.profile) for each in asked]

    def rank_items(
        self, history: Sequence[int | str], candidates: Sequence[int] | None, k: int, *, profile: str | None = None
    ) -> list[Scored]:
        """As `LanguageModelRecommender.rank_items`; ID recommenders leave titles out that the catalogue lacks."""
        seen = set(history)
        items = [item for item in self.catalogue.ids if item not in seen] if candidates is None else [*candidates]
        items = list(dict.fromkeys(items))
        if not items:
            return []
        fused = dict(zip(items, self._by_ids(history, items).tolist(), strict=True))
        if not self.weight:
            return _best(fused, k)
        if candidates is None:
            return self._best_of_catalogue(history, fused, k, profile)
        own = self._by_language_model(history, items, profile)
        told = standardised(np.array([[own[item] for item in items]]))[0]
        return _best({item: fused[item] + self.weight * z for item, z in zip(items, told.tolist(), strict=True)}, k)

    def _by_ids(self, history: Sequence[int | str], items: Sequence[int]) -> Floats:
        """[items] the ID recommenders' part of the fused score."""
        request = Request(None, tuple(item for item in history if isinstance(item, int)))
        summed = np.zeros(len(items))
        for name, part in self.ids.items():
            summed += self.fusion.used[name] * standardised(scores_of(part, [request], [list(items)]))[0]
        return summed

    def _by_language_model(
        self, history: Sequence[int | str], items: Sequence[int], profile: str | None
    ) -> dict[int, float]:
        ranked = self.language_model.rank_items(history, items, len(items), profile=profile)
        return {scored.item_id: scored.score for scored in ranked}

    def _best_of_catalogue(
        self, history: Sequence[int | str], by_ids: Mapping[int, float], k: int, profile: str | None
    ) -> list[Scored]:
        """Exact under the sample's mean and deviation: a title is left unscored only where it cannot be among the k."""
        sample = sorted(by_ids, key=hashed_order)[:SAMPLE]
        told = self._by_language_model(history, sample, profile)
        mean, deviation = float(np.mean([*told.values()])), float(np.std([*told.values()]))
        if not deviation > 0:
            return _best(by_ids, k)
        found = self.language_model.rank_items(history, None, max(k, SEARCHED), profile=profile)
        told |= {scored.item_id: scored.score for scored in found}
        bound = found[-1].score  # of every title that was not found
        scale = self.weight / deviation
        while True:
            fused = {item: by_ids[item] + scale * (score - mean) for item, score in told.items()}
            best = _best(fused, k)
            least = best[-1].score if len(best) == k else -np.inf
            rest = sorted(by_ids.keys() - told.keys(), key=lambda item: (-by_ids[item], item))
            open_ = [item for item in rest if by_ids[item] + scale * (bound - mean) >= least]
            if not open_:
                log.info("fusion: the best %d of %d titles; the language model read %d", k, len(by_ids), len(told))
                return best
            told |= self._by_language_model(history, open_[: len(told)], profile)  # twice as many each time


def _best(scores: Mapping[int, float], k: int) -> list[Scored]:
    """The k best, best first; equals by ascending item id."""
    ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
    return [Scored(item, score) for item, score in ranked]
