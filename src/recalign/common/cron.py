"""Cron lines of five fields, read strictly: what two readers would take differently is refused, with the line to write.

Prefect's reader (croniter) also takes seconds, `L`, `#` and steps that other readers of cron take in another way or not
at all, and a run at the wrong hour is noticed late. What is left here means the same to every reader.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo, available_timezones

EXAMPLE = "0 3 * * 1"
NAMED_LINES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
LOOK_AHEAD = timedelta(days=366 * 9)  # 29 February comes within eight years, also around 2100


@dataclass(frozen=True)
class Field:
    """One of the five: its name, its lowest and highest number, and the names that stand for numbers."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12, MONTHS),
    Field("day of week", 0, 7, WEEKDAYS),
)


@dataclass(frozen=True)
class Cron:
    """The numbers that each field allows, weekdays from Sunday, 0; `either`: by day of month or by day of week."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    def on(self, day: date) -> bool:
        """Whether there is a run on a day."""
        by_month, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and ((by_month or by_week) if self.either else (by_month and by_week))

    def after(self, moment: datetime, zone: str) -> Iterator[datetime]:
        """The runs after a moment, in the zone's own time."""
        zone_info = ZoneInfo(zone)
        start = moment.astimezone(zone_info)
        times = [time(hour, minute, tzinfo=zone_info) for hour in sorted(self.hours) for minute in sorted(self.minutes)]
        for days in range(LOOK_AHEAD.days):
            day = start.date() + timedelta(days=days)
            if self.on(day):
                yield from (run for at in times if (run := datetime.combine(day, at)) > start)


def parse_cron(line: str) -> Cron:
    """Read a cron line. Raises ValueError with the reason and the nearest line that has one meaning."""
    fields = _fields(line)
    minutes, hours, days, months, weekdays = (
        _numbers(text, field, fields, place) for place, (text, field) in enumerate(zip(fields, FIELDS, strict=True))
    )
    either = fields[2] != "*" and fields[4] != "*"
    weekdays = frozenset(day % 7 for day in weekdays)
    for place, full in ((2, len(days) == 31), (4, len(weekdays) == 7)):
        if either and (full or fields[place].startswith("*")):
            raise ValueError(
                f"day of month {fields[2]!r} and day of week {fields[4]!r} mean 'both' to some readers of cron and "
                f"'one of them' to others; write {_with(fields, place, '*')!r}"
            )
    if not either and all(min(days) > DAYS_OF_MONTH[month - 1] for month in months):
        month = max(months, key=lambda number: DAYS_OF_MONTH[number - 1])
        nearest = _with(fields, 2, str(DAYS_OF_MONTH[month - 1] - (month == 2)))
        raise ValueError(f"no month that it names has a day {min(days)}, so it never runs; write {nearest!r}")
    return Cron(minutes, hours, days, months, weekdays, either)


def _fields(line: str) -> list[str]:
    """The five fields. Raises ValueError where there are more or fewer."""
    fields = NAMED_LINES.get(line.strip().lower(), line).split()
    if fields and "=" in fields[0]:
        raise ValueError(f"the time zone belongs in schedule.timezone; write {' '.join(fields[1:]) or EXAMPLE!r}")
    if fields and fields[0].startswith("@"):
        raise ValueError(f"allowed names are {', '.join(NAMED_LINES)}; write one of them, or {EXAMPLE!r}")
    if len(fields) < len(FIELDS):
        raise ValueError(
            f"it has {len(fields)} of five fields (minute, hour, day of month, month, day of week); write {EXAMPLE!r}"
        )
    if len(fields) > len(FIELDS):
        raise ValueError(_too_many(fields))
    return fields


def _too_many(fields: list[str]) -> str:
    plain = ["*" if text == "?" else text for text in fields]
    readings = [("its first field counts seconds", plain[1:6])]
    if len(fields) == 6:
        readings.append(("its last field counts seconds or years", plain[:5]))
    fixes = [f"{' '.join(five)!r} where {meaning}" for meaning, five in readings if len(fields) < 8 and _reads(five)]
    return (
        f"it has {len(fields)} fields, of which some readers take the first as seconds, others the last as seconds or "
        f"as years; five are allowed: write {' or '.join(fixes) or repr(EXAMPLE)}"
    )


def _reads(fields: list[str]) -> bool:
    try:
        parse_cron(" ".join(fields))
    except ValueError:
        return False
    return True


