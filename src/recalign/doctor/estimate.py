"""Whether a language model can pay on a log, before any long run: who is cold, what text says, what it would cost.

The verdict follows from a stated rule (`verdict_of`, docs/how-to.md). It never promises: "yes" comes from a table that
a run has measured on this very log, and from nothing else.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.data.prepared import Prepared
from recalign.data.records import Items, longest_histories, read_cases, read_outlines, read_whole
from recalign.params.load import Params

RARE = 5  # train events below which co-occurrence says next to nothing of an item
BOUNDS = (1, RARE, 10)
COLD_SHARE = 0.05  # of the events that are asked for, on rare items: below it, new items are no reason
FEWEST_ITEMS = 20  # a list takes so many
TELLING = 0.1  # share of the items whose text says something that another item's says too
SAMPLE = 200  # cases and histories whose tokens are counted

Verdict = Literal["yes", "only for new items", "no"]


@dataclass(frozen=True)
class Coldness:
    """What the newest events ask for.

    asked: likes of validation and test time; under: their share on items with fewer train events than each bound;
    rare_items: different items among them under RARE; views: test cases by view; left_out: why a view has none.
    """

    asked: int
    under: dict[int, float]
    rare_items: int
    views: dict[str, int]
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """Shares of the items: with an attribute that is not the same of all; whose title has a word that another title has
    and most titles lack."""

    attributes: float
    titles: float

    @property
    def tells(self) -> bool:
        """Whether a model could learn from what is written of items."""
        return max(self.attributes, self.titles) >= TELLING


@dataclass(frozen=True)
class Cost:
    """On this machine, as the params are. case_tokens: of one ranking of a list; per_thousand: seconds of ranking one
    list for each of a thousand users; sft: seconds of all training histories, by number of histories."""

    model: str
    scoring: float
    training: float
    case_tokens: float
    per_thousand: float
    sft: dict[int, float]


@dataclass(frozen=True)
class Estimate:
    """All that `recalign estimate` says; cost: None where there is no base model here."""

    coldness: Coldness
    text: Text
    cost: Cost | None
    measured: str | None
    verdict: Verdict
    reason: str


def estimate(params: Params, prepared: Path, base: Path | None, scorecard: Path | None) -> Estimate:
    """Look at prepared data. base: the base model's folder; scorecard: what a run has measured; None or missing: none.

    Raises RecalignError where the prepared data are missing or damaged.
    """
    catalogue, summary = Items.read(prepared), Prepared(prepared)
    coldness, text = coldness_of(prepared, catalogue, summary), text_of(catalogue)
    measured, outcome = _measured(scorecard, summary.data_digest)
    verdict, reason = verdict_of(coldness, text, outcome)
    cost = cost_of(params, prepared, base, catalogue, summary) if base and (base / "base.json").is_file() else None
    return Estimate(coldness, text, cost, measured, verdict, reason)


def verdict_of(coldness: Coldness, text: Text, outcome: str | None) -> tuple[Verdict, str]:
    """The rule, in its order. outcome: what a run of this log has measured (report.verdict.outcome)."""
    if outcome == "above":
        return "yes", "a run has measured it on this log: above the best ID recommender by its interval"
    if not text.tells:
        return "no", (
            f"neither titles nor attributes say what items have in common ({text.titles:.0%} of the titles share a "
            f"word that most lack, {text.attributes:.0%} of the items have attributes that differ), and that is all "
            "that it can read"
        )
    share = coldness.under[RARE]
    if share < COLD_SHARE:
        return "no", (
            f"{share:.1%} of what is asked for has fewer than {RARE} train events (below {COLD_SHARE:.0%}): where "
            "items are known, no language model of this size has ranked above item-kNN on any log that we measured"
        )
    if coldness.rare_items < FEWEST_ITEMS:
        return "no", (
            f"only {coldness.rare_items} rare items are asked for, and a list takes {FEWEST_ITEMS}: too few to train "
            "for or to measure on"
        )
    # Last.fm has names alone: minilm took content from 0.27 to 0.44 there, and left the language model nothing to add
    names = "" if text.attributes else " (with minilm among its encoders: titles without attributes are mostly names)"
    return "only for new items", (
        f"{share:.1%} of what is asked for has fewer than {RARE} train events. Try 'content' of recommenders.systems "
        f"first{names}, which costs seconds, and let prepare.hidden_items: 0.2 tell what the language model adds to it"
    )


def coldness_of(prepared: Path, catalogue: Items, summary: Prepared) -> Coldness:
    """How rare in training is what validation and test time ask for; items that the run hides are left out."""
    events = read_parquet(prepared / "events.parquet", [c.ITEM, c.SPLIT])
    later = events.filter(pc.is_in(events[c.SPLIT], value_set=pa.array([c.VALIDATION, c.TEST])))
    asked = Counter(item for item in later[c.ITEM].to_pylist() if item not in catalogue.hidden)
    total = sum(asked.values())
    counted = catalogue.train_events
    under = {
        bound: sum(count for item, count in asked.items() if counted.get(item, 0) < bound) / max(1, total)
        for bound in BOUNDS
    }
    rare = sum(counted.get(item, 0) < RARE for item in asked)
    views = {view: own[c.TEST] for view, own in summary.counts["views"].items()}
    return Coldness(total, under, rare, views, summary.views_left_out)


def text_of(catalogue: Items) -> Text:
    """What titles and attributes say of more than one item; a word or value that all have tells none from another."""
    words = {item: set(re.findall(r"[^\W\d_]{3,}", catalogue.titles[item].lower())) for item in catalogue.ids}
    counts = Counter(word for own in words.values() for word in own)
    count = max(1, len(words))
    shared = sum(any(1 < counts[word] <= count / 2 for word in own) for own in words.values())
    attributes = [catalogue.attributes.get(item, {}) for item in catalogue.ids]
    names = {name for own in attributes for name in own}
    telling = [name for name in names if any(own.get(name) != attributes[0].get(name) for own in attributes)]
    described = sum(any(own.get(name) for name in telling) for own in attributes)
    return Text(described / count, shared / count)


def cost_of(params: Params, prepared: Path, base: Path, catalogue: Items, summary: Prepared) -> Cost:
    """Measure the machine for seconds, count tokens of a sample of cases and histories, and multiply."""
    from recalign.doctor.speed import rates
    from recalign.llm.model.base import load_language_model
    from recalign.llm.prompts import PromptBuilder
    from recalign.training.examples import text_examples

    lm = load_language_model(
        base, params.base, new_adapter=params.lora, trainable=True, seed=params.seed, threads=params.threads
    )
    scoring, training = rates(lm)
    told = {name for own in catalogue.attributes.values() for name, values in own.items() if values}
    shown = tuple(name for name in params.prompt.attributes if name in told)  # another log need not have them
    plain = params.prompt.model_copy(update={"form": "history", "profile": False, "attributes": shown})
    builder = PromptBuilder(lm.tokenizer, catalogue, plain, summary.noun, clock=summary.clock)
    cases = read_cases(prepared, c.TEST, "uniform", SAMPLE, seed=params.seed)
    tokens = [
        len(builder.prompt(case.example.history)) + sum(len(builder.response(i)) - 1 for i in case.candidates)
        for case in cases
    ]
    outlines = longest_histories(read_outlines(prepared, c.TRAIN, seed=params.seed), params.seed)
    histories = text_examples(read_whole(prepared, c.TRAIN, outlines[:SAMPLE]), builder, whole_history=True)
    each = sum(example.tokens for example in histories) / max(1, len(histories))
    steps = sorted({min(params.sft.examples, len(outlines)), len(outlines)})
    case_tokens = sum(tokens) / max(1, len(tokens))
    return Cost(
        str(lm.identity["id"]), scoring, training, case_tokens, 1000 * case_tokens / scoring,
        {count: count * each / training for count in steps},
    )  # fmt: skip


def _measured(scorecard: Path | None, data: str) -> tuple[str | None, str | None]:
    """The answer of a finished run on the same data, in words and as its outcome; None where there is none."""
    about = read_json(scorecard)["about"] if scorecard is not None and scorecard.is_file() else {}
    return (about["answer"], about.get("outcome")) if about.get("data_digest") == data else (None, None)
