"""What every section of params.yaml is: unknown keys are refused, values are frozen.

What `sft` and `align` share: how weights are optimised.
"""

from pydantic import BaseModel, ConfigDict, Field

Share = Field(ge=0.0, le=1.0)


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimiserParams(Section):
    learning_rate: float = Field(gt=0.0)
    batch: int = Field(ge=1)
    micro_tokens: int = Field(ge=1)
    warmup: float = Share
    weight_decay: float = Field(ge=0.0)
    max_grad_norm: float = Field(gt=0.0)
    evaluations: int = Field(ge=1)
