"""Compare two runs or registered versions, case by case; no stage of dvc.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.console import print_json
from recalign.common.errors import RecalignError
from recalign.evaluation.comparison import Compared, Run, compare_agreements, compare_answers, compare_runs, run_of
from recalign.evaluation.generation import read_answers
from recalign.evaluation.ranks import SystemRanks, read_system_ranks
from recalign.evaluation.scorecard import Comparison, no_verdict
from recalign.evaluation.systems import SYSTEMS, read_systems
from recalign.params.load import Params
from recalign.project import RANKS
from recalign.report.second_view import in_whole_catalogue
from recalign.report.table import print_comparison, print_second_views

MANIFEST = "uniform"  # on which every system is ranked


def compare(params: Params, first: str, second: str, home: Path = Path(), *, as_json: bool = False) -> None:
    """Print the paired differences of `first` minus `second`, each a project's folder or a `models:/` version.

    A table per view that both hold; as_json: one JSON document of them all.

    Raises RecalignError naming the field in which they differ, or the run that has no ranks.
    """
    for name in (first, second):
        if not name.startswith("models:"):
            _ranks_folder(Path(name))
    one, other, draws = _runs(first, home), _runs(second, home), (params.evaluate.resamples, params.seed)
    main = next(iter(one.values())), next(iter(other.values()))
    found = [(main, compare_runs(*main, *draws))]
    answers, agreements = compare_answers(*main, *draws), compare_agreements(*main, *draws)
    for view in [view for view in one if view in other][1:]:
        found.append(((one[view], other[view]), compare_runs(one[view], other[view], *draws)))
    if as_json:
        views = [_view(*runs, compared) for runs, compared in found]
        generated = [{**asdict(own), "metrics": _metrics(own.metrics)} for own in answers]
        taus = [{"first": own.first, "second": own.second, **_difference(own)} for own in agreements]
        print_json({"first": first, "second": second, "views": views, "generated": generated, "tau": taus})
        return
    print_comparison(*found[0][0], found[0][1])
    print_second_views(answers, agreements)
    for runs, compared in found[1:]:
        print_comparison(*runs, compared)


def _view(first: Run, second: Run, compared: Sequence[Compared]) -> dict[str, Any]:
    """A table of `compare` as JSON: whom it is about, and by pair of systems what differs in each metric."""
    ranks = next(iter(first.systems.values()))
    cases, users = len(ranks.ranks), len(set(ranks.user_ids))
    return {
        **{name: first.about[name] for name in ("source", "split")},
        **{name: getattr(ranks, name) for name in ("view", "protocol", "manifest", "digest")},
        "cases": cases,
        "users": users,
        "no_verdict": no_verdict(ranks.view, cases, users),
        "systems": [{"first": p.first, "second": p.second, "metrics": _metrics(p.metrics)} for p in compared],
    }


def _metrics(compared: Mapping[str, Comparison | None]) -> dict[str, Any]:
    return {metric: own and _difference(own) for metric, own in compared.items()}


def _difference(own: Comparison) -> dict[str, Any]:
    """First minus second with its 95 % bounds, p after Holm's correction, and what both allow to say of the first."""
    return {**own.interval.as_dict(), "p": own.p, "first_is": own.words}


def _runs(name: str, home: Path) -> dict[str, Run]:
    """By view, the warm one first; a registered version keeps that one alone."""
    if name.startswith("models:"):
        from recalign.registry.log import version_run

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
