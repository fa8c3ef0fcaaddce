"""The scoreboard of the ID recommenders: quality under both protocols, what their lists hold, and what it costs.

    python benchmarks/recommenders.py --prepared data/prepared --out scoreboard.md --json scoreboard.json

Reads what `dvc repro prepare` made; fits every recommender on train events with params.yaml's settings, on one thread,
and puts all test cases to it: the 20 candidates of the uniform manifest, and the whole catalogue minus what the user
met before.
Intervals are 95 %, clustered by user; each system is compared with the best one (NDCG@10) on the same cases, and p is
Holm's over all comparisons of both protocols. Seconds are CPU seconds of the process, so that other work on the machine
does not count; those of fitting include the choice of settings. Coverage and lift are those of the five best items.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet, write_json
from recalign.common.errors import RecalignError
from recalign.common.origin import machine
from recalign.data.records import Items, read_met
from recalign.evaluation.exposure import measure_exposure
from recalign.evaluation.metrics import hit_rate
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.scorecard import Comparison
from recalign.evaluation.significance import Interval, bootstrap_interval, holm, metric_intervals, paired_gains
from recalign.params.load import Params, load_params
from recalign.params.recommenders import RecommenderName
from recalign.ranking.trial import Trial, rank_catalogue, rank_sampled, read_trial, whole_catalogue
from recalign.recommenders.roster import ROSTER, fit, load_fitted
from recalign.report.table import difference, plain

SAMPLED = {"hr_at_1": "HR@1", "hr_at_5": "HR@5", "hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10", "mrr": "MRR"}
FULL = {"hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10"}
COSTS = "costs.json"  # what fitting took, beside a kept model
TOP = 5  # items of a list that count for coverage and lift
METRIC = "ndcg_at_10"  # what systems are ordered by and compared in


@dataclass(frozen=True)
class Entry:
    """A recommender's ranks under both protocols and its costs: CPU seconds, and MB of the folder that holds it."""

    name: str
    sampled: SystemRanks
    full: SystemRanks
    fit_seconds: float
    seconds_a_thousand: float
    megabytes: float
    chosen: dict[str, Any]


def measured(
    name: RecommenderName, prepared: Path, catalogue: Items, trial: Trial, whole: Trial, params: Params, folder: Path
) -> Entry:
    """Fit a recommender on train events, or read it where `folder` holds it, and rank the trial's cases, among their
    candidates and in the whole catalogue.

    What was fitted on other data or under other parameters is fitted again. Raises what `fit` raises.
    """
    summary = read_json(prepared / "summary.json")
    about = {
        "data": summary["data_digest"], "seed": params.seed,
        "params": params.recommenders.model_dump(mode="json", exclude={"systems"}),
    }  # fmt: skip
    costs = read_json(folder / COSTS) if (folder / COSTS).exists() else {}
    if costs.get("about") != about:
        events = read_parquet(prepared / "events.parquet")
        train = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
        started = time.process_time()
        model, tuning = fit(name, catalogue, train, summary["clock"], params)
        costs = {"about": about, "seconds": time.process_time() - started, "chosen": tuning["chosen"]}
        model.save(folder)
        write_json(folder / COSTS, costs)
    model = load_fitted(name, folder, catalogue)
    started = time.process_time()
    full = rank_catalogue(model, whole)
    seconds = (time.process_time() - started) / len(trial.cases) * 1000
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != COSTS)
    return Entry(name, rank_sampled(model, trial), full, costs["seconds"], seconds, size / 1e6, costs["chosen"])


def intervals(ranks: SystemRanks, metrics: Mapping[str, str], params: Params) -> dict[str, Interval]:
    """Each of the metrics with its interval."""
    resamples, seed = params.evaluate.resamples, params.seed
    found = metric_intervals(ranks, [metric for metric in metrics if metric != "hr_at_10"], resamples, seed)
    found["hr_at_10"] = bootstrap_interval(hit_rate(ranks.ranks, 10), ranks.user_ids, resamples, seed)
    return found


def against_best(entries: Sequence[Entry], params: Params) -> dict[str, dict[str, Comparison | None]]:
    """By protocol and system: the paired difference of METRIC to the protocol's best system, p corrected over all."""
    found: dict[str, dict[str, Comparison | None]] = {}
    compared = []
    for protocol in ("sampled", "full"):
        ranks = {entry.name: getattr(entry, protocol) for entry in entries}
        means = {name: intervals(own, FULL, params)[METRIC].value for name, own in ranks.items()}
        best = max(means, key=means.__getitem__)
        found[protocol] = {best: None}
        others = [name for name in ranks if name != best]
        pairs = [(ranks[name], ranks[best]) for name in others]
        gains = paired_gains(pairs, METRIC, params.evaluate.resamples, params.seed)
        compared += [(protocol, name, best, gain) for name, gain in zip(others, gains, strict=True)]
    for (protocol, name, best, gain), p in zip(compared, holm([row[3].p for row in compared]), strict=True):
        found[protocol][name] = Comparison(name, best, gain.interval, p)
    return found


