"""`sft`: supervised fine-tuning."""

from pydantic import Field

from recalign.params.optimiser import OptimiserParams


class SftParams(OptimiserParams):
    examples: int = Field(gt=0)
    epochs: int = Field(gt=0)
    new_items: float = Field(default=0.0, ge=0.0, le=0.5)  # older params.yaml files lack the key
