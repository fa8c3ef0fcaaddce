"""The one error that a user may see."""


class RecalignError(Exception):
    """Something the user can mend; shown as one line, without a stack trace, exit code 2.

    The message names the key or file, the value found, what is allowed, and the mend.
    """
