"""What should prompts show beside titles? SFT with item attributes or inferred preferences against SFT with neither.

    python benchmarks/prompts.py --root PROJECT --seeds 1 2 3 --arms none statements statements@ --json out.json
    python benchmarks/prompts.py --root PROJECT --arms none attributes answers --attributes genre year --json out.json

PROJECT is a project whose stages prepare and base have run, and `profiles` with `prompt.profile: true` where an arm
shows profiles, so that whoever appears has one; its params.yaml says the budget. All arms train with the settings of
`sft` on the same histories, and rank the same cases by log-prob, new items too where prepare.hidden_items is above 0:

none          prompts show titles alone
attributes    those of --attributes follow the titles of histories
answers       and the title that is scored
statements    prompts show the profile by that profiles.engine, in training and in ranking
counting      likewise
<engine>@     the same adapter, but each user is ranked with the profile of another one (a control; nothing is trained)

The arm that is best on the warm validation cases, mean of the seeds, is named; test figures are means over the seeds of
the same cases, with a bootstrap over users, and differences to `none` are paired, with Holm's correction over a view.
`cost` is CPU seconds of training (0 where the arm was there) and of ranking. What was trained stays in
PROJECT/data/cache/prompts.
"""

import argparse
import logging
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from arms import METRIC, Reached, show

from recalign.common import columns as c
from recalign.common.artifacts import read_json, write_json
from recalign.common.origin import machine
from recalign.data.records import Items, hashed_order
from recalign.evaluation.metrics import Floats
from recalign.params.load import Params, load_params
from recalign.preferences.profiles.profiles import profile_texts
from recalign.project import Project
from recalign.ranking.language_model import Setting, open_recommender
from recalign.ranking.trial import UNIFORM, Trial, read_trial
from recalign.stages.sft import sft

NONE, ATTRIBUTES, ANSWERS, OTHERS = "none", "attributes", "answers", "@"
ENGINES = ("statements", "counting")
ARMS = (NONE, ATTRIBUTES, ANSWERS, *ENGINES, *(engine + OTHERS for engine in ENGINES))
Key = tuple[str, str]  # a split and a view


class Bench:
    """One project and its cases."""

    def __init__(self, root: Path, attributes: list[str], cases: int | None) -> None:
        self.project, self.params = Project(root), load_params(root / "params.yaml")
        self.attributes = tuple(attributes)
        self.catalogue = Items.read(self.project.prepared)
        self.summary = read_json(self.project.prepared / "summary.json")
        asked, views = self.params.evaluate, [c.WARM, *([c.HIDDEN] if self.params.prepare.hidden_items else [])]
        self.keys = [(c.VALIDATION, c.WARM), *((c.TEST, view) for view in views)]
        self.limits = {c.VALIDATION: asked.validation_cases, c.TEST: cases or asked.test_cases}

    def scores(self, arm: str, seed: int) -> tuple[dict[Key, Floats], dict[str, int]]:
        """[B, C] log-probs of each split's and view's cases, and the cost."""
        shown = arm.removesuffix(OTHERS)
        params, begun = self._params(shown, seed), time.process_time()
        folder = self.project.root / "data/cache/prompts" / f"{shown}-{seed}"
        if not (folder / "manifest.json").is_file():
            sft(params, self.project.moved(sft=folder))
        trained = time.process_time()
        setting = Setting(params.base, params.prompt, self.summary["noun"], self.summary["clock"], seed, params.threads)
        own = open_recommender(
            arm, self.project.base, folder, setting, self.catalogue, batch=params.evaluate.batch,
            store=self.project.logprobs,
        )  # fmt: skip
        trials = {key: self.trial(*key, arm) for key in self.keys}
        scores = {key: own.logprobs(trial.requests, trial.candidates) for key, trial in trials.items()}
        return scores, {"training": round(trained - begun), "ranking": round(time.process_time() - trained)}

    def trial(self, split: str, view: str, arm: str = NONE) -> Trial:
        """The cases of a split and view, with what the arm's prompts show of each user."""
        engine = arm.removesuffix(OTHERS)
        texts = profile_texts(self.project.profiles, engine, split) if engine in ENGINES else None
        if texts and arm.endswith(OTHERS):  # the next user's in the order of a hash
            users = sorted(texts, key=lambda user: hashed_order(self.params.seed, "others", user))
            texts = {user: texts[other] for user, other in zip(users, users[1:] + users[:1], strict=True)}
        prepared, limit = self.project.prepared, self.limits[split]
        return read_trial(prepared, split, UNIFORM, limit, self.params.seed, texts, view=view)

    def _params(self, shown: str, seed: int) -> Params:
        named = self.attributes if shown in (ATTRIBUTES, ANSWERS) else ()
        asked = {"profile": shown in ENGINES, "attributes": named, "response_attributes": shown == ANSWERS}
        profiles = {"engine": shown} if shown in ENGINES else {}
        return self.params.model_copy(update={
            "seed": seed, "prompt": self.params.prompt.model_copy(update=asked),
            "profiles": self.params.profiles.model_copy(update=profiles),
        })  # fmt: skip


def measure(bench: Bench, arms: list[str], seeds: list[int], out: Path | None) -> dict[str, Any]:
    """Every arm and seed; the JSON is written anew after each seed."""
    reached = {key: Reached(bench.trial(*key)) for key in bench.keys}
    chosen: dict[str, list[float]] = {}
    cost: dict[str, list[dict[str, int]]] = {}
    asked = [(arm, NONE) for arm in arms if arm != NONE] if NONE in arms else []
    asked += [(arm, arm + OTHERS) for arm in arms if arm + OTHERS in arms]
    found: dict[str, Any] = {}
    for done, seed in enumerate(seeds, 1):
        for arm in arms:
            scores, spent = bench.scores(arm, seed)
            cost.setdefault(arm, []).append(spent)
            got = {key: reached[key].keep(arm, own) for key, own in scores.items()}
            chosen.setdefault(arm, []).append(got[c.VALIDATION, c.WARM])
            told = ", ".join(f"{view} {value:.4f}" for (split, view), value in got.items() if split == c.TEST)
            print(f"seed {seed}, {arm}: {METRIC} {told}, CPU seconds {spent}", flush=True)
        found = {
            "data": bench.summary["data_digest"], "seeds": seeds[:done], "machine": machine(), "cost": cost,
            "validation": {arm: float(np.mean(v)) for arm, v in chosen.items()},
            "views": {view: own.told(asked) for (split, view), own in reached.items() if split == c.TEST},
        }  # fmt: skip
        if out:
            write_json(out, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[NONE, *ENGINES])
    parser.add_argument("--attributes", nargs="+", default=[], help=f"what {ATTRIBUTES} and {ANSWERS} show")
    parser.add_argument("--cases", type=int, help="test cases of each view (default: evaluate.test_cases)")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not given.attributes and {ATTRIBUTES, ANSWERS} & set(given.arms):
        parser.error("these arms need --attributes, such as genre year")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = measure(Bench(given.root, given.attributes, given.cases), given.arms, given.seeds, given.json)
    for told in found["views"].values():
        show(told)
    print("validation:", ", ".join(f"{arm} {value:.4f}" for arm, value in found["validation"].items()))
    known = {arm: value for arm, value in found["validation"].items() if not arm.endswith(OTHERS)}
    print(f"best on validation: {max(known, key=lambda arm: known[arm])}")


if __name__ == "__main__":
    main()
