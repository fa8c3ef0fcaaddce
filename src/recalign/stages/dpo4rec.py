"""Stage dpo4rec: texts about tastes, a reranker that reads them, and the writer aligned to what they help.

DPO4Rec (arXiv 2410.05939), a reconstruction; in no default run. Users are divided by hash: the first stage, the
adaptor and the reranker read R only, pairs come from P, choices from V, figures from T. Texts are written before the
window that they are to help with. Each round writes N texts a user, pairs the best with the worst, and aligns the
writer by DPO.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recalign import project as layout
from recalign.common import columns as c
from recalign.common.artifacts import folder, read_json, write_json, write_parquet, write_text
from recalign.data.prepared import Prepared
from recalign.evaluation.significance import Interval, bootstrap_interval, plain, signed
from recalign.llm.model.base import load_language_model
from recalign.params.dpo4rec import Dpo4recParams
from recalign.params.load import Params
from recalign.preferences.reward import FEWEST_USERS, Group, Paired, SwapControl, mean_rewards, swap_control
from recalign.preferences.tastes.text import LIKES
from recalign.preferences.tastes.writer import (
    TasteWriter,
    Written,
    local_taste_writer,
    remote_taste_writer,
    taste_prompt,
)
from recalign.ranking.rerank import Loop, World, arms_table, read_world, reranked, unreranked
from recalign.recommenders.knowledge import KnowledgeReranker
from recalign.training.texts import TextAlignment, WrittenPair, align_texts

log = logging.getLogger(__name__)
UNALIGNED = "unaligned text"


def dpo4rec(
    params: Params,
    prepared: Path = layout.PREPARED,
    base: Path = layout.BASE,
    out: Path = layout.DPO4REC,
    cache: Path = layout.CACHE,
) -> None:
    """Run the loop and write `out`: report.md, report.json, texts.parquet, pairs.parquet, reranker/, adapters/.

    Where texts that are swapped between users do not lower the reward by its interval, or too few users have texts to
    show it, `reads_texts` is false, nothing is aligned (unless dpo4rec.force) and the report says so first; that is a
    finding, not an error.
    """
    loop = Loop.open(params, read_world(params, prepared), cache / "dpo4rec" / "texts")
    writers = _Writers(params, loop.world, base)
    first_writer = writers.open(None)
    written = loop.write(first_writer, _counts(params))
    reranker, learned = loop.reranker(written)
    control = swap_control(
        reranker, written["P"].read() | written["V"].read(), loop.cases["P"] + loop.cases["V"],
        params.evaluate.resamples, params.seed,
    )  # fmt: skip
    result = Result(written, reranker)
    cases, own_texts = loop.cases["T"], written["T"].read()
    result.arms = {
        "unreranked": unreranked(cases),
        "no text": reranked(reranker, cases, None),
        "counted text": reranked(reranker, cases, loop.counted()),
        UNALIGNED: reranked(reranker, cases, own_texts),
    }
    stopped = _why_not(params, control)
    if stopped is None:
        stopped = _rounds(loop, writers, result, Places(prepared, base, cache))
    users = [case.user_id for case in cases]
    told = {
        "reads_texts": control.reads_texts,
        "swap_control": {"users": control.users, "drop": control.drop.as_dict()},
        "stopped": stopped,
        "forced": params.dpo4rec.force,
        "protocol": _protocol(params, loop, prepared),
        "writer": _about_texts(params, written.values()),
        "reranker": learned,
        "rounds": result.rounds,
        "arms": [
            {
                "name": arm.name,
                "metrics": {metric: interval.as_dict() for metric, interval in arm.metrics.items()},
                "gains": {metric: interval.as_dict() for metric, interval in arm.gains.items()},
            }
            for arm in arms_table(result.arms, UNALIGNED, users, params.evaluate.resamples, params.seed)
        ],
    }
    with folder(out) as partial:
        write_json(partial / "report.json", told)
        write_text(partial / "report.md", page(told))
        write_parquet(partial / "texts.parquet", _texts_table(result.texts))
        write_parquet(partial / "pairs.parquet", _pairs_table(result.pairs))
        result.reranker.save(partial / "reranker")
        for number, adapter in enumerate(result.adapters, 1):
            shutil.copytree(adapter, partial / "adapters" / f"round-{number}")
    log.info(
        "dpo4rec: %.0f s of writing texts; %s (%s)",
        sum(own.seconds for _, _, own in result.texts), verdict(told), out / "report.md",
    )  # fmt: skip


@dataclass(frozen=True)
class Places:
    """The folders that a round reads, and where it keeps what a kill must not cost."""

    prepared: Path
    base: Path
    cache: Path


@dataclass
class Result:
    """What a run leaves: texts and pairs by round and group, adapters, figures, and the last reranker."""

    written: dict[Group, Written]
    reranker: KnowledgeReranker
    texts: list[tuple[int, Group, Written]] = field(default_factory=list)
    pairs: list[tuple[int, Group, Paired]] = field(default_factory=list)
    adapters: list[Path] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.texts += [(0, group, own) for group, own in self.written.items()]


class _Writers:
    """Opens the writer of a round: the base, or the base with an adapter; an endpoint has the first only."""

    def __init__(self, params: Params, world: World, base: Path) -> None:
        self._params, self._world, self._base = params, world, base

    def prompt(self, history: Sequence[int]) -> str:
        """What a text is written after, the same for every round."""
        return taste_prompt(history, self._params.dpo4rec, self._world.items, self._world.noun)

    def open(self, adapter: Path | None) -> TasteWriter:
        """As dpo4rec.engine and dpo4rec.constrained say."""
        params, own = self._params, self._params.dpo4rec
        if own.engine == "endpoint":
            return remote_taste_writer(own, params.profiles, self._world.items, self._world.noun)
        return self._local(adapter, own)

    def open_free(self, adapter: Path | None) -> TasteWriter:
        """A local model that nothing holds to the structure, asked once for each text: only the first answer counts."""
        return self._local(adapter, self._params.dpo4rec.model_copy(update={"constrained": False, "attempts": 1}))

    def _local(self, adapter: Path | None, own: Dpo4recParams) -> TasteWriter:
        lm = load_language_model(self._base, self._params.base, adapter=adapter, threads=self._params.threads)
        return local_taste_writer(lm, own, self._world.items, self._world.noun)


def _counts(params: Params) -> dict[Group, int]:
    """Texts a user, by group: R's reranker reads one."""
    n = params.dpo4rec.texts
    return {"R": 1, "P": n, "V": n, "T": n}


