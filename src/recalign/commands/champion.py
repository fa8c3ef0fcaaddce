"""`recalign promote`: make a registered version the champion."""

from recalign.params.load import Params
from recalign.registry import promotion


def promote(params: Params, version: str, reason: str) -> None:
    """Make `version` the champion; the reason is kept with it. Raises RecalignError for one that is not registered."""
    promotion.promote(params, version, reason)


def rollback(params: Params, reason: str) -> None:
    """Make the previous champion the champion again. Raises RecalignError where there is none."""
    promotion.rollback(params, reason)
