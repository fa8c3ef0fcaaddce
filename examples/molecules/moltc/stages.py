"""The stages of this project's dvc.yaml: each reads folders, computes, and writes one folder."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moltc import project
from moltc.params import Params
from recalign.common.artifacts import folder, replacing, write_json
from recalign.common.errors import RecalignError

if TYPE_CHECKING:
    from moltc.prepared import PairSet

log = logging.getLogger(__name__)
BASELINE_FACTS = "baselines.json"


def prepare(params: Params, root: Path = Path()) -> None:
    """Clean pairs, their views, the quarantine and the audit, which looks at the first file alone.

    Raises RecalignError where quarantine takes more than data.max_rejected: quarantine.parquet then lies in reports/.
    """
    from moltc.audit import audit_pairs, given_split
    from moltc.prepared import write_prepared
    from moltc.splits import ACROSS, RANDOM, split_views
    from moltc.validation import joined, read_across, read_pairs, refusal
    from recalign.common import columns as c

    with folder(root / project.PREPARED) as out:
        clean = read_pairs(params.data, root, root / project.SPILL)
        views = split_views(clean, params.split)
        both, of_both, refused = clean, views, refusal(clean, params.data.max_rejected)
        if params.data.across:
            other = read_across(params.data, root, root / project.SPILL, clean)
            if refusal_there := refusal(other, params.data.max_rejected):
                refused = refused or f"data.across, {params.data.across}: {refusal_there}"
            both = joined(clean, other, params.data.across)
            of_both = np.concatenate([views, np.full(len(other.first), ACROSS, dtype=object)])
        summary = write_prepared(out, both, params.data.kind, of_both)
        for rule in summary["rules"]:
            if rule["failed"]:
                print(f"{rule['failed']:>7} rows, {rule['level']}: {rule['name']}")
        copy = root / project.REPORTS / "quarantine.parquet"
        if refused:
            with replacing(copy) as partial:
                shutil.copyfile(out / "quarantine.parquet", partial)
            raise RecalignError(f"{refused}; {copy} holds them with their reasons")
        copy.unlink(missing_ok=True)
        train, test = given_split(clean.given) if params.data.split else (views == c.TRAIN, views == RANDOM)
        found = audit_pairs(clean, params.data.kind, train, test)
        write_json(out / "audit.json", [finding.as_dict() for finding in found])
    counts = ", ".join(f"{view} {count}" for view, count in summary["views"].items())
    rows = summary["pairs"]
    print(f"{rows['kept']} of {rows['read']} pairs of {summary['molecules']} molecules: {counts}")
    for finding in found:
        shown = "" if finding.figure is None else f" {finding.figure.value:.3f}"
        print(f"audit, {finding.probe}: {finding.verdict}{shown} ({finding.note or finding.measures})")


def base(params: Params, root: Path = Path()) -> None:
    """Fetch the language model that base.model names."""
    from recalign.llm.model.base import fetch_base

    fetch_base(params.base, root / project.BASE)


def describe(params: Params, root: Path = Path()) -> None:
    """Stage 1: the graph side learns to describe molecules, the language model is frozen."""
    from moltc import training
    from moltc.prepared import PairSet

    training.describe(params, PairSet.read(root / project.PREPARED), root, root / project.DESCRIBED)


def interact(params: Params, root: Path = Path()) -> None:
    """Stage 2: graph side and LoRA learn the answers."""
    from moltc import training
    from moltc.prepared import PairSet

    pairs = PairSet.read(root / project.PREPARED)
    training.interact(params, pairs, root, root / project.INTERACTING, root / project.DESCRIBED)


def text(params: Params, root: Path = Path()) -> None:
    """The twin of stage 2 that reads SMILES alone."""
    from moltc import training
    from moltc.prepared import PairSet

    training.interact(params, PairSet.read(root / project.PREPARED), root, root / project.TEXT, None)


def prefer(params: Params, root: Path = Path()) -> None:
    """Stage 3: the right sentence against wrong ones."""
    from moltc import training
    from moltc.prepared import PairSet

    pairs = PairSet.read(root / project.PREPARED)
    training.prefer(params, pairs, root, root / project.INTERACTING, root / project.PREFERRED)


def baselines(params: Params, root: Path = Path()) -> None:
    """Every baseline, fitted on the language model's subset and on all training pairs."""
    import torch

    from moltc.baselines import BASELINES, Fitting, fitted
    from moltc.prepared import PairSet
    from moltc.report import ALL, OUTPUTS, Systems, test_views, write_outputs
    from moltc.training import subset
    from recalign.common import columns as c
    from recalign.common.progress import track

    torch.set_num_threads(params.threads)
    pairs = PairSet.read(root / project.PREPARED)
    views = test_views(params, pairs)
    parts = {"": subset(params, pairs, c.TRAIN), ALL: pairs.of(c.TRAIN)}
    held = {"": subset(params, pairs, c.VALIDATION), ALL: pairs.of(c.VALIDATION)}
    wanted = [(name, part) for part in parts for name in BASELINES]
    systems: Systems = {}
    for name, part in track(wanted, len(wanted), "baselines", "fits"):
        fit = Fitting(parts[part], held[part], params.graph.width, params.graph.layers, params.seed)
        predict = fitted(name, fit)
        systems[name + part] = {view: predict(own) for view, own in views.items()}
    with folder(root / project.BASELINES) as out:
        write_outputs(out / OUTPUTS, systems)
        counts = {name or "subset": len(part) for name, part in parts.items()}
        write_json(out / BASELINE_FACTS, {"pairs": counts, **_asked(params, pairs)})


