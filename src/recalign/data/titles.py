"""Titles are untrusted text: one line of visible characters is what may be shown, logged or put into a prompt."""

import html
import re
import unicodedata
from html.entities import html5

# what chat templates of current models use as markers: <|im_end|>, </s>, [INST], <<SYS>>, <start_of_turn>
CHAT_TOKENS = re.compile(
    r"<\|[^<>|]{0,64}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>", re.IGNORECASE
)
HTML_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")  # "R&B; soul" is none
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\U0001d159")  # letters and symbols by name that show nothing


def safe_title(text: str | None) -> str:
    """One line of visible text: no control, bidirectional or zero-width characters, no chat-template tokens.

    HTML entities become their characters (scraped titles hold them, often twice: "&amp;amp;"), blanks are collapsed.
    The result is in Unicode's NFC form, stays as it is when it is cleaned again, and is empty where nothing is visible.
    """
    cleaned = text or ""
    while (again := _cleaned_once(cleaned)) != cleaned:  # "<|im_<|x|>end|>" and "&lt;/s>" hide one in another
        cleaned = again
    return cleaned if any(map(_is_visible, cleaned)) else ""


def _cleaned_once(text: str) -> str:
    """`safe_title`, but for what only comes to light by cleaning; never longer in the end, so repeating it ends."""
    cleaned = HTML_ENTITY.sub(_unescaped, text)
    cleaned = " ".join(unicodedata.normalize("NFC", cleaned).split())
    cleaned = "".join(character for character in cleaned if not is_control(character))
    return " ".join(CHAT_TOKENS.sub("", cleaned).split())


def _unescaped(entity: re.Match[str]) -> str:
    """The character of an entity; an unknown name stays (html.unescape would take "&copyright;" for "©right;")."""
    return html.unescape(entity[0]) if entity[0][1] == "#" else html5.get(entity[0][1:], entity[0])


def is_control(character: str) -> bool:
    """Whether a character steers instead of showing something: control, direction, zero-width, private, half of a pair.

    A code point that this Python does not know yet is kept, for it is mostly a new emoji.
    """
    category, code = unicodedata.category(character), ord(character)
    if category != "Cn":
        return category[0] == "C"
    never = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE  # Unicode will not give them away
    return never or code == 0x2065 or 0xFFF0 <= code <= 0xFFF8 or 0xE0000 <= code <= 0xE0FFF


def _is_visible(character: str) -> bool:
    """Whether it leaves ink: a letter, digit, mark of punctuation or symbol; an accent alone does not count."""
    category = unicodedata.category(character)
    return (category[0] in "LNPS" or category == "Cn") and character not in BLANK
