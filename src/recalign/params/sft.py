"""`sft`: supervised fine-tuning."""

from pydantic import Field

from recalign.params.optimiser import OptimiserParams


class SftParams(OptimiserParams):
    examples: int = Field(gt=0)
    epochs: int = Field(gt=0)
