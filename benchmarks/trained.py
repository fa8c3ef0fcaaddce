"""Does a trained language model help where co-occurrence is blind? The fusion with it against the same without it.

    python benchmarks/trained.py --prepared draw1/prepared draw2/prepared draw3/prepared --base base --work work

Reads what `dvc repro prepare` made with `prepare.hidden_items` above 0, once a draw of them (another `seed`). For each
draw: SFT on --histories training histories (seed: the draw's number) with --new-items as `sft.new_items`, unless its
adapter lies in the work folder; ID recommenders fitted on the draw's train events. The rule that ranks the model's
candidates, its prior's weight among it, and all weights of the fusion are chosen on hidden validation cases, the
figures are of hidden test cases; the untrained model goes the same way, in a fusion of its own. Intervals: 95 %, over
the users of all draws together or over the target items of each draw, whichever is wider: hidden items are fewer than
users, and cases that ask for one item are alike.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from new_items import IDS, METRIC, project_of
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.origin import machine
from recalign.data.records import Items
from recalign.evaluation.metrics import Floats
from recalign.evaluation.ranking_rule import LogprobScores, RankingRule, choose_rule, ranking_scores, rules_to_try
from recalign.evaluation.significance import bootstrap_interval, signed
from recalign.evaluation.systems import TUNED, UNTRAINED
from recalign.params.load import Params, load_params
from recalign.project import Project
from recalign.ranking.fusion import Fusion
from recalign.ranking.language_model import Setting, open_recommender
from recalign.ranking.recommenders import open_recommender as open_id
from recalign.ranking.trial import WEIGHING, Trial, read_trial, scores_of
from recalign.report.table import plain
from recalign.stages.baselines import baselines
from recalign.stages.sft import sft

AHEAD = 10**9  # of item ids: draws share none
WITH, WITHOUT, WITH_UNTRAINED = "fusion with llm-sft", "fusion without", "fusion with llm-base"


@dataclass(frozen=True)
class Draw:
    """values: NDCG@10 [cases] by system; users and targets [cases]; told: a line on weights, rule and training."""

    values: dict[str, NDArray[np.float64]]
    users: list[int]
    targets: list[int]
    told: str


def trained(params: Params, project: Project, seed: int) -> str:
    """Train the adapter where it is missing; what it read, in words."""
    started = time.process_time()
    if not project.sft.is_dir():
        own = params.model_copy(update={"seed": seed, "threads": 1})
        sft(own, project)
    facts = read_json(project.sft / "training.json")
    shown = ("examples", "steps", "best_step", "start_validation_loss", "best_validation_loss")
    told = {name: facts[name] for name in shown}
    return f"SFT {json.dumps(told)}, {time.process_time() - started:.0f} CPU s"


def raw_scores(name: str, params: Params, project: Project, trials: Sequence[Trial]) -> list[LogprobScores]:
    """Log-probs of a model on some trials, and its priors; kept in the work folder."""
    summary, catalogue = read_json(project.prepared / "summary.json"), Items.read(project.prepared)
    setting = Setting(params.base, params.prompt, summary["noun"], summary["clock"], params.seed, 1)
    model = open_recommender(
        name, project.base, project.sft if name == TUNED else None, setting, catalogue, store=project.logprobs
    )
    return [LogprobScores(model.logprobs(own.requests, own.candidates), model.priors(own.candidates)) for own in trials]


def ranked(raw: Sequence[LogprobScores], rule: RankingRule) -> list[Floats]:
    """Scores of each trial under a rule."""
    return [ranking_scores(rule, own) for own in raw]


def measure(params: Params, project: Project, seed: int, asked: tuple[int, int]) -> Draw:
    """One draw. asked: hidden validation and test cases that the language models read."""
    told = trained(params, project, seed)
    catalogue = Items.read(project.prepared)
    few, test = asked
    many, choosing, testing = (
        read_trial(project.prepared, split, "uniform", limit, params.seed, view=c.HIDDEN)
        for split, limit in ((c.VALIDATION, WEIGHING), (c.VALIDATION, few), (c.TEST, test))
    )
    scores: dict[str, list[Floats]] = {}
    for name in IDS:
        if not (project.baselines / name).is_dir():
            baselines(params, name, project)
        own = open_id(name, project, catalogue)
        scores[name] = [scores_of(own, trial.requests, trial.candidates) for trial in (many, choosing, testing)]
    without = Fusion.fit({name: own[0] for name, own in scores.items()}, many.judged)
    tested = {name: own[2] for name, own in scores.items()}
    fused, sentences = {WITHOUT: without.scores(tested)}, []
    for model, fusion in ((TUNED, WITH), (UNTRAINED, WITH_UNTRAINED)):
        raw = raw_scores(model, params, project, [choosing, testing])
        rules = rules_to_try("auto", params.evaluate.prior_weights, has_reference=False)
        rule = choose_rule(rules, raw[0], choosing.target_index, choosing.lots).rule
        own_choosing, tested[model] = ranked(raw, rule)
        asked_of = {name: own[1] for name, own in scores.items()} | {model: own_choosing}
        joined = without.joined(model, asked_of, choosing.judged)
        fused[fusion] = joined.scores(tested)
        sentences.append(f"{joined.sentence}; {model} by {rule.sentence}")
    shown = {name: tested[name] for name in ("content", "content_prior", TUNED, UNTRAINED)} | fused
    values = {name: testing.judged.values(own) for name, own in shown.items()}
    about = f"{len(many.cases)} and {len(choosing.cases)} validation, {len(testing.cases)} test cases"
    said = f"{'; '.join(sentences)}; {told}; {about}"
    return Draw(values, testing.users, [case.example.target for case in testing.cases], said)


def table(draws: Sequence[Draw], params: Params) -> str:
    """A line a system, then the paired differences, the primary comparison first."""
    users = [user for draw in draws for user in draw.users]
    targets = [place * AHEAD + item for place, draw in enumerate(draws) for item in draw.targets]

    def interval(parts: Sequence[NDArray[np.float64]], written: str) -> str:
        values, (resamples, seed) = np.concatenate(parts), (params.evaluate.resamples, params.seed)
        both = [bootstrap_interval(values, clusters, resamples, seed) for clusters in (users, targets)]
        own = max(both, key=lambda one: one.high - one.low)
        return signed(own) if written == "difference" else plain(own)

    head = ["system", *(f"draw {place + 1}" for place in range(len(draws))), METRIC]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name in draws[0].values:
        means = [f"{draw.values[name].mean():.3f}" for draw in draws]
        lines.append(f"| {name} | " + " | ".join([*means, interval([d.values[name] for d in draws], "mean")]) + " |")
    lines += ["", "| difference, the same cases | NDCG@10 |", "|---|---:|"]
    for one, other in ((WITH, WITHOUT), (TUNED, UNTRAINED), (TUNED, "content"), (WITH_UNTRAINED, WITHOUT)):
        apart = [draw.values[one] - draw.values[other] for draw in draws]
        lines.append(f"| {one} − {other} | {interval(apart, 'difference')} |")
    return "\n".join([*lines, "", *(f"- draw {place}: {draw.told}" for place, draw in enumerate(draws, 1))]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, nargs="+", required=True, help="a folder a draw of the hidden items")
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--work", type=Path, required=True, help="adapters, recommenders and log-probs are kept there")
    parser.add_argument("--histories", type=int, default=80, help="training histories an epoch (default: 80)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them (default: 2)")
    parser.add_argument("--new-items", type=float, default=0.2, help="sft.new_items (default: 0.2)")
    parser.add_argument("--training-history", type=int, default=30, help="titles of a history (default: 30)")
    parser.add_argument("--cases", type=int, nargs=2, default=(80, 120), help="hidden validation and test cases")
    parser.add_argument("--out", type=Path, help="write the Markdown there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = load_params()
    learning = {"examples": arguments.histories, "epochs": arguments.epochs, "new_items": arguments.new_items}
    params = params.model_copy(
        update={
            "sft": params.sft.model_copy(update=learning),
            "prompt": params.prompt.model_copy(update={"training_history": arguments.training_history}),
            "evaluate": params.evaluate.model_copy(update={"validation_cases": 24}),
        }
    )
    draws, told = [], []
    for place, prepared in enumerate(arguments.prepared, start=1):
        project = project_of(prepared, arguments.base, arguments.work / f"draw{place}")
        summary = read_json(project.prepared / "summary.json")
        told.append(
            f"- {summary['source']}, data {summary['data_digest'][:8]}, manifest uniform "
            f"{summary['manifests']['uniform'][c.HIDDEN][:8]}"
        )
        draws.append(measure(params, project, place, (arguments.cases[0], arguments.cases[1])))
        text = "\n".join([*told, f"- {machine()}", "", table(draws, params)])
        print(text, flush=True)
        if arguments.out:  # after each draw: what is there survives a kill
            arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
