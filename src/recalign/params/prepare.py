"""`prepare`: filters, split, examples and candidate lists."""

from typing import Literal

from pydantic import Field

from recalign.params.section import Section


class PrepareParams(Section):
    min_rating: float | None
    core: int = Field(ge=1)
    split: Literal["time", "leave-one-out"]
    validation_share: float = Field(gt=0.0, lt=0.5)
    test_share: float = Field(gt=0.0, lt=0.5)
    profile_share: float = Field(ge=0.0, lt=1.0)
    cold_events: int = Field(ge=1)
    hidden_items: float = Field(ge=0.0, lt=1.0)
    min_history: int = Field(ge=1)
    max_history: int = Field(ge=1)
    candidates: int = Field(ge=2)
    cases_per_user: int = Field(ge=1)
    train_examples_per_user: int = Field(ge=1)
    memory_limit: str = Field(pattern=r"^\d+(\.\d+)?\s?(MB|GB|MiB|GiB)$")
    popularity_alpha: float = Field(ge=0.0)