def rows_of(entries: Sequence[Entry], catalogue: Items, params: Params) -> list[dict[str, Any]]:
    """A row a system, the best sampled NDCG@10 first: intervals, comparisons, exposure of the full lists, costs."""
    compared = against_best(entries, params)
    rows = []
    for entry in entries:
        shown = measure_exposure(entry.full, catalogue.popularity, {}, params.evaluate.resamples, params.seed, TOP)
        if shown is None:
            raise RecalignError(f"{entry.name} kept no lists; exposure is measured on them")
        rows.append({
            "system": entry.name,
            "sampled": intervals(entry.sampled, SAMPLED, params), "full": intervals(entry.full, FULL, params),
            "sampled_less_best": compared["sampled"][entry.name], "full_less_best": compared["full"][entry.name],
            "coverage": shown.coverage, "lift": shown.lift,
            "fit_seconds": entry.fit_seconds, "seconds_a_thousand": entry.seconds_a_thousand,
            "megabytes": entry.megabytes,
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["sampled"][METRIC].value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two tables: the sampled protocol, and the whole catalogue with exposure and costs."""

    def against(pair: Comparison | None) -> str:
        if pair is None:
            return "best"
        return f"{difference(pair).removesuffix(' ?')}, p {f'{pair.p:.3f}' if pair.p >= 0.001 else '< 0.001'}"

    sampled = [["system", *SAMPLED.values(), "NDCG@10 − best"]]
    full = [["system", *FULL.values(), "NDCG@10 − best", "coverage", "lift", "fit s", "s a 1,000 users", "MB"]]
    for row in rows:
        quality = [plain(row["sampled"][metric]) for metric in SAMPLED]
        sampled.append([row["system"], *quality, against(row["sampled_less_best"])])
        costs = f"{row['fit_seconds']:.1f}", f"{row['seconds_a_thousand']:.2f}", f"{row['megabytes']:.2f}"
        quality = [plain(row["full"][metric]) for metric in FULL]
        compared = against(row["full_less_best"])
        full.append([row["system"], *quality, compared, f"{row['coverage']:.3f}", plain(row["lift"]), *costs])
    return f"{_table(sampled)}\n\nThe whole catalogue, and costs:\n\n{_table(full)}\n"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in body)])


def caption(prepared: Path, catalogue: Items, trial: Trial) -> str:
    """What the figures are about, in one sentence."""
    summary = read_json(prepared / "summary.json")
    users = len(set(trial.users))
    return (
        f"{summary['source']}, data {summary['data_digest'][:8]}, manifest {trial.manifest} {trial.digest[:8]}: "
        f"{summary['counts']['events']['train']:,} train events, {len(catalogue.ids):,} items, "
        f"{len(trial.cases):,} test cases of {users} users; {machine()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    parser.add_argument("--systems", nargs="+", choices=ROSTER, default=list(ROSTER))
    parser.add_argument("--models", type=Path, help="keep the fitted models there, and read those that stand there")
    parser.add_argument("--out", type=Path, help="write the Markdown there as well")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    params = load_params().model_copy(update={"threads": 1})
    catalogue = Items.read(arguments.prepared)
    trial = read_trial(arguments.prepared, c.TEST, "uniform", None, params.seed)
    met = read_met(arguments.prepared, [case.example.user_id for case in trial.cases])
    whole = whole_catalogue(trial, catalogue, None, met)
    torch.set_num_threads(1)
    entries, left_out = [], []
    scratch = tempfile.TemporaryDirectory()
    models = arguments.models or Path(scratch.name)
    for name in arguments.systems:
        try:
            entries.append(measured(name, arguments.prepared, catalogue, trial, whole, params, models / name))
        except RecalignError as error:
            left_out.append(f"{name} is left out: {error}")
            continue
        print(f"{name}: {entries[-1].fit_seconds:.1f} s, {entries[-1].chosen}", flush=True)
    scratch.cleanup()
    rows = rows_of(entries, catalogue, params)
    text = "\n\n".join([caption(arguments.prepared, catalogue, trial), *left_out, markdown(rows)])
    print(f"\n{text}")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2, default=vars) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
