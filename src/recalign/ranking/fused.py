"""A fitted fusion as a recommender: ID recommenders and a language model that answer together.

Lists of candidates are ranked as in the evaluation: each part's scores are standardised over the list. In the whole
catalogue an ID recommender's are standardised over what is not excluded, and the language model's by the mean and
deviation of a fixed sample of that. So a fused score is, but for a factor, the language model's with a term of the
title's own, and the search over the tree of titles finds the best ones: that of scoring everything, few titles read.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from recalign.data.records import Items, hashed_order
from recalign.evaluation.metrics import Floats, order_of_equals
from recalign.evaluation.ranking_rule import RankingRule
from recalign.evaluation.systems import FUSION
from recalign.params.recommenders import RecommenderName
from recalign.ranking.fusion import Bools, Fusion, moments, standardised
from recalign.ranking.language_model import Asked, LanguageModelRecommender
from recalign.ranking.trial import Ranker, scores_of
from recalign.recommenders.recommender import Recommender, Request, Scored, cases_at_once

SAMPLE = 64  # titles that tell the mean and deviation of a language model's scores over the catalogue


class FusedRecommender:
    """Ranks by the weighted sum of standardised scores. `fusion` names the parts: `ids` and the language model."""

    name = FUSION

    def __init__(
        self,
        fusion: Fusion,
        ids: Mapping[RecommenderName, Recommender],
        catalogue: Items,
        language_model: LanguageModelRecommender | None = None,
    ) -> None:
        """`ids` by name; the language model's part is called by its own name. Without weight it is never asked, and
        need not be given."""
        self.fusion = fusion
        self.ids: dict[str, Recommender] = {name: part for name, part in ids.items() if name in fusion.used}
        self.catalogue = catalogue
        self.weight = fusion.used.get(language_model.name, 0.0) if language_model else 0.0
        self.language_model = language_model if self.weight else None

    @property
    def over_catalogue(self) -> RankingRule:
        """What ranks the whole catalogue by the language model's part; the simplest rule where there is none."""
        return self.language_model.over_catalogue if self.language_model else RankingRule()

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] fused scores of equally long candidate lists, or [B, items] of the catalogue in ascending item id."""
        if candidates is None:
            return torch.from_numpy(self._catalogue_scores(requests))
        parts: dict[str, Ranker] = dict(self.ids)
        if self.language_model:
            parts[self.language_model.name] = self.language_model
        scored = {name: scores_of(part, requests, candidates) for name, part in parts.items()}
        return torch.from_numpy(self.fusion.scores(scored))

    def rank_items(
        self, history: Sequence[int | str], candidates: Sequence[int] | None, k: int, *, profile: str | None = None
    ) -> list[Scored]:
        """What `rank_many` answers to one."""
        return self.rank_many([Asked(history, candidates, k, profile)])[0]

    def rank_many(self, asked: Sequence[Asked]) -> list[list[Scored]]:
        """The k best items of each, best first, equals by lot or id (`Asked`); their titles share forward passes.

        ID recommenders leave titles out of histories that the catalogue lacks.
        """
        answers: list[list[Scored]] = [[] for _ in asked]
        listed = [number for number, each in enumerate(asked) if each.candidates]
        open_ended = [number for number, each in enumerate(asked) if each.candidates is None]
        size = cases_at_once(len(self.catalogue.ids))
        for answer, numbers in ((self._best_of_lists, listed), (self._best_of_catalogue, open_ended)):
            for start in range(0, len(numbers), size):
                block = numbers[start : start + size]
                for number, best in zip(block, answer([asked[number] for number in block]), strict=True):
                    answers[number] = best
        return answers

    def _best_of_lists(self, asked: Sequence[Asked]) -> list[list[Scored]]:
        lists = [list(dict.fromkeys(each.candidates or ())) for each in asked]
        fused = [self._by_ids([each.history], [items])[0] for each, items in zip(asked, lists, strict=True)]
        if self.language_model:
            wanted = [replace(each, candidates=items, k=len(items)) for each, items in zip(asked, lists, strict=True)]
            for row, items, ranked in zip(fused, lists, self.language_model.rank_many(wanted), strict=True):
                told = {scored.item_id: scored.score for scored in ranked}
                row += self.weight * standardised(np.array([[told[item] for item in items]]))[0]
        return [_best(row, items, each) for row, items, each in zip(fused, lists, asked, strict=True)]

    def _by_ids(
        self, histories: Sequence[Sequence[int | str]], candidates: list[list[int]] | None, over: Bools | None = None
    ) -> Floats:
        """[B, C] the ID recommenders' part of the fused score, or [B, items], standardised `over` some columns."""
        requests = [Request(None, tuple(item for item in history if isinstance(item, int))) for history in histories]
        summed = np.zeros((len(requests), len(candidates[0] if candidates else self.catalogue.ids)))
        for name, part in self.ids.items():
            summed += self.fusion.used[name] * standardised(scores_of(part, requests, candidates), over)
        return summed

    def _catalogue_scores(self, requests: list[Request]) -> Floats:
        """[B, items] by scoring every title."""
        over = self._open_to([request.unranked for request in requests])
        fused = self._by_ids([request.history for request in requests], None, over)
        if self.language_model:
            fused += self.weight * standardised(scores_of(self.language_model, requests, None), self._sampled(over))
        return fused

    def _best_of_catalogue(self, asked: Sequence[Asked]) -> list[list[Scored]]:
        """The best of the catalogue minus what is excluded, as `_catalogue_scores` has them."""
        over = self._open_to([each.unranked for each in asked])
        by_ids = self._by_ids([each.history for each in asked], None, over)
        if self.language_model:
            return self._searched(self.language_model, asked, by_ids, self._sampled(over))
        return [self._unread(row, each) for row, each in zip(by_ids, asked, strict=True)]

    def _unread(self, row: Floats, asked: Asked) -> list[Scored]:
        """The best by scores [items] alone."""
        return _best(row, self.catalogue.ids, asked, asked.unranked)

    def _searched(
        self, model: LanguageModelRecommender, asked: Sequence[Asked], by_ids: Floats, sampled: Bools
    ) -> list[list[Scored]]:
        """A title's fused score is `scale` × (the model's score of it + its own term): what the model's search finds.

        The sample is read by the rule of the search, which need not be that of lists. Where all of a sample scores
        alike, the language model has nothing to say.
        """
        model = model.as_over_catalogue
        samples = [[self.catalogue.ids[column] for column in np.flatnonzero(row)] for row in sampled]
        read = [replace(each, candidates=items, k=len(items)) for each, items in zip(asked, samples, strict=True)]
        answers, scales, wanted = [], {}, []
        for number, (each, row, told) in enumerate(zip(asked, by_ids, model.rank_many(read), strict=True)):
            answers.append(self._unread(row, each))
            mean, deviation = (m.item() for m in moments(np.array([[scored.score for scored in told]])))
            if deviation > 0:
                scales[number] = self.weight / deviation
                terms = row / scales[number] - mean
                wanted.append(replace(each, terms=dict(zip(self.catalogue.ids, terms.tolist(), strict=True))))
        for (number, scale), found in zip(scales.items(), model.rank_many(wanted), strict=True):
            answers[number] = [Scored(scored.item_id, scale * scored.score) for scored in found]
        return answers

    def _open_to(self, excluded: Sequence[Collection[int | str]]) -> Bools:
        """[B, items] what scores are standardised over: what is not excluded; all where all is."""
        over = np.ones((len(excluded), len(self.catalogue.ids)), dtype=bool)
        for row, items in enumerate(excluded):
            over[row, [self._column[item] for item in items if item in self._column]] = False
        return over | ~over.any(axis=1, keepdims=True)

    def _sampled(self, over: Bools) -> Bools:
        """[B, items] the first `SAMPLE` of each row of `over`, in an order that is always the same."""
        ordered = over[:, self._order]
        sampled = np.zeros_like(over)
        sampled[:, self._order] = ordered & (ordered.cumsum(axis=1) <= SAMPLE)
        return sampled

    @cached_property
    def _column(self) -> dict[int | str, int]:
        return {item: column for column, item in enumerate(self.catalogue.ids)}

    @cached_property
    def _order(self) -> list[int]:
        return [self._column[item] for item in sorted(self.catalogue.ids, key=hashed_order)]


def _best(scores: Floats, items: Sequence[int], asked: Asked, less: Collection[int | str] = ()) -> list[Scored]:
    """The k best of items [C] by scores [C], `less` some; equals by lot, or by ascending id without a case."""
    keyed = zip((-scores).tolist(), order_of_equals(asked.case, items), items, strict=True)
    return [Scored(item, -cost) for cost, _, item in sorted(key for key in keyed if key[2] not in less)[: asked.k]]
