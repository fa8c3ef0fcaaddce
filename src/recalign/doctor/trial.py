"""What ingest, validate and prepare make of a log: the very stages, on every row, in a folder that is thrown away.

So the doctor cannot say that all is well where the run would stop.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from recalign.common import columns as c
from recalign.common.artifacts import folder, read_json, read_parquet
from recalign.common.errors import RecalignError
from recalign.data.preparation.preparation import write_prepared
from recalign.data.prepared import Counts, Prepared
from recalign.data.sources.files import UNPARSABLE
from recalign.data.sources.readers import read_source
from recalign.data.titles import is_control
from recalign.data.validation.page import refusal
from recalign.data.validation.rules import EXACT_COPY, UNKNOWN_ITEM
from recalign.data.validation.tables import Outcome, Validation, write_validated
from recalign.doctor.findings import Finding, from_error
from recalign.params.load import Params

FEW_USERS = 50  # fewer leave a handful of test users
LONGEST_VALUE = 60  # characters of a faulty value that are shown


@dataclass(frozen=True)
class Trial:
    """What the stages said, in findings.

    validation: the summary.json that validate writes, None where ingest stopped; prepared: the counts in prepare's
    summary.json, None where a stage stopped.
    """

    findings: list[Finding]
    validation: dict[str, Any] | None = None
    prepared: Counts | None = None


def try_stages(params: Params, raw: Path, place: Path) -> Trial:
    """Run the stages on the raw files in `raw`; they write into the existing folder `place`, named as in data/."""
    ingested, validated, prepared, spill = (place / n for n in ("interactions", "validated", "prepared", "spill"))
    try:
        with folder(ingested) as partial:
            read_source(params, raw, partial, spill)
    except RecalignError as error:
        return Trial([_stopped("reading", error, place)])
    validated.mkdir()
    findings = [_sizes(ingested)]
    try:
        validation = write_validated(params, ingested, validated, spill)
        findings += [*_row_findings(validation, validated), *_verdict(validation)]
        if validation.stops():
            return Trial(findings, validation.summary())
        write_prepared(params, validated, prepared, spill)
    except RecalignError as error:
        found = _stopped("preparation", error, place)
        return Trial([*findings, found], read_json(validated / "summary.json"))
    counts = Prepared(prepared).counts
    return Trial([*findings, _prepared(counts)], validation.summary(), counts)


def _stopped(name: str, error: RecalignError, place: Path) -> Finding:
    """A stage's own words, its files called as the run calls them, and raw ones by their names."""
    return from_error(name, RecalignError(str(error).replace(f"{place}/raw/", "").replace(str(place), "data")))


def _sizes(ingested: Path) -> Finding:
    log = read_parquet(ingested / "interactions.parquet", [c.USER, c.ITEM])
    users, items = (pc.count_distinct(log[column]).as_py() for column in (c.USER, c.ITEM))
    return Finding("rows", "ok", f"{len(log):,} rows of {users:,} users with {items:,} items")


def _row_findings(validation: Validation, validated: Path) -> Iterator[Finding]:
    """A finding for every rule that takes rows, and every warning."""
    for outcome in validation.outcomes:
        rule = outcome.rule
        if not outcome.failed or rule.level == "table":
            continue
        where = "" if not outcome.examples else f", first {_example(outcome)}"
        found = f"{outcome.failed:,} {rule.table}: {rule.name}{where}"
        if rule.level == "warning":
            yield Finding("titles" if rule.table == "items" else "order", "warn", found, rule.sentence)
        elif rule.name == EXACT_COPY:
            yield Finding("quarantine", "warn", found, "copies are left out, which costs nothing")
        elif rule.name == UNKNOWN_ITEM:
            yield Finding("quarantine", "warn", found, _cost_of_items(validation, validated))
        else:
            fix = f"these rows go to quarantine; a clean log keeps the rule '{rule.sentence}'"
            yield Finding("quarantine", "warn", found, fix)


def _example(outcome: Outcome) -> str:
    """The first row that breaks a rule: its value with control characters shown, its file and line."""
    row = outcome.examples[0]
    value = row[outcome.rule.shown or c.VALUE]
    shown = (ascii(character)[1:-1] if is_control(character) else character for character in str(value))
    text = "a missing value" if value is None else f"'{''.join(shown)[:LONGEST_VALUE]}'"
    return f"{text} in {row[c.FILE]} line {row[c.LINE]}"


def _cost_of_items(validation: Validation, validated: Path) -> str:
    """Which items the log names and the clean table of items lacks, and why."""
    quarantine = read_parquet(validated / "quarantine.parquet", ["table", "row", c.RULE, c.VALUE]).to_pylist()
    named = {row[c.VALUE] for row in quarantine if row[c.RULE] == UNKNOWN_ITEM}
    gone = {
        str(json.loads(row["row"]).get(c.ITEM))
        for row in quarantine
        if row["table"] == "items" and row[c.RULE] != EXACT_COPY
    }
    lost, absent = len(named & gone), len(named - gone)
    unread = sum(o.failed for o in validation.outcomes if o.rule.table == "items" and o.rule.name == UNPARSABLE)
    told = []
    if lost:
        told.append(f"the rows of {lost:,} of these items are in quarantine themselves: fix them there")
    if absent:
        told.append(f"{absent:,} items have no row in the table of items: add them, or their events are left out")
    if absent and unread:
        told.append(f"{unread:,} lines of that table cannot be read, and may be theirs")
    return "; ".join(told)


def _verdict(validation: Validation) -> Iterator[Finding]:
    rows = validation.rows
    if not validation.stops():
        kept = " and ".join(f"{n['kept']:,} of {n['read']:,} {table}" for table, n in rows.items())
        yield Finding("validation", "ok", f"{kept} are kept")
    for refused in dict.fromkeys(refusal(validation, stop) for stop in validation.stops()):
        found, _, fix = refused.rpartition("; ")
        yield Finding("validation", "fail", found, fix)


def _prepared(counts: Counts) -> Finding:
    events, examples = counts["events"], counts["examples"]
    found = (
        f"{counts['users']:,} users, {counts['items']:,} items and {events['train']:,} train likes make "
        f"{examples['train']:,} training examples, {examples['validation']:,} validation and {examples['test']:,} test "
        "cases"
    )
    if counts["users"] < FEW_USERS:
        return Finding("preparation", "warn", found, "so few users give wide intervals: expect no clear verdict")
    return Finding("preparation", "ok", found)
