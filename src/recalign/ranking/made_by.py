"""Which artifacts made a system's ranks, by their digests: what is registered, compared or served must be the same."""

from collections.abc import Mapping
from pathlib import Path

from recalign.common.artifacts import folder_digest, read_json, verify_once
from recalign.common.errors import RecalignError
from recalign.evaluation.systems import SYSTEMS, System
from recalign.llm.adapters import adapter_digest
from recalign.llm.model_files import IDENTITY
from recalign.project import RANKS

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
            f"{RANKS / SYSTEMS} does not say what made the ranks of {system} (it is of an earlier version); "
            "run 'dvc repro' to evaluate it again"
        )
    return about.artifacts
