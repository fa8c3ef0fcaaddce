"""Whether the evidence that the ledger names is what its claims rest on, on the data of a project.

    python benchmarks/faithfulness.py [--root .] [--users 400] [--engine counting]

In a project with data/prepared and the fitted recommenders ease and item_knn (`dvc repro baselines@ease
baselines@item_knn`); with --engine another than counting data/profiles is read too. Of each claim of the test split's
users, made from what lies before its cutoff, up to three supporting items are chosen by one recommender and tested on
the other one, and the other way round; all that the ledger names (what the claim holds for, by attributes alone) is
tested on both. Where tastes were planted (source simulated), precision and recall of the same claims come first.
Prints the falls of the claim's score with 95 % intervals over users.
"""

import argparse
import json
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.data.records import Items
from recalign.data.simulator import days_since_start, read_tastes
from recalign.evaluation.significance import bootstrap_interval, plain
from recalign.params.load import load_params
from recalign.preferences.faithfulness import (
    REMOVED,
    Faithfulness,
    Made,
    chosen_evidence,
    faithfulness,
    lines,
)
from recalign.preferences.profiles.profiles import (
    COUNTING,
    closed_statements,
    read_known,
    read_profiles,
    strongest_lifts,
    supporting,
)
from recalign.project import Project
from recalign.recommenders.roster import load_fitted

PAIRS = (("ease", "item_knn"), ("item_knn", "ease"))  # who chooses, who tests


def claims(project: Project, engine: str, users: int, seed: int, limit: int) -> list[Made]:
    """The claims of the test split's first users, with the histories that they were made from."""
    known, items = read_known(project.prepared, c.TEST, seed), Items.read(project.prepared)
    noun = read_json(project.prepared / "summary.json")["noun"]
    statements = closed_statements(items.shown, known.counts, noun)
    if engine == COUNTING:
        return [
            Made(user, statement, known.history(user))
            for user in known.present[:users]
            for statement, _ in strongest_lifts(statements, known.history(user), limit)
        ]
    by_value = {(own.attribute, own.value): own for own in statements}
    return [
        Made(user, by_value[claim.attribute, claim.value], known.history(user))
        for (split, user), profile in read_profiles(project.profiles, engine).items()
        for claim in profile.claims
        if split == c.TEST and (claim.attribute, claim.value) in by_value
    ]


def against_truth(project: Project, made: list[Made], resamples: int, seed: int) -> list[str]:
    """Precision and recall against what was planted at the split's cutoff; nothing where no truth is known.

    Claims of attributes in which no taste is planted are passed over, as `score_profiles` does.
    """
    truth, stated = project.interactions / "truth.parquet", read_json(project.prepared / "summary.json")["cutoffs"]
    if not truth.is_file() or c.TEST not in stated:
        return []
    tastes, day = read_tastes(truth), days_since_start(datetime.fromisoformat(stated[c.TEST]))
    right, found = defaultdict[int, list[bool]](list), defaultdict[int, set[tuple[str, str]]](set)
    for own in made:
        likes, name, value = tastes[own.user_id].likes(day), own.statement.attribute, own.statement.value
        if name in likes:
            right[own.user_id].append(value in likes[name])
            found[own.user_id].add((name, value))
    planted = {
        user: [(name, value) in found[user] for name, own in tastes[user].likes(day).items() for value in own]
        for user in {own.user_id for own in made}
    }
    lines = []
    for name, rows in (("precision", right), ("recall", planted)):
        users = [user for user, own in rows.items() for _ in own]
        values = np.array([float(hit) for own in rows.values() for hit in own])
        told = plain(bootstrap_interval(values, users, resamples, seed))
        lines.append(f"{name} {told} of {len(values)} {'claims' if rows is right else 'planted values'}")
    return lines


def measure(root: Path, engine: str, users: int) -> dict[str, Faithfulness | None]:
    """Each way of choosing evidence, tested on a recommender that did not choose."""
    params, project = load_params(root / "params.yaml"), Project(root)
    items = Items.read(project.prepared)
    made = claims(project, engine, users, params.seed, params.profiles.claims)
    fitted = {name: load_fitted(name, project.baselines / name, items) for name in ("ease", "item_knn")}
    told = {}
    for choosing, testing in PAIRS:
        evidence = chosen_evidence(fitted[choosing], items.ids, made)
        told[f"chosen by {choosing}, tested on {testing}"] = faithfulness(
            fitted[testing], items.ids, made, evidence, params.evaluate.resamples, params.seed
        )
    named = [tuple(supporting(own.statement, own.history)) for own in made]
    for testing in fitted:
        told[f"all that the ledger names, tested on {testing}"] = faithfulness(
            fitted[testing], items.ids, made, named, params.evaluate.resamples, params.seed
        )
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--engine", default=COUNTING)
    asked = parser.parse_args()
    print(json.dumps({"engine": asked.engine, "users": asked.users, "removed": REMOVED}))
    params, project = load_params(asked.root / "params.yaml"), Project(asked.root)
    made = claims(project, asked.engine, asked.users, params.seed, params.profiles.claims)
    print("\n".join(against_truth(project, made, params.evaluate.resamples, params.seed)), flush=True)
    print("\n".join(lines(measure(asked.root, asked.engine, asked.users))))


if __name__ == "__main__":
    main()
