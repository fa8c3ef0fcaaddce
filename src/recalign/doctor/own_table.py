"""Your own log: what its columns are, what is missing, and the params block that reads it.

Which column of an unknown table is the user, the item, the title, the time, the rating: by name, else by values.

What people call such columns was collected from public logs (MovieLens, Amazon, Last.fm, Goodreads, Steam, shops).
"""

import io
import re
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.errors import RecalignError
from recalign.data.database import database
from recalign.data.sources.files import MALFORMED
from recalign.data.sources.reading import looks_like_time, opinion, quoted, rating, typed
from recalign.data.sources.table import load_columns, zeros_mean_unrated
from recalign.doctor.findings import Finding
from recalign.doctor.trial import Trial, try_stages
from recalign.params.load import Params
from recalign.params.table import TableParams

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


SELDOM = ("min_rating", "columns", "items_columns", "available_from")  # left out of the printed block where null
READABLE = 0.9  # share of a column's values that must read as its role wants, else another format is meant
CODES = ("id", "code", "sku", "asin", "isbn")  # ends of the names of columns whose values are no titles
MOST_ATTRIBUTES = 4  # columns proposed to describe an item: each lengthens what is inferred from


@dataclass(frozen=True)
class Examined:
    """What an own log turned out to be: findings, and the table params that fit, with what the stages made of them.

    Both are None where a column is missing.
    """

    findings: list[Finding]
    table: TableParams | None
    trial: Trial | None = None


def examine(path: Path, items: Path | None, params: Params, keep: Path | None = None) -> Examined:
    """Look at a log (CSV or Parquet) and, where there is one, its table of items.

    keep: an existing folder where the stages leave what they write, as in data/; None: it is thrown away.
    Raises RecalignError for a file that is missing, empty, not UTF-8 or no table.
    """
    for file in filter(None, (path, items)):
        if not file.is_file():
            raise RecalignError(f"{file} is missing; give the path of a CSV or Parquet file")
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as made:
        place = Path(made)
        with database(place / "look", params.prepare.memory_limit, params.threads) as connection:
            connection.execute(MALFORMED)
            columns = _columns(connection, "interactions", path, params.table.columns, "table.columns")
            described = columns
            if items:
                described = _columns(connection, "items", items, params.table.items_columns, "table.items_columns")
        findings = [Finding("file", "ok", _summary(path, columns))]
        if items:
            findings.append(Finding("items file", "ok", _summary(items, described)))
        guessed, table = _guess(path, items, columns, described)
        findings += guessed
        if table is not None:
            given = {"columns": params.table.columns, "items_columns": params.table.items_columns if items else None}
            table = table.model_copy(update=given)
            own = params.model_copy(update={"source": "table", "table": table})
            trial = try_stages(own, _laid_out(path, items, place / "raw"), place)
            return Examined(findings + trial.findings, table, trial)
    return Examined(findings, table)


def params_block(table: TableParams) -> str:
    """The lines of params.yaml that read this table."""
    from ruamel.yaml import YAML

    seldom = {name for name in SELDOM if getattr(table, name) is None}
    values = table.model_dump(mode="json", exclude=seldom)
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = None
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.dump({"source": "table", "table": values}, text)
    return text.getvalue()


def _columns(
    connection: "DuckDBPyConnection", table: str, path: Path, names: Sequence[str] | None, key: str
) -> list[Column]:
    """The columns of a file; `names` are those of one without a header line, as the parameter `key` gives them."""
    return describe(connection, f"raw_{table}", load_columns(connection, table, path, names, key))


def _summary(path: Path, columns: Sequence[Column]) -> str:
    return f"{path}: {len(columns)} columns ({', '.join(column.name for column in columns)})"


def _guess(
    path: Path, items: Path | None, columns: list[Column], described: list[Column]
) -> tuple[list[Finding], TableParams | None]:
    """A finding a role, and the params; None where user or item cannot be told."""
    shared = [column for column in columns if column.name in {other.name for other in described}]
    time, time_finding = _time(columns)
    rating, bound, rating_finding = _rating(columns)
    taken = [column for column in (time, rating) if column]
    user, user_finding = _id("user", columns, taken)
    item, item_finding = _id("item", shared if items else columns, [*taken, *([user] if user else [])])
    findings = [user_finding, item_finding]
    if user is None or item is None:
        return [*findings, time_finding, rating_finding], None
    title, title_finding = _title(described, item, items, [user, *taken])
    attributes = _attributes(described, [user, item, title, *taken], own_file=items is not None)
    shown = ", ".join(attributes)
    describing = Finding("attributes", "ok", f"{shown} describe an item" if shown else "no column describes an item")
    table = TableParams(
        interactions=path.name, items=items.name if items else None, user=user.name, item=item.name,
        title=title.name, timestamp=time.name if time else None, rating=rating.name if rating else None,
        min_rating=bound, attributes=tuple(attributes), noun=_noun(item),
    )  # fmt: skip
    return [*findings, title_finding, time_finding, rating_finding, describing], table


