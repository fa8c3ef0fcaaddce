"""What stage rank keeps of one system, and stage fuse reads of all: its ranks, its scores, and what it is.

Which artifacts made a system's ranks, by their digests: what is registered, compared or served must be the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from recalign import project as layout
from recalign.common.artifacts import folder_digest, read_json, replacing, verify_once
from recalign.common.errors import RecalignError
from recalign.evaluation.generation import Answer, read_answers, write_answers
from recalign.evaluation.injection import POSITIONS
from recalign.evaluation.metrics import Floats
from recalign.evaluation.ranks import SystemRanks, read_system_ranks, write_system_ranks
from recalign.evaluation.systems import SYSTEM, SYSTEMS, System, read_system, write_system
from recalign.llm.model.adapters import adapter_digest
from recalign.llm.model.files import IDENTITY

ADAPTER, REFERENCE, BASE_WEIGHTS, RECOMMENDER = "adapter", "reference", "base", "recommender"
SHOWN = 12  # characters of a digest in a sentence


def language_model_artifacts(base: Path, adapter: Path | None, reference: Path | None = None) -> dict[str, str]:
    """Digests of the folders behind a language model: base weights, adapter, and the reference of the rule "reward"."""
    adapters = {ADAPTER: adapter, REFERENCE: reference}
    found = {role: adapter_digest(folder) for role, folder in adapters.items() if folder is not None}
    return {BASE_WEIGHTS: str(read_json(base / IDENTITY)["sha256"]), **found}


def recommender_artifacts(folder: Path) -> dict[str, str]:
    """The digest of a fitted recommender's folder. Raises RecalignError where a file is not what its manifest lists."""
    verify_once(folder)
    return {RECOMMENDER: folder_digest(folder)}


def check_made_by(system: str, told: Mapping[str, str], now: Mapping[str, str], where: str) -> None:
    """Refuse artifacts that did not make a system's ranks. told, now: digests by role; where: the folder, in words.

    A role that one of them lacks is not compared. Raises RecalignError naming both digests and the fix.
    """
    for role in (role for role in told if role in now and now[role] != told[role]):
        raise RecalignError(
            f"the {role} in {where} has digest {now[role][:SHOWN]}, but the ranks of {system} were made by "
            f"{told[role][:SHOWN]}: it was changed or replaced since; run 'dvc repro' to evaluate what is there, or "
            "'dvc checkout' to bring back what was"
        )


def told_artifacts(system: str, about: System) -> Mapping[str, str]:
    """What a system of systems.json says of what made the ranks. Raises RecalignError where it does not say."""
    if about.artifacts is None:
        raise RecalignError(
            f"{layout.RANKS / SYSTEMS} does not say what made the ranks of {system} (it is of an earlier version); "
            "run 'dvc repro' to evaluate it again"
        )
    return about.artifacts


RANKS, SCORES, ANSWERS = "ranks.parquet", "scores.safetensors", "generations.parquet"
VALIDATION, WEIGHING = "validation", "weighing"
NEW_VALIDATION, NEW_WEIGHING = "validation-new", "weighing-new"

Kind = tuple[str, str]  # view and manifest of a trial


@dataclass(frozen=True)
class Measured:
    """One system: its ranks, what it is, and its scores [B, C] of the sampled test cases (by kind) and of the
    validation cases.

    weighing: those of the many validation cases that ID recommenders are weighed on; None for other systems.
    new_validation, new_weighing: likewise of the hidden validation cases, None where there are none.
    logprobs: a language model's raw log-probs, by kind and of the validation cases, which rank it as a reference.
    answers: the titles that it generates; injected: by position, scores [few, C] of the first test cases with a text
    in a title. per_thousand: seconds of ranking a thousand cases, None where an earlier run stored scores; never
    written, for equal data have equal bytes.
    """

    ranks: list[SystemRanks]
    system: System
    scores: Mapping[Kind, Floats]
    validation: Floats
    weighing: Floats | None = None
    logprobs: Mapping[str, Floats] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    per_thousand: float | None = None
    new_validation: Floats | None = None
    new_weighing: Floats | None = None
    injected: Mapping[str, Floats] = field(default_factory=dict)


def injected_key(position: str) -> str:
    """The key of what was scored with a text in a title, in that position."""
    return f"injected/{position}"


def logprob_of(name: str) -> str:
    """The key of raw log-probs beside the scores of the same cases."""
    return f"logprob/{name}"


def name_of(kind: Kind) -> str:
    """A kind as the key of its scores: "warm/uniform"."""
    return "/".join(kind)


def _kind(name: str) -> Kind:
    view, _, manifest = name.partition("/")
    return view, manifest


def write_measured(folder: Path, own: Measured) -> None:
    """Write what a system reached into the existing `folder`."""
    write_system_ranks(folder / RANKS, own.ranks)
    write_system(folder / SYSTEM, own.system)
    arrays = {name_of(kind): scores for kind, scores in own.scores.items()} | {VALIDATION: own.validation}
    some = {WEIGHING: own.weighing, NEW_VALIDATION: own.new_validation, NEW_WEIGHING: own.new_weighing}
    arrays |= {name: scores for name, scores in some.items() if scores is not None}
    arrays |= {injected_key(position): values for position, values in own.injected.items()}
    arrays |= {logprob_of(name): values for name, values in own.logprobs.items()}
    tensors = {name: torch.tensor(values) for name, values in sorted(arrays.items())}
    with replacing(folder / SCORES) as partial:
        save_file(tensors, partial)
    if own.answers:
        write_answers(folder / ANSWERS, own.answers)


def read_measured(folder: Path, digests: Mapping[str, str]) -> Measured:
    """What `write_measured` wrote; `digests` are those of the cases that are ranked now, by view and manifest.

    Raises RecalignError where a file is missing or changed, or where the system was ranked on other cases.
    """
    verify_once(folder)
    system = read_system(folder / SYSTEM)
    for name in system.digests.keys() & digests.keys():
        if system.digests[name] != digests[name]:
            raise RecalignError(
                f"{folder} was ranked on other cases ({name} {system.digests[name][:12]}) than those of now "
                f"({digests[name][:12]}); run 'dvc repro'"
            )
    arrays = {name: values.numpy() for name, values in load_file(folder / SCORES).items()}
    raw = {name.removeprefix("logprob/"): arrays.pop(name) for name in list(arrays) if name.startswith("logprob/")}
    validation, weighing = arrays.pop(VALIDATION), arrays.pop(WEIGHING, None)
    new_validation, new_weighing = arrays.pop(NEW_VALIDATION, None), arrays.pop(NEW_WEIGHING, None)
    injected = {place: arrays.pop(key) for place in POSITIONS if (key := injected_key(place)) in arrays}
    by_manifest: dict[str, dict[str, str]] = {}
    for name, digest in system.digests.items():
        view, manifest = _kind(name)
        by_manifest.setdefault(manifest, {})[view] = digest
    scores = {_kind(name): values for name, values in arrays.items()}
    return Measured(
        read_system_ranks(folder / RANKS, by_manifest),
        system,
        scores,
        validation,
        weighing,
        raw,
        read_answers(folder / ANSWERS) if (folder / ANSWERS).is_file() else [],
        new_validation=new_validation,
        new_weighing=new_weighing,
        injected=injected,
    )
