"""What is measured: a system, by what ranks it, what made it and what it reached on the validation cases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recalign.common.artifacts import read_json, write_json
from recalign.common.errors import RecalignError
from recalign.evaluation.ranking_rule import CHOSEN_BY, RankingRule
from recalign.evaluation.ranks import FULL

LLM: Final = "llm"  # kinds of system
ID: Final = "id"
FUSION: Final = "fusion"
ORACLE: Final = "oracle"  # it knows the truth: no baseline
TRANSFERRED: Final = "transferred"  # a language model whose adapter another run trained: measured, never the best one
LANGUAGE_MODELS = (LLM, TRANSFERRED)
PREFIX = "llm-"  # begins the name of every system that is a language model
UNTRAINED, TUNED = f"{PREFIX}base", f"{PREFIX}sft"
RANDOM_BASE = "tiny-random"  # the id of the one base that was never trained on text
MEANINGLESS = "random model: the figures mean nothing"  # said wherever a figure of such a base is shown
SYSTEM, SYSTEMS = "system.json", "systems.json"  # of one system, and of all by name


class System(BaseModel):
    """One system as system.json and systems.json keep it; what a kind has not is left out.

    ranked_by: the kind of rule (language models) or words; validation: metric -> mean over the validation cases;
    artifacts: role -> digest of what scored, None in files of earlier versions; weights: a fusion's parts, new_weights:
    among new items, empty where it has none of their own; tried: the
    rules and what each reached; trained_as, trained_on: where an adapter from elsewhere was at home; digests: view and
    manifest ("warm/uniform") -> digest of the cases that were scored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["llm", "id", "fusion", "oracle", "transferred"]
    ranked_by: str
    prior_weight: float | None = None
    validation: dict[str, float] = Field(default_factory=dict)
    cases: int = 0
    megabytes: float | None = None
    artifacts: dict[str, str] | None = None
    model_digest: str | None = None
    catalogue_ranked_by: str | None = None
    tried: tuple[dict[str, Any], ...] = ()
    weights: dict[str, float] = Field(default_factory=dict)
    new_weights: dict[str, float] = Field(default_factory=dict)
    trained_as: str | None = None
    trained_on: str | None = None
    adapter_digest: str | None = None
    digests: dict[str, str] = Field(default_factory=dict)

    @property
    def is_language_model(self) -> bool:
        """Whether a language model ranks, trained here or elsewhere."""
        return self.kind in LANGUAGE_MODELS

    @property
    def used(self) -> list[str]:
        """The parts of a fusion that weigh anything."""
        return [name for name, weight in self.weights.items() if max(weight, self.new_weights.get(name, 0.0)) > 0]

    def rule(self, protocol: str = "") -> RankingRule:
        """What a language model is ranked by, among candidates or in the whole catalogue (protocol "full")."""
        kind = self.catalogue_ranked_by if protocol == FULL else self.ranked_by
        return RankingRule(kind, self.prior_weight or 0.0)  # type: ignore[arg-type]  # one of its kinds, as written

    def sentence(self, protocol: str) -> str:
        """What ranks the system under a protocol, in the words of the table."""
        if not self.is_language_model:
            return self.ranked_by
        rule = self.rule(protocol).sentence
        if self.kind == LLM:
            return rule
        return f"{rule}; trained " + (f"on {self.trained_on}" if self.trained_on else "elsewhere")


def system_of(adapter: str) -> str:
    """The system that an adapter makes of the base, by its name: sft, an objective, a folder of data/models/other."""
    return f"{PREFIX}{adapter}"


def llara_name(teacher: str) -> str:
    """The name of the adapter that reads a teacher's vectors: "llara-sasrec"."""
    return f"llara-{teacher}"


def adapter_of(system: str) -> str:
    """The name of the adapter behind a system that is a language model."""
    return system.removeprefix(PREFIX)


def best_by_validation(systems: Mapping[str, System], names: Sequence[str]) -> str | None:
    """The system with the highest NDCG@10 on the validation cases; test cases choose nothing. None of none."""
    return max(names, key=lambda name: systems[name].validation[CHOSEN_BY], default=None)


def write_system(path: Path, system: System) -> None:
    """Write one system's JSON."""
    write_json(path, system.model_dump(exclude_defaults=True))


def write_systems(path: Path, systems: Mapping[str, System]) -> None:
    """Write the systems by name, in their order."""
    write_json(path, {name: system.model_dump(exclude_defaults=True) for name, system in systems.items()})


def read_system(path: Path) -> System:
    """What `write_system` wrote. Raises RecalignError where the file is missing or holds something else."""
    return _parsed(path, read_json(path))


def read_systems(path: Path) -> dict[str, System]:
    """The systems by name, also of files of earlier versions. Raises RecalignError as `read_system` does."""
    return {name: _parsed(path, told) for name, told in read_json(path).items()}


def _parsed(path: Path, told: Any) -> System:
    try:
        return System.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecalignError(f"{path} is no description of a system ({key}: {first['msg']}); run 'dvc repro'") from None
