"""Stage report: metrics.json, plots, the table on the terminal and report.html, all from ranks.parquet."""

import logging
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recalign.artifacts import file_digest, folder_digest, read_json, write_json, write_text
from recalign.evaluation.curves import Curve, read_curve, to_csv
from recalign.evaluation.plots import Drawing, drift_plot, interval_plot, learning_plot
from recalign.evaluation.report import Evidence, report_page
from recalign.evaluation.scorecard import Scorecard, build_scorecard
from recalign.evaluation.system_ranks import CATALOGUE, read_system_ranks
from recalign.evaluation.table import print_scorecard
from recalign.evaluation.verdict import verdict
from recalign.layout import ALIGN, BASE, PROFILES, RANKS, REPORTS, SFT, VALIDATED
from recalign.params import Params
from recalign.run_log import print_stages

log = logging.getLogger(__name__)

MANIFESTS = ("uniform", "popularity", CATALOGUE)  # in the order of the report; the first gives the headline
KEYS = {"uniform": "systems", "popularity": "popularity_manifest", CATALOGUE: "full_catalogue"}


def report(
    params: Params,
    ranks: Path = RANKS,
    validated: Path = VALIDATED,
    profiles: Path = PROFILES,
    base: Path = BASE,
    sft: Path = SFT,
    align: Path = ALIGN,
    out: Path = REPORTS,
) -> None:
    """Write metrics.json, plots/ and report.html into `out`, and print the table, the verdict and what to type next.

    Every figure is an aggregate of ranks.parquet. Raises RecalignError when an input is missing.
    """
    about, systems = read_json(ranks / "cases.json"), read_json(ranks / "systems.json")
    cards = _cards(params, ranks, about, systems)
    curves = [read_curve("sft", sft / "curve.csv")]
    curves += [read_curve(name, align / name / "curve.csv") for name in params.align.objectives]
    drawings = [interval_plot(cards[0], about["candidates"]), learning_plot(curves), *map(drift_plot, curves[1:])]
    commands = _next_commands(about)
    truth = profiles / "truth.json"
    evidence = Evidence(
        cards=cards,
        about=about,
        systems=systems,
        drawings=drawings,
        examples=read_json(ranks / "examples.json"),
        quality=read_json(validated / "summary.json"),
        truth=read_json(truth) if truth.is_file() else None,
        lineage=_lineage(params, about, ranks, base, sft, align),
        params=_param_lines(params),
        next_commands=commands,
    )
    write_json(out / "metrics.json", metrics_of(cards, about))
    _write_plots(out / "plots", cards[0], curves, drawings)
    write_text(out / "report.html", report_page(evidence))
    print_stages({"baselines": params.recommenders.systems, "align": params.align.objectives})
    _print(cards[0], about, out / "report.html", commands)


def _cards(params: Params, ranks: Path, about: Mapping[str, Any], systems: Mapping[str, Any]) -> list[Scorecard]:
    every = read_system_ranks(ranks / "ranks.parquet", about["manifests"])
    groups = [[system for system in every if system.manifest == manifest] for manifest in MANIFESTS]
    return [build_scorecard(group, systems, params.evaluate.resamples, params.seed) for group in groups if group]


