"""`pairs`: how many preference pairs there are, and which items are rejected."""

from typing import Literal

from pydantic import Field

from recalign.params.section import Section

Strategy = Literal["uniform", "popularity", "hard", "profile", "disliked", "alike", "in_batch"]


class PairsParams(Section):
    examples: int = Field(gt=0)
    negatives: int = Field(gt=0)
    positives: int = Field(default=1, ge=1)
    strategy: Literal["uniform", "popularity", "hard", "profile", "disliked", "alike", "in_batch", "mixed"]
    popularity_alpha: float = Field(ge=0.0)
    hard_pool: int = Field(ge=1)
    shares: dict[Strategy, float]
