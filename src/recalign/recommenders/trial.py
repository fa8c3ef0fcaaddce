"""A trial: the frozen cases of a split under one manifest, put to a recommender; the outcome is its ranks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from recalign.artifacts import digest_of, read_json
from recalign.data.records import Case, Items, read_cases
from recalign.errors import RecalignError
from recalign.evaluation.ranking import Floats, Ranks, best_items, target_ranks
from recalign.evaluation.system_ranks import CATALOGUE, CATALOGUE_CASES, FULL, KEPT, SAMPLED, SystemRanks, in_case_order
from recalign.recommenders.seam import Request, Scored

CASES_AT_ONCE = 256  # requests in one call over the whole catalogue: bounds the score matrix


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
    bad = np.isnan(scores) | np.isposinf(scores)
    bad |= ~np.isfinite(scores).any(axis=-1, keepdims=True)
    if bad.any():
        raise RecalignError(
            f"'{recommender.name}' gives scores that are not finite for {int(bad.any(axis=-1).sum())} of {len(scores)} "
            "cases, so it cannot be ranked: its weights are damaged or its training diverged; train it again"
        )
    return scores


@dataclass(frozen=True)
class Trial:
    """Cases and the requests that they stand for, in the same order; digest is the manifest's."""

    manifest: str
    digest: str
    cases: tuple[Case, ...]
    requests: tuple[Request, ...]

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


def read_trial(
    prepared: Path, split: str, manifest: str, limit: int | None, seed: int, profiles: Mapping[int, str] | None = None
) -> Trial:
    """The first `limit` cases of a split (in hashed order) under a manifest; `profiles` maps users to the text to show.

    Raises RecalignError when there is none.
    """
    cases = read_cases(prepared, split, manifest, limit, seed=seed)
    if not cases:
        raise RecalignError(f"{prepared}/candidates.parquet has no {split} case of manifest '{manifest}'; see counts")
    digest = read_json(prepared / "summary.json")["manifests"][manifest]
    texts = profiles or {}
    requests = tuple(
        Request(case.example.user_id, case.example.history, case.example.cutoff, texts.get(case.example.user_id))
        for case in cases
    )
    return Trial(manifest, digest, tuple(cases), requests)


def sampled_ranks(system: str, trial: Trial, scores: Floats) -> SystemRanks:
    """Ranks of the targets among their candidates and the best items, from scores [B, C] in the trial's order."""
    ranks = target_ranks(scores, trial.target_index)
    own = scores[np.arange(len(ranks)), trial.target_index]
    best = best_items(scores, trial.candidates, trial.target_index, KEPT)
    return in_case_order(system, SAMPLED, trial.manifest, trial.digest, trial.keys, ranks, own, best)


def rank_sampled(recommender: Ranker, trial: Trial) -> SystemRanks:
    """Put a trial to any recommender: protocol "sampled-20"."""
    return sampled_ranks(recommender.name, trial, scores_of(recommender, trial.requests, trial.candidates))


def rank_catalogue(recommender: Ranker, catalogue: Items, trial: Trial, depth: int | None = None) -> SystemRanks:
    """Rank each target among the whole catalogue less the case's history: protocol "full". A target stays in always.

    depth: places that count, as in `full_ranks`.
    """
    column = {item: place for place, item in enumerate(catalogue.ids)}
    targets = [column[case.example.target] for case in trial.cases]
    ranks, scores, best = [], [], []
    for start, stop in _spans(len(trial.cases)):
        block = scores_of(recommender, trial.requests[start:stop], None)
        block = _less_history(block, trial.requests[start:stop], targets[start:stop], column)
        ranks.append(target_ranks(block, targets[start:stop]))
        scores.append(block[np.arange(stop - start), targets[start:stop]])
        best += best_items(block, [catalogue.ids] * (stop - start), targets[start:stop], KEPT)
    digest = catalogue_digest(catalogue)
    joined = _within(np.concatenate(ranks), depth, len(catalogue.ids)), np.concatenate(scores)
    return in_case_order(recommender.name, FULL, CATALOGUE, digest, trial.keys, *joined, best)


def whole_catalogue(trial: Trial, catalogue: Items, cases: int) -> Trial:
    """The first cases of a trial with the whole catalogue, in ascending item id, as every case's list."""
    column = {item: place for place, item in enumerate(catalogue.ids)}
    listed = tuple(
        replace(case, candidates=catalogue.ids, target_index=column[case.example.target])
        for case in trial.cases[:cases]
    )
    return Trial(CATALOGUE_CASES, catalogue_digest(catalogue), listed, trial.requests[:cases])


def full_ranks(system: str, trial: Trial, scores: Floats, depth: int | None = None) -> SystemRanks:
    """As `rank_catalogue`, from scores [B, items] of a `whole_catalogue` trial that are there already.

    depth: places that count, all by default; a target beyond them counts as the last of the catalogue.
    """
    column = {item: place for place, item in enumerate(trial.cases[0].candidates)}
    masked = _less_history(scores, trial.requests, trial.target_index, column)
    own = scores[np.arange(len(masked)), trial.target_index]
    ranks = _within(target_ranks(masked, trial.target_index), depth, masked.shape[1])
    best = best_items(masked, trial.candidates, trial.target_index, KEPT)
    return in_case_order(system, FULL, trial.manifest, trial.digest, trial.keys, ranks, own, best)


def searched_ranks(system: str, trial: Trial, found: Sequence[Sequence[Scored]], depth: int) -> SystemRanks:
    """As `full_ranks`, from the first `depth` places of each case, a target after its equals.

    The score of a target beyond them is NaN: a search does not compute it.
    """
    items = len(trial.cases[0].candidates)
    listed = [{scored.item_id: place for place, scored in enumerate(best)} for best in found]
    places = [own.get(case.example.target) for own, case in zip(listed, trial.cases, strict=True)]
    ranks = np.array([items if place is None else place + 1 for place in places])
    scores = np.array([np.nan if p is None else best[p].score for p, best in zip(places, found, strict=True)])
    top = [tuple(scored.item_id for scored in best[:KEPT]) for best in found]
    return in_case_order(
        system, FULL, trial.manifest, trial.digest, trial.keys, _within(ranks, depth, items), scores, top
    )


def _within(ranks: Ranks, depth: int | None, items: int) -> Ranks:
    return ranks if depth is None else np.where(ranks <= depth, ranks, items)


def _less_history(
    scores: Floats, requests: Sequence[Request], targets: Sequence[int], column: Mapping[int, int]
) -> Floats:
    """The scores with −inf for what is in a request's history, but for the target."""
    masked = scores.copy()
    for row, request in enumerate(requests):
        masked[row, [column[item] for item in request.history if item in column]] = -np.inf
    rows = np.arange(len(masked))
    masked[rows, targets] = scores[rows, targets]
    return masked


def catalogue_digest(catalogue: Items) -> str:
    """Digest (hex) of the ids and titles: what the "full" protocol ranks."""
    return digest_of([[item, catalogue.titles[item]] for item in catalogue.ids])


def _spans(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, CASES_AT_ONCE):
        yield start, min(start + CASES_AT_ONCE, count)
