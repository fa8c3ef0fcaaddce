"""The rules that a log has to keep, each once: what it says to a person and what Great Expectations checks."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from recalign.common import columns as c
from recalign.data.titles import CHAT_TOKENS, HTML_ENTITY
from recalign.params.validate import ValidateParams

EARLIEST = datetime(1990, 1, 1)  # earlier times are zeros or another unit: no log of this kind goes back further
LONGEST_TITLE = 200  # characters; `prompt.max_title_tokens` cuts further
RATINGS = {"movielens-100k": (0.5, 5.0), "movielens-1m": (0.5, 5.0)}
FINITE = (-1e300, 1e300)  # what any other rating has to lie between; infinite and NaN do not
EXACT_COPY = "exact copy"  # the one row rule that costs nothing: what it takes is there already
UNKNOWN_ITEM = "unknown item"
# what spreadsheets, databases and pandas write for "nothing", as a title
NULL_LIKE = frozenset(("nan", "null", "none", "nil", "n/a", "#n/a", "na", "<na>", "nat", "\\n", "undefined", "-", "?"))

PRESENT = "ExpectColumnValuesToNotBeNull"
BETWEEN = "ExpectColumnValuesToBeBetween"
AMONG = "ExpectColumnValuesToBeInSet"
UNLIKE = "ExpectColumnValuesToNotMatchRegex"
LENGTH = "ExpectColumnValueLengthsToBeBetween"
TRUE = {"value_set": [True]}


@dataclass(frozen=True)
class Rule:
    """A rule: row (the row goes to quarantine), table (the run stops) or warning (the row stays).

    `expectation` is a class of great_expectations.expectations, applied to `column` of the checked frame with
    `options`; `shown` is the column whose value stands in the quarantine, for a table rule the params key that fixes;
    `beside` another column that the report shows next to it.
    """

    name: str
    table: str
    level: Literal["row", "table", "warning"]
    sentence: str
    expectation: str
    column: str
    shown: str
    options: dict[str, Any] = field(default_factory=dict)
    beside: str = ""


def item_rules() -> tuple[Rule, ...]:
    """Rules of the items, in the order in which they take a row; titles are judged as prompts show them."""

    def row(name: str, sentence: str, expectation: str, column: str, shown: str = c.TITLE, **options: Any) -> Rule:
        return Rule(name, "items", "row", sentence, expectation, column, shown, options)

    def warning(name: str, sentence: str, expectation: str, column: str, **options: Any) -> Rule:
        return Rule(name, "items", "warning", sentence, expectation, column, c.TITLE, options)

    def twin(name: str, sentence: str, column: str) -> Rule:
        return Rule(name, "items", "warning", sentence, AMONG, column, c.TITLE, TRUE, beside="twin")

    visible = "every item has a title of which something can be seen"
    marks = "titles hold no markers of chat templates such as <|im_end|> or [INST] (they are taken out)"
    entities = "titles hold no HTML entities such as &amp; or &#39; (they become the characters that they stand for)"
    unseen = "titles hold no control, direction or zero-width characters and no line breaks (they are taken out)"
    twins = "titles are unique (twins stay, told apart by year or id)"
    alike = "no two titles differ in case, width, ligatures, punctuation or the script of like letters only (both stay)"
    longest = f"titles have at most {LONGEST_TITLE} characters (longer ones are cut there)"
    return (
        row("missing item id", "every item has an id", PRESENT, c.ITEM, c.ITEM),
        row(EXACT_COPY, "no item stands there twice word for word (harmless)", AMONG, "no_copy", c.ITEM, **TRUE),
        row("repeated item id", "an item id stands once; the first row is kept", AMONG, "first_of_id", c.ITEM, **TRUE),
        row("empty title", visible, PRESENT, c.TITLE),
        warning("control characters", unseen, AMONG, "no_control", **TRUE),
        warning("chat tokens", marks, UNLIKE, "raw_title", regex=f"(?i){CHAT_TOKENS.pattern}"),
        warning("HTML entities", entities, UNLIKE, "raw_title", regex=HTML_ENTITY.pattern),
        warning("long title", longest, LENGTH, "whole_title", max_value=LONGEST_TITLE),
        warning("title like a null", "no title reads NaN, null or the like", AMONG, "no_null", **TRUE),
        twin("shared title", twins, "title_alone"),
        twin("look-alike title", alike, "looks_alone"),
    )


def event_rules(source: str, clock: bool, ordered: bool, now: datetime | None = None) -> tuple[Rule, ...]:
    """Rules of the interactions, in the order in which they take a row.

    `ordered`: the source says which event of a user came first, so a time that runs backwards is a fault; else only
    the file's order runs backwards, which is worth no more than a warning. `now` is UTC without a zone.
    """

    def row(name: str, sentence: str, expectation: str, column: str, shown: str, **options: Any) -> Rule:
        return Rule(name, "interactions", "row", sentence, expectation, column, shown, options)

    low, high = RATINGS.get(source, FINITE)
    bounds = f"lies in {low:g} to {high:g}" if source in RATINGS else "is a finite number"
    rules = [
        row("missing user", "every event has a user", PRESENT, c.USER, c.USER),
        row("missing item", "every event has an item", PRESENT, c.ITEM, c.ITEM),
        row("rating out of range", f"a rating {bounds}", BETWEEN, c.RATING, c.RATING, min_value=low, max_value=high),
    ]
    same = "user, item and time" if clock else "user and item"
    if clock:
        past = "no event is older than 1990 (are the times counted in the unit that recalign found?)"
        tomorrow = (now or datetime.now(UTC).replace(tzinfo=None)) + timedelta(days=1)
        ahead = "no event lies more than a day ahead of the clock"
        rules += [
            row("missing time", "every event has a time", PRESENT, "seconds", c.TIMESTAMP),
            row("time before 1990", past, BETWEEN, "seconds", c.TIMESTAMP, min_value=seconds(EARLIEST)),
            row("time in the future", ahead, BETWEEN, "seconds", c.TIMESTAMP, max_value=seconds(tomorrow)),
        ]
    alike = f"no two share {same}, and have one rating (harmless: the first is kept)"
    rules += [
        row(EXACT_COPY, alike, AMONG, "no_copy", c.ITEM, **TRUE),
        row("duplicate event", f"no two share {same}; the first is kept", AMONG, "first_of_same", c.ITEM, **TRUE),
        row(UNKNOWN_ITEM, "every event's item is among the clean items", AMONG, "item_known", c.ITEM, **TRUE),
    ]
    if clock and ordered:
        backwards = "a user's times rise in the order that the source gives"
        rules.append(row("time runs backwards", backwards, AMONG, "in_order", c.TIMESTAMP, **TRUE))
    elif clock:
        mixed = "a user's times rise in the order of the file (harmless: preparation sorts by time)"
        rules.append(Rule("file out of order", "interactions", "warning", mixed, AMONG, "in_order", c.TIMESTAMP, TRUE))
    return tuple(rules)


def table_rules(params: ValidateParams, clock: bool) -> tuple[Rule, ...]:
    """Rules of the whole log: `column` is one of validation's figures, `shown` the key that fixes or moves a bound."""

    def whole(name: str, sentence: str, column: str, key: str, **options: Any) -> Rule:
        return Rule(name, "interactions", "table", sentence, BETWEEN, column, key, options)

    enough = f"at least {params.min_rows} interactions are clean"
    rejected = f"at most {params.max_rejected:.1%} of all rows are in quarantine (exact copies do not count)"
    owner = f"no user owns more than {params.max_rows_per_user:.1%} of the interactions"
    rules = [
        whole("too few rows", enough, "clean_rows", "validate.min_rows", min_value=params.min_rows),
        whole("too many rejected", rejected, "rejected_share", "validate.max_rejected", max_value=params.max_rejected),
        whole(
            "one user owns the log", owner, "largest_user_share", "validate.max_rows_per_user",
            max_value=params.max_rows_per_user,
        ),
    ]  # fmt: skip
    if clock:
        moving = "times differ by a second at least (one time for all is no clock)"
        rules.append(whole("no real clock", moving, "time_span", "table.timestamp", min_value=1.0))
    return tuple(rules)


def admitting(rule: Rule, figure: float) -> str:
    """What to do so that a table rule lets `figure` pass: the key and its nearest value."""
    if rule.shown == "table.timestamp":
        return "set table.timestamp: null (histories are then sets)"
    if rule.shown == "validate.min_rows":
        return f"set {rule.shown}: {figure:g}"
    hundredths = next(share for share in (n / 100 for n in range(101)) if share >= figure)
    how = "do without them with" if rule.shown == "validate.max_rejected" else "set"
    return f"{how} {rule.shown}: {hundredths:g}"


def seconds(time: datetime) -> float:
    """Seconds since 1970 of a UTC time without a zone."""
    return time.replace(tzinfo=UTC).timestamp()
