"""The fusion that knows what is new: against its parts, and with the untrained language model against without it.

    python benchmarks/new_items.py --prepared draw1/prepared draw2/prepared draw3/prepared --work work --out new.md

Reads what `dvc repro prepare` made with `prepare.hidden_items` above 0, once a draw of them (another `seed`). Fits the
ID recommenders on each draw's train events, ranks and fuses as stages `rank` and `fuse` do: the weights of known items
come from the warm validation cases, those of new ones from the hidden validation cases, the figures from test cases.
With --base (a folder as stage `base` writes it) the untrained language model joins on --cases hidden and --warm-cases
warm cases of each split, and the same fusion is measured without it on the same cases. Intervals are 95 %, over the
users of all draws together.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.origin import machine
from recalign.evaluation.metrics import metric_values, target_ranks
from recalign.evaluation.significance import bootstrap_interval
from recalign.evaluation.systems import UNTRAINED
from recalign.params.load import Params, load_params
from recalign.params.recommenders import RecommenderName
from recalign.project import BASE, PREPARED, Project
from recalign.ranking.adapters import measure_language_model
from recalign.ranking.measured import Measured
from recalign.ranking.recommenders import fuse_systems, measure_recommender, open_recommender
from recalign.ranking.trial import Trials, kind_of, read_trials
from recalign.report.table import plain
from recalign.stages.baselines import baselines

IDS: tuple[RecommenderName, ...] = ("popularity", "item_knn", "ease", "content", "content_prior")
ID_ONLY, SAID_NEW, WITH_MODEL, WITHOUT_MODEL = "fusion", "fusion, one weight", "fusion with llm-base", "fusion without"
VIEWS = (c.WARM, c.HIDDEN)
AGAINST = ("content", "item_knn", SAID_NEW)
METRIC = "ndcg_at_10"

Values = dict[tuple[str, str], NDArray[np.float64]]  # by system and view: NDCG@10 of each case
Users = dict[str, list[int]]  # by view


def project_of(prepared: Path, base: Path | None, root: Path) -> Project:
    """A project in `root` whose prepared data and base lie elsewhere."""
    for path, target in ((PREPARED, prepared), (BASE, base)):
        link = root / path
        if target and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target.resolve(), target_is_directory=True)
    return Project(root)


def of_views(trials: Trials) -> Trials:
    """The warm and the hidden cases among few candidates, and nothing else."""
    uniform = tuple(trial for trial in trials.uniform if trial.view in VIEWS)
    return replace(trials, uniform=uniform, popularity=(), full=(), whole=())


def measured_ids(project: Project, trials: Trials) -> dict[str, Measured]:
    """Every ID recommender on the trials."""
    return {
        name: measure_recommender(open_recommender(name, project, trials.catalogue), trials, project.baselines)
        for name in IDS
    }


def values_of(systems: dict[str, Measured], trials: Trials) -> tuple[Values, Users]:
    """NDCG@10 of each case, and the cases' users."""
    values: Values = {}
    for trial in trials.uniform:
        for name, own in systems.items():
            ranks = target_ranks(own.scores[kind_of(trial)], np.array(trial.target_index), trial.lots)
            values[name, trial.view] = metric_values(METRIC, ranks)
    return values, {trial.view: trial.users for trial in trials.uniform}


def fused(systems: dict[str, Measured], trials: Trials) -> Measured:
    """The fusion of some systems."""
    return fuse_systems(systems, dict.fromkeys(systems), trials)[0]


def ids_alone(params: Params, project: Project) -> tuple[Values, Users, str]:
    """All cases: the ID recommenders, their fusion, and the one that has the same weights for new items."""
    trials = of_views(read_trials(params, project.prepared, project.profiles))
    systems = measured_ids(project, trials)
    both = fused(systems, trials)
    before = fused(systems, replace(trials, new_weighing=None, new_validation=None, cold_events=0))
    values, users = values_of({**systems, SAID_NEW: before, ID_ONLY: both}, trials)
    return values, users, both.system.ranked_by


