"""Profiles written in batches against one at a time, for each engine that a local model has.

    python benchmarks/profiles.py [--root .] [--users 32] [--tokens 32] [--turns 3]

In a project with data/prepared and data/models/base. `statements`: closed statements scored; `generate`: a sentence,
greedily; `texts`: the structured texts of dpo4rec, sampled and held to their points. Both variants infer the profiles
of the same users in turn in one process, other users in each turn; nothing is kept between turns, and CPU seconds
count. Prints the ratio with its 95 % interval over turns, and writes it as JSON with --json.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alternating import alternate, ratio, shown

from recalign.common import columns as c
from recalign.common.artifacts import read_json, write_json
from recalign.data.records import Items
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.params.load import Params, load_params
from recalign.preferences.inference.engines import StatementScorer, local_writer
from recalign.preferences.profiles.profiles import Known, closed_statements, read_known
from recalign.preferences.tastes.writer import local_taste_writer
from recalign.project import Project

Histories = Mapping[int, tuple[int, ...]]
Step = Callable[[Histories, int], object]  # of histories, so many in a batch


def steps(model: LanguageModel, params: Params, items: Items, noun: str, known: Known) -> dict[str, Step]:
    """What infers, by its name."""
    statements = closed_statements(items.shown, known.counts, noun)
    scorer = StatementScorer(model, items, noun)
    writer = local_writer(model, params.profiles, items, noun, clock=True)
    tastes = local_taste_writer(model, params.dpo4rec, items, noun)
    scorer.claims(statements, {0: known.history(known.present[0])}, 1, store=None, batch=8)  # what statements are worth
    return {
        "statements": lambda own, batch: scorer.claims(statements, own, 3, store=None, batch=batch),
        "generate": lambda own, batch: writer.texts(own, store=None, batch=batch),
        "texts": lambda own, batch: tastes.write(own, 1, params.seed, store=None, batch=batch),
    }


def measure(root: Path, users: int, tokens: int, turns: int, engines: list[str]) -> dict[str, dict[str, Any]]:
    """The ratio of each engine."""
    params, project = load_params(root / "params.yaml"), Project(root)
    short = {"max_new_tokens": tokens}
    params = params.model_copy(update={
        "profiles": params.profiles.model_copy(update=short),
        "dpo4rec": params.dpo4rec.model_copy(update=short | {"attempts": 1, "constrained": True}),
    })  # fmt: skip
    items, noun = Items.read(project.prepared), read_json(project.prepared / "summary.json")["noun"]
    known = read_known(project.prepared, c.TEST, params.seed)
    model = load_language_model(project.base, params.base, threads=params.threads)
    if users * (turns + 1) > len(known.present):
        raise SystemExit(f"{users} users in each of {turns + 1} turns are more than the {len(known.present)} there are")
    found = {}
    every = steps(model, params, items, noun, known)
    for name in engines:
        own = [known.histories(known.present[n * users : (n + 1) * users]).of for n in range(turns + 1)]

        def batched(given: Histories, step: Step = every[name]) -> object:
            return step(given, users)

        def alone(given: Histories, step: Step = every[name]) -> object:
            return step(given, 1)

        found[name] = ratio(alternate({"one at a time": alone, "batches": batched}, own), "one at a time", "batches")
        print(f"{name}, {users} users: {shown(found[name])}", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["statements", "generate", "texts"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = measure(asked.root, asked.users, asked.tokens, asked.turns, asked.engines)
    if asked.json:
        write_json(asked.json, json.loads(json.dumps(found)))


if __name__ == "__main__":
    main()
