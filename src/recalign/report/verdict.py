"""The outcome in plain words, as the intervals allow them."""

from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.scorecard import Comparison, Scorecard
from recalign.evaluation.significance import signed
from recalign.evaluation.systems import FUSION, MEANINGLESS, TRANSFERRED, TUNED, UNTRAINED

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