def _id(role: str, columns: Sequence[Column], taken: Sequence[Column]) -> tuple[Column | None, Finding]:
    free = [column for column in columns if column not in taken]
    named = by_name(role, free)
    if named:
        return named, Finding(role, "ok", f"column '{named.name}', {named.distinct:,} values")
    likely = [column for column in free if column.repeats and not column.times > READABLE]
    if role == "user":
        likely = likely if len(likely) > 1 else []  # one of them has to be the item
    if likely:
        chosen = likely[0]
        found = f"column '{chosen.name}' ({chosen.distinct:,} values that come again), guessed from its values"
        return chosen, Finding(
            role, "warn", found, f"look whether '{chosen.name}' is the {role}, else set table.{role}"
        )
    names = ", ".join(column.name for column in columns) or "no column that both files have"
    fix = f"a log needs a column that says which {role}: name it {role}_id, or set table.{role} (it has: {names})"
    return None, Finding(role, "fail", f"no column looks like the {role}", fix)


def _time(columns: Sequence[Column]) -> tuple[Column | None, Finding]:
    named = by_name("timestamp", columns)
    if named and named.times >= READABLE:
        return named, Finding("timestamp", "ok", f"column '{named.name}'")
    if named:
        fix = f"write '{named.name}' as 2026-11-21T08:30:00 or in seconds since 1970; until then histories are sets"
        found = f"column '{named.name}' is no time that can be read ({named.times:.0%} of its values)"
        return None, Finding("timestamp", "warn", found, fix)
    likely = next((column for column in columns if column.times >= READABLE and column.filled > READABLE), None)
    if likely:
        fix = f"look whether '{likely.name}' says when, else set table.timestamp"
        return likely, Finding("timestamp", "warn", f"column '{likely.name}', guessed from its values", fix)
    fix = "without a time a history is a set: no order is claimed, and users are split instead of times"
    return None, Finding("timestamp", "warn", "no column holds times", fix)


def _rating(columns: Sequence[Column]) -> tuple[Column | None, float | None, Finding]:
    """The column of ratings and the least rating that is taken for a like (None: every row)."""
    named = by_name("rating", columns)
    if named is None:
        return None, None, Finding("rating", "ok", "no column: implicit feedback, every row counts as a like")
    if not named.numbers or named.low is None or named.high is None:
        fix = f"write '{named.name}' as numbers; until then every row counts as a like"
        return None, None, Finding("rating", "warn", f"column '{named.name}' is not all numbers", fix)
    found = f"column '{named.name}', {named.low:g} to {named.high:g}"
    if named.low == named.high:
        return named, None, Finding("rating", "ok", f"{found}: every row counts as a like")
    bound = named.low + 0.75 * (named.high - named.low)
    fix = f"{bound:g} and more is taken for a like; where that is not so, set table.min_rating"
    return named, bound, Finding("rating", "warn", found, fix)


def _title(
    described: Sequence[Column], item: Column, items: Path | None, taken: Sequence[Column]
) -> tuple[Column, Finding]:
    named = by_name("title", [column for column in described if column.name not in {other.name for other in taken}])
    if named and named.name != item.name:
        return named, Finding("title", "ok", f"column '{named.name}'")
    if not item.numbers and not item.plain_name.endswith(CODES):
        return item, Finding("title", "ok", f"column '{item.name}': the item's own name")
    where = items.name if items else "the log"
    fix = "prompts would show bare ids, of which no LLM knows anything: add titles" + (
        "" if items else ", or give their table with --items FILE"
    )
    return item, Finding("title", "warn", f"no column of {where} holds titles", fix)


def _attributes(described: Sequence[Column], taken: Sequence[Column], *, own_file: bool) -> list[str]:
    """Columns that say what an item is: by their names, and in a table of items also by their values."""
    used = {column.name for column in taken}
    free = [column for column in described if column.name not in used and column.filled > 0]
    named = [column.name for column in free if column.plain_name in ATTRIBUTES]
    telling = [column.name for column in free if own_file and not column.numbers and column.repeats]
    return list(dict.fromkeys(named + telling))[:MOST_ATTRIBUTES]


def _noun(item: Column) -> str:
    thing = next((thing for thing in THINGS if item.plain_name.startswith(thing)), "item")
    return f"{thing}s"


def _laid_out(path: Path, items: Path | None, raw: Path) -> Path:
    """The folder `raw` with both files in it, as data/raw/table would hold them.

    Raises RecalignError where two different files have one name.
    """
    raw.mkdir()
    for file in {given.resolve(): given for given in filter(None, (path, items))}.values():
        if (raw / file.name).is_symlink():
            raise RecalignError(f"{path} and {items} are both called {file.name}; rename one: they lie in one folder")
        (raw / file.name).symlink_to(file.resolve())
    return raw
