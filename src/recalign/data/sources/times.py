"""Times as people's logs write them: which unit or form a column has, and what does not fit it."""

from typing import TYPE_CHECKING

from recalign.data.sources.reading import Parsed, literal, value_text
from recalign.errors import RecalignError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EARLIEST, LATEST = 631_152_000, 4_102_444_800  # seconds to 1990 and to 2100: a log's times lie between
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}  # of one second
# digits that spell a date: their number, the name of the form and strptime's format
FORMS = (
    (8, "YYYYMMDD", "%Y%m%d"),
    (10, "YYYYMMDDHH", "%Y%m%d%H"),
    (12, "YYYYMMDDHHMM", "%Y%m%d%H%M"),
    (14, "YYYYMMDDHHMMSS", "%Y%m%d%H%M%S"),
    (17, "YYYYMMDDHHMMSSmmm", "%Y%m%d%H%M%S%g"),
)
LATER = 1_990_000_000  # seconds to 2033: a log that seems to be of that year counts YYYYMMDDHH
MIXED = 0.01  # share of values in another unit above which the file is refused as a whole


def column_time(connection: "DuckDBPyConnection", table: str, column: str, key: str) -> Parsed:
    """How a column's times are written: digits of a date, a unit since 1970, or ISO 8601; most values decide.

    A value of another unit goes to `malformed`. Raises RecalignError, naming the first row, where more than one value
    in a hundred has another unit, and for years alone or Excel's days.
    """
    text = value_text(column)
    numeric, typical, count = connection.execute(
        f"""select avg((number is not null)::int), median(abs(number)), count(*)
            from (select try_cast({text} as double) as number, {text} as text from {table}) where text is not null"""
    ).fetchone() or (None, None, 0)
    if not numeric or numeric < 0.5:
        return iso_time(column)
    _refuse_days_and_years(column, key, typical)
    for digits, name, form in FORMS:
        if len(f"{typical:.0f}") == digits and (digits != 10 or typical >= LATER):
            parsed = spelled(column, name, form)
            fits = connection.execute(f"select count(*) from {table} where {parsed.value} is not null").fetchone()
            if fits and fits[0] > 0.9 * count:
                return parsed
    unit = unit_of(typical)
    parsed = epoch(column, unit)
    _refuse_mixture(connection, table, column, key, unit, count)
    return parsed


def unit_of(number: float) -> str:
    """The unit in which a count since 1970 is nearest to our days."""
    return next((unit for unit, per_second in UNITS.items() if abs(number) < 1e11 * per_second), "nanoseconds")


def epoch(column: str, unit: str = "seconds") -> Parsed:
    """A time counted from 1970 in UTC; a count that is of our days in another unit only is not read."""
    text = value_text(column)
    number = f"try_cast({text} as double)"
    micros = f"try_cast({number} * {10**6 // UNITS[unit]} as bigint)" if UNITS[unit] <= 10**6 else (
        f"try_cast({number} / {UNITS[unit] // 10**6} as bigint)"
    )  # fmt: skip
    # beyond these bounds, years away from any log, DuckDB cannot make a timestamp and would stop the whole query
    value = f"case when abs({micros}) < 9e17 and not ({_of_another_unit(number, unit)}) then make_timestamp({micros}) end"
    return Parsed(text, value, f"{column} is no time in {unit} since 1970")


def spelled(column: str, name: str, form: str) -> Parsed:
    """A time in UTC whose digits spell it, such as 202101051230."""
    text = value_text(column)
    whole = f"regexp_extract({text}, '^([0-9]+)(\\.0*)?$', 1)"
    value = f"case when length({whole}) = {len(name)} then try_strptime({whole}, '{form}') end"
    return Parsed(text, value, f"{column} is no time as {name}")


def iso_time(column: str) -> Parsed:
    """A time in ISO 8601; one without an offset is UTC."""
    text = value_text(column)
    value = f"timezone('UTC', try_cast({text} as timestamptz))"
    return Parsed(text, f"case when isfinite({value}) then {value} end", f"{column} is no ISO 8601 time")


def looks_like_time(text: str) -> str:
    """SQL: whether a text is a time: ISO 8601, digits of a date, or a count of any unit to a year from 1973 to 2128."""
    number = f"try_cast({text} as double)"
    counts = " or ".join(f"{number} between {10**8 * per} and {5 * 10**9 * per}" for per in UNITS.values())
    dates = " or ".join(
        f"(length({text}) = {digits} and year(try_strptime({text}, '{form}')) between 1990 and 2100)"
        for digits, _, form in FORMS
    )
    iso = f"try_cast({text} as timestamptz) is not null"
    return f"case when {number} is null then {iso} else ({counts} or {dates}) and {number} = floor({number}) end"


def _of_another_unit(number: str, unit: str) -> str:
    others = (per for other, per in UNITS.items() if other != unit)
    return " or ".join(f"abs({number}) between {EARLIEST * per} and {LATEST * per}" for per in others)


def _refuse_days_and_years(column: str, key: str, typical: float) -> None:
    if 1900 <= typical <= 2100:
        raise RecalignError(
            f"column '{column}' ({key}) holds years alone ({typical:g}); give dates or times, or set {key} to null"
        )
    if 20_000 <= typical <= 80_000:
        raise RecalignError(
            f"column '{column}' ({key}) counts days ({typical:g}), as Excel stores dates; "
            "format the column as yyyy-mm-dd hh:mm:ss and export it again"
        )


def _refuse_mixture(
    connection: "DuckDBPyConnection", table: str, column: str, key: str, unit: str, count: int
) -> None:
    number = f"try_cast({value_text(column)} as double)"
    of_another = f"from {table} where {_of_another_unit(number, unit)}"
    others = (connection.execute(f"select count(*) {of_another}").fetchone() or (0,))[0]
    if others <= MIXED * count:
        return
    first, file, line = connection.execute(
        f'select {value_text(column)}, "{FILE}", "{LINE}" {of_another} order by "{LINE}" limit 1'
    ).fetchone() or ("", "", 0)
    raise RecalignError(
        f"{file}: column '{column}' ({key}) mixes units: most times are {unit}, {others:,} of {count:,} are "
        f"{unit_of(float(first))}, first in line {line} ({literal(first)}); write all in one unit"
    )
