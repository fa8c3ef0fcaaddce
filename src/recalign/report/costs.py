"""What each system costs against what it gives, and the sentences that follow."""

from collections.abc import Mapping, Sequence

from recalign.common.run_log import noted_costs, stage_lines
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.scorecard import Scorecard
from recalign.evaluation.systems import FUSION, ORACLE, TUNED, UNTRAINED, Cost, System, system_of, total
from recalign.params.load import Params
from recalign.project import Project
from recalign.report.verdict import spoken

NEAR = 0.01  # NDCG@10: a system so close to the best one is as good for most purposes
MUCH_CHEAPER = 10  # times


def cost_sentences(card: Scorecard, costs: Sequence[Cost]) -> list[str]:
    """The cheapest system within NEAR of the best, then what the best LLM's training buys; none without seconds."""
    seconds = {cost.system: cost.fitting for cost in costs if cost.fitting is not None}
    reached = {name: card.row(name).metrics[CHOSEN_BY].value for name in seconds}
    if not reached:
        return []
    best = max(reached, key=lambda name: (reached[name], -seconds[name]))
    near = [name for name in reached if reached[name] >= reached[best] - NEAR]
    cheapest = min(near, key=lambda name: (seconds[name], -reached[name]))
    said = [_cheapest(cheapest, best, seconds, reached)]
    if card.llm in reached and card.llm not in (best, cheapest):
        said.append(_bought(card.llm, cheapest, seconds, reached))
    return said


def _cheapest(name: str, best: str, seconds: dict[str, float], reached: dict[str, float]) -> str:
    spent = f"{_upper(spoken(name))}, {_seconds(seconds[name])} of fitting,"
    if name == best:
        return f"{spent} reaches the highest NDCG@10, {reached[best]:.3f}; {_next_best(best, seconds, reached)}."
    return (
        f"{spent} is within {NEAR} NDCG@10 of {spoken(best)}, {_seconds(seconds[best])} "
        f"({reached[name]:.3f} against {reached[best]:.3f})."
    )


def _next_best(best: str, seconds: dict[str, float], reached: dict[str, float]) -> str:
    """Nothing cheaper is within NEAR of the best: how far below it the best of the much cheaper ones is."""
    cheap = [name for name in reached if seconds[name] <= seconds[best] / MUCH_CHEAPER]
    if not cheap:
        return f"nothing cheaper is within {NEAR}"
    other = max(cheap, key=lambda name: reached[name])
    return f"{spoken(other)}, {_seconds(seconds[other])}, is {reached[best] - reached[other]:.3f} below"


def _bought(llm: str, other: str, seconds: dict[str, float], reached: dict[str, float]) -> str:
    gained = reached[llm] - reached[other]
    times = f", {seconds[llm] / seconds[other]:,.0f} times as many" if seconds[llm] > 2 * seconds[other] > 0 else ""
    side = "above" if gained > 0 else "below"
    stands = f"is {abs(gained):.3f} {side} {spoken(other)}"
    return f"{_upper(spoken(llm))} takes {_seconds(seconds[llm])}{times}, and {stands}."


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.1f} s"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def system_costs(params: Params, systems: Mapping[str, System], project: Project) -> list[Cost]:
    """Costs of every system but the oracle, in the order of `systems`.

    Fitting: of a language model what its training noted, of an ID recommender its stage's, where they ran
    here; of a fusion all that its parts took.
    """
    fitting, ranking = _fitting(params, project), noted_costs(project.ranks, project.costs)
    return [
        Cost(
            name,
            total(fitting.get(part) for part in about.used) if about.kind == FUSION else fitting.get(name),
            ranking.get(name),
            about.megabytes,
        )
        for name, about in systems.items()
        if about.kind != ORACLE
    ]


def _fitting(params: Params, project: Project) -> dict[str, float | None]:
    stages = {line.stage: line.seconds for line in stage_lines({"baselines": params.recommenders.systems})}
    fitting = {name: stages.get(f"baselines@{name}") for name in params.recommenders.systems}
    tuned = noted_costs(project.sft, project.costs).get("seconds")
    start = noted_costs(project.start(params.align.start), project.costs).get("seconds")
    adapters: dict[str, float | None] = {UNTRAINED: 0.0, TUNED: tuned}
    for name in params.align.objectives:
        own = noted_costs(project.align / name, project.costs).get("seconds")
        adapters[system_of(name)] = total([start, own])
    return fitting | adapters
