"""`simulator`: the simulated log."""

from pydantic import Field

from recalign.params.section import Section


class SimulatorParams(Section):
    users: int = Field(gt=0)
    days: int = Field(gt=0)
    seed: int = Field(ge=0)
