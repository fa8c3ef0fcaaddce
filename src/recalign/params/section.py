"""What every section of params.yaml is: unknown keys are refused, values are frozen."""

from pydantic import BaseModel, ConfigDict, Field

Share = Field(ge=0.0, le=1.0)


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
