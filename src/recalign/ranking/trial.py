"""A trial: the frozen cases of a split, view and manifest, put to a recommender; the outcome is its ranks.

The frozen cases that are put to every system.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Case, Items, Met, read_cases, read_met
from recalign.evaluation.metrics import METRICS, Floats, Lots, Ranks, best_items, draw_lots, metric_values, target_ranks
from recalign.evaluation.ranks import (
    CATALOGUE,
    CATALOGUE_CASES,
    FULL,
    ITEMS,
    KEPT,
    SAMPLED,
    CaseList,
    SystemRanks,
    drawn_over,
    in_case_order,
)
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import profile_texts
from recalign.preferences.profiles.selection import profiled_views
from recalign.ranking.fusion import Bools, Judged
from recalign.ranking.measured import Kind, name_of
from recalign.recommenders.recommender import Request, Scored, cases_at_once

Ids = NDArray[np.int64]


class Ranker(Protocol):
    """What a trial asks of a recommender: the seam without `save`, since a language model or an oracle is not saved."""

    name: str

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] scores of equally long candidate lists, or [B, items] over the catalogue in ascending item id."""
        ...


def scores_of(recommender: Ranker, requests: Sequence[Request], candidates: list[list[int]] | None) -> Floats:
    """The recommender's scores, float64 in main memory, whatever it computed them with and on.

    −inf says "never this item". Raises RecalignError, naming the system, for scores that no list can be ranked by: NaN,
    +inf, or a list without one finite score.
    """
    scores: Floats = recommender.scores(list(requests), candidates).double().cpu().numpy()
    bad = ~np.isfinite(scores.max(axis=-1, initial=-np.inf))  # the maximum is NaN where any score is
    if bad.any():
        raise RecalignError(
            f"'{recommender.name}' gives scores that are not finite for {int(bad.sum())} of {len(scores)} "
            "cases, so it cannot be ranked: its weights are damaged or its training diverged; train it again"
        )
    return scores


@dataclass(frozen=True)
class Trial:
    """Cases and the requests that they stand for, in the same order; digest is that of the view under the manifest."""

    manifest: str
    digest: str
    cases: tuple[Case, ...]
    requests: tuple[Request, ...]
    view: str = c.WARM

    @property
    def candidates(self) -> list[list[int]]:
        """The candidate lists, equally long."""
        return [list(case.candidates) for case in self.cases]

    @property
    def target_index(self) -> list[int]:
        """Column of each target in its list."""
        return [case.target_index for case in self.cases]

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(example id, user id) of each case."""
        return [(case.example.example_id, case.example.user_id) for case in self.cases]

    @property
    def users(self) -> list[int]:
        """The user of each case."""
        return [user for _, user in self.keys]

    @property
    def lots(self) -> Lots:
        """The lots of the candidates, by which equals stand."""
        return draw_lots([example for example, _ in self.keys], self.listed)

    @property
    def listed(self) -> Ids:
        """Ids of the candidates, [B, C]; [C] where all cases share one list, as they do in a whole catalogue."""
        first = self.cases[0].candidates if self.cases else ()
        if all(case.candidates is first for case in self.cases):
            return np.array(first, dtype=np.int64)
        return np.array(self.candidates, dtype=np.int64)

    @property
    def judged(self) -> Judged:
        """What the cases say of scores, in their order; alike are those of a user, or those that ask for a new item."""
        targets = [case.example.target for case in self.cases]
        by_item = drawn_over(self.view, self.users, targets) == ITEMS
        return Judged(self.target_index, targets if by_item else self.users, self.lots)

    def part(self, start: int, stop: int | None = None) -> "Trial":
        """The cases from one place to before another."""
        return replace(self, cases=self.cases[start:stop], requests=self.requests[start:stop])

    def parts(self, size: int) -> list["Trial"]:
        """The cases in parts of so many, in their order."""
        return [self.part(start, start + size) for start in range(0, len(self.cases), size)]


def read_trial(
    prepared: Path,
    split: str,
    manifest: str,
    limit: int | None,
    seed: int,
    profiles: Mapping[int, str] | None = None,
    *,
    view: str = c.WARM,
) -> Trial:
    """The first `limit` cases of a split and view (in hashed order) under a manifest; `profiles` maps users to the text
    to show.

    Raises RecalignError when there is none.
    """
    cases = read_cases(prepared, split, manifest, limit, seed=seed, view=view)
    if not cases:
        raise RecalignError(
            f"{prepared}/candidates.parquet has no {split} case of view '{view}' and manifest '{manifest}'; see counts "
            "and views_left_out in summary.json"
        )
    digest = Prepared(prepared).manifests[manifest][view]
    texts = profiles or {}
    requests = tuple(
        Request(case.example.user_id, case.example.history, case.example.cutoff, texts.get(case.example.user_id))
        for case in cases
    )
    return Trial(manifest, digest, tuple(cases), requests, view)


def sampled_ranks(system: str, trial: Trial, scores: Floats) -> SystemRanks:
    """Ranks of the targets among their candidates and the best items, from scores [B, C] in the trial's order."""
    return _outcome(system, SAMPLED, trial, *_ranked(trial, scores))