def _why_not(params: Params, control: SwapControl) -> str | None:
    if params.dpo4rec.engine == "endpoint":
        return "the writer is an endpoint, which cannot be trained from here; set dpo4rec.engine to local"
    if control.few and not params.dpo4rec.force:
        return f"{_too_few(control.users)}; raise dpo4rec.users, or dpo4rec.force goes on all the same"
    if not control.reads_texts and not params.dpo4rec.force:
        return "the reward does not read the texts; dpo4rec.force goes on all the same"
    return None


def _too_few(users: int) -> str:
    return f"texts of {users} users cannot show that the reward reads them, {FEWEST_USERS} are needed"


def _rounds(loop: Loop, writers: _Writers, result: Result, places: Places) -> str | None:
    """Pair, align and write again, `rounds` times; why it stopped early, or None."""
    params, cases = loop.params, loop.cases["T"]
    judge, written, adapter = result.reranker, result.written, None
    unaligned, formed = mean_rewards(judge, written["T"].read(), cases), _form_share(loop, writers, None)
    for number in range(1, params.dpo4rec.rounds + 1):
        pairs: dict[Group, Paired] = {"P": loop.paired(result.reranker, written["P"], "P"),
                                      "V": loop.paired(result.reranker, written["V"], "V")}  # fmt: skip
        result.pairs += [(number, group, own) for group, own in pairs.items()]
        if stopped := _no_pairs(number, pairs, params.dpo4rec.least_gap):
            return stopped
        learned = {g: _written_pairs(own, written[g], loop.world.histories(g), writers) for g, own in pairs.items()}
        work = TextAlignment(number, learned["P"], learned["V"])
        adapter = align_texts(params, work, adapter, base=places.base, prepared=places.prepared, cache=places.cache)
        result.adapters.append(adapter)
        last = number == params.dpo4rec.rounds
        written = loop.write(
            writers.open(adapter), {g: n for g, n in _counts(params).items() if not (last and g == "P")}
        )
        result.texts += [(number, group, own) for group, own in written.items()]
        texts = written["T"].read()
        result.arms[f"aligned text, round {number}"] = reranked(judge, cases, texts)
        result.reranker, about = loop.reranker(written)
        result.arms[f"aligned text, round {number}, reranker refitted"] = reranked(result.reranker, cases, texts)
        gain = mean_rewards(judge, texts, cases) - unaligned
        users = [case.user_id for case in cases]
        result.rounds.append({
            "round": number,
            "pairs": {group: len(own.pairs) for group, own in pairs.items()},
            "skipped": {group: round(own.skipped, 4) for group, own in pairs.items()},
            "reward_gain": bootstrap_interval(gain, users, params.evaluate.resamples, params.seed).as_dict(),
            "well_formed": {"before": formed, "after": _form_share(loop, writers, adapter)},
            "reranker": about,
        } | _training(adapter))  # fmt: skip
    return None


