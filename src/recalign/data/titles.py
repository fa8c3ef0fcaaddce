"""Titles are untrusted text: one line of visible characters is what may be shown, logged or put into a prompt.

They are found as people type them: case, punctuation, a leading article, a missing year and a slip of the keyboard
aside.
"""

import difflib
import html
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
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


YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
ARTICLE = re.compile(r"^(.*), (the|a|an)$")  # as libraries write it: "Matrix, The"
TAKEN, HINTED = 0.85, 0.5  # likeness from which a title is taken for another, and is named as a hint
CLEARLY = 0.03  # by which the nearest title leads the next one, to be taken
LOOKED_AT = 50  # titles that share the most trigrams, which are compared letter by letter
HINTS = 3


@dataclass(frozen=True)
class Found:
    """What a typed title stands for: an item; or none, and the nearest items, all equally good where `tied`."""

    item: int | None
    near: tuple[int, ...] = ()
    tied: bool = False


class TitleSearch:
    """Finds the items of a catalogue by titles as people type them."""

    def __init__(self, titles: Mapping[int, str]) -> None:
        """titles: by item. Of two items with one title the first one counts, as in serving."""
        self.titles = titles
        self._exact = {safe_title(titles[item]).casefold(): item for item in reversed(list(titles))}

    def exact(self, text: str) -> int | None:
        """The item of this very title, case aside."""
        return self._exact.get(safe_title(text).casefold())

    def find(self, text: str) -> Found:
        """The item that a text means: its very title, else the same words, else the one that is clearly the nearest.

        A year is compared where both have one: another year means the only film of that name, if there is but one.
        """
        if (item := self.exact(text)) is not None:
            return Found(item)
        words, year = plain(text)
        same = self._by_words.get(words, []) if words else []
        dated = [item for item in same if year and plain(self.titles[item])[1] == year]
        if len(dated or same) == 1:
            return Found((dated or same)[0])
        if same:
            return Found(None, tuple(same), tied=True)
        return self._nearest(words)

    def _nearest(self, words: str) -> Found:
        rated = sorted(
            ((difflib.SequenceMatcher(None, words, known).ratio(), known) for known in self._alike(words)),
            key=lambda pair: (-pair[0], pair[1]),
        )
        hinted = [known for likeness, known in rated if likeness >= HINTED or words in known]
        near = tuple(item for known in hinted for item in self._by_words[known])[:HINTS]
        if not rated or rated[0][0] < TAKEN or _numbers(rated[0][1]) != _numbers(words):
            return Found(None, near)
        leads = len(rated) == 1 or rated[0][0] - rated[1][0] >= CLEARLY
        best = self._by_words[rated[0][1]]
        return Found(best[0]) if leads and len(best) == 1 else Found(None, near)

    def _alike(self, words: str) -> list[str]:
        """The titles with the most trigrams of a text."""
        shared = Counter(known for part in _trigrams(words) for known in self._by_trigram.get(part, ()))
        ordered = sorted(shared.items(), key=lambda pair: (-pair[1] / (len(pair[0]) + len(words)), pair[0]))
        return [known for known, _ in ordered[:LOOKED_AT]]

    @cached_property
    def _by_words(self) -> dict[str, list[int]]:
        found: defaultdict[str, list[int]] = defaultdict(list)
        for item, title in self.titles.items():
            if words := plain(title)[0]:
                found[words].append(item)
        return dict(found)

    @cached_property
    def _by_trigram(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for words in self._by_words:
            for part in _trigrams(words):
                found[part].append(words)
        return dict(found)


def plain(title: str) -> tuple[str, str]:
    """A title's words without case, accents, punctuation and article at their end, and its year ("" without one)."""
    text = safe_title(title).casefold()
    year = found[1] if (found := YEAR.search(text)) else ""
    text = ARTICLE.sub(r"\2 \1", YEAR.sub("", text))
    letters = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[\W_]+", " ", letters.replace("'", "").replace("’", "")).split()), year


def _trigrams(words: str) -> set[str]:
    padded = f"  {words} "
    return {padded[place : place + 3] for place in range(len(padded) - 2)}


def _numbers(words: str) -> list[str]:
    """The numbers of a title: part 2 is no slip for part 3."""
    return re.findall(r"\d+", words)