def rank_sampled(recommender: Ranker, trial: Trial) -> SystemRanks:
    """Put a trial to any recommender: protocol "sampled-20"."""
    return sampled_ranks(recommender.name, trial, scores_of(recommender, trial.requests, trial.candidates))


def whole_catalogue(
    trial: Trial, catalogue: Items, cases: int | None = None, met: Mapping[int, Met] | None = None
) -> Trial:
    """The first cases of a trial (None: all) with the whole catalogue, in ascending item id, as every case's list.

    Out of the ranking is what the user met before the cutoff (`met` by user; None: the history), and what was not there
    yet (`available_from` after the cutoff). A target stays in. The digest covers all of that.
    """
    column = {item: place for place, item in enumerate(catalogue.ids)}
    few = trial.part(0, cases)
    dated = sorted((since, item) for item, since in catalogue.available_from.items())
    listed = tuple(
        replace(case, candidates=catalogue.ids, target_index=column[case.example.target]) for case in few.cases
    )
    requests = tuple(
        replace(request, excluded=_excluded(case, dated, met))
        for case, request in zip(few.cases, few.requests, strict=True)
    )
    told = [[case.example.example_id, sorted(request.unranked)] for case, request in zip(listed, requests, strict=True)]
    digest = digest_of([trial.digest, [[item, catalogue.titles[item]] for item in catalogue.ids], told])
    return Trial(CATALOGUE if cases is None else CATALOGUE_CASES, digest, listed, requests, trial.view)


def _excluded(case: Case, dated: Sequence[tuple[datetime, int]], met: Mapping[int, Met] | None) -> frozenset[int]:
    """dated: (first day, item) of the items that have one, in that order."""
    example = case.example
    before = example.history if met is None else met[example.user_id].before(example)
    there = len(dated) if example.cutoff is None else bisect_right(dated, example.cutoff, key=itemgetter(0))
    return frozenset({item for _, item in dated[there:]}.union(before) - {example.target})


def rank_catalogue(recommender: Ranker, trial: Trial, depth: int | None = None) -> SystemRanks:
    """Put a `whole_catalogue` trial to any recommender: protocol "full". depth: as in `full_ranks`."""
    parts = trial.parts(cases_at_once(len(trial.cases[0].candidates)))
    ranked = [_ranked_whole(part, scores_of(recommender, part.requests, None), depth) for part in parts]
    ranks, own, best = zip(*ranked, strict=True)
    every = [items for part in best for items in part]
    return _outcome(recommender.name, FULL, trial, np.concatenate(ranks), np.concatenate(own), every)


def full_ranks(system: str, trial: Trial, scores: Floats, depth: int | None = None) -> SystemRanks:
    """As `rank_catalogue`, from scores [B, items] that are there already.

    depth: places that count, all by default; a target beyond them counts as the last of the catalogue.
    """
    return _outcome(system, FULL, trial, *_ranked_whole(trial, scores, depth))


