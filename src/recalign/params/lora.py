"""`lora`: the adapter."""

from pydantic import Field

from recalign.params.section import Section


class LoraParams(Section):
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0.0)
    dropout: float = Field(ge=0.0, lt=1.0)
    targets: str | tuple[str, ...]
    layers: int | None = Field(default=None, ge=1)
