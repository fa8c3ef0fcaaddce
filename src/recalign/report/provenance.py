"""Where the report's figures come from: lineage, parameters, and the commands that make them again."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any

from recalign.common import columns as c
from recalign.common.artifacts import file_digest, folder_digest, read_json, read_parquet
from recalign.common.origin import git_revision
from recalign.data.ids import RawIds
from recalign.evaluation.ranks import UNKNOWN
from recalign.evaluation.systems import TRANSFERRED, System
from recalign.params.load import Params
from recalign.preferences.profiles.selection import shares_sentence, training_shares
from recalign.project import Project


def lineage(
    params: Params, about: Mapping[str, Any], systems: Mapping[str, System], project: Project
) -> dict[str, str]:
    """What the figures were made of, in the order of the pipeline, by name; digests are cut to 16 digits."""
    model = read_json(project.base / "base.json")
    adapters = {"sft": project.sft} | {str(name): project.align / name for name in params.align.objectives}
    elsewhere = {name: own for name, own in systems.items() if own.kind == TRANSFERRED}
    return {
        "source": f"{about['source']}, data digest {about['data_digest'][:16]}",
        "budget, seed": f"{params.budget}, {params.seed}",
        **{
            f"manifest {name}, {view}": digest[:16]
            for name, own in about["manifests"].items()
            for view, digest in ({UNKNOWN: own} if isinstance(own, str) else own).items()
        },
        "pairs": f"digest {folder_digest(project.pairs)[:16]}{_rejected(params, project.pairs)}",
        **({"profiles": told} if (told := profiles_line(params, about, project)) else {}),
        "base model": f"{model['id']}, revision {model['revision']}, sha256 {model['sha256'][:16]}",
        **{f"adapter {name}": _adapter(path) for name, path in adapters.items()},
        **{f"adapter {name}": f"weights {(own.adapter_digest or '')[:16]}" for name, own in elsewhere.items()},
        "ranks.parquet": f"sha256 {file_digest(project.ranks / 'ranks.parquet')[:16]}",
        "git revision": git_revision() or "not in a git repository",
        "machine": about["machine"],
        "made by": "dvc repro",
    }


def profiles_line(params: Params, about: Mapping[str, Any], project: Project) -> str:
    """How many prompts and pairs show a profile, in one line; empty where prompts show none."""
    if not params.prompt.profile:
        return ""
    rows = read_parquet(project.pairs / "pairs.parquet", [c.SPLIT, c.PROFILE]).to_pylist()
    kinds = {
        "SFT prompts": read_json(project.sft / "training.json").get("profiles", {}).get(c.TRAIN),
        "training pairs": training_shares(row[c.PROFILE] for row in rows if row[c.SPLIT] == c.TRAIN),
        **{f"{view} test cases": own for view, own in about.get("profiles", {}).items()},
    }
    return shares_sentence(params.profiles.engine, {kind: own for kind, own in kinds.items() if own})


def _rejected(params: Params, pairs: Path) -> str:
    """How many items each strategy drew, where pairs.strategy is another than the default."""
    if params.pairs.strategy == "uniform":
        return ""
    strategies = read_parquet(pairs / "pairs.parquet", ["strategies"])["strategies"].to_pylist()
    drawn = Counter(chain.from_iterable(strategies))
    return f"; rejected items by {', '.join(f'{name} {count}' for name, count in sorted(drawn.items()))}"


def _adapter(path: Path) -> str:
    return f"digest {folder_digest(path)[:16]}"


def param_lines(params: Params) -> list[str]:
    """Every parameter in effect as "section.key: value"; the table of budgets is left out."""

    def flat(value: Any, prefix: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(inner, f"{prefix}.{key}" if prefix else key)
        else:
            yield f"{prefix}: {value}"

    tree = params.model_dump(mode="json", by_alias=True, exclude={"budgets"})
    return list(flat(tree, ""))


def next_commands(about: Mapping[str, Any], users: RawIds) -> list[str]:
    """What to type next, each with its purpose: after a random model the same data with one that means something.

    users: the log's own ids, which `recommend` takes.
    """
    own, random_model = about["source"] == "table", about.get("random_model", False)
    other = "lastfm" if about["source"] != "lastfm" else "movielens-100k"
    first = {"recalign register": "put the best adapter into the MLflow registry"}
    more = {f"dvc exp run -S source={other} -S budget=few-shot": "another dataset, more training"}
    if own:
        more = {"dvc exp run -S budget=few-shot": "your data again, more training"}
    if random_model:
        first = {"dvc exp run -S budget=demo": f"{'your' if own else 'the same'} data with a model that was trained"}
    user = quote(str(users.shown(about["example_user"])))
    ask = {f"recalign recommend --user {user}": "a ranked list with its explanation"}
    commands = first | ask | ({} if own and random_model else more)
    width = max(map(len, commands))
    return [f"{command:<{width}}  # {purpose}" for command, purpose in commands.items()]


def reproduce_commands(params: Params, revision: str) -> list[str]:
    """What a reader types in a clone to make the same figures again."""
    at = [f"git checkout {revision}"] if revision else []
    return [*at, f"dvc exp run -S source={params.source} -S budget={params.budget} -S seed={params.seed}",
            "recalign compare . <the folder of the first run>  # equal ranks: every difference is 0"]  # fmt: skip
