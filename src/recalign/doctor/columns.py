"""Which column of an unknown table is the user, the item, the title, the time, the rating: by name, else by values.

What people call such columns was collected from public logs (MovieLens, Amazon, Last.fm, Goodreads, Steam, shops).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recalign.data.sources.reading import filled, iso_time, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LOOKED_AT = 100_000  # rows whose values are looked at
# names without case and punctuation, the surest first
THINGS = ("item", "product", "movie", "film", "artist", "track", "song", "book", "game", "video", "recipe", "article")
NAMES: dict[str, tuple[str, ...]] = {
    "user": (
        "userid", "user", "uid", "username", "customerid", "customer", "memberid", "member", "accountid", "account",
        "visitorid", "visitor", "reviewerid", "reviewer", "listenerid", "clientid", "client", "personid", "person",
        "profileid", "buyerid", "sessionid", "session",
    ),
    "item": (
        *(f"{thing}id" for thing in THINGS), "iid", "itemcode", "asin", "parentasin", "isbn", "sku", "appid", "animeid",
        "businessid", "contentid", *THINGS, "itemname",
    ),
    "title": (
        "title", *(f"{thing}title" for thing in THINGS), *(f"{thing}name" for thing in THINGS), "name", "appname",
        *THINGS, "description",
    ),
    "timestamp": (
        "timestamp", "ts", "datetime", "time", "date", "eventtime", "eventtimestamp", "createdat", "created", "ratedat",
        "unixreviewtime", "reviewtime", "unixtime", "watchedat", "playedat", "listenedat", "purchasedat",
        "purchasedate", "orderdate", "reviewdate",
    ),
    "rating": ("rating", "ratings", "stars", "starrating", "overall", "score"),
}  # fmt: skip
ATTRIBUTES = (
    "genre", "genres", "category", "categories", "maincategory", "year", "director", "author", "authors", "artist",
    "album", "brand", "country", "language", "publisher", "developer", "type", "tags",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column and what its first 100,000 values look like; shares are of the filled values.

    filled: share of rows with a value; distinct: number of values; integers, times: share that reads as such;
    low, high: least and greatest number, None where it is not a column of numbers.
    """

    name: str
    rows: int
    filled: float
    distinct: int
    integers: float
    times: float
    low: float | None
    high: float | None

    @property
    def plain_name(self) -> str:
        """The name without case and punctuation."""
        return re.sub(r"[^a-z0-9]", "", self.name.casefold())

    @property
    def numbers(self) -> bool:
        """Whether its values are numbers."""
        return self.low is not None

    @property
    def repeats(self) -> bool:
        """Whether its values come again and again, as ids of users and items do."""
        return self.filled > 0.99 and 1 < self.distinct <= 0.5 * self.rows


def describe(connection: "DuckDBPyConnection", table: str, names: Sequence[str]) -> list[Column]:
    """The columns `names` of a table of texts."""
    return [_described(connection, table, name) for name in names]


def _described(connection: "DuckDBPyConnection", table: str, name: str) -> Column:
    text = filled(name)
    query = f"""
        with looked_at as (select {quoted(name)} from {table} limit {LOOKED_AT}),
            read as (
                select {text} as text, try_cast({text} as double) as number,
                    {iso_time(name).value} as iso
                from looked_at
            )
        select count(*), count(text), count(distinct text), count(number), min(number), max(number),
            count(*) filter (number = floor(number)),
            -- a number is a time where it counts (milli)seconds to a year between 1973 and 2128
            count(*) filter (case when number is null then iso is not null else
                (number between 1e8 and 5e9 or number between 1e11 and 5e12) and number = floor(number) end)
        from read"""  # noqa: S608  # names are quoted
    rows, full, distinct, numbers, low, high, whole, times = connection.execute(query).fetchone() or (0,) * 8
    if not full:
        return Column(name, rows, 0.0, 0, 0.0, 0.0, None, None)
    bounds = (low, high) if numbers == full else (None, None)
    return Column(name, rows, full / rows, distinct, whole / full, times / full, *bounds)


def by_name(role: str, columns: Sequence[Column]) -> Column | None:
    """The column whose name says that it plays the role; the surest name wins."""
    names = {column.plain_name: column for column in reversed(columns)}
    return next((names[name] for name in NAMES[role] if name in names), None)
