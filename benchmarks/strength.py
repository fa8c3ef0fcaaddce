"""What is left on new and on known items of a language model of which only a part of the training is kept.

    python benchmarks/strength.py --root PROJECT --split validation --cases 240 --strengths 0 0.25 0.5 0.75 1

PROJECT is a project whose stages up to `sft` have run at sft.strength 1, with prepare.hidden_items above 0. Each
strength is a copy of data/models/sft in data/cache/strength, scaled as `sft.strength` does; 0 is the untrained model.
Ranked by log-prob, NDCG@10 of the hidden and the warm cases; intervals over the items asked for among new ones, over
users among known ones. Choose on validation, then ask --split test once.
"""

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from safetensors.torch import load_file, save_file

from recalign.common import columns as c
from recalign.common.artifacts import folder
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.evaluation.metrics import Floats, metric_values, target_ranks
from recalign.evaluation.significance import bootstrap_interval, plain, signed
from recalign.llm.model.adapters import WEIGHTS
from recalign.params.load import load_params
from recalign.project import Project
from recalign.ranking.language_model import Setting, open_recommender
from recalign.ranking.trial import UNIFORM, read_trial, scores_of

METRIC, RESAMPLES = "ndcg_at_10", 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", choices=[c.VALIDATION, c.TEST], default=c.VALIDATION)
    parser.add_argument("--cases", type=int, default=240, help="of each view")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    asked = parser.parse_args()
    project = Project(asked.root)
    params, data, catalogue = (
        load_params(asked.root / "params.yaml"),
        Prepared(project.prepared),
        Items.read(project.prepared),
    )
    setting = Setting(params.base, params.prompt, data.noun, data.clock, params.seed, params.threads)
    trials = {
        view: read_trial(project.prepared, asked.split, UNIFORM, asked.cases, params.seed, view=view)
        for view in (c.HIDDEN, c.WARM)
    }
    untrained: dict[str, Floats] = {}
    for strength in sorted({0.0, *asked.strengths}):
        adapter = scaled(project, strength) if strength else None
        model = open_recommender(
            f"strength {strength:g}", project.base, adapter, setting, catalogue, store=project.logprobs
        )
        for view, trial in trials.items():
            ranks = target_ranks(scores_of(model, trial.requests, trial.candidates), trial.target_index, trial.lots)
            values = metric_values(METRIC, ranks)
            clusters = [case.example.target if view == c.HIDDEN else case.example.user_id for case in trial.cases]
            told = plain(bootstrap_interval(values, clusters, RESAMPLES, params.seed))
            gain = bootstrap_interval(values - untrained.setdefault(view, values), clusters, RESAMPLES, params.seed)
            print(
                f"{asked.split} {view} {strength:g}: {told}, minus untrained {signed(gain)}, {len(values)} cases",
                flush=True,
            )


def scaled(project: Project, strength: float) -> Path:
    """A copy of the SFT adapter of which this share is kept."""
    out = project.root / "data/cache/strength" / f"{strength:g}"
    if not (out / "manifest.json").is_file():
        with folder(out) as partial:
            for file in project.sft.iterdir():
                if file.name not in ("manifest.json", WEIGHTS):
                    shutil.copy(file, partial / file.name)
            weights = load_file(project.sft / WEIGHTS)
            kept = {name: own * strength if ".lora_B." in name else own for name, own in weights.items()}
            save_file(kept, partial / WEIGHTS, {"format": "pt"})
    return out


if __name__ == "__main__":
    main()
