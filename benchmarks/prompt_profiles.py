"""Do inferred preferences help in prompts? SFT that shows each user's profile against SFT that shows none.

    python benchmarks/prompt_profiles.py --root PROJECT --seeds 1 2 3 --arms none statements counting --json out.json

PROJECT is a project whose stages up to `profiles` have run with `prompt.profile: true`, so that whoever appears has a
profile; its params.yaml says the budget. Arms, all trained with the settings of `sft` on the same histories:

none          prompts show titles alone
<engine>      prompts show the profile by profiles.engine <engine> or by counting, in training and in ranking
<engine>@     the same adapter, but each user is ranked with the profile of another one (a control; nothing is trained)

The arm that is best on the warm validation cases, mean of the seeds, is named; test figures are means over the seeds of
the same cases, with a bootstrap over users, and differences to `none` are paired, with Holm's correction. What was
trained stays in PROJECT/data/cache/prompt_profiles.
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

NONE, OTHERS = "none", "@"
SPLITS = (c.VALIDATION, c.TEST)


class Bench:
    """One project and its warm cases."""

    def __init__(self, root: Path, cases: int | None) -> None:
        self.project, self.params = Project(root), load_params(root / "params.yaml")
        self.catalogue = Items.read(self.project.prepared)
        self.summary = read_json(self.project.prepared / "summary.json")
        asked = self.params.evaluate
        self.limits = {c.VALIDATION: asked.validation_cases, c.TEST: cases or asked.test_cases}

    def scores(self, arm: str, seed: int) -> tuple[dict[str, Floats], float]:
        """[B, C] log-probs of each split's cases, and the CPU seconds of training (0 where it was there)."""
        engine, others = arm.removesuffix(OTHERS), arm.endswith(OTHERS)
        params, begun = self._params(engine, seed), time.process_time()
        folder = self.project.root / "data/cache/prompt_profiles" / f"{engine}-{seed}"
        if not (folder / "manifest.json").is_file():
            sft(params, self.project.moved(sft=folder))
        spent = time.process_time() - begun
        setting = Setting(params.base, params.prompt, self.summary["noun"], self.summary["clock"], seed, params.threads)
        own = open_recommender(
            arm, self.project.base, folder, setting, self.catalogue, batch=params.evaluate.batch,
            store=self.project.logprobs,
        )  # fmt: skip
        trials = {split: self.trial(split, engine, others=others) for split in SPLITS}
        return {split: own.logprobs(trial.requests, trial.candidates) for split, trial in trials.items()}, spent

    def trial(self, split: str, engine: str = NONE, *, others: bool = False) -> Trial:
        """The warm cases of a split, with what prompts show of each user."""
        texts = None if engine == NONE else profile_texts(self.project.profiles, engine, split)
        if texts and others:  # the next user's in the order of a hash
            users = sorted(texts, key=lambda user: hashed_order(self.params.seed, "others", user))
            texts = {user: texts[other] for user, other in zip(users, users[1:] + users[:1], strict=True)}
        return read_trial(
            self.project.prepared, split, UNIFORM, self.limits[split], self.params.seed, texts, view=c.WARM
        )

    def _params(self, engine: str, seed: int) -> Params:
        prompt = self.params.prompt.model_copy(update={"profile": engine != NONE})
        profiles = self.params.profiles.model_copy(update={} if engine == NONE else {"engine": engine})
        return self.params.model_copy(update={"seed": seed, "prompt": prompt, "profiles": profiles})


def measure(bench: Bench, arms: list[str], seeds: list[int], out: Path | None) -> dict[str, Any]:
    """Every arm and seed; the JSON is written anew after each seed."""
    trials = {split: bench.trial(split) for split in SPLITS}
    reached = {split: Reached(trial) for split, trial in trials.items()}
    chosen: dict[str, list[float]] = {}
    seconds: dict[str, list[int]] = {}
    asked = [(arm, NONE) for arm in arms if arm != NONE] if NONE in arms else []
    asked += [(arm, arm + OTHERS) for arm in arms if arm + OTHERS in arms]
    found: dict[str, Any] = {}
    for done, seed in enumerate(seeds, 1):
        for arm in arms:
            scores, spent = bench.scores(arm, seed)
            seconds.setdefault(arm, []).append(round(spent))
            got = {split: reached[split].keep(arm, own) for split, own in scores.items()}
            chosen.setdefault(arm, []).append(got[c.VALIDATION])
            print(f"seed {seed}, {arm}: {METRIC} {got[c.TEST]:.4f}, {spent:.0f} s", flush=True)
        found = {
            "data": bench.summary["data_digest"], "seeds": seeds[:done], "machine": machine(), "seconds": seconds,
            "validation": {arm: np.mean(v) for arm, v in chosen.items()}, **reached[c.TEST].told(asked),
        }  # fmt: skip
        if out:
            write_json(out, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", nargs="+", default=[NONE, "statements", "counting"])
    parser.add_argument("--cases", type=int, help="warm test cases (default: evaluate.test_cases)")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = measure(Bench(asked.root, asked.cases), asked.arms, asked.seeds, asked.json)
    show(found)
    print("validation:", ", ".join(f"{arm} {value:.4f}" for arm, value in found["validation"].items()))
    known = {arm: value for arm, value in found["validation"].items() if not arm.endswith(OTHERS)}
    print(f"best on validation: {max(known, key=lambda arm: known[arm])}")


if __name__ == "__main__":
    main()
