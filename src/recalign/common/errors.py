"""The one error that a user may see, and the hint that ends some of them."""

import difflib
from collections.abc import Iterable


class RecalignError(Exception):
    """Something the user can fix; shown as one line, without a stack trace, exit code 2.

    The message names the key or file, the value found, what is allowed, and the fix.
    """


def did_you_mean(value: object, allowed: Iterable[str]) -> str:
    """ " (did you mean X?)" with the nearest of the allowed values, whatever its case; "" where none is allowed."""
    plain = {name.casefold(): name for name in allowed}
    near = difflib.get_close_matches(str(value).casefold(), plain, n=1, cutoff=0.0)
    return f" (did you mean {plain[near[0]]}?)" if near else ""


class TooLargeError(RecalignError):
    """A recommender cannot be fitted on a catalogue or log of this size: a line in the table, not the end of a run."""
