"""`registry`: the registered model and its gate."""

import re
from typing import Literal

from pydantic import Field, field_validator

from recalign.params.section import Section

Metric = Literal["hr_at_1", "hr_at_5", "ndcg_at_10", "mrr"]


class GuardsParams(Section):
    error: float = Field(default=0.05, gt=0.0, lt=0.5)
    user_cold: float | None = Field(default=0.02, ge=0.0)
    item_cold: float | None = Field(default=0.02, ge=0.0)
    popularity_lift: float | None = Field(default=0.05, ge=0.0)
    mgu: float | None = Field(default=0.02, ge=0.0)
    dgu: float | None = Field(default=0.06, ge=0.0)
    valid_answers: float | None = Field(default=0.05, ge=0.0)
    injection_lift: float | None = Field(default=0.05, ge=0.0)
    latency_ratio: float | None = Field(default=2.0, ge=1.0)
    megabytes_ratio: float | None = Field(default=1.5, ge=1.0)


class RegistryParams(Section):
    model: str
    system: Literal["adapter", "fusion"]
    metric: Metric
    error: float = Field(gt=0.0, lt=0.5)
    min_users: int = Field(ge=10)
    margin: float = Field(ge=0.0)
    allow_random: bool = False  # older params.yaml files lack the key, and the guards
    guards: GuardsParams = GuardsParams()

    @field_validator("model")
    @classmethod
    def _plain_name(cls, model: str) -> str:
        """MLflow refuses "/" and ":" only after training, its filters end at a quote, and the name is a folder's."""
        if not re.fullmatch(r"\w[\w .-]*", model) or ".." in model or model.endswith((".", " ")):
            raise ValueError("use letters, digits, spaces, '-', '_' and single dots, the first a letter or digit")
        return model
