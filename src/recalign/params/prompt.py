"""`prompt`: what a prompt shows."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_serializer

from recalign.params.section import Section


class PromptParams(Section):
    form: Literal["history", "candidates"]
    history: int = Field(ge=1)
    training_history: int = Field(ge=1)
    profile: bool
    max_title_tokens: int = Field(ge=1)
    attributes: tuple[str, ...] = ()  # older params.yaml files lack the next two keys
    response_attributes: bool = False

    @field_validator("response_attributes")
    @classmethod
    def _some_to_write(cls, asked: bool, info: ValidationInfo) -> bool:
        if asked and info.data.get("attributes") == ():
            raise ValueError("prompt.attributes is empty; name some there, such as [genre, year], or set this to false")
        return asked

    @model_serializer(mode="wrap")
    def _told(self, handler: Callable[["PromptParams"], dict[str, Any]]) -> dict[str, Any]:
        """Without attributes nothing is said of them: prompts, and so their digest, are what they were before."""
        told = handler(self)
        return told if self.attributes else {k: v for k, v in told.items() if "attributes" not in k}
