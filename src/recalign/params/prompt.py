"""`prompt`: what a prompt shows."""

from typing import Literal

from pydantic import Field

from recalign.params.section import Section


class PromptParams(Section):
    form: Literal["history", "candidates"]
    history: int = Field(ge=1)
    training_history: int = Field(ge=1)
    profile: bool
    max_title_tokens: int = Field(ge=1)
