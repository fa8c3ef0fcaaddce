"""A prepared log, pairs and a tiny base model in a folder: what the training stages read, small enough for seconds."""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from flat_project import flat_project
from ruamel.yaml import YAML

from recalign.common.artifacts import folder, write_json, write_parquet
from recalign.llm.model.base import fetch_base
from recalign.params.load import Params, parse_params
from recalign.project import Project
from recalign.stages.align import align
from recalign.stages.reference import reference
from recalign.stages.sft import sft

TREE = YAML(typ="safe").load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
WORDS = ("House", "Secret", "Last", "Winter", "Return", "King", "Story", "Fall", "Legend", "Heart", "River", "Moon")
ITEMS = range(1, 25)
USERS = range(1, 41)
LONG = {"sft__epochs": 3, "sft__batch": 4}  # enough steps to be killed among them


def make_params(**changes: Any) -> Params:
    """params.yaml at budget smoke with optimisers of the tests' own; `sft__epochs=2` sets sft.epochs."""
    tree = copy.deepcopy(TREE) | {"budget": "smoke", "threads": 1}
    for section in ("sft", "align"):  # what the expected steps follow from, whatever the project's defaults become
        tree[section] |= {"batch": 8, "micro_tokens": 4096, "evaluations": 4, "learning_rate": 5e-4}
    tree["base"]["compute"] = "fp32"  # whatever the machine multiplies fastest
    tree["sft"]["examples"] = 48
    tree["evaluate"]["validation_cases"] = 6
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    return parse_params(tree)


@dataclass(frozen=True)
class World:
    """A project's root and the training stages run in it."""

    root: Path

    @property
    def project(self) -> Project:
        return flat_project(self.root)

    def sft(self, params: Params, name: str = "sft") -> Path:
        out = self.root / name
        sft(params, self.project.moved(sft=out))
        return out

    def reference(self, params: Params, pairs: str = "pairs", name: str = "reference") -> Path:
        out = self.root / name
        reference(params, self.project.moved(pairs=self.root / pairs, reference=out))
        return out

    def align(self, params: Params, objective: str = "sdpo", name: str = "align", pairs: str = "pairs") -> Path:
        align(params, objective, self.project.moved(pairs=self.root / pairs, align=self.root / name))
        return self.root / name / objective


def make_world(root: Path) -> World:
    """40 users who walk through 24 invented titles in steps of their own: three examples each."""
    fetch_base(make_params().base, root / "base")
    examples = all_examples()
    with folder(root / "prepared") as out:
        write_parquet(out / "items.parquet", pa.Table.from_pylist([_item(i) for i in ITEMS], schema=_items_schema()))
        write_parquet(out / "examples.parquet", pa.Table.from_pylist(examples))
        events = [{"user_id": e["user_id"], "item_id": e["target"], "split": e["split"]} for e in examples]
        never = pa.nulls(len(events), pa.timestamp("us"))
        write_parquet(out / "events.parquet", pa.Table.from_pylist(events).append_column("timestamp", never))
        pairs = sorted({(e["user_id"], item) for e in examples for item in [*e["history"], e["target"]]})
        met: dict[str, Any] = {"user_id": [user for user, _ in pairs], "item_id": [item for _, item in pairs]}
        met |= {"timestamp": pa.nulls(len(pairs), pa.timestamp("us")), "liked": [True] * len(pairs)}
        write_parquet(out / "met.parquet", pa.table(met))
        facts = {"source": "simulated", "data_digest": "ab" * 32}
        write_json(out / "summary.json", {"noun": "films", "clock": False, "cutoffs": {}, **facts})
    write_pairs(root / "pairs", examples, negatives=3)
    return World(root)


def write_pairs(out: Path, examples: list[dict[str, Any]], negatives: int) -> None:
    """Every second example has one rejected item less: K is ragged."""
    rows = []
    for n, example in enumerate(examples):
        wrong = [item for item in ITEMS if item not in example["history"] and item != example["target"]]
        rows.append(
            {key: example[key] for key in ("example_id", "user_id", "split", "history")}
            | {"chosen": example["target"], "rejected": wrong[n % 5 :][: negatives - n % 2], "profile": None}
        )
    schema = pa.schema(
        [("example_id", pa.string()), ("user_id", pa.int64()), ("split", pa.string()),
         ("history", pa.list_(pa.int64())), ("chosen", pa.int64()), ("rejected", pa.list_(pa.int64())),
         ("profile", pa.string())]
    )  # fmt: skip
    with folder(out) as partial:
        write_parquet(partial / "pairs.parquet", pa.Table.from_pylist(rows, schema=schema))


def all_examples() -> list[dict[str, Any]]:
    """The rows of examples.parquet."""
    return [example for user in USERS for example in _examples(user)]


def _examples(user: int) -> list[dict[str, Any]]:
    walk = [1 + (user * 5 + step * (1 + user % 3)) % len(ITEMS) for step in range(8)]
    split = "validation" if user % 5 == 0 else "train"
    return [
        {"example_id": f"{user}-{walk[n]}", "user_id": user, "split": split,
         "view": None if split == "train" else "warm", "cutoff": None,
         "history": walk[:n], "target": walk[n]}
        for n in (5, 6, 7)
    ]  # fmt: skip


def _item(item: int) -> dict[str, Any]:
    title = f"The {WORDS[item % len(WORDS)]} of {WORDS[item // len(WORDS)]}"
    return {"item_id": item, "title": title, "attributes": [("genre", ["drama"])], "popularity": item}


def _items_schema() -> pa.Schema:
    attributes = pa.map_(pa.string(), pa.list_(pa.string()))
    return pa.schema(
        [("item_id", pa.int64()), ("title", pa.string()), ("attributes", attributes), ("popularity", pa.int64())]
    )


SHARED = {"like": "alpha_dpo", "reward": "log_ratio", "beta_scale": 0.5, "drop": 0.2, "beta_prime": 0.5}


def shared_params() -> Params:
    """An objective with everything that acts on a batch, in parts of a few examples."""
    settings = {**TREE["align"]["settings"], "everything": SHARED}
    return make_params(align__settings=settings, align__micro_tokens=500)


if __name__ == "__main__":  # a run of its own: python training_world.py ROOT (killed | shared)
    if sys.argv[2] == "killed":
        World(Path(sys.argv[1])).sft(make_params(**LONG, checkpoint_seconds=0), name="killed")
    else:
        often = shared_params().model_copy(update={"checkpoint_seconds": 0.0})
        World(Path(sys.argv[1])).align(often, "everything", name="two-processes")
