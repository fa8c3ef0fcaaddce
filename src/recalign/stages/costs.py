"""What the report knows of each system's costs, from where the stages left them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recalign.evaluation.costs import Cost
from recalign.evaluation.scorecard import FUSION, ORACLE, TUNED, UNTRAINED, system_of
from recalign.evaluation.spending import total
from recalign.params import Params
from recalign.run_log import noted_costs, stage_lines


def system_costs(
    params: Params, systems: Mapping[str, Mapping[str, Any]], ranks: Path, sft: Path, align: Path, notes: Path
) -> list[Cost]:
    """Costs of every system but the oracle, in the order of `systems` (systems.json).

    Fitting: of a language model what its training noted in `notes`, of an ID recommender its stage's, where they ran
    here; of a fusion all that its parts took.
    """
    fitting, ranking = _fitting(params, sft, align, notes), noted_costs(ranks, notes)
    return [
        Cost(
            name,
            total(fitting.get(part) for part in used(about)) if about["kind"] == FUSION else fitting.get(name),
            ranking.get(name),
            about.get("megabytes"),
        )
        for name, about in systems.items()
        if about["kind"] != ORACLE
    ]


def used(about: Mapping[str, Any]) -> list[str]:
    """The parts of a fusion that weigh anything, from its entry in systems.json."""
    return [name for name, weight in about["weights"].items() if weight > 0]


def _fitting(params: Params, sft: Path, align: Path, notes: Path) -> dict[str, float | None]:
    stages = {line.stage: line.seconds for line in stage_lines({"baselines": params.recommenders.systems})}
    fitting = {name: stages.get(f"baselines@{name}") for name in params.recommenders.systems}
    tuned = noted_costs(sft, notes).get("seconds")
    adapters: dict[str, float | None] = {UNTRAINED: 0.0, TUNED: tuned}
    for name in params.align.objectives:
        own = noted_costs(align / name, notes).get("seconds")
        adapters[system_of(name)] = total([tuned, own])
    return fitting | adapters
