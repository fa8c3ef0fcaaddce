"""`fairness`: rankings that punish groups of items that are shown too often."""

from typing import Annotated

from pydantic import Field, field_validator

from recalign.params.section import Section

Gamma = Annotated[float, Field(ge=0.0, le=1000.0)]  # (1 + GU)^γ stays a number: GU is 1 at most


class FairnessParams(Section):
    by: str | None
    gammas: tuple[Gamma, ...]
    tolerance: float = Field(ge=0.0, lt=1.0)

    @field_validator("gammas")
    @classmethod
    def _with_nothing(cls, gammas: tuple[float, ...]) -> tuple[float, ...]:
        """Where every strength loses too much, 0 is what is left."""
        if not gammas or gammas[0] != 0.0 or list(gammas) != sorted(set(gammas)):
            raise ValueError("list strengths that rise from 0.0, each once")
        return gammas
