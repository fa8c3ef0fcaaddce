"""The counting baseline of profiles: which attributes a history holds more often than chance."""

import math
from collections.abc import Sequence

from recalign.preferences.statements import Statement, supporting

PRIOR_ITEMS = 2.0  # pseudo-items that pull a lift towards 1; keeps one film by a rare director from being a taste


def smoothed_lift(statement: Statement, history: Sequence[int]) -> float:
    """ln of how many times more often than expected the statement holds in the history; 0 where as often.

    (observed + m) / (expected + m) with expected = len(history) × base rate and m = PRIOR_ITEMS: the posterior mean of
    a rate ratio under a Gamma(m, m) prior (DuMouchel 1999, The American Statistician 53(3), eq. 4 with one component).
    """
    observed, expected = len(supporting(statement, history)), len(history) * statement.base
    return math.log((observed + PRIOR_ITEMS) / (expected + PRIOR_ITEMS))


def strongest_lifts(
    statements: Sequence[Statement], history: Sequence[int], limit: int
) -> list[tuple[Statement, float]]:
    """The `limit` statements with the largest smoothed lift above 0, strongest first, each with that lift."""
    lifts = [(statement, smoothed_lift(statement, history)) for statement in statements]
    lifts = [(statement, lift) for statement, lift in lifts if lift > 0]
    return sorted(lifts, key=lambda pair: (-pair[1], pair[0].attribute, pair[0].value))[:limit]
