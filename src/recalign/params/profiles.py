"""`profiles`: who infers what a user likes."""

from typing import Literal

from pydantic import Field

from recalign.params.section import Section


class ProfilesParams(Section):
    engine: Literal["statements", "generate", "endpoint", "counting"]
    users: int = Field(gt=0)
    claims: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    url: str
    endpoint_model: str | None
    batch: int = Field(ge=1)
