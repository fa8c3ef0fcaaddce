"""Times as people's logs write them: which unit or form a column has, and what does not fit it."""

from typing import TYPE_CHECKING

from recalign.common.errors import RecalignError
from recalign.data.sources.ids import MARKERS
from recalign.data.sources.reading import FILE, LINE, Parsed, filled, typed

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
NUMBER = '"value n"'  # SQL: a column's number, in reading.typed(…, {"n": …})
MIXED = 0.01  # share of values in another unit above which the file is refused as a whole


def column_time(connection: "DuckDBPyConnection", table: str, column: str, key: str) -> Parsed:
    """How a column's times are written: digits of a date, a unit since 1970, or ISO 8601; most values decide.

    Raises RecalignError, naming the first row, where more than one value
    in a hundred has another unit, and for years alone or Excel's days.
    """
    number = Parsed(filled(column), "try_cast({text} as double)", "", MARKERS)
    others = ", ".join(f"count(*) filter ({_within(NUMBER, unit)})" for unit in UNITS)
    [(count, numeric, typical, *of_unit)] = connection.execute(
        f"""select count("text n"), count("value n"), median(abs("value n")), {others}
            from {typed(table, {"n": number})}"""
    ).fetchall()
    if not count or numeric < 0.5 * count:
        return iso_time(column)
    _refuse_days_and_years(column, key, typical)
    for digits, name, form in FORMS:
        if len(f"{typical:.0f}") == digits and (digits != 10 or typical >= LATER):
            parsed = spelled(column, name, form)
            found = connection.execute(f"""select count("value n") from {typed(table, {"n": parsed})}""").fetchone()
            if found and found[0] > 0.9 * count:
                return parsed
    unit = unit_of(typical)
    for other, times in zip(UNITS, of_unit, strict=True):
        if other != unit and times > MIXED * count:
            _refuse_mixture(connection, table, column, key, (unit, other), (times, count))
    return epoch(column, unit)


def unit_of(number: float) -> str:
    """The unit in which a count since 1970 is nearest to our days."""
    return next((unit for unit, per_second in UNITS.items() if abs(number) < 1e11 * per_second), "nanoseconds")


def epoch(column: str, unit: str = "seconds") -> Parsed:
    """A time counted from 1970 in UTC."""
    scale = f"* {10**6 // UNITS[unit]}" if UNITS[unit] <= 10**6 else f"/ {UNITS[unit] // 10**6}"
    micros = f"try_cast(try_cast({{text}} as double) {scale} as bigint)"
    # beyond these bounds, years away from any log, DuckDB cannot make a timestamp and would stop the whole query
    value = f"case when abs({micros}) < 9e17 then make_timestamp({micros}) end"
    return Parsed(filled(column), value, f"{column} is no time in {unit} since 1970", MARKERS)


def spelled(column: str, name: str, form: str) -> Parsed:
    """A time in UTC whose digits spell it, such as 202101051230."""
    whole = "regexp_extract({text}, '^([0-9]+)(\\.0*)?$', 1)"
    value = f"case when length({whole}) = {len(name)} then try_strptime({whole}, '{form}') end"
    return Parsed(filled(column), value, f"{column} is no time as {name}", MARKERS)


def iso_time(column: str) -> Parsed:
    """A time in ISO 8601; one without an offset is UTC."""
    value = "timezone('UTC', try_cast({text} as timestamptz))"
    finite = f"case when isfinite({value}) then {value} end"
    return Parsed(filled(column), finite, f"{column} is no ISO 8601 time", MARKERS)


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


def _within(number: str, unit: str) -> str:
    """SQL: whether a count in this unit is a time of our days."""
    return f"abs({number}) between {EARLIEST * UNITS[unit]} and {LATEST * UNITS[unit]}"


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
    connection: "DuckDBPyConnection", table: str, column: str, key: str, units: tuple[str, str], counts: tuple[int, int]
) -> None:
    number = Parsed(filled(column), "try_cast({text} as double)", "", MARKERS)
    [(first, file, line)] = connection.execute(
        f"""select "text n", "{FILE}", "{LINE}" from {typed(table, {"n": number})}
            where {_within(NUMBER, units[1])} order by "{LINE}" limit 1"""
    ).fetchall()
    raise RecalignError(
        f"{file}: column '{column}' ({key}) mixes units: most times are {units[0]}, but {counts[0]:,} of {counts[1]:,} "
        f"are {units[1]}, first in line {line} ({first}); write all in one unit"
    )