def _no_pairs(number: int, pairs: Mapping[Group, Paired], least_gap: float) -> str | None:
    """Which groups gave no pair, and what may help; None where each gave one."""
    lacking = [group for group, own in pairs.items() if not own.pairs]
    if not lacking:
        return None
    lower = f", or lower dpo4rec.least_gap, which is {least_gap:g}" if least_gap > 0 else ""
    return (
        f"round {number}: no pair of texts in group {' and '.join(lacking)}: all texts of a user are worth the same, "
        f"or there is one; raise dpo4rec.texts, dpo4rec.users or dpo4rec.temperature{lower}"
    )


def _training(adapter: Path) -> dict[str, Any]:
    """The steps of an adapter's training, and its losses."""
    told = read_json(adapter / "training.json")
    return {key: told[key] for key in ("steps", "best_step", "start_validation_loss", "best_validation_loss")}


def _form_share(loop: Loop, writers: _Writers, adapter: Path | None) -> float:
    """Share of V's texts, one a user, that have the structure where nothing holds the model to it."""
    return loop.write(writers.open_free(adapter), {"V": 1})["V"].well_formed


def _written_pairs(
    pairs: Paired, written: Written, histories: Mapping[int, Sequence[int]], writers: _Writers
) -> list[WrittenPair]:
    """Pairs as the model wrote them: prompts end with the first word, so texts go on after it."""
    found = []
    for pair in pairs.pairs:
        by_read = {text.read(): text for text in reversed(written.texts[pair.user_id])}
        chosen, rejected = (by_read[told].written().removeprefix(f"{LIKES}:") for told in (pair.chosen, pair.rejected))
        found.append(WrittenPair(f"text-{pair.user_id}", writers.prompt(histories[pair.user_id]), chosen, rejected))
    return found


def _protocol(params: Params, loop: Loop, prepared: Path) -> dict[str, Any]:
    """What every figure shares."""
    own = params.dpo4rec
    inside = [len(case.targets & set(case.listed)) / len(case.targets) for case in loop.cases["T"]]
    return {
        "source": params.source,
        "data_digest": Prepared(prepared).data_digest,
        "users": {group: len(cases) for group, cases in loop.cases.items()},
        "first_stage": own.first_stage, "listed": loop.start.listed, "window": own.window, "encoder": own.encoder,
        "texts": own.texts, "targets_listed": round(float(np.mean(inside)), 4), "seed": params.seed,
        "resamples": params.evaluate.resamples,
    }  # fmt: skip


def _about_texts(params: Params, written: Iterable[Written]) -> dict[str, Any]:
    """What came of the writer before alignment."""
    parts = list(written)
    refused, failed = (sum((getattr(own, name) for own in parts), Counter[str]()) for name in ("refused", "failed"))
    return {
        "engine": params.dpo4rec.engine,
        "texts": sum(len(own) for part in parts for own in part.texts.values()),
        "users_without": sum(not own for part in parts for own in part.texts.values()),
        "tokens": sum(own.tokens for own in parts),
        "read_tokens": sum(own.read_tokens for own in parts),
        "refused": dict(sorted(refused.items())),
        "failed": dict(sorted(failed.items())),
    }


def _texts_table(texts: Sequence[tuple[int, Group, Written]]) -> pa.Table:
    """texts.parquet: a row a text, by round, group, user and place."""
    rows = [
        {
            "round": number,
            "group": group,
            c.USER: user,
            "place": place,
            c.TEXT: text.written(),
            "because": list(text.because),
        }
        for number, group, written in texts
        for user, own in sorted(written.texts.items())
        for place, text in enumerate(own)
    ]  # fmt: skip
    schema = pa.schema(
        [("round", pa.int64()), ("group", pa.string()), (c.USER, pa.int64()), ("place", pa.int64()),
         (c.TEXT, pa.string()), ("because", pa.list_(pa.string()))]
    )  # fmt: skip
    return pa.Table.from_pylist(rows, schema)


def _pairs_table(pairs: Sequence[tuple[int, Group, Paired]]) -> pa.Table:
    """pairs.parquet: a row a pair, by round, group and user."""
    rows = [
        {"round": number, "group": group, c.USER: pair.user_id, c.CHOSEN: pair.chosen, c.REJECTED: pair.rejected,
         "chosen_reward": pair.chosen_reward, "rejected_reward": pair.rejected_reward}
        for number, group, own in pairs
        for pair in sorted(own.pairs, key=lambda pair: pair.user_id)
    ]  # fmt: skip
    schema = pa.schema(
        [("round", pa.int64()), ("group", pa.string()), (c.USER, pa.int64()), (c.CHOSEN, pa.string()),
         (c.REJECTED, pa.string()), ("chosen_reward", pa.float64()), ("rejected_reward", pa.float64())]
    )  # fmt: skip
    return pa.Table.from_pylist(rows, schema)


