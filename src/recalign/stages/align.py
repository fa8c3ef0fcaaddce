"""Stage align: preference training of one objective, from the adapter of align.start and with it as the reference."""

from typing import Any

from recalign.common import columns as c
from recalign.common.artifacts import digest_of
from recalign.hybrid.prompts import copy_vectors, open_start
from recalign.llm.model.base import LanguageModel
from recalign.objectives.objective import build_objective
from recalign.params.align import AlignParams
from recalign.params.load import Params
from recalign.project import Project
from recalign.training import processes
from recalign.training.examples import PreferenceExample, read_preference_examples
from recalign.training.loop import Passes, micro_batches, train
from recalign.training.preference import START_TOLERANCE, PreferenceTraining
from recalign.training.reference import read_store, reference_sums
from recalign.training.results import Checkpoints, learned_from, write_training


@processes.joined()
def align(params: Params, objective: str, project: Project = Project()) -> None:
    """Train the adapter of align.start on by `objective` into data/models/align/<objective>; keep the best step.

    The best by the validation loss, the start among them.

    Raises RecalignError for an unknown objective, no pairs, missing reference log-probs, an adapter of another base, or
    a loss that is not finite.
    """
    loss = build_objective(objective, seed=params.seed, **params.align.of(objective))
    lm, builder = open_start(params, project, trainable=True)
    examples = read_preference_examples(params, project.prepared, project.pairs, builder)
    references = reference_sums(read_store(project.reference), lm.digest, [*examples[c.TRAIN], *examples[c.VALIDATION]])
    task = PreferenceTraining(lm.model, loss, references, examples[c.VALIDATION], params.align.micro_tokens)
    inputs = _inputs(params, objective, lm, examples)
    checkpoints = Checkpoints(project.cache / "checkpoints", task.name, inputs, params.checkpoint_seconds)
    apart = _check_start(params, lm, task, examples[c.TRAIN])
    passes = Passes(examples[c.TRAIN], params.align.epochs, params.seed)
    result = train(lm.model, task, passes, params.align, checkpoints, project.costs)
    facts = {
        "stage": task.name,
        "base": lm.identity,
        "reference": lm.digest,
        "data": learned_from(project.prepared, params.prompt.form),
        "inputs": checkpoints.digest,
        "examples": len(examples[c.TRAIN]),
        "step_0_difference": apart,
        "params": {"align": _settings(params.align, objective), "seed": params.seed},
    }
    if processes.first():
        vectors = copy_vectors(project.start(params.align.start))
        write_training(lm, result, facts, project.align / objective, project.costs, vectors)
        checkpoints.remove()


def _check_start(
    params: Params, lm: LanguageModel, task: PreferenceTraining, examples: list[PreferenceExample]
) -> float:
    """Assert policy = reference in the mode that trains, or without dropout where there is some."""
    lm.model.train(params.lora.dropout == 0.0)
    first = micro_batches(examples[: params.align.batch], params.align.micro_tokens, task.tokens_at_once)[0]
    return task.check_start(first, START_TOLERANCE[lm.dtype])


def _settings(align: AlignParams, objective: str) -> dict[str, Any]:
    """The part of align that one objective reads."""
    own = align.model_dump(exclude={"objectives", "settings", "beta", "rho"})
    return {**own, "objective": {"name": objective, **align.of(objective)}}


def _inputs(params: Params, objective: str, lm: LanguageModel, examples: dict[str, list[PreferenceExample]]) -> str:
    """Digest of everything that the trained weights depend on."""
    read = [
        [split, e.example_id, e.prompt, e.responses, *([e.liked] if e.liked > 1 else []), *e.log_q]
        for split, part in examples.items()
        for e in part
    ]
    sections = [_settings(params.align, objective), params.lora.model_dump(), params.seed, params.threads]
    return digest_of([*sections, lm.digest, read])
