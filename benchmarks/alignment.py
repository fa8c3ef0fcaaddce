"""Does preference alignment pay? Each objective against supervised training that goes on, from the same SFT model.

    python benchmarks/alignment.py --root PROJECT --arms continued sdpo dmpo sdpo/3 sdpo@hard --json alignment.json

PROJECT is a project whose stages up to `sft` have run, with prepare.hidden_items above 0 where new items are to be
looked at; its params.yaml says the budget. Every arm starts from data/models/sft and learns from the same preference
examples (`pairs.examples`, one pass), with the settings of `align`:

<objective>           K = pairs.negatives rejected items an example, drawn by pairs.strategy
<objective>/3         K = 3
<objective>*3         pairs.positives = 3: the chosen item and the user's next two likes
<objective>@hard      rejected items by another pairs.strategy
continued             SFT goes on with the chosen items of the same examples: --epochs passes, so many that it takes the
                      CPU time of one pass with K rejected items

Whatever trains keeps its best step by its own loss on the validation pairs, the start among them. All rank the same
lists of 20 by log-prob. --best N names the N objectives that are best on the warm validation cases; run these again
with more --seeds, which draw other rejected items and another order. A figure is the mean over the cases of what the
seeds reached on average, its interval a bootstrap over users (on new items over the targets, which are fewer);
differences to `sft` and to `continued` are paired, with Holm's correction over all of one view. PROJECT's folder
data/cache/alignment keeps what was trained.
"""

import argparse
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from arms import Reached, show

from recalign.common import columns as c
from recalign.common.artifacts import read_json, write_json
from recalign.common.origin import machine
from recalign.data.records import Items
from recalign.evaluation.metrics import Floats
from recalign.llm.model.base import load_language_model
from recalign.params.load import Params, load_params
from recalign.project import Project
from recalign.ranking.language_model import Setting, open_recommender
from recalign.ranking.trial import UNIFORM, Trial, read_trial, scores_of
from recalign.stages.align import align
from recalign.stages.pairs import pairs
from recalign.stages.reference import reference
from recalign.training.examples import PreferenceExample, TextExample, read_preference_examples, text_prompts
from recalign.training.loop import Passes, train
from recalign.training.results import Checkpoints, write_training
from recalign.training.sft import LanguageModelling

FACTS = ("steps", "best_step", "start_validation_loss", "best_validation_loss")
START, CONTINUED = "sft", "continued"
VIEWS = (c.WARM, c.HIDDEN)


@dataclass(frozen=True)
class Arm:
    """What trains: `name` as typed, an objective, K and a strategy, where they differ from the project's."""

    name: str
    objective: str
    negatives: int | None
    positives: int | None
    strategy: str | None

    @classmethod
    def read(cls, name: str) -> "Arm":
        """'sdpo/3@hard' → S-DPO, K = 3, hard ones."""
        found = re.fullmatch(r"(?P<objective>\w+)(/(?P<k>\d+))?(\*(?P<p>\d+))?(@(?P<strategy>\w+))?", name)
        if not found:
            raise argparse.ArgumentTypeError(f"'{name}' is no arm; give an objective, then /K, *P and @strategy")
        k, p = (int(found[key]) if found[key] else None for key in ("k", "p"))
        return cls(name, found["objective"], k, p, found["strategy"])

    def params(self, params: Params, seed: int) -> Params:
        """The project's, with what this arm changes."""
        given = {"negatives": self.negatives, "positives": self.positives, "strategy": self.strategy}
        changed = params.pairs.model_copy(update={key: value for key, value in given.items() if value is not None})
        return params.model_copy(update={"pairs": changed, "seed": seed})


