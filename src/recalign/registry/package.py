"""What is registered of a system: adapter, rule, catalogue and the identity of its base; never the base's weights.

A package is a folder: settings.json, items.parquet, adapter/, and reference/ where the rule is the implicit reward.
"""

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from recalign.artifacts import digest_of, folder, read_json, write_json
from recalign.errors import RecalignError
from recalign.evaluation.ranking_rule import Kind, RankingRule
from recalign.layout import ALIGN, BASE, PREPARED, RANKS, SFT
from recalign.llm.adapters import adapter_digest
from recalign.params import BaseParams, Params, PromptParams

ADAPTER, REFERENCE, SETTINGS = "adapter", "reference", "settings.json"


class Identity(BaseModel):
    """The base that an adapter belongs to, as base.json states it."""

    model_config = ConfigDict(frozen=True)

    id: str
    revision: str
    sha256: str


class Settings(BaseModel):
    """All that fixes a system's answers beside its weights and catalogue.

    profile_engine: what inferred the profiles that prompts showed while it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    source: str
    noun: str
    clock: bool
    ranked_by: Kind
    prior_weight: float
    prompt: PromptParams
    base: BaseParams
    identity: Identity
    profile_engine: str

    @property
    def rule(self) -> RankingRule:
        """What ranks."""
        return RankingRule(self.ranked_by, self.prior_weight)


def best_objective(params: Params, systems: dict[str, Any]) -> str:
    """The objective whose adapter has the highest registry.metric on the validation cases; `systems` is systems.json.

    Raises RecalignError when an objective of params was not evaluated.
    """
    for objective in params.align.objectives:
        _evaluated(systems, objective)
    metric = params.registry.metric
    return max(params.align.objectives, key=lambda objective: systems[f"llm-{objective}"]["validation"][metric])


def settings_of(params: Params, objective: str, root: Path) -> Settings:
    """The settings of an objective's system as it was evaluated in the project at `root`."""
    about = _evaluated(read_json(root / RANKS / "systems.json"), objective)
    data = read_json(root / PREPARED / "summary.json")
    return Settings(
        system=f"llm-{objective}",
        source=data["source"],
        noun=data["noun"],
        clock=data["clock"],
        ranked_by=about["ranked_by"],
        prior_weight=about["prior_weight"],
        prompt=params.prompt,
        base=params.base,
        identity=Identity(**read_json(root / BASE / "base.json")),
        profile_engine=params.profiles.engine,
    )


def package_digest(settings: Settings, objective: str, root: Path) -> str:
    """One value for an adapter and all that fixes its answers: equal digests, one version."""
    reference = adapter_digest(root / SFT) if settings.ranked_by == "reward" else None
    return digest_of([adapter_digest(root / ALIGN / objective), reference, settings.model_dump()])


def write_package(settings: Settings, objective: str, root: Path, out: Path) -> None:
    """Write the package of an objective's system into `out`."""
    with folder(out) as partial:
        shutil.copytree(root / ALIGN / objective, partial / ADAPTER)
        if settings.ranked_by == "reward":
            shutil.copytree(root / SFT, partial / REFERENCE)
        shutil.copyfile(root / PREPARED / "items.parquet", partial / "items.parquet")
        write_json(partial / SETTINGS, settings.model_dump())


def read_settings(package: Path) -> Settings:
    """The settings of a package."""
    return Settings.model_validate(read_json(package / SETTINGS))


def _evaluated(systems: dict[str, Any], objective: str) -> dict[str, Any]:
    about: dict[str, Any] | None = systems.get(f"llm-{objective}")
    if about is None:
        raise RecalignError(
            f"{RANKS / 'systems.json'} holds no llm-{objective}; run 'dvc repro' with {objective!r} in align.objectives"
        )
    return about
