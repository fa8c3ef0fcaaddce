"""Reranking of what shows some groups of items too often: each system once more, as a system `fair(name)`.

IFairLRS (Jiang et al. 2024, arXiv 2402.15215) punishes over-exposed groups when it ranks; its formula for that is in no
code and no text that we could read. This form is ours, of the same parts: with the distance d of an item from the best
one of its case, brought to 0 … 1,

    d′ = d · (1 + max(0, mean over the item's groups of GU))^γ

and the lowest d′ first. GU(g) is the group's share of the ten best items of the whole catalogue minus its share of the
train events, of the validation cases, before reranking. Items of groups that are shown too rarely are not lifted: what
is shown too often moves behind them. γ = 0 changes nothing. The best item of a case has d = 0 and stays the best one,
whatever its groups.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recalign.common.errors import RecalignError
from recalign.common.item_groups import Grouping, group_items
from recalign.data.records import Items
from recalign.evaluation.exposure import excess_of, unfairness
from recalign.evaluation.metrics import Floats, metric_values
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.ranks import SystemRanks, in_case_order
from recalign.evaluation.significance import bootstrap_interval
from recalign.evaluation.systems import FAIR, Choice, Tried, best_strength, fair_name
from recalign.params.load import Params
from recalign.ranking.measured import Measured
from recalign.ranking.trial import (
    Ranker,
    Trial,
    Trials,
    full_ranks,
    kind_of,
    mean_metrics,
    rank_catalogue,
    sampled_ranks,
    scores_of,
)
from recalign.recommenders.recommender import Request, cases_at_once

log = logging.getLogger(__name__)
FEWEST = 30  # users below which a strength is said to rest on few: hardly a hit among them could be lost
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def reranked(scores: Floats, exposure: Floats, gamma: float, over: Bools | None = None) -> Floats:
    """−d′ of the module's formula, [B, C], higher is better; −inf stays −inf.

    scores [B, C], higher is better; exposure [B, C] or [C]: the mean of GU over each item's groups; over [B, C]: the
    columns that are ranked, which alone say what distance 0 and 1 are (None: all); what is not ranked becomes −inf.
    γ = 0 gives the scores back as they are. Raises RecalignError for γ below 0, which would reward what is shown too
    often.
    """
    if not gamma >= 0.0:
        raise RecalignError(f"gamma is {gamma:g}; 0 changes nothing, and what is above 0 punishes: give no less than 0")
    if gamma == 0.0:
        return scores
    ranked = np.isfinite(scores) if over is None else np.isfinite(scores) & over
    best = np.where(ranked, scores, -np.inf).max(axis=1, keepdims=True)
    worst = np.where(ranked, scores, np.inf).min(axis=1, keepdims=True)
    span = np.where(best > worst, best - worst, 1.0)
    with np.errstate(invalid="ignore"):  # what is not ranked is replaced below
        distance = (best - scores) / span
        punished: Floats = -distance * (1.0 + np.maximum(0.0, exposure)) ** gamma
    return np.where(ranked, punished, -np.inf)


class FairRecommender:
    """A recommender, reranked. It ranks the whole catalogue by every score, not by a search."""

    def __init__(self, inner: Ranker, catalogue: Items, grouping: Grouping, gu: Floats, gamma: float) -> None:
        """gu [G]: in the order of the grouping's names; gamma: as of `reranked`."""
        self.name = fair_name(inner.name)
        self.inner = inner
        self.catalogue = catalogue
        self.grouping = grouping
        self.gamma = gamma
        self._exposure: Floats = grouping.shares @ gu  # [items] the mean of GU over each item's groups

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] −d′ of equally long candidate lists, or [B, items] of the catalogue in ascending item id."""
        scores = scores_of(self.inner, requests, candidates)
        if candidates is not None:
            return torch.from_numpy(self.of_lists(scores, candidates))
        over = np.ones(scores.shape, dtype=bool)
        for row, request in enumerate(requests):
            over[row] = ~np.isin(self.catalogue.ids, [item for item in request.unranked if isinstance(item, int)])
        over |= ~over.any(axis=1, keepdims=True)
        return torch.from_numpy(reranked(scores, self._exposure, self.gamma, over))

    def of_lists(self, scores: Floats, candidates: Sequence[Sequence[int]]) -> Floats:
        """[B, C] as `scores`, from the inner one's scores of the same lists."""
        columns = np.searchsorted(self.catalogue.ids, np.array(candidates))
        return reranked(scores, self._exposure[columns], self.gamma)


def choose(inner: Ranker, trial: Trial, catalogue: Items, grouping: Grouping, params: Params) -> Choice:
    """GU and γ of a system, from the validation cases of a `whole_catalogue` trial.

    The strength is the one that cuts MGU most among those whose NDCG@10 minus that of γ = 0 has a 95 % lower bound
    above −fairness.tolerance; the smallest of equals; 0 where none cuts it.
    """
    nothing = FairRecommender(inner, catalogue, grouping, np.zeros(len(grouping.names)), 0.0)
    plain = rank_catalogue(nothing, trial)
    gu: Floats = excess_of(plain, grouping).mean(axis=0)
    found = {0.0: plain} | _each(nothing, gu, params.fairness.gammas[1:], trial)
    tried = tuple(_tried(gamma, ranks, plain, grouping, params) for gamma, ranks in found.items())
    names = dict(zip(grouping.names, gu.tolist(), strict=True))
    chosen = best_strength(tried, params.fairness.tolerance)
    users = len(set(plain.user_ids))
    return Choice(
        system=inner.name, by=grouping.by, gu=names, gamma=chosen.gamma, tried=tried, cases=len(trial.cases),
        users=users,
    )  # fmt: skip


