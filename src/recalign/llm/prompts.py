"""Prompts and responses as token ids, put together from pieces: ids trained are ids evaluated are ids served.

Titles are untrusted text: they are cleaned here, once, and never become a special token.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.data.titles import safe_title
from recalign.params.prompt import PromptParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

FIRST_TITLES = 3  # `sequence`: titles in its prompt; the first ones have too little before them to be learned from
PROFILE_TOKENS = 96  # a longer profile is cut
LONGEST_READ = (
    2000  # characters of a title that are read at all: cleaning and tokenising more takes seconds per megabyte
)


class PromptBuilder:
    """Builds every prompt and response of one tokenizer, catalogue and form.

    A prompt in the form `history` is a header and one title a line; a response is the very same line, so its newline is
    the terminator. With `prompt.attributes` they follow the titles of histories, and of responses only where
    `prompt.response_attributes` says so. The form `candidates` lists the candidates and then asks for the next.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        items: Items,
        params: PromptParams,
        noun: str,
        *,
        clock: bool = True,
    ) -> None:
        """noun: what items are called, in the plural ("films"); clock: False where histories are sets without an order.

        Raises RecalignError naming the tokenizer whose newline cannot end a title, or the item whose title is empty
        once it is cleaned or in the tokenizer's ids.
        """
        self._tokenizer = tokenizer
        self._params = params
        self._special = set(tokenizer.all_special_ids)
        self._bos = _leading_special_ids(tokenizer)
        self._newline = _newline(tokenizer)
        order = ", in order of time" if clock else ""
        self._header = self.encode(f"{noun[:1].upper()}{noun[1:]} that one person liked{order}:") + self._newline
        self._candidates = self.encode("One of these comes next:") + self._newline
        self._next = self.encode("Next:") + self._newline
        self._cut = 0
        self._titles = self._encode_catalogue(items)
        self._attributes = self._encode_attributes(items)
        self.digest = digest_of([self._bos, self._header, self._candidates, self._next, params.model_dump()])

    def prompt(
        self,
        history: Sequence[int | str],
        *,
        profile: str | None = None,
        candidates: Sequence[int] | None = None,
    ) -> list[int]:
        """Token ids that end where the next title begins.

        history: oldest first, item ids or titles (in the catalogue or not); the last `prompt.history` of them are used.
        profile: put before the history when given. candidates: listed in the form `candidates`, else ignored.
        Raises RecalignError for an unknown item, or where the form needs candidates and there are none.
        """
        ids = self._opening(profile) + self._lines(history[-self._params.history :])
        if self._params.form == "history":
            return ids
        if not candidates:
            raise RecalignError(
                "prompt.form is 'candidates' but nothing limits the candidates here; "
                "'history' is the form that can score any item"
            )
        return ids + self._candidates + self._lines(candidates) + self._next

    def response(self, item: int) -> list[int]:
        """The line of an item: its title's ids, its attributes where asked for, and the newline that ends it."""
        return self.item_line(item, attributes=self._params.response_attributes)

    def item_line(self, item: int, *, attributes: bool = True) -> list[int]:
        """The line of an item in a history. Raises RecalignError for an item that the catalogue lacks."""
        if item not in self._titles:
            raise RecalignError(f"item {item} is not in the catalogue ({len(self._titles)} items)")
        return self._titles[item] + (self._attributes.get(item, []) if attributes else []) + self._newline

    def neutral(self) -> list[int]:
        """The prompt without any history: what a title's own prior is conditioned on."""
        return self._opening(None) + (self._next if self._params.form == "candidates" else [])

    def sequence(
        self,
        history: Sequence[int],
        target: int,
        *,
        profile: str | None = None,
        candidates: Sequence[int] | None = None,
    ) -> tuple[list[int], list[int]]:
        """(prompt, continuation) for language-model training; together they are `prompt` and `response`.

        In the form `history` the first titles are the prompt and all further ones, the target last, the continuation,
        so that one pass learns from every title; in the form `candidates` the continuation is the target alone.
        `unlearned` says what of it is read and not learned.
        """
        if self._params.form == "candidates":
            return self.prompt(history, profile=profile, candidates=candidates), self.response(target)
        first, learned = self.learned(history, target)
        return self._opening(profile) + self._lines(first), self._lines(learned[:-1]) + self.response(target)

    def learned(self, history: Sequence[int], target: int, *, whole: bool = True) -> tuple[list[int], list[int]]:
        """The items of the prompt of `sequence` (whole) or `prompt`, and those that are learned, the target last."""
        if not whole or self._params.form == "candidates":
            return list(history[-self._params.history :]), [target]
        recent = list(history[-self._params.training_history :])
        return recent[:FIRST_TITLES], [*recent[FIRST_TITLES:], target]

    def unlearned(self, items: Sequence[int]) -> tuple[int, ...]:
        """Places in the continuation of `sequence`, whose items are `learned`, of what no response has.

        They are the attributes of all items but the last, and the newline after them, where responses are titles alone.
        Places of vectors are not counted.
        """
        left_out: list[int] = []
        start = 0
        for item in items[:-1]:
            line, same = self.item_line(item), self.response(item)
            if line != same:
                left_out += range(start + len(same) - len(self._newline), start + len(line))
            start += len(line)
        return tuple(left_out)

    def title_ids(self, text: str) -> list[int]:
        """Ids of any title, cleaned and cut, without the newline.

        Raises RecalignError for a title that is empty then, has no ids, or holds the newline's.
        """
        text = text[:LONGEST_READ]
        safe = safe_title(text)
        if not safe:
            raise RecalignError(f"title {text!r} is empty once control characters and chat tokens are removed; name it")
        ids = self.encode(safe)
        if not ids:
            raise RecalignError(
                f"title {text!r} has no tokens in {_named(self._tokenizer)}, which knows none of its characters; "
                "choose a base.model that reads this script, or leave the item out"
            )
        if self._newline[-1] in ids:
            raise RecalignError(
                f"title {text!r} holds the token that {_named(self._tokenizer)} ends a line with, so where it ends "
                "cannot be told; choose another base.model"
            )
        self._cut += len(ids) > self._params.max_title_tokens
        return ids[: self._params.max_title_tokens]

    def _title_of(self, item: int, title: str) -> list[int]:
        try:
            return self.title_ids(title)
        except RecalignError as error:
            raise RecalignError(f"item {item}: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, none of them special: "<|im_end|>" is spelled out, not obeyed."""
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return [token for token in ids if token not in self._special]

    def _opening(self, profile: str | None) -> list[int]:
        about: list[int] = []
        if profile and (safe := safe_title(profile)):
            about = self.encode(f"About this person: {safe}")[:PROFILE_TOKENS] + self._newline
        return self._bos + about + self._header

    def _lines(self, items: Sequence[int | str]) -> list[int]:
        lines = [self.title_ids(i) + self._newline if isinstance(i, str) else self.item_line(i) for i in items]
        return [token for line in lines for token in line]

    def _encode_attributes(self, items: Items) -> dict[int, list[int]]:
        """What stands after each title: " | comedy, drama | 1995", cut as titles are; nothing of items that have none.

        Raises RecalignError where no item has an attribute of that name.
        """
        names = self._params.attributes
        known = sorted({name for own in items.attributes.values() for name, values in own.items() if values})
        strange = [name for name in names if name not in known]
        if strange:
            raise RecalignError(
                f"prompt.attributes names {strange[0]!r}, which no item has; the catalogue has "
                f"{', '.join(known) or 'titles alone'}"
            )
        told: dict[int, list[int]] = {}
        for item in items.ids if names else ():
            values = items.attributes.get(item, {})
            parts = [safe_title(", ".join(values[name])[:LONGEST_READ]) for name in names if values.get(name)]
            ids = self.encode("".join(f" | {part}" for part in parts if part))
            told[item] = [token for token in ids if token != self._newline[-1]][: self._params.max_title_tokens]
        return told

    def _encode_catalogue(self, items: Items) -> dict[int, list[int]]:
        empty = next((item for item in items.ids if not safe_title(items.titles[item])), None)
        if empty is not None:
            raise RecalignError(
                f"item {empty} has no title to put into a prompt (found {items.titles[empty]!r}); "
                "give it one in the items file, or leave the item out"
            )
        encoded = {item: self._title_of(item, items.titles[item]) for item in items.ids}
        if self._cut:
            log.info("%d of %d titles cut to %d tokens", self._cut, len(encoded), self._params.max_title_tokens)
        twins = len(encoded) - len({tuple(ids) for ids in encoded.values()})
        if twins:
            log.warning("%d titles read like another item's once cleaned and cut; they will always tie", twins)
        return encoded


def _newline(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of a line's end. Raises RecalignError where there are none, or where other blanks have the same."""
    ids: list[int] = tokenizer.encode("\n", add_special_tokens=False)
    if not ids or tokenizer.unk_token_id in ids:
        raise RecalignError(
            f"{_named(tokenizer)} has no token for a newline, which ends every title; choose another base.model"
        )
    alike = [blank for blank in (" ", "  ", "\t") if tokenizer.encode(blank, add_special_tokens=False)[-1:] == ids[-1:]]
    if alike or "\n" not in tokenizer.decode(ids):
        raise RecalignError(
            f"{_named(tokenizer)} reads a newline like another blank, so where a title ends cannot be told; "
            "choose another base.model"
        )
    return ids


def _named(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The tokenizer in words."""
    return f"the tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path or 'the base model'}"


def _leading_special_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """[BOS] where the tokenizer begins a text with it by itself, else []."""
    first = tokenizer.encode("a")[:1]
    return first if first == [tokenizer.bos_token_id] else []
