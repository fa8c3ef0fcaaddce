"""The one error that a user may see."""


class RecalignError(Exception):
    """Something the user can mend; shown as one line, without a stack trace, exit code 2.

    The message names the key or file, the value found, what is allowed, and the mend.
    """


class TooLargeError(RecalignError):
    """A recommender cannot be fitted on a catalogue or log of this size: a line in the table, not the end of a run."""
