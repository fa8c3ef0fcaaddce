"""What every command's output needs: no character that ends it, and no complaint where nobody reads on."""

import codecs
import io
import os
import sys
import unicodedata

READABLE = "recalign-readable"  # the name of the error handler
STRICT = ("strict", "backslashreplace")  # handlers that end a command, or spell tables out as escapes
PLAIN = {
    "−": "-", "–": "-", "—": "-", "‖": "|", "…": "...", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "×": "x", "·": ".",
    "±": "+/-", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O",
    "ł": "l", "Ł": "L", "đ": "d", "Σ": "sum", "√": "sqrt", "∝": "~", "∅": "{}", "∇": "grad", "†": "+", "•": "*",
    "µ": "u", "©": "(c)", "👍": "(up)", "👎": "(down)",
    "⟨": "<", "⟩": ">", "█": "#", "ℓ": "l", "⁻": "-", "ᵀ": "T", "½": "1/2", "│": "|", "─": "-", "━": "-",
}  # fmt: skip


def prepare() -> None:
    """Make standard output and error take any text, in whatever encoding the terminal or the pipe has."""
    codecs.register_error(READABLE, _readable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in STRICT:
            stream.reconfigure(errors=READABLE)


def flush() -> None:
    """Write what is buffered now, while a closed pipe or a full disk can still be answered."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def mute() -> None:
    """Send the rest of standard output nowhere: the interpreter flushes once more at its end."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, or no file of the system
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _readable(error: UnicodeError) -> tuple[str, int]:
    """The handler: characters that an encoding lacks as ASCII that a person reads the same way, else as '?'."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if character in PLAIN:
        return PLAIN[character]
    if unicodedata.combining(character):
        return ""
    spelled = "".join(part for part in unicodedata.normalize("NFKD", character) if ord(part) < 128)
    if spelled:
        return spelled
    name = unicodedata.name(character, "")
    script, _, letter = name.partition(" LETTER ")
    return letter.split(" ")[0].lower() if letter and script.startswith("GREEK") else "?"
