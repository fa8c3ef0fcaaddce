"""Cron lines and time zones: what has one meaning is read as Prefect reads it, the rest is refused with the fix."""

import itertools
from datetime import UTC, datetime

import pytest
from prefect._vendor.croniter import croniter

from recalign.common.cron import check_zone, parse_cron
from recalign.common.errors import RecalignError
from recalign.params.load import parse_params

START = datetime(2026, 11, 28, 12, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "line",
    ["0 3 * * 1", "*/5 * * * *", "0 22-23,0-2 * * *", "15 4 1 jan,Jul *", "0 3 1-7 * 1", "0 3 * * mon-sun", "@weekly",
     "0 3 * * 7", "0 3 13 * 5", "59 23 31 12 *", "5-59/15 8-18 * * MON-FRI", "0 3 29 2 *"],
)  # fmt: skip
def test_an_accepted_line_runs_when_prefect_runs_it(line):
    """Twelve runs, or as many as nine years have, at the same minutes."""
    ours = list(itertools.islice(parse_cron(line).after(START, "UTC"), 12))
    theirs = croniter(line, START)
    assert ours
    assert ours == [theirs.get_next(datetime) for _ in ours]


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("0 0 3 * * 1", "write '0 3 * * 1' where its first field counts seconds or '0 0 3 * *' where its last field"),
        ("0 0 3 ? * MON", "write '0 3 * * MON' where its first field counts seconds"),
        ("0 3 ? * MON *", "'0 3 * * MON' where its last field counts seconds or years"),
        ("0 0 3 ? * MON 2027", "write '0 3 * * MON' where"),
        ("1 2 3 4 5 6 7 8", "five are allowed: write '0 3 * * 1'"),
        ("3 * * 1", "it has 4 of five fields"),
        ("", "it has 0 of five fields"),
        ("every monday", "it has 2 of five fields"),
        ("CRON_TZ=UTC 0 3 * * 1", "belongs in schedule.timezone; write '0 3 * * 1'"),
        ("@reboot", "allowed names are @hourly, @daily"),
        ("0 3 L * *", "write '0 3 28 * *'"),
        ("0 3 * * L5", "write '0 3 * * 5'"),
        ("0 3 * * 5#3", "write '0 3 * * 5'"),
        ("0 3 15W * *", "write '0 3 15 * *'"),
        ("0 3 ? * 1", "write '0 3 * * 1'"),
        ("H 3 * * *", "write '0 3 * * *'"),
        ("5/15 * * * *", "write '5-59/15 * * * *'"),
        ("*/90 * * * *", "write '0 * * * *'"),
        ("*/0 * * * *", "write '* * * * *'"),
        ("0 3 * * fri-mon", "write '0 3 * * 5-6,0-1'"),
        ("22-2 * * * *", "write '22-59,0-2 * * * *'"),
        ("0 24 * * *", "write '0 0 * * *'"),
        ("0 3 0 * *", "write '0 3 1 * *'"),
        ("0 3 * * 1,", "write '0 3 * * 1'"),
        ("0 3 * * monday", "write '0 3 * * mon'"),
        ("0 3 ٣ * *", "is none of numbers from 1 to 31"),
        ("0 3 */2 * 1", "write '0 3 * * 1'"),
        ("0 3 1-31 * 1", "write '0 3 * * 1'"),
        ("0 3 30 2 *", "never runs; write '0 3 28 2 *'"),
        ("0 3 31 4,6 *", "never runs; write '0 3 30 4,6 *'"),
    ],
)  # fmt: skip
def test_a_line_with_another_meaning_elsewhere_is_refused_in_params_with_the_line_to_write(tree, line, fix):
    """Seconds, Quartz' signs, steps without a range, days that never come: one line that names key, value and fix."""
    with pytest.raises(RecalignError) as refused:
        parse_params(tree | {"schedule": tree["schedule"] | {"cron": line}}, "params.yaml")
    assert str(refused.value).startswith(f"params.yaml: schedule.cron is {line!r}; ")
    assert fix in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_line_to_write_is_itself_accepted():
    """A person who copies it gets on: each proposal puts one field right, and the last one is read."""
    for line in ("5/15 * * * *", "0 3 * * fri-mon", "22-2 * * * *", "0 3 30 2 *", "0 3 1-31 * 1", "H H * * *"):
        proposed, refusals = line, 0
        while refused := refusal(proposed):
            proposed, refusals = refused.rpartition("write '")[2].rstrip("'"), refusals + 1
            assert refusals <= 5, f"{line}: {refused}"
        assert refusals > 0, line
        assert len(proposed.split()) == 5


def refusal(line: str) -> str:
    """Why a cron line is not read; "" where it is."""
    try:
        parse_cron(line)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("zone", "fix"),
    [("europe/berlin", "'Europe/Berlin'"), ("Berlin", "'Europe/Berlin'"), ("UTC+2", "'Etc/GMT-2' (its sign"),
     ("New York", "'America/New_York'"), ("", "'UTC'"), ("localtime", "'Europe/Berlin'"), ("CEST", "'UTC'"),
     ("Europe/Berln", "'Europe/Berlin'")],
)  # fmt: skip
def test_a_zone_that_no_clock_keeps_is_refused_with_the_nearest(tree, zone, fix):
    """Names are those of the IANA; what only the server's machine knows is none."""
    with pytest.raises(RecalignError) as refused:
        parse_params(tree | {"schedule": tree["schedule"] | {"timezone": zone}}, "params.yaml")
    assert str(refused.value).startswith(f"params.yaml: schedule.timezone is {zone!r}; give an IANA time zone: ")
    assert fix in str(refused.value)


def test_zones_that_exist_are_taken():
    """Places, and offsets in the IANA's own spelling."""
    for zone in ("UTC", "Europe/Berlin", "Etc/GMT-2"):
        check_zone(zone)


def test_a_run_keeps_the_hour_of_its_zone_over_the_end_of_summer_time():
    """03:00 in Berlin is 01:00 UTC in October and 02:00 UTC in November."""
    runs = parse_cron("0 3 * * 0").after(datetime(2026, 10, 17, 12, tzinfo=UTC), "Europe/Berlin")
    assert [f"{next(runs).astimezone(UTC):%m-%d %H}" for _ in range(2)] == ["10-18 01", "10-25 02"]
