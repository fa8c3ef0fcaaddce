"""RecInterpreter's reading accuracy: does a frozen language model find the item that a state moved by?

    python benchmarks/rec_interpreter.py --root PROJECT --teacher sasrec --cases 100 --json rec_interpreter.json

PROJECT is a project whose stages prepare, base and baselines@<teacher> have run. An adapter learns the residual
question (the states before and after one more item -> its title) on `sft.examples` training cases, `sft.epochs` times.
Then the 20 titles of each warm test case are ranked, given the states before and after its target: the target is inside
the second state, so this is reading accuracy and no recommendation. Beside it: the same with another person's states
(swapped), with the mean states of all, and two ceilings, the nearest item vector to what the state moved by and a
linear probe.
"""

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from recalign.common import columns as c
from recalign.common.artifacts import read_json, write_json
from recalign.common.origin import machine
from recalign.data.records import Example, Items, read_examples
from recalign.evaluation.metrics import Floats, metric_values, target_ranks
from recalign.evaluation.significance import bootstrap_interval, plain
from recalign.hybrid.rec_interpreter import (
    Interpreter,
    StatePrompts,
    averaged,
    nearest_scores,
    probe_scores,
    residual,
    swapped,
)
from recalign.llm.model.base import load_language_model
from recalign.params.load import load_params
from recalign.project import Project
from recalign.ranking.trial import UNIFORM, read_trial
from recalign.recommenders.neural.encoders import EncoderName
from recalign.recommenders.neural.sequential import Sequential

METRICS = ("hr_at_1", "ndcg_at_10")
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--teacher", choices=("sasrec", "gru4rec", "caser"), default="sasrec")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ceilings", action="store_true", help="the two ceilings alone: no language model is asked")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    project, params = Project(asked.root), load_params(asked.root / "params.yaml")
    prepared, catalogue = project.prepared, Items.read(project.prepared)
    summary = read_json(prepared / "summary.json")
    recommender = Sequential.load(
        cast(EncoderName, asked.teacher), project.baselines / asked.teacher, catalogue.trained
    )
    trial = read_trial(prepared, c.TEST, UNIFORM, asked.cases, params.seed)
    own = residual(recommender, [case.example for case in trial.cases])
    known = {reading.name for reading in own}
    cases = [case for case in trial.cases if case.example.example_id in known]
    learned = residual(recommender, _examples(prepared, c.TRAIN, params.sft.examples, params.seed))
    held_out = residual(recommender, _examples(prepared, c.VALIDATION, params.evaluate.validation_cases, params.seed))

    lists = [list(case.candidates) for case in cases]
    scores: dict[str, Floats] = {
        "nearest item": nearest_scores(recommender, own, lists),
        "linear probe": probe_scores(recommender, learned, own, lists),
    }
    told: dict[str, Any] = {}
    if not asked.ceilings:
        begun = time.process_time()
        lm = load_language_model(project.base, params.base, threads=params.threads)
        prompts = StatePrompts(lm.tokenizer, catalogue, params.prompt, summary["noun"], clock=summary["clock"])
        interpreter = Interpreter(lm, prompts, "residual", recommender.settings.dimension, seed=asked.seed)
        with tempfile.TemporaryDirectory() as folder:
            result = interpreter.train(
                learned, held_out, params.sft, seed=asked.seed, checkpoints=Path(folder), notes=Path(folder) / "notes"
            )
        trained = time.process_time()
        for name, read in {"read": own, "swapped": swapped(own), "mean": averaged(own)}.items():
            scores[name] = interpreter.logprobs(read, lists)
        told = {
            "best_step": result.best_step, "loss": [result.rows[0]["validation_loss"], result.best_loss],
            "seconds": {"training": trained - begun, "ranking": time.process_time() - trained},
        }  # fmt: skip
    users = [case.example.user_id for case in cases]
    part = trial.part(0)
    lots = part.lots[[place for place, case in enumerate(trial.cases) if case.example.example_id in known]]
    found: dict[str, Any] = {
        "cases": len(cases), "users": len(set(users)), "left_out": len(trial.cases) - len(cases),
        "manifest": trial.digest, "data": summary["data_digest"], "teacher": asked.teacher, "seed": asked.seed,
        "learned": len(learned), "machine": machine(), **told,
    }  # fmt: skip
    for name, values in scores.items():
        ranks = target_ranks(values, [case.target_index for case in cases], lots)
        means = {m: bootstrap_interval(metric_values(m, ranks), users, RESAMPLES, 0) for m in METRICS}
        found[name] = {metric: interval.as_dict() for metric, interval in means.items()}
        print(f"{name:14} " + ", ".join(f"{metric} {plain(interval)}" for metric, interval in means.items()))
    if asked.json:
        write_json(asked.json, found)


def _examples(prepared: Path, split: str, limit: int, seed: int) -> list[Example]:
    return read_examples(prepared, split, limit, seed=seed)


if __name__ == "__main__":
    main()