def _asked(params: Params, pairs: "PairSet") -> dict[str, Any]:
    """What decides which pairs are learned and asked: outputs of another one answer other pairs."""
    return {"data_digest": pairs.digest, "subset": params.subset.model_dump(), "seed": params.seed}


def evaluate(params: Params, root: Path = Path()) -> None:
    """Every system on the same pairs: reports/metrics.json and reports/report.md; what is not trained, or was on other
    pairs, is left out with a warning."""
    from moltc import report, training
    from moltc.joint import evaluated_jointly
    from moltc.predictions import predict, with_shuffled_graphs
    from moltc.prepared import PairSet
    from recalign.common import columns as c
    from recalign.common.artifacts import read_json, write_text
    from recalign.common.origin import machine

    pairs = PairSet.read(root / project.PREPARED)
    views = report.test_views(params, pairs)
    mean = float(pairs.of(c.TRAIN, params.subset.train, params.seed).labels.mean())
    fits, asked_now = root / project.BASELINES, _asked(params, pairs)
    systems: report.Systems = {}
    if not (fits / report.OUTPUTS).is_file():
        log.warning("no baseline is fitted, so all are left out; 'python -m moltc baselines' fits them")
    elif asked_now.items() <= read_json(fits / BASELINE_FACTS).items():
        systems = report.read_outputs(fits / report.OUTPUTS)
    else:
        log.warning("the baselines were fitted for other pairs, so all are left out; 'python -m moltc baselines' fits "
                    "them anew")  # fmt: skip
    unparsed: dict[str, int] = {}
    trained = {report.GRAPHS: project.INTERACTING, report.TEXT: project.TEXT, report.PREFERRED: project.PREFERRED}
    for name, place in trained.items():
        if not (facts := root / place / "training.json").is_file():
            log.warning("%s is not trained, so it is left out; 'dvc repro' trains it", name)
            continue
        told = read_json(facts)
        if "skipped" in told:
            continue
        if told["data_digest"] != pairs.digest:
            log.warning("%s learned other pairs, so it is left out; 'dvc repro' trains it anew", name)
            continue
        opened = training.open_model(
            params, pairs, root / project.BASE, root / place, tokens=0 if name == report.TEXT else None
        )
        asked = {name: opened}
        if name == report.GRAPHS:
            asked[report.SHUFFLED] = with_shuffled_graphs(opened, pairs, params.seed)
        for system, model in asked.items():
            found = {view: predict(params, model, own, mean) for view, own in views.items()}
            systems[system] = {view: own.values for view, own in found.items()}
            unparsed[system] = sum(own.unparsed for own in found.values())
    elsewhere = evaluated_jointly(params, root, views, systems, mean)
    systems |= report.best_possible(views)
    figures = report.Figures(params, views, systems)
    about = {
        "data digest": pairs.digest, "training pairs": min(params.subset.train, len(pairs.of(c.TRAIN))),
        "all training pairs": len(pairs.of(c.TRAIN)), "base": params.base.model, "seed": params.seed,
        "intervals": "95 %, pigeonhole bootstrap over molecules", "machine": machine(),
    }  # fmt: skip
    if params.data.kind == "number" and params.prompt.number == "text":
        about["texts without a number"] = str(unparsed)
    metrics = figures.metrics()
    write_json(root / project.REPORTS / "metrics.json", {"about": about, "views": metrics, "joint": elsewhere})
    shown = report.page(about, metrics | {f"{params.joint}, {view}": own for view, own in elsewhere.items()})
    write_text(root / project.REPORTS / "report.md", shown)
    print(shown)


def joint(params: Params, root: Path = Path()) -> None:
    """One model that learns the pairs of this project and of the one that params.joint names."""
    from moltc.joint import both_sides, train_jointly

    train_jointly(both_sides(params, root), root / project.JOINT)
