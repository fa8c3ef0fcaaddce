"""The page of `recalign dpo4rec`: first whether texts are read at all, then what they are worth."""

from collections.abc import Mapping
from typing import Any

from recalign.evaluation.significance import Interval, plain, signed

LABELS = {"ndcg_at_10": "NDCG@10", "hr_at_5": "HR@5", "mrr": "MRR"}


def verdict(told: Mapping[str, Any]) -> str:
    """The first line: does the reranker read its texts, and does alignment help."""
    drop = _interval(told["swap_control"]["drop"])
    users = told["swap_control"]["users"]
    measured = f"texts swapped between {users} users change NDCG@5 by {signed(_turned(drop))}"
    if not told["reads_texts"]:
        done = "aligned all the same (dpo4rec.force)" if told["forced"] and told["rounds"] else "nothing was aligned"
        return f"reads_texts: false. The recommender does not read the texts: {measured}; {done}."
    if not told["rounds"]:
        return f"reads_texts: true ({measured}), and nothing was aligned: {told['stopped']}."
    gain = _interval(told["rounds"][-1]["reward_gain"])
    says = "better" if gain.low > 0 else "worse" if gain.high < 0 else "no better by the interval"
    return f"reads_texts: true ({measured}). Aligned texts are {says}: NDCG@5 {signed(gain)} against unaligned ones."


def page(told: Mapping[str, Any]) -> str:
    """report.md: the verdict, the reranking table, the rounds, the texts, the protocol."""
    protocol, writer = told["protocol"], told["writer"]
    users = ", ".join(f"{group} {count}" for group, count in protocol["users"].items())
    lines = [verdict(told), ""]
    if told["stopped"] and told["rounds"]:
        lines += [f"It stopped early: {told['stopped']}.", ""]
    header = [LABELS[m] for m in LABELS] + ["NDCG@10 less that of unaligned text"]
    lines += ["## Reranking on T", "", f"| arm | {' | '.join(header)} |", f"|---|{'---|' * len(header)}"]
    for arm in told["arms"]:
        cells = [plain(_interval(arm["metrics"][m])) for m in LABELS]
        own = arm["name"] == "unaligned text"
        cells.append("—" if own else signed(_interval(arm["gains"]["ndcg_at_10"])))
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
        f"{writer['texts']} texts, {writer['tokens']} tokens, by {writer['engine']}; refused: {refused}; requests that "
        f"failed: {failed}.",
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
