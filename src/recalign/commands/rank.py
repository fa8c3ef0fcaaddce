"""Command rank: score anyone's candidate lists with an adapter, an ID recommender or the project's fusion."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recalign.commands.arguments import check_adapter_named, check_file
from recalign.common import columns as c
from recalign.common.artifacts import file_digest, write_text
from recalign.common.console import print_json
from recalign.common.errors import RecalignError
from recalign.data.case_file import CASE, FileCase, read_file_cases, read_own_catalogue
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.evaluation.metrics import LABELS, METRICS, Floats, Lots, draw_lots, target_places, target_ranks
from recalign.evaluation.ranks import CaseList, in_case_order
from recalign.evaluation.significance import metric_interval, plain
from recalign.params.load import Params
from recalign.params.recommenders import RecommenderName
from recalign.project import RANKS

if TYPE_CHECKING:
    from recalign.ranking.trial import Ranker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """What ranks, as the options name it: an adapter, an ID recommender fitted on `train`, or the fusion."""

    adapter: str | None = None
    recommender: RecommenderName | None = None
    train: Path | None = None
    fusion: bool = False

    def check(self) -> None:
        """Raise RecalignError where this names no system that could rank, before cases are read or models loaded."""
        from recalign.recommenders.roster import known

        if self.recommender is not None:
            known(self.recommender, "--recommender")
        elif self.adapter is not None:
            check_adapter_named(self.adapter)
        elif not self.fusion:
            raise RecalignError("nothing to rank with: give --adapter PATH or models:/…, or --recommender with --train")
        if (self.recommender is not None or self.fusion) and self.train is None:
            option = "--fusion" if self.fusion else f"--recommender {self.recommender}"
            raise RecalignError(f"{option} needs --train: an interactions CSV (user_id,item_id)")
        if self.train is not None:
            check_file("--train", self.train)


def rank(params: Params, cases: Path, items: Path, out: Path, named: Named, *, as_json: bool = False) -> None:
    """Rank the lists of `cases` (JSON lines) over the catalogue `items` (CSV) and write a line a case to `out`.

    A line holds case, rank (of the target, 1 = best, equals by lot) and ranked (ids of the files, best first). Prints
    the metrics with intervals over users (as_json: as one JSON document). Raises RecalignError naming file and line
    where the input cannot be ranked.
    """
    named.check()
    for option, path in {"--cases": cases, "--items": items}.items():
        check_file(option, path)
    catalogue, raw = read_own_catalogue(items)
    asked = read_file_cases(cases, catalogue)
    from recalign.ranking.trial import scores_of
    from recalign.recommenders.recommender import Request

    system, ranked_by = _system(params, catalogue, named)
    requests = [Request(case.user_id, case.history) for case in asked]
    lists = [list(case.candidates) for case in asked]
    scores = scores_of(system, requests, lists)
    places = target_places(lists, [case.target for case in asked])
    lots = draw_lots([str(case.case) for case in asked], lists)
    ranks = target_ranks(scores, places, lots)
    write_text(out, "".join(_line(*row, raw) for row in zip(asked, ranks.tolist(), scores, lots, strict=True)))
    own = scores[np.arange(len(asked)), places]
    keys = [(str(case.case), case.user_id) for case in asked]
    _say_new(system, lists)
    outcome = in_case_order(system.name, CaseList("given lists", cases.name, file_digest(cases), keys), ranks, own)
    metrics = {m: metric_interval(outcome, m, params.evaluate.resamples, params.seed) for m in METRICS}
    users, width = len(set(outcome.user_ids)), len(asked[0].candidates)
    if as_json:
        about = {"system": outcome.system, "ranked_by": ranked_by, "cases": len(asked), "users": users}
        told = {metric: interval.as_dict() for metric, interval in metrics.items()}
        print_json({**about, "candidates": width, "metrics": told, "ranks": str(out)})
        return
    print(f"{outcome.system}, {ranked_by}; {len(asked)} cases of {users} users, {width} candidates each")
    for metric, interval in metrics.items():
        print(f"  {LABELS[metric]:<8} {plain(interval)}")
    print(f"  {'cases':<8} {len(asked)}\nRanks: {out}")


def _system(params: Params, catalogue: Items, named: Named) -> "tuple[Ranker, str]":
    """The system that the options name, and what ranks it in words."""
    if named.fusion:
        return _fused(params, catalogue, named.train)
    if named.recommender is not None:
        from recalign.recommenders.train_log import TrainLog

        assert named.train is not None, "Named.check lets none pass without it"
        return TrainLog.read(named.train, catalogue).fit(named.recommender, params), f"fitted on {named.train}"
    assert named.adapter is not None, "Named.check lets none pass"
    from recalign.commands.opened import open_adapter

    settings, model = open_adapter(params, named.adapter, catalogue)
    if settings.prompt.profile:
        log.info("the cases hold no profiles, so the prompts show none, though this adapter was trained with them")
    return model, settings.sentence


def _fused(params: Params, catalogue: Items, train: Path | None) -> "tuple[Ranker, str]":
    """The project's fusion with its weights, its ID recommenders fitted anew on `train`."""
    from recalign.commands.opened import open_adapter
    from recalign.ranking.fused import FusedRecommender
    from recalign.ranking.fusion import read_fusion
    from recalign.ranking.language_model import LanguageModelRecommender
    from recalign.ranking.package import adapter_folder
    from recalign.recommenders.train_log import TrainLog

    assert train is not None, "Named.check lets none pass without it"
    fitted = read_fusion(RANKS)
    learned = TrainLog.read(train, catalogue)
    ids = {name: learned.fit(name, params) for name in fitted.recommenders}
    new = fitted.new_items(learned.catalogue)
    if fitted.active_language_model is None:
        return FusedRecommender(fitted.fusion, ids, catalogue, None, new), fitted.fusion.sentence
    _, model = open_adapter(params, str(adapter_folder(fitted.language_model, Path())), catalogue)
    if not isinstance(model, LanguageModelRecommender):
        raise RecalignError(f"{fitted.language_model} is no language model; run 'dvc repro' to fit the fusion again")
    return FusedRecommender(fitted.fusion, ids, catalogue, model, new), fitted.fusion.sentence


def _say_new(system: "Ranker", lists: Sequence[Sequence[int]]) -> None:
    """Which part spoke for items that the log does not know."""
    from recalign.ranking.fused import FusedRecommender

    if isinstance(system, FusedRecommender) and system.new_items:
        listed = [item for items in lists for item in items]
        new = sum(item in system.new_items for item in listed)
        print(f"New items: {new} of {len(listed)} candidates, read by {system.fusion.read_by}")


def _line(case: FileCase, rank: int, scores: Floats, lots: Lots, raw: RawIds) -> str:
    """A line of the output, with the ids of the files; equals by lot, as the target's rank counts."""
    ranked = [raw.shown(case.candidates[column]) for column in np.lexsort((lots, -scores))]
    return json.dumps({CASE: case.case, c.RANK: rank, "ranked": ranked}) + "\n"