def searched_ranks(system: str, trial: Trial, found: Sequence[Sequence[Scored]], depth: int) -> SystemRanks:
    """As `full_ranks`, from the first `depth` places of each case, equals in the order of their lots.

    The score of a target beyond them is NaN: a search does not compute it.
    """
    items = len(trial.cases[0].candidates)
    listed = [{scored.item_id: place for place, scored in enumerate(best)} for best in found]
    places = [own.get(case.example.target) for own, case in zip(listed, trial.cases, strict=True)]
    ranks = np.array([items if place is None else place + 1 for place in places])
    scores = np.array([np.nan if p is None else best[p].score for p, best in zip(places, found, strict=True)])
    top = [tuple(scored.item_id for scored in best[:KEPT]) for best in found]
    return _outcome(system, FULL, trial, _within(ranks, depth, items), scores, top)


Ranked = tuple[Ranks, Floats, list[tuple[int, ...]]]  # ranks and scores of the targets, the best items


def _ranked(trial: Trial, scores: Floats) -> Ranked:
    lots, items, places = trial.lots, trial.listed, trial.target_index
    own = scores[np.arange(len(places)), places]
    each = np.broadcast_to(items, scores.shape)
    return target_ranks(scores, places, lots), own, best_items(scores, each, lots, KEPT)


def _ranked_whole(trial: Trial, scores: Floats, depth: int | None) -> Ranked:
    """Ranks in parts, since lots and scores of all cases and items at once would not fit."""
    size = cases_at_once(scores.shape[1])
    found = [
        _ranked(part, _masked(part, scores[number * size : (number + 1) * size]))
        for number, part in enumerate(trial.parts(size))
    ]
    ranks, own, best = zip(*found, strict=True)
    every = [items for part in best for items in part]
    return _within(np.concatenate(ranks), depth, scores.shape[1]), np.concatenate(own), every


def _masked(trial: Trial, scores: Floats) -> Floats:
    """The scores [B, items] with −inf at what each request is ranked without."""
    catalogue, masked = trial.listed, scores.copy()
    for row, request in enumerate(trial.requests):
        unranked = np.fromiter(request.unranked, dtype=np.int64, count=len(request.unranked))
        masked[row, np.isin(catalogue, unranked)] = -np.inf
    return masked


def _within(ranks: Ranks, depth: int | None, items: int) -> Ranks:
    return ranks if depth is None else np.where(ranks <= depth, ranks, items)


def _outcome(
    system: str, protocol: str, trial: Trial, ranks: Ranks, scores: Floats, best: Sequence[tuple[int, ...]]
) -> SystemRanks:
    keys = [(*key, case.example.target) for key, case in zip(trial.keys, trial.cases, strict=True)]
    return in_case_order(
        system, CaseList(protocol, trial.manifest, trial.digest, keys, trial.view), ranks, scores, best
    )


UNIFORM, POPULARITY = "uniform", "popularity"
WEIGHING = 2000  # validation cases on which ID recommenders are weighed against one another: they score them in no time


@dataclass(frozen=True)
class Trials:
    """What is put to the systems: warm validation cases to choose on, test cases of each view to measure on.

    new_validation, new_weighing: as `validation` and `weighing`, of items that the run hides; None where there are no
    such cases, or nothing is weighed. cold_events: items with fewer train events are new.
    """

    validation: Trial
    weighing: Trial  # the same and more of them, for ID recommenders alone
    uniform: tuple[Trial, ...]  # a trial a view that has cases, the warm one first
    popularity: tuple[Trial, ...]
    full: tuple[Trial, ...]  # the cases of `uniform` in the whole catalogue
    whole: tuple[Trial, ...]  # the few of them for which language models rank it too
    depth: int | None  # places of it that count; None: all
    catalogue: Items
    new_validation: Trial | None = None
    new_weighing: Trial | None = None
    cold_events: int = 0

    def new(self, trial: Trial) -> Bools:
        """[B, C] which candidates of a trial are new items."""
        counted = self.catalogue.train_events
        fresh = [item for item in self.catalogue.ids if counted.get(item, self.cold_events) < self.cold_events]
        marked: Bools = np.isin(np.array(trial.candidates, dtype=np.int64), fresh)
        return marked

    @property
    def main(self) -> Trial:
        """What the main table is about."""
        return self.uniform[0]

    @property
    def sampled(self) -> tuple[Trial, ...]:
        """All with few candidates."""
        return self.uniform + self.popularity

    def tested(self, params: Params) -> tuple[Trial, ...]:
        """The sampled cases that language models rank: the harder ones cost as much again, so params decide."""
        return self.sampled if params.evaluate.popularity_manifest else self.uniform


