"""A training step on prompts with vectors against the same step on text: what LLaRA costs.

    python benchmarks/hybrid_step.py --root PROJECT --teacher ease --steps 12 --json hybrid_step.json

A step is forward, backward and AdamW of `sft.batch` training histories of PROJECT (stages prepare, base and
baselines@<teacher> have run). CPU seconds of one thread, the two in turn in one process on the same histories. "hybrid"
shows every vector, as the last steps of the curriculum do; its mean over a whole training is half way to "text".
"frozen" reads the same prompts and gives the vectors' adapter no gradient, so that it tells what the tokens alone cost.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from alternating import alternate, ratio, shown

from recalign.common.artifacts import read_json, write_json
from recalign.common.origin import machine
from recalign.data.records import Items
from recalign.hybrid.llara import Curriculum, HybridModelling, read_teacher, without_vectors
from recalign.hybrid.prompts import hybrid_prompts, new_vectors
from recalign.llm.model.base import load_language_model
from recalign.params.load import load_params
from recalign.project import Project
from recalign.stages.sft import read_material
from recalign.training.examples import TextExample
from recalign.training.loop import micro_batches, trainable_weights

GOAL = 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--teacher", default="ease")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    project, params = Project(asked.root), load_params(asked.root / "params.yaml")
    catalogue, summary = Items.read(project.prepared), read_json(project.prepared / "summary.json")
    teacher = read_teacher(asked.teacher, project.baselines, catalogue, states=params.hybrid.vectors == "states")
    lm = load_language_model(project.base, params.base, new_adapter=params.lora, trainable=True, threads=1)
    builder = hybrid_prompts(lm, teacher, catalogue, params.prompt, summary["noun"], clock=summary["clock"])
    learned = read_material(params, project.prepared, project.profiles, builder, catalogue).epoch(0)
    adapter = new_vectors(lm, teacher, params.seed).adapter
    task = HybridModelling("llara", lm.model, [], params.sft.micro_tokens, Curriculum(1, 1, rising=False))
    weights = list(trainable_weights(lm.model).values())
    optimiser = torch.optim.AdamW(weights, lr=params.sft.learning_rate)

    def step(batch: list[TextExample], *, learns: bool = True) -> None:
        adapter.requires_grad_(learns)
        for measured in task.losses(micro_batches(batch, params.sft.micro_tokens, task.tokens_at_once)):
            measured.loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    size = params.sft.batch
    batches = [learned[size * n : size * (n + 1)] for n in range(asked.steps + 1)]
    variants: dict[str, Callable[[list[TextExample]], None]] = {
        "hybrid": step,
        "frozen": lambda batch: step(batch, learns=False),
        "text": lambda batch: step([without_vectors(e) for e in batch]),
    }
    seconds = alternate(variants, batches)
    found, tokens, way_back = (
        ratio(seconds, *pair) for pair in (("hybrid", "text"), ("frozen", "text"), ("hybrid", "frozen"))
    )
    seen = [e for batch in batches[1:] for e in batch]
    longer = sum(e.tokens for e in seen) / sum(without_vectors(e).tokens for e in seen)
    print(f"a hybrid step takes {shown(found)} of a text step (goal {GOAL}); it reads {longer:.2f}x the tokens")
    print(f"of it the tokens {shown(tokens)}, the gradient to the vectors {shown(way_back)}")
    if asked.json:
        write_json(
            asked.json,
            {**found, "parts": [tokens, way_back], "tokens": longer, "machine": machine(), "teacher": asked.teacher},
        )


if __name__ == "__main__":
    main()