def with_model(params: Params, project: Project) -> tuple[Values, Users, str]:
    """Few cases: the untrained language model, and the fusion with and without it."""
    trials = of_views(read_trials(params, project.prepared, project.profiles))
    systems = measured_ids(project, trials)
    model = measure_language_model(UNTRAINED, params, project, trials)
    without = fused(systems, trials)
    # a fusion hears trained models alone, so the untrained one goes by another name
    joined = fused({**systems, "llm-untrained": model}, trials)
    shown = {name: systems[name] for name in ("item_knn", "content")} | {UNTRAINED: model}
    values, users = values_of({**shown, WITHOUT_MODEL: without, WITH_MODEL: joined}, trials)
    return values, users, joined.system.ranked_by


def table(draws: Sequence[tuple[Values, Users, str]], params: Params, against: Sequence[tuple[str, str]]) -> str:
    """A line a system and view: each draw, all together; then differences of the same cases."""

    def interval(parts: Sequence[NDArray[np.float64]], view: str) -> str:
        users = [user for _, own, _ in draws for user in own[view]]
        return plain(bootstrap_interval(np.concatenate(parts), users, params.evaluate.resamples, params.seed))

    head = ["view", "system", *(f"draw {place + 1}" for place in range(len(draws))), "NDCG@10"]
    lines = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * (len(draws) + 1) + "|"]
    for view in VIEWS:
        for system in dict.fromkeys(system for system, _ in draws[0][0]):
            own = [values[system, view] for values, _, _ in draws]
            shown = [f"{each.mean():.3f}" for each in own]
            lines.append(f"| {view} | {system} | " + " | ".join([*shown, interval(own, view)]) + " |")
    lines += ["", "| view | difference | NDCG@10 |", "|---|---|---:|"]
    for view in VIEWS:
        for one, other in against:
            apart = [values[one, view] - values[other, view] for values, _, _ in draws]
            lines.append(f"| {view} | {one} − {other} | {interval(apart, view)} |")
    counts = [{view: len(users[view]) for view in VIEWS} for _, users, _ in draws]
    said = [
        f"- draw {place}: {own}; {told}" for place, (own, (_, _, told)) in enumerate(zip(counts, draws, strict=True), 1)
    ]
    return "\n".join([*lines, "", *said]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, nargs="+", required=True, help="a folder a draw of the hidden items")
    parser.add_argument("--work", type=Path, required=True, help="fitted recommenders and log-probs are kept there")
    parser.add_argument("--base", type=Path, help="the base model's folder: the untrained language model joins")
    parser.add_argument("--cases", type=int, default=100, help="hidden cases of each split for it (default: 100)")
    parser.add_argument("--warm-cases", type=int, default=32, help="warm cases of each split for it (default: 32)")
    parser.add_argument("--out", type=Path, help="write the Markdown there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = load_params()
    every = {"validation_cases": 5000, "test_cases": 5000, "cold_cases": 5000}
    few = {"validation_cases": arguments.warm_cases, "test_cases": arguments.warm_cases, "cold_cases": arguments.cases}
    alone, joined, told = [], [], []
    for place, prepared in enumerate(arguments.prepared, start=1):
        project = project_of(prepared, arguments.base, arguments.work / f"draw{place}")
        for name in IDS:
            if not (project.baselines / name).is_dir():
                baselines(params, name, project)
        summary = read_json(prepared / "summary.json")
        digest = summary["manifests"]["uniform"]
        shown = ", ".join(f"{view} {digest[view][:8]}" for view in VIEWS)
        told.append(f"- {summary['source']}, data {summary['data_digest'][:8]}, manifest uniform {shown}")
        asked = params.model_copy(update={"evaluate": params.evaluate.model_copy(update=every)})
        alone.append(ids_alone(asked, project))
        if arguments.base:
            asked = params.model_copy(update={"evaluate": params.evaluate.model_copy(update=few)})
            joined.append(with_model(asked, project))
    text = "\n".join([*told, f"- {machine()}", "", table(alone, params, [(ID_ONLY, other) for other in AGAINST])])
    if joined:
        text += "\n" + table(joined, params, [(WITH_MODEL, WITHOUT_MODEL), (UNTRAINED, "content")])
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
