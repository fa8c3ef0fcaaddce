"""`base`: the base model and its weights in memory."""

from typing import Literal

from recalign.params.section import Section


class BaseParams(Section):
    model: str
    revision: str | None
    quantisation: Literal["none", "nf4", "int8"]
    compute: Literal["auto", "fp32", "bf16"]
