"""Compare two runs or registered versions, case by case; no stage of dvc.yaml."""

from dataclasses import replace
from pathlib import Path

from recalign.artifacts import read_json
from recalign.errors import RecalignError
from recalign.evaluation.comparison import Run, compare_runs, run_of
from recalign.evaluation.generation import read_answers
from recalign.evaluation.second_view import in_whole_catalogue
from recalign.evaluation.second_view_comparison import compare_agreements, compare_answers
from recalign.evaluation.system_ranks import read_system_ranks
from recalign.evaluation.table import print_comparison, print_second_views
from recalign.layout import RANKS
from recalign.params import Params

MANIFEST = "uniform"  # on which every system is ranked


def compare(params: Params, first: str, second: str, home: Path = Path()) -> None:
    """Print the paired differences of `first` less `second`, each a project's folder or a `models:/` version.

    Raises RecalignError naming the field in which they differ, or the run that has no ranks.
    """
    one, other, draws = _run(first, home), _run(second, home), (params.evaluate.resamples, params.seed)
    print_comparison(one, other, compare_runs(one, other, *draws))
    print_second_views(compare_answers(one, other, *draws), compare_agreements(one, other, *draws))


def _run(name: str, home: Path) -> Run:
    if name.startswith("models:"):
        from recalign.registry.kept_run import version_run

        return version_run(name, MANIFEST, home)
    return folder_run(Path(name))


def folder_run(root: Path) -> Run:
    """The run whose ranks lie in `root`/data/ranks, or in `root` itself. Raises RecalignError where there are none."""
    ranks = next((place for place in (root / RANKS, root) if (place / "ranks.parquet").is_file()), None)
    if ranks is None:
        raise RecalignError(f"{root} holds no {RANKS / 'ranks.parquet'}; run 'dvc repro' there, or name another run")
    about = read_json(ranks / "cases.json")
    every = read_system_ranks(ranks / "ranks.parquet", about["manifests"])
    systems = {system.system: system for system in every if system.manifest == MANIFEST}
    if not systems:
        raise RecalignError(f"{ranks / 'ranks.parquet'} holds no ranks on manifest '{MANIFEST}'; run 'dvc repro' there")
    run = run_of(str(root), about, systems, read_json(ranks / "systems.json"))
    written = ranks / "generations.parquet"
    return replace(run, full=in_whole_catalogue(every), answers=read_answers(written) if written.is_file() else ())