LABELS = {"ndcg_at_10": "NDCG@10", "hr_at_5": "HR@5", "mrr": "MRR"}


def verdict(told: Mapping[str, Any]) -> str:
    """The first line: does the reranker read its texts, and does alignment help."""
    drop = _interval(told["swap_control"]["drop"])
    users = told["swap_control"]["users"]
    measured = f"texts swapped between {users} users change NDCG@5 by {signed(_turned(drop))}"
    done = "nothing was aligned"
    if told["rounds"]:
        gain = _interval(told["rounds"][-1]["reward_gain"])
        says = "better" if gain.low > 0 else "worse" if gain.high < 0 else "no better by the interval"
        done = f"aligned texts are {says}: NDCG@5 {signed(gain)} against unaligned ones"
        if not told["reads_texts"]:
            done = f"aligned all the same (dpo4rec.force), and {done}"
    elif told["reads_texts"]:
        done += f": {told['stopped']}"
    if told["reads_texts"]:
        return f"reads_texts: true. The recommender reads the texts: {measured}; {done}."
    if users < FEWEST_USERS:
        return f"reads_texts: not shown. {_too_few(users).capitalize()}: {measured}; {done}."
    return f"reads_texts: false. The recommender does not read the texts: {measured}; {done}."


def page(told: Mapping[str, Any]) -> str:
    """report.md: the verdict, the reranking table, the rounds, the texts, the protocol."""
    protocol, writer = told["protocol"], told["writer"]
    users = ", ".join(f"{group} {count}" for group, count in protocol["users"].items())
    lines = [verdict(told), ""]
    if told["stopped"] and told["rounds"]:
        lines += [f"It stopped early: {told['stopped']}.", ""]
    header = [*LABELS.values(), f"NDCG@10 minus that of {UNALIGNED}"]
    lines += ["## Reranking on T", "", f"| arm | {' | '.join(header)} |", f"|---|{'---|' * len(header)}"]
    for arm in told["arms"]:
        cells = [plain(_interval(arm["metrics"][m])) for m in LABELS]
        cells.append("—" if arm["name"] == UNALIGNED else signed(_interval(arm["gains"]["ndcg_at_10"])))
        lines.append(f"| {arm['name']} | {' | '.join(cells)} |")
    lines += ["", "## Rounds", ""]
    if not told["rounds"]:
        lines.append(f"None: {told['stopped'] or 'nothing was asked for'}.")
    for row in told["rounds"]:
        lines.append(
            f"- Round {row['round']}: {row['pairs']['P']} pairs of P ({row['skipped']['P']:.0%} of its users skipped), "
            f"{row['pairs']['V']} of V; step {row['best_step']} of {row['steps']} kept (validation loss "
            f"{row['start_validation_loss']:.4f} → {row['best_validation_loss']:.4f}); reward on T "
            f"{signed(_interval(row['reward_gain']))}; well-formed without constraint "
            f"{row['well_formed']['before']:.0%} → {row['well_formed']['after']:.0%}."
        )
    refused = ", ".join(f"{reason} {count}" for reason, count in writer["refused"].items()) or "none"
    failed = ", ".join(f"{reason} {count}" for reason, count in writer["failed"].items()) or "none"
    lines += [
        "", "## Texts before alignment", "",
        f"{writer['texts']:,} texts, {writer['tokens']:,} tokens written and {writer['read_tokens']:,} read, by the "
        f"engine {writer['engine']}; refused: {refused}; requests that failed: {failed}; users without any text, whose "
        f"lists are read without: {writer['users_without']}.",
        "", "## Protocol", "",
        f"Source {protocol['source']}, data digest {str(protocol['data_digest'])[:12]}; users {users}, divided by "
        f"hash; {protocol['texts']} texts a user; the first stage {protocol['first_stage']}, fitted on R alone, lists "
        f"{protocol['listed']} items, which hold {protocol['targets_listed']:.0%} of T's targets (the last "
        f"{protocol['window']} items of a user); a target outside is missed by every arm. Texts read by "
        f"{protocol['encoder']}; seed {protocol['seed']}; intervals 95 %, {protocol['resamples']} resamples of users. "
        "Users are new to the recommender, but times of different users overlap: arms compare with one another, and "
        "with no figure of the scorecard.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _interval(told: Mapping[str, float]) -> Interval:
    return Interval(told["value"], told["low"], told["high"])


def _turned(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low)