def metrics_of(cards: Sequence[Scorecard], about: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.json holds: a system's metrics with their bounds, paired differences, and whom they are about."""
    main = cards[0]
    metrics: dict[str, Any] = {
        KEYS[card.manifest]: {
            row.system: {metric: interval.as_dict() for metric, interval in row.metrics.items()} for row in card.rows
        }
        for card in cards
    }
    metrics["paired"] = {f"{pair.first}_less_{pair.second}": pair.interval.as_dict() for pair in main.comparisons}
    metrics["best"] = {"baseline": main.baseline, "llm": main.llm}
    metrics["about"] = {
        "source": about["source"],
        "split": about["split"],
        "protocol": main.protocol,
        "manifest": main.manifest,
        "manifest_digest": main.digest,
        "cases": main.cases,
        "users": main.users,
    }
    return metrics


def _write_plots(folder: Path, card: Scorecard, curves: Sequence[Curve], drawings: Sequence[Drawing]) -> None:
    metrics: list[dict[str, object]] = [
        {"system": row.system, "metric": metric, **interval.as_dict()}
        for row in card.rows
        for metric, interval in row.metrics.items()
    ]
    steps: list[dict[str, object]] = [{"stage": curve.stage, **row} for curve in curves for row in curve.rows]
    write_text(folder / "metrics.csv", to_csv(metrics, ["system", "metric", "value", "low", "high"]))
    write_text(folder / "training.csv", to_csv(steps, ["stage", "step", "examples", "loss", "validation_loss"]))
    drift = ["chosen_logp_drift", "rejected_logp_drift", "reward_accuracy"]
    aligned = [row for row in steps if row["stage"] != "sft"]
    write_text(folder / "drift.csv", to_csv(aligned, ["stage", "step", "examples", *drift]))
    for drawing in drawings:
        write_text(folder / f"{drawing.name}.svg", _standalone(drawing))


def _standalone(drawing: Drawing) -> str:
    """The drawing as a file of its own: a viewer has no page to take a colour from, so it gets grey, seen on both."""
    return drawing.svg.replace("<svg", '<svg style="color: #777"', 1)


def _lineage(
    params: Params, about: Mapping[str, Any], ranks: Path, base: Path, sft: Path, align: Path
) -> dict[str, str]:
    model = read_json(base / "base.json")
    adapters = {"sft": sft} | {str(name): align / name for name in params.align.objectives}
    return {
        "source": f"{about['source']}, data digest {about['data_digest'][:16]}",
        "budget, seed": f"{params.budget}, {params.seed}",
        **{f"manifest {name}": digest[:16] for name, digest in about["manifests"].items()},
        "base model": f"{model['id']}, revision {model['revision']}, sha256 {model['sha256'][:16]}",
        **{f"adapter {name}": _adapter(path) for name, path in adapters.items()},
        "ranks.parquet": f"sha256 {file_digest(ranks / 'ranks.parquet')[:16]}",
        "git revision": _git_revision(),
        "machine": about["machine"],
        "made by": "dvc repro",
    }


def _adapter(path: Path) -> str:
    seconds = read_json(path / "training.json").get("seconds")
    took = f", trained in {seconds:.0f} s" if seconds is not None else ""
    return f"digest {folder_digest(path)[:16]}{took}"


def _git_revision() -> str:
    git = shutil.which("git")
    if git is None:
        return "git is not installed"
    done = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "not in a git repository"


def _param_lines(params: Params) -> list[str]:
    def flat(value: Any, prefix: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(inner, f"{prefix}.{key}" if prefix else key)
        else:
            yield f"{prefix}: {value}"

    tree = params.model_dump(mode="json", by_alias=True, exclude={"budgets"})
    return list(flat(tree, ""))


def _next_commands(about: Mapping[str, Any]) -> list[str]:
    """What to type next, each with its purpose."""
    other = "lastfm" if about["source"] != "lastfm" else "movielens-100k"
    commands = {
        "recalign register": "put the best adapter into the MLflow registry",
        f"recalign recommend --user {about['example_user']}": "a ranked list with its explanation",
        f"dvc exp run -S source={other} -S budget=few-shot": "another dataset, more training",
    }
    width = max(map(len, commands))
    return [f"{command:<{width}}  # {purpose}" for command, purpose in commands.items()]


def _print(card: Scorecard, about: Mapping[str, Any], page: Path, commands: Sequence[str]) -> None:
    print_scorecard(card, about["source"])
    for sentence in verdict(card):
        print(sentence)
    print(f"\nReport: {page}\nNext:")
    for command in commands:
        print(f"  {command}")
