"""The world of the training stages as a project with train events, which the teachers of hybrid prompts learn from."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import tiny
import torch
import training_world
from peft import LoraConfig, get_peft_model
from training_world import ITEMS, make_world

from recalign.common.artifacts import folder, read_json, write_json, write_parquet
from recalign.project import Project

NEW_ITEM = 24  # nobody's training history holds it here


def make_project(root: Path) -> Project:
    """Log, pairs and base; no recommender is fitted yet."""
    world, project = make_world(root / "made"), Project(root)
    for own, place in (("prepared", project.prepared), ("base", project.base)):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(world.root / own, place)
    write_events(project.prepared)
    return project


def write_events(prepared: Path) -> None:
    """Train events of every item but the new one, a like each."""
    rows = training_world.all_examples()
    events = sorted({(row["user_id"], item) for row in rows if row["split"] == "train" for item in row["history"]})
    events = [(user, item) for user, item in events if item != NEW_ITEM]
    counted = {item: sum(own == item for _, own in events) for item in ITEMS}
    never = pa.nulls(len(events), pa.timestamp("us"))
    table = pa.table({
        "user_id": [user for user, _ in events], "item_id": [item for _, item in events],
        "split": ["train"] * len(events), "timestamp": never, "position": list(range(len(events))),
    })  # fmt: skip
    items = [
        training_world._item(item) | {"popularity": counted[item], "train_events": counted[item]} for item in ITEMS
    ]
    schema = training_world._items_schema().append(pa.field("train_events", pa.int64()))
    kept = {name: (prepared / name).read_bytes() for name in ("examples.parquet", "met.parquet", "summary.json")}
    manifest = [
        {"manifest": "uniform", "example_id": row["example_id"], "user_id": row["user_id"],
         "candidates": [row["target"], *[i for i in ITEMS if i not in {*row["history"], row["target"]}][:9]],
         "target_index": 0}
        for row in rows if row["split"] == "validation"
    ]  # fmt: skip
    with folder(prepared) as out:
        for name, data in kept.items():
            (out / name).write_bytes(data)
        summary = read_json(out / "summary.json") | {"counts": {"views": {}}}
        write_json(out / "summary.json", summary)
        write_parquet(out / "events.parquet", table)
        write_parquet(out / "items.parquet", pa.Table.from_pylist(items, schema=schema))
        write_parquet(out / "candidates.parquet", pa.Table.from_pylist(manifest))


def lora_model(family: str = "llama") -> torch.nn.Module:
    """A tiny model under a LoRA with non-zero factors."""
    base = tiny.model(family)
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def killed_after_steps(monkeypatch) -> list[int]:
    """[0]: how many steps training takes before the next one is killed; each that is taken counts it down."""
    from recalign.training import loop

    real, left = loop._step, [0]

    def step(*given: Any) -> Any:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*given)

    monkeypatch.setattr(loop, "_step", step)
    return left
