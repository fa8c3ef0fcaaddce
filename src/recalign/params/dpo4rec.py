"""`dpo4rec`: texts about tastes, a recommender that reads them, and the alignment of their writer to what they help."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from recalign.params.section import OptimiserParams, Section, Share

Factor = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z ]{0,30}$")]


class GroupShares(Section):
    recommender: float = Share
    pairs: float = Share
    validation: float = Share
    test: float = Share

    @model_validator(mode="after")
    def _whole(self) -> Self:
        values = list(self.model_dump().values())
        if abs(sum(values) - 1.0) > 1e-6 or min(values) <= 0.0:
            raise PydanticCustomError("shares", "the four shares must be above 0 and add up to 1")
        return self


class Dpo4recParams(OptimiserParams):
    engine: Literal["local", "endpoint"]
    texts: int = Field(ge=1)
    users: int = Field(ge=8)
    history: int = Field(ge=1)
    window: int = Field(ge=1)
    factors: tuple[Factor, ...]
    constrained: bool
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0.0)
    attempts: int = Field(ge=1)
    shares: GroupShares
    first_stage: str
    listed: int = Field(ge=2)
    encoder: Literal["tfidf", "minilm", "base", "model"]
    least_gap: float = Field(ge=0.0, le=1.0)
    beta: float = Field(gt=0.0)
    epochs: int = Field(gt=0)
    rounds: int = Field(ge=1)
    force: bool