def kind_of(trial: Trial) -> Kind:
    """What scores of a trial are kept under."""
    return trial.view, trial.manifest


def read_trials(params: Params, prepared: Path, profiles: Path) -> Trials:
    """The trials of data/prepared, as many cases of each view as params say; `profiles` are read where prompts show
    them.

    Raises RecalignError where prompts list candidates and yet whole catalogues are to be ranked.
    """
    asked, few = params.evaluate, params.evaluate.full_catalogue_cases
    if few and params.prompt.form == "candidates":
        raise RecalignError(
            f"evaluate.full_catalogue_cases is {few}, but prompt.form 'candidates' "
            "cannot rank a whole catalogue; set it to 0, or prompt.form to 'history'"
        )
    shown = {
        split: profile_texts(profiles, params.profiles.engine, split) if params.prompt.profile else None
        for split in (c.VALIDATION, c.TEST)
    }

    profiled = profiled_views(prepared)

    def tests(manifest: str) -> tuple[Trial, ...]:
        return tuple(
            read_trial(
                prepared, c.TEST, manifest, limit, params.seed, shown[c.TEST] if view in profiled else None, view=view
            )
            for view, limit in _limits(params, prepared, manifest).items()
        )

    catalogue, uniform = Items.read(prepared), tests(UNIFORM)
    met = read_met(prepared, {case.example.user_id for trial in uniform for case in trial.cases})
    most = max(WEIGHING, asked.validation_cases)
    return Trials(
        validation=read_trial(
            prepared, c.VALIDATION, UNIFORM, asked.validation_cases, params.seed, shown[c.VALIDATION]
        ),
        weighing=read_trial(prepared, c.VALIDATION, UNIFORM, most, params.seed),
        uniform=uniform,
        popularity=tests(POPULARITY),
        full=tuple(whole_catalogue(trial, catalogue, None, met) for trial in uniform),
        whole=tuple(whole_catalogue(trial, catalogue, few, met) for trial in uniform) if few else (),
        depth=asked.full_catalogue_depth,
        catalogue=catalogue,
        **_of_hidden_items(params, prepared, shown[c.VALIDATION] if c.HIDDEN in profiled else None),
        cold_events=params.prepare.cold_events,
    )


def _of_hidden_items(params: Params, prepared: Path, shown: Mapping[int, str] | None) -> dict[str, Trial]:
    """The validation cases on hidden items, for the fusion alone: few for language models, many for the others."""
    counts, few = Prepared(prepared).counts["views"], params.evaluate.cold_cases
    if not params.evaluate.fusion or not counts.get(c.HIDDEN, {}).get(c.VALIDATION):
        return {}

    def read(limit: int, texts: Mapping[int, str] | None) -> Trial:
        return read_trial(prepared, c.VALIDATION, UNIFORM, limit, params.seed, texts, view=c.HIDDEN)

    many = {"new_weighing": read(max(WEIGHING, few), None)}
    return many | ({"new_validation": read(few, shown)} if few else {})


def _limits(params: Params, prepared: Path, manifest: str) -> dict[str, int]:
    """By view, the warm one first, how many test cases are ranked; a cold view without cases is not asked for."""
    summary, most = Prepared(prepared), params.evaluate.cold_cases
    made, counts = summary.manifests[manifest], summary.counts["views"]
    cold = [view for view in c.VIEWS if view != c.WARM and view in made and counts[view][c.TEST]]
    return {c.WARM: params.evaluate.test_cases, **(dict.fromkeys(cold, most) if most else {})}


def mean_metrics(ranks: SystemRanks) -> dict[str, float]:
    """Each metric's mean over the cases, rounded to six places: what system.json holds of the validation cases."""
    return {metric: round(float(metric_values(metric, ranks.ranks).mean()), 6) for metric in METRICS}


def digests_of(trials: Trials) -> dict[str, str]:
    """The digest of the cases of every test trial, by view and manifest as system.json names them."""
    return {name_of(kind_of(trial)): trial.digest for trial in (*trials.sampled, *trials.full, *trials.whole)}
