"""The outcome in plain words, as the intervals allow them; and what each system costs against what it gives."""

from collections.abc import Mapping, Sequence

from recalign.common.run_log import noted_costs, stage_lines
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.scorecard import Comparison, Scorecard
from recalign.evaluation.significance import signed
from recalign.evaluation.systems import (
    FUSION,
    MEANINGLESS,
    ORACLE,
    TRANSFERRED,
    TUNED,
    UNTRAINED,
    Cost,
    System,
    system_of,
    total,
)
from recalign.params.load import Params
from recalign.project import Project

NAMES = {
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "recent_popularity": "recent popularity",
    "ease": "EASE",
    "markov": "the Markov model",
    "sasrec": "SASRec",
    "gru4rec": "GRU4Rec",
    "caser": "Caser",
    "mcrl": "MCRL",
    "dreamrec": "DreamRec",
    "content": "the content recommender",
    "content_prior": "the content prior",
    FUSION: "the fusion",
    "oracle": "the oracle",
    UNTRAINED: "the untrained model",
    TUNED: "the SFT model",
    "llm-sdpo": "S-DPO",
    "llm-dpo": "DPO",
    "llm-dpo_pairs": "DPO over pairs",
    "llm-dmpo": "DMPO",
    "llm-simpo": "SimPO",
    "llm-alpha_dpo": "α-DPO",
    "llm-beta_dpo": "β-DPO",
    "llm-dr_dpo": "Dr. DPO",
}
BEST = "the best baseline on the validation cases"  # test cases choose nothing
QUESTION = "Should you use the language model?"
SAID = {"above": "is better than", "below": "is worse than", "level with": "cannot be told from"}


def spoken(system: str) -> str:
    """A system's name as a sentence says it."""
    return NAMES.get(system, system)


def outcome(card: Scorecard) -> str | None:
    """`above`, `below` or `level with`: the best trained LLM against the best baseline; None where a run cannot say."""
    if card.random_model or card.llm is None or card.undecided:
        return None
    return _against_baseline(card, card.llm).words


def answer(card: Scorecard) -> str:
    """The question that a run is for, and its answer in plain words."""
    if card.random_model:
        return f"{QUESTION} This run cannot say ({MEANINGLESS}): choose budget=demo for an answer."
    if card.llm is None or card.undecided:
        return f"{QUESTION} This run cannot say: {card.undecided or 'no trained language model was ranked'}."
    against, other = _against_baseline(card, card.llm), spoken(card.baseline)
    said = {
        "above": f"Yes, on cases like these: it ranks better than {other}, {BEST}.",
        "below": f"No, not on cases like these: {other}, {BEST}, ranks better and costs less.",
        "level with": f"Not yet: on {card.cases} cases it cannot be told from {other}, {BEST}, which costs less.",
    }[against.words]
    fused = next((row.difference for row in card.rows if row.kind == FUSION), None)
    both = f" The fusion of both ranks better than {other} alone." if fused and fused.words == "above" else ""
    return f"{QUESTION} {said}{both}"


def verdict(card: Scorecard) -> list[str]:
    """Sentences, the weightiest first: the best LLM against the best baseline, then what each training step gave.

    One sentence that says why, where the card gives no verdict. A random model is named before all else.
    """
    if card.undecided:
        return [f"On the view {card.view} there is {card.undecided}."]
    sentences = [f"{MEANINGLESS[:1].upper()}{MEANINGLESS[1:]}."] if card.random_model else []
    if card.llm:
        sentences.append(_headline(card, _against_baseline(card, card.llm)))
    transfers = [pair for pair in card.comparisons if card.row(pair.first).kind == TRANSFERRED]
    steps = [pair for pair in card.comparisons if pair.second in (UNTRAINED, TUNED) and pair not in transfers]
    sentences += [*map(_step, steps), *map(_transfer, transfers)]
    fused = next((row.difference for row in card.rows if row.kind == FUSION), None)
    if fused:
        sentences.append(_step(fused))
    if any(row.system == "oracle" for row in card.rows):
        most = card.row("oracle").metrics[CHOSEN_BY].value
        sentences.append(f"The oracle, which knows the true probabilities, reaches {most:.3f}: more cannot be had.")
    return sentences


def _against_baseline(card: Scorecard, llm: str) -> Comparison:
    return next(pair for pair in card.comparisons if (pair.first, pair.second) == (llm, card.baseline))


def _headline(card: Scorecard, against: Comparison) -> str:
    llm, baseline = (card.row(name).metrics[CHOSEN_BY].value for name in (card.llm or "", card.baseline))
    ends = {
        "above": f"The LLM wins: {spoken(against.first)} is above",
        "below": f"The LLM loses: {spoken(against.first)} is below",
        "level with": f"No clear winner: {spoken(against.first)} is within the error of",
    }[against.words]
    return (
        f"{ends} {spoken(card.baseline)}, {BEST} (NDCG@10 {llm:.3f} against {baseline:.3f}; "
        f"difference {signed(against.interval)} on {card.cases} cases of {card.users} users)."
    )


def _step(pair: Comparison) -> str:
    first = spoken(pair.first)
    if _numbers(pair) == (0.0, 0.0, 0.0):
        return f"{first[:1].upper()}{first[1:]} ranks the targets exactly as {spoken(pair.second)} does."
    return f"{first[:1].upper()}{first[1:]} {SAID[pair.words]} {spoken(pair.second)} (NDCG@10 {signed(pair.interval)})."


def _transfer(pair: Comparison) -> str:
    """An adapter trained elsewhere against what was trained here, or against the untrained model."""
    here = "" if pair.second == UNTRAINED else " trained here"
    told = f"{SAID[pair.words]} {spoken(pair.second)}{here} (NDCG@10 {signed(pair.interval)})"
    return f"{pair.first}, trained elsewhere, {told}."


def _numbers(pair: Comparison) -> tuple[float, float, float]:
    return pair.interval.value, pair.interval.low, pair.interval.high


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
