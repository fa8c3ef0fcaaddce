"""What every command's output needs: no character that ends it, and no complaint where nobody reads on."""

import codecs
import io
import json
import math
import os
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from recalign.common.errors import RecalignError

STDOUT = Path("-")  # of --json without a file
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


def print_json(value: Any) -> None:
    """Print one JSON document: dataclasses as objects, a figure that is no number as null.

    Characters that standard output cannot take are escaped, so that none is replaced.
    """
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    print(json.dumps(_finite(value), indent=2, ensure_ascii=not utf8, allow_nan=False))


def _finite(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _finite(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_json_file(file: Path | None) -> None:
    """Raises RecalignError where --json would write over a file of another kind, as in `doctor --json my.csv`."""
    if file is not None and file != STDOUT and file.exists() and file.suffix != ".json":
        raise RecalignError(
            f"--json is {file}, a file that is no .json and would be overwritten; give a name that ends with .json, or "
            "--json alone, after all else, for standard output"
        )


def give_json(value: Any, file: Path) -> None:
    """Print a JSON document where `file` is STDOUT, else write it there."""
    if file == STDOUT:
        print_json(value)
        return
    from recalign.common.artifacts import write_json

    write_json(file, value)
