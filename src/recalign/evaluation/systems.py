"""What is measured: a system, by what ranks it, what made it and what it reached on the validation cases.

What ranking takes, as systems.json keeps it: seconds per thousand cases and megabytes of weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recalign.common.artifacts import read_json, write_json
from recalign.common.errors import RecalignError
from recalign.evaluation.ranking_rule import CHOSEN_BY, RankingRule
from recalign.evaluation.ranks import FULL


@dataclass(frozen=True)
class Cost:
    """One system: seconds of fitting, seconds of ranking 1,000 cases, and MB of weights that ranking loads.

    None where it was not timed here, or where what an earlier run stored made it faster than it is.
    """

    system: str
    fitting: float | None
    per_thousand: float | None
    megabytes: float | None


def per_thousand(seconds: float, cases: int) -> float:
    """Seconds a thousand cases from those of so many."""
    return round(1000 * seconds / cases, 3)


def weights_mb(*folders: Path) -> float:
    """Megabytes (10^6 bytes) of the weights in some folders."""
    return round(sum(file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors")) / 1e6, 3)


def total(costs: Iterable[float | None]) -> float | None:
    """What several parts cost together; None where one is not known."""
    listed = list(costs)
    return None if None in listed else round(sum(cost for cost in listed if cost is not None), 3)


LLM: Final = "llm"  # kinds of system
ID: Final = "id"
FUSION: Final = "fusion"
ORACLE: Final = "oracle"  # it knows the truth: no baseline
TRANSFERRED: Final = "transferred"  # a language model whose adapter another run trained: measured, never the best one
FAIR: Final = "fair"  # another system, reranked so that no group of items is shown too often
LANGUAGE_MODELS = (LLM, TRANSFERRED)
PREFIX = "llm-"  # begins the name of every system that is a language model
UNTRAINED, TUNED = f"{PREFIX}base", f"{PREFIX}sft"
RANDOM_BASE = "tiny-random"  # the id of the one base that was never trained on text
MEANINGLESS = "random model: the figures mean nothing"  # said wherever a figure of such a base is shown
SYSTEM, SYSTEMS = "system.json", "systems.json"  # of one system, and of all by name
CHOICES = "fairness.json"  # beside them: what was chosen for those that are reranked


class System(BaseModel):
    """One system as system.json and systems.json keep it; what a kind has not is left out.

    ranked_by: the kind of rule (language models) or words; validation: metric -> mean over the validation cases;
    artifacts: role -> digest of what scored, None in files of earlier versions; weights: a fusion's parts, new_weights:
    among new items, empty where it has none of their own; tried: the
    rules and what each reached; trained_as, trained_on: where an adapter from elsewhere was at home; digests: view and
    manifest ("warm/uniform") -> digest of the cases that were scored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["llm", "id", "fusion", "oracle", "transferred", "fair"]
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


class Tried(BaseModel):
    """One strength on the validation cases: NDCG@10, MGU and DGU of the whole catalogue, and NDCG@10 minus that of
    γ = 0 with its 95 % interval over users."""

    model_config = ConfigDict(frozen=True)

    gamma: float
    ndcg: float
    mgu: float
    dgu: float
    difference: float
    low: float
    high: float


class Choice(BaseModel):
    """What a system's reranking was chosen to be: GU of each group without it, the strength, and all that were tried.

    cases, users: of validation, on which both were found.
    """

    model_config = ConfigDict(frozen=True)

    system: str
    by: str
    gu: dict[str, float]
    gamma: float
    tried: tuple[Tried, ...]
    cases: int
    users: int

    @property
    def sentence(self) -> str:
        """What ranks, in words."""
        return f"{self.system}, groups by {self.by} that are shown too often punished (γ = {self.gamma:g})"


def best_strength(tried: Sequence[Tried], tolerance: float) -> Tried:
    """The one with the lowest MGU whose loss of NDCG@10 is within the tolerance; γ = 0 always is."""
    allowed = [each for each in tried if each.gamma == 0.0 or each.low > -tolerance]
    return min(allowed, key=lambda each: (each.mgu, each.gamma))


def system_of(adapter: str) -> str:
    """The system that an adapter makes of the base, by its name: sft, an objective, a folder of data/models/other."""
    return f"{PREFIX}{adapter}"


def llara_name(teacher: str) -> str:
    """The name of the adapter that reads a teacher's vectors: "llara-sasrec"."""
    return f"llara-{teacher}"


def adapter_of(system: str) -> str:
    """The name of the adapter behind a system that is a language model."""
    return system.removeprefix(PREFIX)


def fair_name(system: str) -> str:
    """What a system is called once it is reranked."""
    return f"{FAIR}({system})"


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


def write_choices(folder: Path, choices: Mapping[str, Choice]) -> None:
    """Write fairness.json: by the system that was reranked."""
    write_json(folder / CHOICES, {name: choice.model_dump() for name, choice in choices.items()})


def read_choices(folder: Path) -> dict[str, Choice]:
    """What `write_choices` wrote; empty where nothing was reranked."""
    path = folder / CHOICES
    return {name: Choice.model_validate(own) for name, own in read_json(path).items()} if path.is_file() else {}


def _parsed(path: Path, told: Any) -> System:
    try:
        return System.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecalignError(f"{path} is no description of a system ({key}: {first['msg']}); run 'dvc repro'") from None
