"""What the report knows of each system's costs, from where the stages left them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recalign.artifacts import read_json
from recalign.evaluation.costs import Cost
from recalign.evaluation.scorecard import FUSION, ORACLE, TUNED, UNTRAINED, system_of
from recalign.evaluation.spending import total
from recalign.params import Params
from recalign.run_log import stage_lines


def system_costs(params: Params, systems: Mapping[str, Mapping[str, Any]], sft: Path, align: Path) -> list[Cost]:
    """Costs of every system but the oracle, in the order of `systems` (systems.json).

    Fitting: of a language model as it was recorded with its adapter, of an ID recommender its stage's, where it ran
    here; of a fusion all that its parts took.
    """
    fitting = _fitting(params, sft, align)
    return [
        Cost(
            name,
            total(fitting.get(part) for part in used(about)) if about["kind"] == FUSION else fitting.get(name),
            about.get("seconds_per_1000"),
            about.get("megabytes"),
        )
        for name, about in systems.items()
        if about["kind"] != ORACLE
    ]


def used(about: Mapping[str, Any]) -> list[str]:
    """The parts of a fusion that weigh anything, from its entry in systems.json."""
    return [name for name, weight in about["weights"].items() if weight > 0]


def _fitting(params: Params, sft: Path, align: Path) -> dict[str, float | None]:
    stages = {line.stage: line.seconds for line in stage_lines({"baselines": params.recommenders.systems})}
    fitting = {name: stages.get(f"baselines@{name}") for name in params.recommenders.systems}
    tuned = read_json(sft / "training.json").get("seconds")
    adapters: dict[str, float | None] = {UNTRAINED: 0.0, TUNED: tuned}
    for name in params.align.objectives:
        own = read_json(align / name / "training.json").get("seconds")
        adapters[system_of(name)] = total([tuned, own])
    return fitting | adapters