def reranked_ranks(
    inner: Ranker, choice: Choice, trial: Trial, catalogue: Items, grouping: Grouping, gammas: Sequence[float]
) -> dict[float, SystemRanks]:
    """Ranks of a `whole_catalogue` trial at each strength; the inner system scores each part of the cases once."""
    gu = np.array([choice.gu[name] for name in grouping.names])
    return _each(FairRecommender(inner, catalogue, grouping, gu, 0.0), gu, gammas, trial)


def _each(plain: FairRecommender, gu: Floats, gammas: Sequence[float], trial: Trial) -> dict[float, SystemRanks]:
    parts: dict[float, list[SystemRanks]] = {gamma: [] for gamma in gammas}
    for part in trial.parts(cases_at_once(len(trial.cases[0].candidates))):
        scored = _Scored(plain.inner.name, torch.from_numpy(scores_of(plain.inner, part.requests, None)))
        for gamma in gammas:
            own = FairRecommender(scored, plain.catalogue, plain.grouping, gu, gamma)
            parts[gamma].append(full_ranks(own.name, part, scores_of(own, part.requests, None)))
    return {gamma: _joined(own) for gamma, own in parts.items()}


@dataclass
class _Scored:
    """A ranker that has scored its requests already."""

    name: str
    told: torch.Tensor

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        return self.told


def _joined(parts: Sequence[SystemRanks]) -> SystemRanks:
    """Ranks of parts of a trial as those of the whole, in case order."""
    first = parts[0]
    keys = [key for part in parts for key in part.keys]
    return in_case_order(
        first.system, replace(first.cases, keys=keys),
        np.concatenate([part.ranks for part in parts]), np.concatenate([part.scores for part in parts]),
        [items for part in parts for items in part.top],
    )  # fmt: skip


def _tried(gamma: float, ranks: SystemRanks, plain: SystemRanks, grouping: Grouping, params: Params) -> Tried:
    values, before = metric_values(CHOSEN_BY, ranks.ranks), metric_values(CHOSEN_BY, plain.ranks)
    interval = bootstrap_interval(values - before, plain.user_ids, params.evaluate.resamples, params.seed)
    mgu, dgu = unfairness(excess_of(ranks, grouping).mean(axis=0)[None])
    return Tried(
        gamma=gamma, ndcg=float(values.mean()), mgu=float(mgu[0]), dgu=float(dgu[0]), difference=interval.value,
        low=interval.low, high=interval.high,
    )  # fmt: skip


def grouping_of(params: Params, catalogue: Items) -> Grouping:
    """The groups of fairness.by. Raises RecalignError as `group_items` does, naming the key."""
    assert params.fairness.by is not None, "asked for with fairness.by alone"
    try:
        return group_items(params.fairness.by, catalogue.popularity, catalogue.attributes)
    except RecalignError as error:
        raise RecalignError(f"fairness.by: {error}") from None


def measure_fair(
    inner: Ranker, own: Measured, validation: Trial, trials: Trials, params: Params, *, whole: bool = False
) -> tuple[Measured, Choice]:
    """A system as `fair(name)`: its stored scores of candidates and its ranks in the whole catalogue, reranked.

    validation: a `whole_catalogue` trial of validation cases; whole: on the few cases of
    evaluate.full_catalogue_cases alone, as language models rank the catalogue; else on all test cases too.
    """
    grouping = grouping_of(params, trials.catalogue)
    choice = choose(inner, validation, trials.catalogue, grouping, params)
    gu = np.array([choice.gu[name] for name in grouping.names])
    fair = FairRecommender(inner, trials.catalogue, grouping, gu, choice.gamma)
    scores = {
        kind_of(trial): fair.of_lists(own.scores[kind_of(trial)], trial.candidates)
        for trial in trials.sampled
        if kind_of(trial) in own.scores
    }
    ranks = [
        sampled_ranks(fair.name, trial, scores[kind_of(trial)]) for trial in trials.sampled if kind_of(trial) in scores
    ]
    ranks += [] if whole else [rank_catalogue(fair, trial) for trial in trials.full]
    ranks += [rank_catalogue(fair, trial, trials.depth) for trial in trials.whole]
    told = fair.of_lists(own.validation, trials.validation.candidates)
    system = own.system.model_copy(
        update={
            "kind": FAIR,
            "ranked_by": choice.sentence,
            "validation": mean_metrics(sampled_ranks(fair.name, trials.validation, told)),
            "tried": (),
            "artifacts": None,
        }
    )
    log.info(
        "%s: γ %g of %s, MGU %.3f → %.3f on %d validation cases", fair.name, choice.gamma,
        ", ".join(f"{gamma:g}" for gamma in params.fairness.gammas), choice.tried[0].mgu,
        next(each.mgu for each in choice.tried if each.gamma == choice.gamma), choice.cases,
    )  # fmt: skip
    if choice.users < FEWEST:
        log.warning("%s: its strength rests on %d users: raise evaluate.full_catalogue_cases", fair.name, choice.users)
    return Measured(ranks, system, scores, told), choice
