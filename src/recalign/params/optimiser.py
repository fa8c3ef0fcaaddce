"""What `sft` and `align` share: how weights are optimised."""

from pydantic import Field

from recalign.params.section import Section, Share


class OptimiserParams(Section):
    learning_rate: float = Field(gt=0.0)
    batch: int = Field(ge=1)
    micro_tokens: int = Field(ge=1)
    warmup: float = Share
    weight_decay: float = Field(ge=0.0)
    max_grad_norm: float = Field(gt=0.0)
    evaluations: int = Field(ge=1)
