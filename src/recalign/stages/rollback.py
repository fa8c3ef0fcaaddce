"""`recalign rollback`: give the alias back to the champion before the present one."""

from recalign.params import Params
from recalign.registry import promotion


def rollback(params: Params, reason: str) -> None:
    """Make the previous champion the champion again. Raises RecalignError where there is none."""
    promotion.rollback(params, reason)
