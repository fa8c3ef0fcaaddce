"""`schedule`: when retraining runs."""

from pydantic import Field, field_validator

from recalign.common.cron import check_zone, parse_cron
from recalign.params.section import Section


class ScheduleParams(Section):
    cron: str
    timezone: str
    retries: int = Field(ge=0)
    timeout_minutes: float = Field(gt=0.0)
    wait_minutes: float = Field(ge=0.0)

    @field_validator("cron")
    @classmethod
    def _one_meaning(cls, cron: str) -> str:
        parse_cron(cron)
        return cron

    @field_validator("timezone")
    @classmethod
    def _exists(cls, timezone: str) -> str:
        check_zone(timezone)
        return timezone
