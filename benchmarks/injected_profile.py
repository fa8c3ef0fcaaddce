"""What a text that asks for an item gains it in list, history and profile position, where prompts show profiles.

    python benchmarks/injected_profile.py [--root .] [--cases 60] [--adapters none data/models/sft]

In a project with data/prepared and data/models/base. Prompts show profiles by counting, whether or not prompt.profile
says so; `none` is the untrained base, other names are folders of adapters. The attack is that of
evaluate.injection_cases (`ranking/injected.py`); the ranking is by log-prob. Prints the lift in 1/rank with its 95 %
interval over users.
"""

import argparse
from pathlib import Path

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.data.records import Items
from recalign.evaluation.injection import injection_lifts
from recalign.llm.model.base import load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import load_params
from recalign.preferences.inference.engines import count
from recalign.preferences.profiles.profiles import closed_statements, read_known
from recalign.project import Project
from recalign.ranking.injected import attack, injections, reading_twins
from recalign.ranking.language_model import LanguageModelRecommender
from recalign.ranking.trial import read_trial

UNTRAINED = "none"


def measure(root: Path, cases: int, adapters: list[str]) -> None:
    """Print a line a model and position."""
    params, project = load_params(root / "params.yaml"), Project(root)
    prompt = params.prompt.model_copy(update={"profile": True})
    items, summary = Items.read(project.prepared), read_json(project.prepared / "summary.json")
    noun, clock = summary["noun"], summary["clock"]
    known = read_known(project.prepared, c.TEST, params.seed)
    statements = closed_statements(items.shown, known.counts, noun)
    profiles = count(known.histories(known.present), statements, params.profiles.claims)
    shown = {profile.user_id: profile.text for profile in profiles}
    trial = read_trial(project.prepared, c.TEST, "uniform", cases, params.seed, shown)
    own = attack(trial, items, params.seed)
    for name in adapters:
        folder = None if name == UNTRAINED else root / name
        model = load_language_model(project.base, params.base, adapter=folder, threads=params.threads)
        builder = PromptBuilder(model.tokenizer, items, prompt, noun, clock=clock)
        recommender = LanguageModelRecommender(model, builder, items, name, batch=params.evaluate.batch)
        reader = reading_twins(recommender, own, prompt, noun, clock=clock)
        clean = recommender.logprobs(trial.requests, trial.candidates)
        for position, poisoned in own.poisoned.items():
            scores = {position: reader.logprobs(poisoned.requests, poisoned.candidates)}
            rows = injections(name, own, clean, scores)
            lift = injection_lifts(rows, params.evaluate.resamples, params.seed)[name][position]
            ranks = f"mean rank {lift.clean_rank:.1f} to {lift.rank:.1f}"
            print(f"{name}, {position}: {lift.sentence}, {ranks}, {lift.cases} cases of {lift.users} users", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--adapters", nargs="+", default=[UNTRAINED])
    asked = parser.parse_args()
    measure(asked.root, asked.cases, asked.adapters)


if __name__ == "__main__":
    main()
