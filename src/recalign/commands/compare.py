"""Compare two runs or registered versions, case by case; no stage of dvc.yaml."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.evaluation.comparison import Run, compare_agreements, compare_answers, compare_runs, run_of
from recalign.evaluation.generation import read_answers
from recalign.evaluation.ranks import SystemRanks, read_system_ranks
from recalign.evaluation.systems import SYSTEMS, read_systems
from recalign.params.load import Params
from recalign.project import RANKS
from recalign.report.second_view import in_whole_catalogue
from recalign.report.table import print_comparison, print_second_views

MANIFEST = "uniform"  # on which every system is ranked


def compare(params: Params, first: str, second: str, home: Path = Path()) -> None:
    """Print the paired differences of `first` less `second`, each a project's folder or a `models:/` version: a table a
    view that both hold.

    Raises RecalignError naming the field in which they differ, or the run that has no ranks.
    """
    for name in (first, second):
        if not name.startswith("models:"):
            _ranks_folder(Path(name))
    one, other, draws = _runs(first, home), _runs(second, home), (params.evaluate.resamples, params.seed)
    main = next(iter(one.values())), next(iter(other.values()))
    print_comparison(*main, compare_runs(*main, *draws))
    print_second_views(compare_answers(*main, *draws), compare_agreements(*main, *draws))
    for view in [view for view in one if view in other][1:]:
        print_comparison(one[view], other[view], compare_runs(one[view], other[view], *draws))


def _runs(name: str, home: Path) -> dict[str, Run]:
    """By view, the warm one first; a registered version keeps that one alone."""
    if name.startswith("models:"):
        from recalign.registry.kept_run import version_run

        run = version_run(name, MANIFEST, home)
        return {next(iter(run.systems.values())).view: run}
    return folder_runs(Path(name))


def folder_runs(root: Path) -> dict[str, Run]:
    """The run whose ranks lie in `root`/data/ranks, or in `root` itself, by view, the warm one first.

    Raises RecalignError where there are none, or where an artifact of `root` is not what made its ranks.
    """
    ranks = _ranks_folder(root)
    if ranks == root / RANKS:
        from recalign.ranking.package import check_ranks

        check_ranks(root)
    about, kinds = read_json(ranks / "cases.json"), read_systems(ranks / SYSTEMS)
    every = read_system_ranks(ranks / "ranks.parquet", about["manifests"])
    views: dict[str, dict[str, SystemRanks]] = {}
    for system in every:
        if system.manifest == MANIFEST:
            views.setdefault(system.view, {})[system.system] = system
    if not views:
        raise RecalignError(f"{ranks / 'ranks.parquet'} holds no ranks on manifest '{MANIFEST}'; run 'dvc repro' there")
    runs = {view: run_of(str(root), about, own, kinds) for view, own in sorted(views.items(), key=_warm_first)}
    main, written = next(iter(runs)), ranks / "generations.parquet"
    full = in_whole_catalogue([system for system in every if system.view == main])
    answers = read_answers(written) if written.is_file() else ()
    return runs | {main: replace(runs[main], full=full, answers=answers)}


def _ranks_folder(root: Path) -> Path:
    """Where a run keeps its ranks. Raises RecalignError where it has none."""
    for place in (root / RANKS, root):
        if (place / "ranks.parquet").is_file():
            return place
    raise RecalignError(f"{root} holds no {RANKS / 'ranks.parquet'}; run 'dvc repro' there, or name another run")


def _warm_first(view: tuple[str, Any]) -> int:
    return c.VIEWS.index(view[0]) if view[0] in c.VIEWS else 0