def _with(fields: list[str], place: int, text: str) -> str:
    return " ".join([*fields[:place], text, *fields[place + 1 :]])


def _numbers(text: str, field: Field, fields: list[str], place: int) -> frozenset[int]:
    """The numbers of one field of a line. Raises ValueError naming the part that is wrong, and the line to write."""

    def refuse(reason: str, instead: str) -> ValueError:
        nearest = ",".join(instead if part == element else part for part in text.split(",") if part) or instead
        return ValueError(f"{field.name} {text!r}: {reason}; write {_with(fields, place, nearest)!r}")

    found: set[int] = set()
    for element in text.split(","):
        if element == "?":
            raise refuse("'?' is Quartz' sign, not cron's", "*")
        body, slash, step_text = element.partition("/")
        low_text, dash, high_text = body.partition("-")
        low = field.low if body == "*" else _number(low_text, field, refuse)
        high = field.high if body == "*" else _number(high_text, field, refuse, last=True) if dash else low
        if slash and body != "*" and not dash:
            ranged = f"{body}-{field.high}/{step_text}"
            raise refuse("a step needs a range, since readers differ on where it ends", ranged)
        if low > high:
            highest = 6 if field.names == WEEKDAYS else field.high
            raise refuse("it runs backwards", f"{low}-{highest},{field.low}-{high}")
        if slash and not re.fullmatch("[1-9][0-9]*", step_text):
            raise refuse(f"its step {step_text!r} is no whole number from 1 on", body)
        step = int(step_text) if slash else 1
        if step > max(high - low, 1):
            raise refuse(f"its step {step} is longer than the range, which starts anew each time", str(low))
        found.update(range(low, high + 1, step))
    return frozenset(found)


def _number(text: str, field: Field, refuse: Callable[[str, str], ValueError], *, last: bool = False) -> int:
    """The number that a text stands for; `last`: at the end of a range, where Sunday is 7."""
    first_name = 0 if field.names == WEEKDAYS else 1
    if text.lower() in field.names:
        number = field.names.index(text.lower()) + first_name
        return 7 if last and number == 0 else number  # mon-sun
    if re.fullmatch("[0-9]{1,9}", text):
        number = int(text)
        if field.low <= number <= field.high:
            return number
        nearest = field.low if number == field.high + 1 and field.low == 0 else min(max(number, field.low), field.high)
        raise refuse(f"allowed are {field.low} to {field.high}", str(nearest))
    fallback = str(field.low) if field.name in ("minute", "hour") else "*"  # a star would run each minute
    if text and text[:3].lower() in field.names:
        raise refuse("names have three letters", text[:3].lower())
    if re.search("[LW#]", text, flags=re.IGNORECASE):
        digits = re.search("[0-9]+", text)
        last_day = "28" if field.name == "day of month" else fallback  # every month has it
        plain = digits.group() if digits and field.low <= int(digits.group()) <= field.high else last_day
        raise refuse("L, W and # are not cron's, and their readers number the days differently", plain)
    allowed = f"numbers from {field.low} to {field.high}" + (f" or {', '.join(field.names)}" if field.names else "")
    raise refuse(f"{text!r} is none of {allowed}", fallback)


def check_zone(zone: str) -> None:
    """Check the name of a time zone. Raises ValueError with the nearest name that exists."""
    zones = available_timezones() - {"localtime", "Factory"}  # of the server's machine, whichever that is; of none
    if zone not in zones:
        raise ValueError(f"give an IANA time zone: {_nearest_zone(zone, zones)}")


def _nearest_zone(zone: str, zones: set[str]) -> str:
    offset = re.fullmatch(r"(?:UTC|GMT)?\s*([+-])0?([0-9]{1,2})(?::?00)?", zone.strip(), flags=re.IGNORECASE)
    if offset and (fixed := f"Etc/GMT{'-' if offset[1] == '+' else '+'}{int(offset[2])}") in zones:
        return f"{fixed!r} (its sign is reversed), or a place such as 'Europe/Berlin', which keeps summer time"
    wanted = zone.strip().casefold().replace(" ", "_")
    same = sorted(name for name in zones if name.casefold() == wanted or name.casefold().endswith(f"/{wanted}"))
    places = sorted(zones) if "/" in zone else []  # CEST is spelled like EST, and is another time
    near = same or difflib.get_close_matches(zone, places, n=1, cutoff=0.6)
    return f"the nearest is {near[0]!r}" if near and wanted else "a place such as 'Europe/Berlin', or 'UTC'"
