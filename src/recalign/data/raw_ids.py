"""The ids of a person's own log beside the numbers that stages count with: commands take and give the former."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet, write_parquet
from recalign.data.sources.ids import number_of

RAW = "raw_id"
INTEGER = re.compile("0|-?[1-9][0-9]*")
DIGITS = 20  # no whole number of 64 bits has more, its sign included
FILE = "item_ids.parquet"  # in a package


def number_in_file(raw: int | str) -> int:
    """The number of an id in files of one's own, which stage ingest never numbered: a whole number is its own.

    Another text ("A4WSJ…", "007") gets one of its hash, so that all files agree on it.
    """
    text = str(raw).strip()
    return int(text) if INTEGER.fullmatch(text) and len(text) <= DIGITS else number_of(text)


@dataclass(frozen=True)
class RawIds:
    """Ids of items or users as their log writes them, by number. A number without one is its own id."""

    texts: Mapping[int, str]

    @classmethod
    def of_items(cls, interactions: Path) -> "RawIds":
        """As stage ingest numbered them in data/interactions."""
        return cls(_read(interactions / "items.parquet", c.ITEM))

    @classmethod
    def of_users(cls, interactions: Path) -> "RawIds":
        """As stage ingest numbered them in data/interactions."""
        return cls(_read(interactions / "users.parquet", c.USER))

    @classmethod
    def of_package(cls, package: Path) -> "RawIds":
        """As they are kept in a package; one registered before they were knows numbers only."""
        return cls(_read(package / FILE, c.ITEM) if (package / FILE).is_file() else {})

    def write(self, package: Path) -> None:
        """Keep them in a package."""
        ids = sorted(self.texts)
        columns = {c.ITEM: pa.array(ids, pa.int64()), RAW: pa.array([self.texts[i] for i in ids], pa.string())}
        write_parquet(package / FILE, pa.table(columns))

    def within(self, ids: Container[int]) -> "RawIds":
        """Those of some numbers."""
        return RawIds({number: text for number, text in self.texts.items() if number in ids})

    def shown(self, number: int) -> int | str:
        """The id as its owner knows it: a whole number where it is one, else text."""
        text = self.texts.get(number, str(number))
        return number if text == str(number) else text

    def number(self, raw: int | str) -> int | None:
        """The number of an id; None for one that nobody wrote so."""
        text = str(raw).strip()
        if self.texts:
            return self._numbers.get(text)
        return int(text) if INTEGER.fullmatch(text) else None

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {text: number for number, text in self.texts.items()}


def _read(path: Path, column: str) -> dict[int, str]:
    table = read_parquet(path).select([column, RAW])
    pairs = zip(table[column].to_pylist(), table[RAW].to_pylist(), strict=True)
    return {number: raw for number, raw in pairs if raw is not None}
