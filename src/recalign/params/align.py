"""`align`: preference objectives and how they are trained."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from recalign.common.errors import RecalignError, did_you_mean
from recalign.params.section import OptimiserParams, Section

Preset = Literal["dpo", "dpo_pairs", "sdpo", "mult_dpo", "dmpo", "simpo", "alpha_dpo", "beta_dpo", "dr_dpo"]


class ObjectiveSettings(Section):
    """What an objective has of its own; null: as align.beta, align.rho or its preset say."""

    like: Preset | None = None
    reward: Literal["log_ratio", "sum", "mean"] | None = None
    loss: Literal["logistic", "hinge", "ipo"] | None = None
    negatives: Literal["first", "pairs", "mean", "logsumexp"] | None = None
    beta: float | None = Field(default=None, gt=0.0)
    rho: float | None = None
    label_smoothing: float | None = Field(default=None, ge=0.0, lt=0.5)
    alpha: float | None = None
    beta_scale: float | None = None
    drop: float | None = Field(default=None, ge=0.0, lt=1.0)
    momentum: float | None = Field(default=None, ge=0.0, lt=1.0)
    beta_prime: float | None = Field(default=None, gt=0.0)
    log_q: float | None = Field(default=None, ge=0.0, le=1.0)
    positives: Literal["first", "all"] | None = None
    convention: Literal["code", "paper"] | None = None


Start = Literal[  # folders in data/models
    "sft", "hybrid/llara-sasrec", "hybrid/llara-gru4rec", "hybrid/llara-caser", "hybrid/llara-ease",
    "hybrid/llara-content",
]  # fmt: skip
ObjectiveName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]  # a folder's name too


class AlignParams(OptimiserParams):
    settings: dict[ObjectiveName, ObjectiveSettings]
    objectives: tuple[str, ...] = Field(min_length=1)
    start: Start = "sft"  # older params.yaml files lack it
    epochs: int = Field(gt=0)
    beta: float = Field(gt=0.0)
    rho: float

    @field_validator("settings")
    @classmethod
    def _like_a_preset(cls, settings: dict[str, ObjectiveSettings]) -> dict[str, ObjectiveSettings]:
        for name, own in settings.items():
            if name in ("base", "sft", "fusion"):
                raise PydanticCustomError("like", f"'{name}' names another system; call the objective otherwise")
            if own.like is None and name not in get_args(Preset):
                raise PydanticCustomError("like", f"'{name}' needs 'like: ' and one of {', '.join(get_args(Preset))}")
        return settings

    @field_validator("objectives")
    @classmethod
    def _have_settings(cls, objectives: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in objectives:
            _known_objective(name, info.data.get("settings", {name: None}))
        if len(set(objectives)) < len(objectives):
            raise PydanticCustomError("twice", "an objective may be listed once")
        return objectives

    def of(self, objective: str) -> dict[str, Any]:
        """The settings of one objective, align.beta and align.rho filled in; what stays null is left out.

        Raises RecalignError for an objective that align.settings does not have.
        """
        try:
            _known_objective(objective, self.settings)
        except PydanticCustomError as error:
            raise RecalignError(f"objective is '{objective}'; {error.message()}") from None
        shared = {"beta": self.beta, "rho": self.rho}
        return shared | self.settings[objective].model_dump(exclude_none=True)


def _known_objective(name: str, settings: Mapping[str, object]) -> None:
    if name not in settings:
        hint, allowed = did_you_mean(name, settings), ", ".join(settings)
        raise PydanticCustomError("objective", f"'{name}' is not in align.settings; allowed are {allowed}{hint}")
