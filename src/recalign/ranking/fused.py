"""A fitted fusion as a recommender: ID recommenders and a language model that answer together.

Lists of candidates are ranked as in the evaluation: each part's scores are standardised over the list. In the whole
catalogue an ID recommender's are standardised over what is not excluded, and the language model's by the mean and
deviation of a fixed sample of that. So a fused score is, but for a factor, the language model's with a term of the
title's own, and the search over the tree of titles finds the best ones: that of scoring everything, few titles read.

Where new items have weights of their own, known and new items are ranked apart, each standardised among its kind, and
put together as `Fusion.together` says.

Ranks in the whole catalogue of what needs a model: of language models and of the fusion.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recalign.data.records import Items, hashed_order
from recalign.evaluation.metrics import Floats, order_of_equals
from recalign.evaluation.ranking_rule import RankingRule
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.systems import FUSION
from recalign.params.recommenders import RecommenderName
from recalign.ranking.fusion import Bools, FittedFusion, Fusion, gap, moments, or_all, standardised
from recalign.ranking.trial import Ranker, Trial, full_ranks, scores_of, searched_ranks
from recalign.recommenders.recommender import Asked, Recommender, Request, Scored, cases_at_once
from recalign.recommenders.store import ReadsItems

if TYPE_CHECKING:
    from recalign.ranking.language_model import LanguageModelRecommender


SAMPLE = 64  # titles that tell the mean and deviation of a language model's scores over the catalogue


class FusedRecommender:
    """Ranks by the weighted sum of standardised scores. `fusion` names the parts: `ids` and the language model."""

    name = FUSION

    def __init__(
        self,
        fusion: Fusion,
        ids: Mapping[RecommenderName, Recommender],
        catalogue: Items,
        language_model: "LanguageModelRecommender | None" = None,
        new_items: Collection[int] = (),
    ) -> None:
        """`ids` by name; the language model's part is called by its own name. Without weight it is never asked, and
        need not be given. new_items: those of the catalogue that the fusion's weights for new items rank."""
        self.fusion = fusion
        self.ids: dict[str, Recommender] = {name: part for name, part in ids.items() if name in fusion.asked}
        self.catalogue = catalogue
        self.new_items = frozenset(new_items if fusion.new else ())
        weights = [_weight(own, language_model) for own in (fusion, fusion.new)]
        self.language_model = language_model if any(weights) else None

    def read_by(self, item: int) -> str | None:
        """What reads a new item, as 'content + llm-sdpo'; None for one that train events tell of."""
        return self.fusion.read_by if item in self.new_items else None

    @property
    def reads_text(self) -> bool:
        """Whether a part that weighs anything among new items ranks them by what is written of them."""
        own = self.fusion.new or self.fusion
        parts = [part for name, part in self.ids.items() if own.used.get(name, 0.0) > 0]
        return _weight(own, self.language_model) > 0 or any(isinstance(part, ReadsItems) for part in parts)

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
        return torch.from_numpy(self.fusion.scores(scored, self._new(candidates)))

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
        parts = [self._id_scores([each.history], [items]) for each, items in zip(asked, lists, strict=True)]
        new = [self._new([items]) for items in lists]
        if self.language_model:
            read = [place for place, marked in enumerate(new) if self._reads(self.language_model, marked)]
            wanted = [replace(asked[place], candidates=lists[place], k=len(lists[place])) for place in read]
            for place, ranked in zip(read, self.language_model.rank_many(wanted), strict=True):
                told = {scored.item_id: scored.score for scored in ranked}
                parts[place][self.language_model.name] = np.array([[told[item] for item in lists[place]]])
        fused = [self.fusion.scores(own, marked)[0] for own, marked in zip(parts, new, strict=True)]
        return [_best(row, items, each) for row, items, each in zip(fused, lists, asked, strict=True)]

    def _reads(self, model: "LanguageModelRecommender", new: Bools) -> bool:
        """Whether the language model weighs anything in a list: `new` [1, C] of its items."""
        known = bool(not new.all() and _weight(self.fusion, model))
        return known or bool(new.any() and _weight(self.fusion.new, model))

    def _id_scores(
        self, histories: Sequence[Sequence[int | str]], candidates: list[list[int]] | None
    ) -> dict[str, Floats]:
        """[B, C] scores of each ID recommender, or [B, items]."""
        requests = [Request(None, tuple(item for item in history if isinstance(item, int))) for history in histories]
        return {name: scores_of(part, requests, candidates) for name, part in self.ids.items()}

    def _kinds(self) -> list[tuple[Fusion, Bools]]:
        """What ranks known items and, where there are some, new ones, with their columns [items] of the catalogue."""
        new = self._new([list(self.catalogue.ids)])[0]
        if self.fusion.new is None or not new.any():
            return [(self.fusion, np.ones_like(new))]
        return [(self.fusion, ~new), (self.fusion.new, new)]

    def _catalogue_scores(self, requests: list[Request]) -> Floats:
        """[B, items] by scoring every title."""
        over = self._open_to([request.unranked for request in requests])
        parts = self._id_scores([request.history for request in requests], None)
        told = scores_of(self.language_model, requests, None) if self.language_model else None
        of_kinds = []
        for own, columns in self._kinds():
            open_to = or_all(over & columns)
            fused = _summed(own, parts, open_to)
            if told is not None:
                fused += _weight(own, self.language_model) * standardised(told, self._sampled(open_to))
            of_kinds.append(fused)
        if len(of_kinds) == 1:
            return of_kinds[0]
        new = np.broadcast_to(self._kinds()[1][1], over.shape)
        return self.fusion.together(of_kinds[0], of_kinds[1], new, over)

    def _best_of_catalogue(self, asked: Sequence[Asked]) -> list[list[Scored]]:
        """The best of the catalogue minus what is excluded, as `_catalogue_scores` has them."""
        over = self._open_to([each.unranked for each in asked])
        parts = self._id_scores([each.history for each in asked], None)
        found = [self._best_of_kind(asked, own, columns, parts, over) for own, columns in self._kinds()]
        return found[0] if len(found) == 1 else [self._together(*both) for both in zip(asked, *found, strict=True)]

    def _best_of_kind(
        self, asked: Sequence[Asked], own: Fusion, columns: Bools, parts: Mapping[str, Floats], over: Bools
    ) -> list[list[Scored]]:
        """The best by one set of weights of the items in `columns` [items]."""
        if not columns.all():
            others = frozenset(item for item, is_in in zip(self.catalogue.ids, columns, strict=True) if not is_in)
            asked = [
                replace(each, excluded=others.union(i for i in each.unranked if isinstance(i, int))) for each in asked
            ]
        open_to = or_all(over & columns)
        by_ids = _summed(own, parts, open_to)
        weight = _weight(own, self.language_model)
        if self.language_model and weight:
            return self._searched(self.language_model, weight, asked, by_ids, self._sampled(open_to))
        return [self._unread(row, each) for row, each in zip(by_ids, asked, strict=True)]

    def _together(self, asked: Asked, known: list[Scored], new: list[Scored]) -> list[Scored]:
        """The k best of both kinds, from the k best of each. Where new items stand below, all known ones are found
        before one of them counts."""
        added = self.fusion.offset
        if added is None:
            added = gap(known[-1].score, new[0].score) if known and new else 0.0
        every = {scored.item_id: scored.score for scored in known}
        every |= {scored.item_id: scored.score + added for scored in new}
        return _best(np.array(list(every.values())), list(every), asked)

    def _new(self, lists: list[list[int]]) -> Bools:
        """[B, C] which items of equally long lists are new."""
        marked: Bools = np.isin(np.array(lists, dtype=np.int64), sorted(self.new_items))
        return marked

    def _unread(self, row: Floats, asked: Asked) -> list[Scored]:
        """The best by scores [items] alone."""
        return _best(row, self.catalogue.ids, asked, asked.unranked)

    def _searched(
        self, model: "LanguageModelRecommender", weight: float, asked: Sequence[Asked], by_ids: Floats, sampled: Bools
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
                scales[number] = weight / deviation
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
        return or_all(over)

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


def _weight(own: Fusion | None, model: "LanguageModelRecommender | None") -> float:
    return own.used.get(model.name, 0.0) if own and model else 0.0


def _summed(own: Fusion, parts: Mapping[str, Floats], over: Bools) -> Floats:
    """[B, items] the ID recommenders' part of the fused score, standardised `over` some columns [B, items]."""
    summed = np.zeros(over.shape)
    for name, scores in parts.items():
        if name in own.used:
            summed += own.used[name] * standardised(scores, over)
    return summed


def _best(scores: Floats, items: Sequence[int], asked: Asked, less: Collection[int | str] = ()) -> list[Scored]:
    """The k best of items [C] by scores [C], `less` some; equals by lot, or by ascending id without a case."""
    keyed = zip((-scores).tolist(), order_of_equals(asked.case, items), items, strict=True)
    return [Scored(item, -cost) for cost, _, item in sorted(key for key in keyed if key[2] not in less)[: asked.k]]


def fused_recommender(
    fusion: FittedFusion, baselines: Path, catalogue: Items, language_model: "LanguageModelRecommender | None" = None
) -> "FusedRecommender":
    """The fusion, its ID recommenders read once more: they need not stay in memory while language models score."""
    from recalign.recommenders.roster import load_fitted

    ids = {name: load_fitted(name, baselines / name, catalogue) for name in fusion.recommenders}
    return FusedRecommender(fusion.fusion, ids, catalogue, language_model, fusion.new_items(catalogue))


def catalogue_ranks(
    recommender: "LanguageModelRecommender | FusedRecommender", trial: Trial, depth: int | None
) -> SystemRanks:
    """By search down to a depth; all places (None), and those of the reward, which no search bounds, by every score."""
    if depth is None or recommender.over_catalogue.kind == "reward":
        scores = scores_of(recommender, trial.requests, None)
        return full_ranks(recommender.name, trial, scores, depth)
    asked = [
        Asked(request.history, None, depth, request.profile, request.unranked, case.example.example_id)
        for case, request in zip(trial.cases, trial.requests, strict=True)
    ]
    return searched_ranks(recommender.name, trial, recommender.rank_many(asked), depth)
