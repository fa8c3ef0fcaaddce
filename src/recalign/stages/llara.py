"""Stage llara: supervised fine-tuning on prompts that show a recommender's vectors next to the titles."""

import logging
from pathlib import Path
from typing import Any

from recalign.common.artifacts import digest_of
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.evaluation.systems import llara_name
from recalign.hybrid.llara import Curriculum, HybridModelling, read_teacher
from recalign.hybrid.modality import Teacher
from recalign.hybrid.prompts import hybrid_prompts, new_vectors, write_hybrid
from recalign.llm.model.base import load_language_model
from recalign.params.load import Params
from recalign.project import Project
from recalign.stages.sft import read_material
from recalign.training import processes
from recalign.training.loop import Passes, train
from recalign.training.results import Checkpoints, learned_from, write_training

log = logging.getLogger(__name__)


@processes.joined()
def llara(params: Params, teacher: str, project: Project = Project()) -> None:
    """Train the adapter of one teacher into data/models/hybrid/llara-<teacher>, with the settings of `sft`.

    Raises RecalignError where the teacher is none, was not fitted or is of another catalogue, and as stage sft does.
    """
    catalogue = Items.read(project.prepared)
    read = read_teacher(teacher, project.baselines, catalogue, states=params.hybrid.vectors == "states")
    train_llara(params, read, catalogue, project, project.hybrid / llara_name(teacher))


def train_llara(params: Params, teacher: Teacher, catalogue: Items, project: Project, out: Path) -> None:
    """Train LoRA and the adapter of a teacher's vectors together, into the folder `out`."""
    summary, name = Prepared(project.prepared), llara_name(teacher.name)
    lm = load_language_model(
        project.base, params.base, new_adapter=params.lora, trainable=True, seed=params.seed, threads=params.threads,
    )  # fmt: skip
    builder = hybrid_prompts(lm, teacher, catalogue, params.prompt, summary.noun, clock=summary.clock)
    material = read_material(params, project.prepared, project.profiles, builder, catalogue, weighted=False)
    vectors = new_vectors(lm, teacher, params.seed)
    seen, width = len(builder.numbers), teacher.vectors.shape[1]
    made = len(builder.numbers.keys() - catalogue.trained.ids)
    log.info(
        "%s: %d of %d items have a vector of width %d, %d of them made of their text", name, seen, len(catalogue.ids),
        width, made,
    )  # fmt: skip
    sections = [params.sft.told(), params.lora.model_dump(), params.hybrid.curriculum]
    inputs = digest_of(
        [*sections, params.seed, params.threads, lm.digest, builder.digest, teacher.digest, *material.read]
    )
    passes = Passes(material.epoch, params.sft.epochs, params.seed)
    steps = sum(1 for _ in passes.batches(params.sft.batch))
    curriculum = Curriculum(steps, params.seed, rising=params.hybrid.curriculum == "linear")
    task = HybridModelling(name, lm.model, material.held_out, params.sft.micro_tokens, curriculum)
    costs = project.costs
    checkpoints = Checkpoints(project.cache / "checkpoints", task.name, inputs, params.checkpoint_seconds)
    result = train(lm.model, task, passes, params.sft, checkpoints, costs)
    facts: dict[str, Any] = {
        "stage": task.name,
        "base": lm.identity,
        "inputs": inputs,
        "prompt": builder.digest,
        "teacher": {"name": teacher.name, "digest": teacher.digest, "items": seen, "text_made": made, "width": width}
        | ({"vectors": "states"} if teacher.states else {}),
        "data": learned_from(project.prepared, params.prompt.form),
        "examples": material.examples,
        "params": dict(zip(("sft", "lora", "curriculum"), sections, strict=True)) | {"seed": params.seed},
    } | material.facts
    if processes.first():
        write_training(lm, result, facts, out, costs, lambda folder: write_hybrid(vectors.adapter, teacher, folder))
        checkpoints.remove()
