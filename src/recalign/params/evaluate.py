"""`evaluate`: the cases that are ranked, and how."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeFloat, StringConstraints, field_validator

from recalign.params.section import Section

FolderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class EvaluateParams(Section):
    validation_cases: int = Field(gt=0)
    test_cases: int = Field(gt=0)
    cold_cases: int = Field(ge=0)
    score: Literal["auto", "logprob", "logprob_less_prior", "reward"]
    prior_weights: tuple[float, ...]
    resamples: int = Field(ge=100)
    batch: int = Field(ge=1)
    full_catalogue_cases: int = Field(ge=0)
    full_catalogue_depth: int | None = Field(ge=10)
    generation_cases: int = Field(ge=0)
    injection_cases: int = Field(default=0, ge=0)  # params.yaml files from before lack it
    beams: int = Field(ge=1)
    popularity_manifest: bool
    adapters: tuple[FolderName, ...]
    fusion: bool
    new_item_weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)  # as they lack these two
    new_item_offset: FiniteFloat | None = None

    @field_validator("adapters")
    @classmethod
    def _once(cls, adapters: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(adapters)) < len(adapters):
            raise ValueError("an adapter is listed twice; name each once")
        return adapters
