"""Adapters that other runs trained, perhaps on another source: found in data/models/other, measured as they are."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.evaluation.systems import TRANSFERRED, TUNED, UNTRAINED, system_of
from recalign.llm.adapters import CONFIG, adapter_digest, check_adapter, find_adapter
from recalign.params.load import Params
from recalign.project import Project

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transferred:
    """folder: the adapter's; facts: its training.json, what the run that trained it says of it, empty where missing."""

    folder: Path
    facts: dict[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What system.json holds beside the ranking rule.

        trained_as: the system that it was at home; trained_on: the source that it learned from; None: not told.
        """
        stage = self.facts.get("stage")
        return {
            "kind": TRANSFERRED,
            "trained_as": system_of(stage.removeprefix("align@")) if stage else None,
            "trained_on": self.facts.get("data", {}).get("source"),
            "adapter_digest": adapter_digest(self.folder),
        }


def transferred(params: Params, name: str, project: Project) -> Transferred:
    """The adapter of data/models/other/`name`, which `evaluate.adapters` names, checked before anything is scored.

    Raises RecalignError where the folder holds no adapter, where the name is that of a model trained here, and where
    the adapter belongs to another base or to another form of prompt.
    """
    identity, data = read_json(project.base / "base.json"), read_json(project.prepared / "summary.json")
    if system_of(name) in {UNTRAINED, TUNED, *map(system_of, params.align.settings)}:
        raise RecalignError(f"evaluate.adapters has '{name}', which names a model of this run; rename its folder")
    own = _read(name, project.other / name)
    check_adapter(own.folder, identity)
    _check_data(name, own.facts.get("data", {}), data, params.prompt.form)
    return own


def _read(name: str, place: Path) -> Transferred:
    folder = find_adapter(place)
    if folder is None:
        raise RecalignError(
            f"evaluate.adapters has '{name}', but {place} holds no adapter ({CONFIG}); bring one there, as "
            "'dvc import <its project> data/models/align/dmpo -o "
            f"{place}' does, or take the name out"
        )
    told = folder / "training.json"
    return Transferred(folder, read_json(told) if told.is_file() else {})


def _check_data(name: str, trained: dict[str, Any], data: dict[str, Any], form: str) -> None:
    """Refuse prompts that the adapter never saw; warn where its training may hold this run's test events."""
    if trained.get("form", form) != form:
        raise RecalignError(
            f"evaluate.adapters has '{name}', which learned prompts of the form '{trained['form']}', but prompt.form "
            f"is '{form}'; set it to '{trained['form']}' or take the name out"
        )
    if trained.get("source") == data["source"] and trained.get("data_digest") != data["data_digest"]:
        log.warning(
            "%s was trained on another state of %s: if that is the newer one, it may have learned from this run's "
            "test events, and its figure means nothing", system_of(name), data["source"],
        )  # fmt: skip
