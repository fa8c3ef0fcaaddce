"""Which column of an unknown table is the user, the item, the title, the time, the rating: by name, else by values.

What people call such columns was collected from public logs (MovieLens, Amazon, Last.fm, Goodreads, Steam, shops).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recalign.data.sources.reading import opinion, quoted, rating, typed
from recalign.data.sources.table import zeros_mean_unrated
from recalign.data.sources.times import looks_like_time

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
    "rating": (
        "rating", "ratings", "stars", "starrating", "overall", "score", "userrating", "bookrating", "reviewscore",
        "isrecommended", "recommended", "recommend", "votedup", "thumbs", "thumb", "liked", "isliked", "feedback",
        "vote", "grade", "preference",
    ),
}  # fmt: skip
RATING_ENDS = ("rating", "ratings", "score", "stars", "recommended")
NO_RATING = ("avg", "average", "mean", "count", "num", "number", "total", "content", "age")  # an item's own figures
RECBOLE = re.compile(r":(token|token_seq|float|float_seq)$")  # the type that RecBole's files write behind a name
ATTRIBUTES = (
    "genre", "genres", "category", "categories", "maincategory", "year", "director", "author", "authors", "artist",
    "album", "brand", "country", "language", "publisher", "developer", "type", "tags",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column and what its first 100,000 values look like; shares are of the filled values.

    filled: share of rows with a value; distinct: number of values; integers, times: share that reads as such;
    low, high: least and greatest number, None where it is not a column of numbers; words for yes and no are 1 and 0.
    words: whether there are such words; unrated: zeros that seem to mean "not rated" (0 where they seem a judgement).
    """

    name: str
    rows: int
    filled: float
    distinct: int
    integers: float
    times: float
    low: float | None
    high: float | None
    words: bool = False
    unrated: int = 0

    @property
    def plain_name(self) -> str:
        """The name without case and punctuation."""
        return re.sub(r"[^a-z0-9]", "", RECBOLE.sub("", self.name.casefold()))

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
    read = typed(f"(select {quoted(name)} from {table} limit {LOOKED_AT})", {"n": rating(name)})  # noqa: S608
    text, number = '"text n"', '"value n"'
    query = f"""
        select count(*), count({text}), count(distinct {text}), count({number}), min({number}), max({number}),
            count(*) filter (try_cast({text} as double) = floor(try_cast({text} as double))),
            count(*) filter ({looks_like_time(text)}), count(*) filter ({opinion(text)} is not null),
            count(*) filter ({number} = 0), min({number}) filter ({number} > 0), bool_and({number} = floor({number}))
        from {read}"""  # noqa: S608  # names are quoted
    [(rows, full, distinct, numbers, low, high, whole, times, words, zeros, positive, even)] = connection.execute(
        query
    ).fetchall()
    if not full:
        return Column(name, rows, 0.0, 0, 0.0, 0.0, None, None)
    unrated = zeros if zeros_mean_unrated(zeros, numbers, positive or 0, high or 0, whole=bool(even)) else 0
    low, high = (low, high) if numbers == full else (None, None)
    return Column(name, rows, full / rows, distinct, whole / full, times / full, low, high, bool(words), unrated)


def by_name(role: str, columns: Sequence[Column]) -> Column | None:
    """The column whose name says that it plays the role; the surest name wins.

    A rating is also what ends like one (review/score), but not an item's own figure (average_rating).
    """
    names = {column.plain_name: column for column in reversed(columns)}
    if role != "rating":
        return next((names[name] for name in NAMES[role] if name in names), None)
    ends = [name for name in reversed(names) if name.endswith(RATING_ENDS) and not name.startswith(NO_RATING)]
    return next((names[name] for name in (*NAMES[role], *ends) if name in names), None)
