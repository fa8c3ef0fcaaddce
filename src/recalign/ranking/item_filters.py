"""Which items may be recommended at all: lists of ids, attributes, and the day since when an item is available."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recalign.common.errors import RecalignError, did_you_mean
from recalign.data.ids import RawIds
from recalign.data.records import Items

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ItemFilters:
    """What a person asks for: files of item ids (`allow`, `deny`), and conditions "genre=Drama".

    where: of one attribute any of its values, of several attributes all; not_where: none of them.
    """

    allow: Path | None = None
    deny: Path | None = None
    where: Sequence[str] = ()
    not_where: Sequence[str] = ()

    def open_items(self, catalogue: Items, raw: RawIds, now: datetime) -> Bools:
        """[items] what may be recommended at the time `now` (UTC, without a zone), in ascending item id.

        Raises RecalignError for an id, attribute or value that the catalogue does not hold, and where nothing is left.
        """
        late = {item for item, since in catalogue.available_from.items() if since > now}
        left = np.array([item not in late for item in catalogue.ids])
        if self.allow:
            left &= _listed(self.allow, "--allow", catalogue, raw)
        if self.deny:
            left &= ~_listed(self.deny, "--deny", catalogue, raw)
        wanted: dict[str, Bools] = {}
        for condition in self.where:
            name, having = _having(condition, "--where", catalogue)
            wanted[name] = wanted[name] | having if name in wanted else having
        for having in wanted.values():
            left &= having
        for condition in self.not_where:
            left &= ~_having(condition, "--not-where", catalogue)[1]
        if not left.any():
            raise RecalignError(
                f"--allow, --deny, --where, --not-where and the items' first days leave none of {len(left)} items to "
                "recommend; ask for less"
            )
        return left


def read_ids(path: Path, option: str) -> list[str]:
    """The ids of a text file (UTF-8), one a line, each once and in its order; blank lines are skipped.

    Raises RecalignError, which names the option, where there is no such file, or no id in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecalignError(f"{option} is {path}, which is no text in UTF-8; write one id a line") from None
    except OSError as error:
        raise RecalignError(f"{option} is {path}, which cannot be read ({error.strerror}); name a file") from None
    found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not found:
        raise RecalignError(f"{option} is {path}, which holds no id; write one id a line")
    return found


def _listed(path: Path, option: str, catalogue: Items, raw: RawIds) -> Bools:
    """[items] those whose ids a file lists."""
    ids = read_ids(path, option)
    numbers = [raw.number(text) for text in ids]
    known = set(catalogue.ids)
    unknown = [text for text, number in zip(ids, numbers, strict=True) if number not in known]
    if unknown:
        raise RecalignError(
            f"{option} is {path}, which names {len(unknown)} items that the catalogue does not hold, the first "
            f"{unknown[0]!r}; an id is written as in the log, such as {raw.shown(catalogue.ids[0])!r}"
        )
    return np.isin(catalogue.ids, np.array(numbers, dtype=np.int64))


def _having(condition: str, option: str, catalogue: Items) -> tuple[str, Bools]:
    """The attribute of "genre=Drama", and [items] which have that value of it, whatever its case."""
    name, equals, value = (part.strip() for part in condition.partition("="))
    if not equals or not name or not value:
        raise RecalignError(f"{option} is {condition!r}; ATTRIBUTE=VALUE is needed, such as genre=Drama")
    names = sorted({own for attributes in catalogue.attributes.values() for own in attributes})
    if name not in names:
        has = f"it has {', '.join(names)}{did_you_mean(name, names)}" if names else "it has none"
        raise RecalignError(f"{option} is {condition!r}, but no item has the attribute {name!r}; {has}")
    values = {item: attributes.get(name, []) for item, attributes in catalogue.attributes.items()}
    folded = value.casefold()
    having = np.array([any(own.casefold() == folded for own in values.get(item, ())) for item in catalogue.ids])
    if not having.any():
        near = did_you_mean(value, sorted({own for every in values.values() for own in every}))
        raise RecalignError(f"{option} is {condition!r}, but no item has that value{near}; check how it is written")
    return name, having
