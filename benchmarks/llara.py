"""LLaRA against its text-only twin of the same budget, its teacher and its controls, on the frozen test cases.

    python benchmarks/llara.py --root PROJECT --teacher ease --seeds 1 2 --json llara.json

PROJECT is a project whose stages prepare, base and baselines@<teacher> have run; its params.yaml says the budget. Arms,
all trained with the settings of `sft` on the same histories:

text       no vectors: stage sft
llara      the teacher's vectors, by the curriculum
shuffled   every item has another item's vector
mean       every item has the mean vector
zero       llara, read with an adapter whose last layer is zero (nothing is trained for it)
without    llara, read with prompts of text alone (likewise)

With hybrid.vectors: states the arm llara shows the teacher's states, and shuffled and mean, of static vectors, refuse.

and the teacher alone; fused: the arm joins the teacher where validation cases of the view say that it adds more than
noise, as in the product. All rank the same lists of 20 by log-prob: warm cases and, where prepare.hidden_items is above
0, cases of new items too. A figure is the mean over the cases of what the seeds reached on average, its interval a
bootstrap over users; differences are paired, with Holm's correction over those of LLaRA in one view. Where prompts list
candidates (prompt.form: candidates) the position probe is beside them: two candidates of each list change places. A
trained arm is kept in PROJECT/data/cache/llara, so that a run that was stopped goes on.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from arms import METRIC, RESAMPLES, Reached, show

from recalign.common import columns as c
from recalign.common.artifacts import read_json, write_json
from recalign.common.origin import machine
from recalign.data.records import Items
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import bootstrap_interval, plain
from recalign.hybrid.llara import Probe, drawn_places, exchanged, position_probe, read_teacher
from recalign.hybrid.modality import Teacher, averaged, shuffled
from recalign.hybrid.prompts import text_only
from recalign.llm.scoring.ways import base_of
from recalign.params.load import Params, load_params
from recalign.project import Project
from recalign.ranking.fusion import Fusion
from recalign.ranking.language_model import LanguageModelRecommender, Setting, open_recommender
from recalign.ranking.trial import UNIFORM, Trial, read_trial, scores_of
from recalign.recommenders.roster import load_fitted
from recalign.stages.llara import train_llara
from recalign.stages.sft import sft

VIEWS = (c.WARM, c.HIDDEN)
TRAINED = ("text", "llara", "shuffled", "mean")
READ_OTHERWISE = ("zero", "without")  # of the llara arm
Scores = dict[tuple[str, str], Floats]  # of a split and a view


class Bench:
    """One project, its cases and its teacher."""

    def __init__(self, root: Path, teacher: str, cases: list[int]) -> None:
        self.project = Project(root)
        self.params = load_params(root / "params.yaml")
        self.catalogue = Items.read(self.project.prepared)
        states = self.params.hybrid.vectors == "states"
        self.teacher = read_teacher(teacher, self.project.baselines, self.catalogue, states=states)
        asked, seed, prepared = self.params.evaluate, self.params.seed, self.project.prepared
        views = VIEWS if self.params.prepare.hidden_items else (c.WARM,)
        limits = dict(zip(VIEWS, cases or [asked.test_cases, asked.test_cases], strict=True))
        self.trials: dict[tuple[str, str], Trial] = {}
        for view in views:
            for split, limit in ((c.VALIDATION, asked.validation_cases), (c.TEST, limits[view])):
                self.trials[split, view] = read_trial(prepared, split, UNIFORM, limit, seed, view=view)
        self.views = views

    def scores(self, arm: str, seed: int) -> tuple[Scores, dict[str, float], Probe | None]:
        """[B, C] log-probs of an arm by split and view, CPU seconds, its position probe.

        The seconds are those of training (0 where the arm was there) and of ranking.
        """
        params = self.params.model_copy(update={"seed": seed})
        of = "llara" if arm in READ_OTHERWISE else arm
        states = "-states" if self.teacher.states and of != "text" else ""
        folder = self.project.root / "data/cache/llara" / f"{self.teacher.name}{states}-{of}-{seed}"
        begun = time.process_time()
        if not (folder / "manifest.json").is_file():
            self._train(of, params, folder)
        trained = time.process_time()
        recommender = self._opened(arm, params, folder)
        scores = {key: recommender.logprobs(trial.requests, trial.candidates) for key, trial in self.trials.items()}
        took = {"training": trained - begun, "ranking": time.process_time() - trained}
        return scores, took, self._probe(recommender, scores[c.TEST, c.WARM])

    def _probe(self, recommender: LanguageModelRecommender, scores: Floats) -> Probe | None:
        """Of the warm test cases; None where prompts list no candidates, so that nothing has a place."""
        if self.params.prompt.form == "history":
            return None
        trial = self.trials[c.TEST, c.WARM]
        places = drawn_places([name for name, _ in trial.keys], scores.shape[1])
        moved = recommender.logprobs(trial.requests, exchanged(trial.candidates, places))
        return position_probe(scores, moved, places)

    def teacher_scores(self) -> Scores:
        """Those of the teacher alone."""
        recommender = load_fitted(self.teacher.name, self.project.baselines / self.teacher.name, self.catalogue)
        return {key: scores_of(recommender, trial.requests, trial.candidates) for key, trial in self.trials.items()}

    def fused(self, arm: Scores, teacher: Scores, view: str) -> Floats:
        """Scores of teacher and arm together on a view's test cases, as the product fuses.

        The arm joins the teacher, by a weight that the view's validation cases chose, where it adds more than noise.
        """

        def parts(split: str) -> dict[str, Floats]:
            return {"teacher": teacher[split, view], "arm": arm[split, view]}

        judged, known = self.trials[c.VALIDATION, view].judged, parts(c.VALIDATION)
        alone = Fusion.fit({"teacher": known["teacher"]}, judged)
        return alone.joined("arm", known, judged).scores(parts(c.TEST))

    def _train(self, arm: str, params: Params, folder: Path) -> None:
        project = self.project
        if arm == "text":
            sft(params, project.moved(sft=folder))
            return
        variants: dict[str, Callable[[], Teacher]] = {
            "llara": lambda: self.teacher, "shuffled": lambda: shuffled(self.teacher, params.seed),
            "mean": lambda: averaged(self.teacher),
        }  # fmt: skip
        train_llara(params, variants[arm](), self.catalogue, project, folder)

    def _opened(self, arm: str, params: Params, folder: Path) -> LanguageModelRecommender:
        summary = read_json(self.project.prepared / "summary.json")
        setting = Setting(params.base, params.prompt, summary["noun"], summary["clock"], params.seed, params.threads)
        store = None if arm in READ_OTHERWISE else self.project.logprobs
        own = open_recommender(
            arm, self.project.base, folder, setting, self.catalogue, batch=params.evaluate.batch, store=store
        )
        if arm == "zero":
            embedding: Any = base_of(own.language_model.model).get_input_embeddings()
            last = embedding.vectors.adapter.out
            with torch.no_grad():
                last.weight.zero_()
                last.bias.zero_()
        if arm == "without":
            shown = own.builder.prompt
            own.builder.prompt = lambda *given, **named: text_only(shown(*given, **named))  # type: ignore[method-assign]
        return own


def measure(bench: Bench, arms: list[str], seeds: list[int], out: Path | None) -> dict[str, Any]:
    """Every figure: means with intervals, LLaRA's paired differences with Holm's p, seconds.

    The JSON is written anew after each seed, so that what is there survives a kill.
    """
    teacher = bench.teacher_scores()
    reached = {view: Reached(bench.trials[c.TEST, view]) for view in bench.views}
    seconds: dict[str, list[dict[str, float]]] = {}
    apart: list[float] = []
    probes: dict[str, list[Probe]] = {}
    found: dict[str, Any] = {}
    for view, own in reached.items():
        own.keep("teacher", teacher[c.TEST, view])
    for done, seed in enumerate(seeds, 1):
        read: dict[str, Scores] = {}
        for arm in arms:
            read[arm], took, probe = bench.scores(arm, seed)
            probes.setdefault(arm, []).extend([probe] if probe else [])
            seconds.setdefault(arm, []).append(took)
            for view, own in reached.items():
                got = own.keep(arm, read[arm][c.TEST, view])
                own.keep(f"fused {arm}", bench.fused(read[arm], teacher, view))
                print(f"seed {seed}, {view}, {arm}: {METRIC} {got:.4f}, {took}", flush=True)
        if {"zero", "without"} <= read.keys():
            apart.append(max(float(np.abs(scores - read["without"][of]).max()) for of, scores in read["zero"].items()))
        found = {
            "data": read_json(bench.project.prepared / "summary.json")["data_digest"],
            "teacher": bench.teacher.name, "seeds": seeds[:done], "machine": machine(), "seconds": seconds,
            "views": {view: own.told(asked(own.means())) for view, own in reached.items()},
            "zero_against_text_prompts": apart,
            "places": {arm: decided(own, reached[c.WARM].trial.users) for arm, own in probes.items() if own},
        }  # fmt: skip
        if out:
            write_json(out, found)
    return found


def asked(arms: Iterable[str]) -> list[tuple[str, str]]:
    """The differences to look at: LLaRA minus each other arm, alone and fused with the teacher."""
    names = list(arms)
    if "llara" not in names:
        return []
    pairs = [("llara", other) for other in names if not other.startswith("fused") and other != "llara"]
    return pairs + [("fused llara", name) for name in ("fused text", "teacher") if name in names]


def decided(probes: list[Probe], users: list[int]) -> dict[str, str]:
    """Share of cases in which the score follows the item, and nats by item and by place: means over the seeds."""
    means = {name: np.mean([getattr(probe, name) for probe in probes], axis=0) for name in ("follows", "item", "place")}
    return {name: plain(bootstrap_interval(values, users, RESAMPLES, 0)) for name, values in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--teacher", default="ease")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", nargs="+", choices=(*TRAINED, *READ_OTHERWISE), default=["text", "llara", "shuffled"])
    parser.add_argument(
        "--cases", type=int, nargs=2, metavar=("WARM", "NEW"), default=[],
        help="test cases of each view (default: evaluate.test_cases)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = measure(Bench(given.root, given.teacher, given.cases), given.arms, given.seeds, given.json)
    for own in found["views"].values():
        show(own)
    for arm, told in found["places"].items():
        print(f"places  {arm:16} {told}")


if __name__ == "__main__":
    main()