class Bench:
    """One project and its cases."""

    def __init__(self, root: Path, cases: tuple[int, int], epochs: int) -> None:
        self.project, self.params = Project(root), load_params(root / "params.yaml")
        self.catalogue = Items.read(self.project.prepared)
        self.summary = read_json(self.project.prepared / "summary.json")
        self.epochs = epochs
        self.work = self.project.root / "data/cache/alignment"
        views = VIEWS if self.params.prepare.hidden_items else (c.WARM,)
        limits, few = dict(zip(VIEWS, cases, strict=True)), self.params.evaluate.validation_cases
        self.test = {view: self._cases(c.TEST, view, limits[view]) for view in views}
        self.validation = {view: self._cases(c.VALIDATION, view, few) for view in views}

    def adapter(self, arm: Arm, seed: int) -> tuple[Path, float]:
        """The arm's adapter, trained where it is missing, and the CPU seconds of that: reference log-probs included."""
        if arm.name == START:
            return self.project.sft, 0.0
        params, begun = arm.params(self.params, seed), time.process_time()
        of = f"{params.pairs.strategy}-{params.pairs.negatives}-{params.pairs.positives}-{seed}"
        drawn, stored, out = self.work / f"pairs-{of}", self.work / f"reference-{of}", self.work / f"{of}"
        project = self.project
        if not drawn.is_dir():
            pairs(params, project.moved(pairs=drawn))
        folder = out / arm.objective
        if (folder / "manifest.json").is_file():
            return folder, 0.0
        if arm.objective == CONTINUED:
            self._continue(params, drawn, folder)
        else:
            own = project.moved(pairs=drawn, reference=stored, align=out, cache=self.work)
            reference(params, own)
            align(params, arm.objective, own)
        return folder, time.process_time() - begun

    def scores(self, adapter: Path, trials: dict[str, Trial]) -> dict[str, Floats]:
        """[B, C] log-probs of each view's cases."""
        params = self.params
        setting = Setting(
            params.base, params.prompt, self.summary["noun"], self.summary["clock"], params.seed, params.threads
        )
        own = open_recommender(
            adapter.name, self.project.base, adapter, setting, self.catalogue, batch=params.evaluate.batch,
            store=self.project.logprobs,
        )  # fmt: skip
        return {view: scores_of(own, trial.requests, trial.candidates) for view, trial in trials.items()}

    def _cases(self, split: str, view: str, limit: int) -> Trial:
        return read_trial(self.project.prepared, split, UNIFORM, limit, self.params.seed, view=view)

    def _continue(self, params: Params, drawn: Path, out: Path) -> None:
        project = self.project
        lm = load_language_model(
            project.base, params.base, adapter=project.sft, trainable=True, seed=params.seed, threads=params.threads
        )
        read = read_preference_examples(
            params, project.prepared, drawn, text_prompts(params, project.prepared, lm.tokenizer)
        )
        chosen = {split: [_chosen(example) for example in own] for split, own in read.items()}
        task = LanguageModelling(lm.model, chosen[c.VALIDATION], params.align.micro_tokens)
        task.name = CONTINUED
        checkpoints = Checkpoints(self.work / "checkpoints", CONTINUED, f"{lm.digest}-{out}", params.checkpoint_seconds)
        passes = Passes(chosen[c.TRAIN], self.epochs, params.seed)
        result = train(lm.model, task, passes, params.align, checkpoints, self.work / "costs")
        facts = {"stage": CONTINUED, "base": lm.identity, "examples": len(chosen[c.TRAIN])}
        write_training(lm, result, facts, out, self.work / "costs")
        checkpoints.remove()


def _chosen(example: PreferenceExample) -> TextExample:
    return TextExample(example.example_id, example.prompt, example.responses[0])


def measure(
    bench: Bench, arms: list[Arm], seeds: list[int], out: Path | None, against: str | None = None
) -> dict[str, Any]:
    """Every arm and seed; the JSON is written anew after each, so that what is there survives a kill.

    against: an arm that all others are compared with as well.
    """
    reached = {view: Reached(trial, trial.judged.clusters) for view, trial in bench.test.items()}
    validation = Reached(bench.validation[c.WARM])
    chosen: dict[str, list[float]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, Any] = {}
    for seed in seeds:
        for arm in [Arm.read(START), *arms] if seed == seeds[0] else arms:
            adapter, spent = bench.adapter(arm, seed)
            trained = read_json(adapter / "training.json")
            shown = {key: trained[key] for key in FACTS}
            facts.setdefault(arm.name, []).append({"seed": seed, "cpu_seconds": round(spent), **shown})
            tests = bench.scores(adapter, bench.test)
            got = {view: round(reached[view].keep(arm.name, scores), 4) for view, scores in tests.items()}
            scores = bench.scores(adapter, {c.WARM: bench.validation[c.WARM]})[c.WARM]
            chosen.setdefault(arm.name, []).append(validation.keep(arm.name, scores))
            found = {
                "data": bench.summary["data_digest"], "machine": machine(), "validation": chosen, "training": facts,
                "views": {view: own.told(asked(own.means(), against)) for view, own in reached.items()},
            }  # fmt: skip
            print(arm.name, seed, facts[arm.name][-1], got, flush=True)
            if out:
                write_json(out, found)
    return found


def asked(arms: Iterable[str], against: str | None = None) -> list[tuple[str, str]]:
    """The differences to look at: each arm minus where it started, minus SFT that went on, and minus `against`."""
    names = list(arms)
    others = [other for other in (START, CONTINUED, against) if other in names]
    return [(name, other) for place, other in enumerate(others) for name in names if name not in others[: place + 1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=[CONTINUED, "sdpo"], type=Arm.read)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--epochs", type=int, default=2, help="passes of `continued` (default: 2)")
    parser.add_argument("--cases", type=int, nargs=2, default=(300, 240), help="warm and hidden test cases")
    parser.add_argument("--best", type=int, default=0, help="name the best so many objectives on validation")
    parser.add_argument("--against", metavar="ARM", help="one of the arms, that all others are compared with as well")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.against and given.against not in {arm.name for arm in given.arms}:
        parser.error(f"--against {given.against}: no such arm; give one of --arms")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = measure(
        Bench(given.root, tuple(given.cases), given.epochs), given.arms, given.seeds, given.json, given.against
    )
    for told in found["views"].values():
        show(told)
    aligned = {name: np.mean(own) for name, own in found["validation"].items() if name not in (START, CONTINUED)}
    for name in sorted(aligned, key=lambda name: -aligned[name])[: given.best]:
        print(f"best on validation: {name} {aligned[name]:.4f}")


if __name__ == "__main__":
    main()
