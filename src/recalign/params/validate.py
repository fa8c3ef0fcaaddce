"""`validate`: what a log may lack before it is refused."""

from pydantic import Field

from recalign.params.section import Section, Share


class ValidateParams(Section):
    max_rejected: float = Share
    min_rows: int = Field(ge=1)
    max_rows_per_user: float = Field(gt=0.0, le=1.0)
    chunk_rows: int = Field(ge=1000)
