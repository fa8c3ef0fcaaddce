"""The log against its rules, by Great Expectations, in chunks; bad rows go to quarantine and the rest is written anew.

What needs the whole log (copies, order) is found in SQL first, as row numbers; a chunk is then judged on its own.
"""

import json
import logging
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet, write_json, write_parquet
from recalign.common.errors import RecalignError
from recalign.common.progress import track
from recalign.data.database import database, write_rows
from recalign.data.sources.files import UNPARSABLE
from recalign.data.sources.reading import INTERACTIONS, ITEMS, QUARANTINE
from recalign.data.titles import is_control, safe_title
from recalign.data.validation.rules import (
    EARLIEST,
    EXACT_COPY,
    LONGEST_TITLE,
    NULL_LIKE,
    Rule,
    event_rules,
    item_rules,
    table_rules,
)
from recalign.params.load import Params

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)
AS_THEY_ARE = ("users.parquet", "source.json", "truth.parquet")  # files that validation hands on
LINE_ENDS = "\u2028\u2029"  # of Unicode; all others are control characters
LATIN_LOOKS = str.maketrans(  # small letters of Cyrillic and Greek that look like Latin ones, or whose capitals do
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442"
    "\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u04cf"
    "\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7",
    "abekmhopctyxijshdqwlabezhikmnoptyx",
)
EXAMPLES = 5  # failing rows that the report shows of a rule


@dataclass
class Outcome:
    """How a rule fared: rows it took (row), rows that break it (warning), or 0 and 1 (table), with examples."""

    rule: Rule
    failed: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Validation:
    """What validation found: rows {table: {read, kept, quarantined}} and each rule's outcome, in order."""

    source: str
    rows: dict[str, dict[str, int]]
    outcomes: tuple[Outcome, ...]

    def summary(self) -> dict[str, Any]:
        """summary.json of the contract."""
        rules = [
            {
                "rule": o.rule.name, "table": o.rule.table, "level": o.rule.level, "sentence": o.rule.sentence,
                "failed": o.failed,
            }
            for o in self.outcomes
        ]  # fmt: skip
        return {"rows": self.rows, "rules": rules}

    def stops(self) -> list[Outcome]:
        """The table rules that are broken."""
        return [o for o in self.outcomes if o.rule.level == "table" and o.failed]


def validate_tables(params: Params, interactions: Path, folder: Path, spill: Path) -> Validation:
    """Check the tables in `interactions` and write the clean ones and quarantine.parquet into the existing `folder`.

    Memory: DuckDB's limit while copies are sought, then a chunk of validate.chunk_rows rows.
    Raises RecalignError when Great Expectations itself fails on a rule, which is not the data's fault.
    """
    import pandas as pd

    facts = read_json(interactions / "source.json")
    clock, path, clean = facts["clock"], interactions / "interactions.parquet", folder / "interactions.parquet"
    malformed = read_parquet(interactions / "malformed.parquet")
    with database(spill, params.prepare.memory_limit, params.threads) as connection:
        faults = _whole_log_faults(connection, path, clock)
    with pq.ParquetWriter(folder / "quarantine.parquet", QUARANTINE, compression="zstd") as quarantine:
        quarantine.write_table(malformed.cast(QUARANTINE))
        items = [Outcome(rule) for rule in item_rules()]
        known = _validate_items(interactions / "items.parquet", folder / "items.parquet", items, quarantine)
        events = [Outcome(rule) for rule in event_rules(facts["source"], clock, faults.ordered)]

        def clean_chunks() -> Iterator[pa.Table]:
            for start, rows in _event_chunks(path, params.validate_.chunk_rows):
                first = judge(_event_frame(rows, start, faults, known), rows, events)
                quarantine.write_table(quarantined(rows, first, events))
                yield rows.filter(pa.array(first < 0))

        write_rows(clean, INTERACTIONS, clean_chunks())
    unread = Counter(malformed["table"].to_pylist())
    rows = {
        name: _row_counts(interactions / f"{name}.parquet", folder / f"{name}.parquet", unread[name])
        for name in ("interactions", "items")
    }
    whole = [Outcome(rule) for rule in table_rules(params.validate_, clock)]
    copies = sum(outcome.failed for outcome in (*items, *events) if outcome.rule.name == EXACT_COPY)
    with database(spill, params.prepare.memory_limit, params.threads) as connection:
        figures = table_figures(connection, clean, rows, copies)
    for outcome, positions in zip(whole, broken_rows(pd.DataFrame([figures]), [o.rule for o in whole]), strict=True):
        outcome.failed = len(positions)
        outcome.examples = [{outcome.rule.column: figures[outcome.rule.column]}]
    return Validation(facts["source"], rows, (*_unread(malformed), *items, *events, *whole))


def _unread(malformed: pa.Table) -> Iterator[Outcome]:
    """The outcomes of reading itself: what ingestion could not parse, by table and reason."""
    counts = Counter(zip(malformed["table"].to_pylist(), malformed[c.RULE].to_pylist(), strict=True))
    for table, name in sorted({("interactions", UNPARSABLE), ("items", UNPARSABLE), *counts}):
        rule = Rule(name, table, "row", "every line can be read", "", "", "")
        here = pc.and_(pc.equal(malformed["table"], table), pc.equal(malformed[c.RULE], name))
        yield Outcome(rule, counts[table, name], malformed.filter(here).slice(0, EXAMPLES).to_pylist())


def _row_counts(read: Path, clean: Path, unread: int) -> dict[str, int]:
    before, kept = pq.read_metadata(read).num_rows + unread, pq.read_metadata(clean).num_rows
    return {"read": before, "kept": kept, "quarantined": before - kept}


def table_figures(
    connection: "DuckDBPyConnection", clean: Path, rows: dict[str, dict[str, int]], copies: int
) -> dict[str, float]:
    """What the table rules look at: clean_rows, rejected_share, largest_user_share (0 to 1) and time_span (seconds).

    copies: rows in quarantine that are exact copies; they are no loss, so the share is one of all other rows.
    time_span is NaN where no time is left, which no rule judges.
    """
    count, largest, span = connection.execute(
        """select coalesce(sum(n), 0), coalesce(max(n) / sum(n), 0), epoch(max(newest)) - epoch(min(oldest))
           from (select count(*) as n, min(timestamp) as oldest, max(timestamp) as newest
                 from read_parquet($path) group by user_id)""",
        {"path": str(clean)},
    ).fetchone() or (0, 0.0, None)
    read, rejected = (sum(table[key] for table in rows.values()) - copies for key in ("read", "quarantined"))
    return {
        "clean_rows": float(count),
        "rejected_share": rejected / read if read else 0.0,
        "largest_user_share": float(largest),
        "time_span": float("nan") if span is None else float(span),
    }


def broken_rows(frame: "pd.DataFrame", rules: Sequence[Rule]) -> list[np.ndarray]:
    """For each rule the positions of the rows of `frame` that break it, as Great Expectations finds them.

    Raises RecalignError when an expectation could not be computed: that says nothing about the data.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    # it announces a temporary folder, which it has removed by then
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    frame = frame.reset_index(drop=True)
    context = gx.get_context(mode="ephemeral")  # a new one a chunk: it would keep every chunk it has seen
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]  # their own documentation's form
    batch = (
        context.data_sources.add_pandas("log").add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("chunk").get_batch(batch_parameters={"dataframe": frame})
    )  # fmt: skip
    expectations = [
        getattr(gx.expectations, rule.expectation)(column=rule.column, meta={"rule": rule.name}, **rule.options)
        for rule in rules
    ]
    suite = gx.ExpectationSuite(name="rules", expectations=expectations)
    found = batch.validate(suite, result_format={"result_format": "COMPLETE", "include_unexpected_rows": False})
    positions = {}
    for result in found.results:
        assert result.expectation_config, "a result names its expectation"
        name = (result.expectation_config.meta or {})["rule"]
        if message := _exception(result.exception_info):
            raise RecalignError(f"rule '{name}' could not be checked by Great Expectations ({message})")
        positions[name] = np.array(result.result.get("unexpected_index_list") or [], dtype=np.int64)
    return [positions[rule.name] for rule in rules]


def _exception(info: dict[str, Any]) -> str | None:
    """The message of an exception that Great Expectations caught; it reports them in two shapes."""
    shapes = [info, *(value for value in info.values() if isinstance(value, dict))]
    raised = [str(shape.get("exception_message")) for shape in shapes if shape.get("raised_exception")]
    return raised[0] if raised else None


def judge(frame: "pd.DataFrame", rows: pa.Table, outcomes: Sequence[Outcome]) -> np.ndarray:
    """[n] the first row rule (its place in `outcomes`) that each row breaks, else -1; the outcomes are counted up."""
    first = np.full(len(frame), -1)
    broken = broken_rows(frame, [outcome.rule for outcome in outcomes]) if len(frame) else []
    for place, (outcome, positions) in enumerate(zip(outcomes, broken, strict=False)):
        if outcome.rule.level == "row":
            positions = positions[first[positions] < 0]
            first[positions] = place
        outcome.failed += len(positions)
        wanted = EXAMPLES - len(outcome.examples)
        outcome.examples += rows.take(positions[:wanted]).to_pylist()
    return first


def quarantined(rows: pa.Table, first: np.ndarray, outcomes: Sequence[Outcome]) -> pa.Table:
    """The bad rows of a chunk in the quarantine's columns."""
    positions = np.flatnonzero(first >= 0)
    bad = []
    for row, place in zip(rows.take(positions).to_pylist(), first[positions], strict=True):
        rule = outcomes[place].rule
        value = row[rule.shown]
        origin = {c.FILE: row.pop(c.FILE), c.LINE: row.pop(c.LINE)}
        text = json.dumps(row, ensure_ascii=False, default=str)
        shown = None if value is None else str(value)
        bad.append({"table": rule.table, "row": text, c.RULE: rule.name, c.VALUE: shown, **origin})
    return pa.Table.from_pylist(bad, QUARANTINE)


def _validate_items(path: Path, clean: Path, outcomes: Sequence[Outcome], quarantine: pq.ParquetWriter) -> np.ndarray:
    """Check the items, which fit in memory, and write the clean ones, titles as prompts show them; returns their ids,
    ascending."""
    rows = read_parquet(path)
    frame = _item_frame(rows)
    first = judge(frame, rows.append_column("twin", pa.array(frame["twin"], pa.string())), outcomes)
    quarantine.write_table(quarantined(rows, first, outcomes))
    titles = pa.array(frame[c.TITLE], pa.string())
    kept = rows.set_column(rows.schema.get_field_index(c.TITLE), c.TITLE, titles).filter(pa.array(first < 0))
    write_parquet(clean, kept.cast(ITEMS))
    return np.unique(kept[c.ITEM].to_numpy())


def _item_frame(rows: pa.Table) -> "pd.DataFrame":
    """The checked columns of the items: ids, titles as they are, whole and cut, and what is true of each row."""
    import pandas as pd

    raw = [title or "" for title in rows[c.TITLE].to_pylist()]
    whole = [safe_title(title) for title in raw]
    titles = pd.Series([title[:LONGEST_TITLE].rstrip() or None for title in whole], dtype=object)
    frame = pd.DataFrame({c.ITEM: rows[c.ITEM].to_pandas(), c.TITLE: titles})
    known = frame[c.ITEM].notna()
    content = pd.DataFrame({"item": frame[c.ITEM], "raw": raw, "more": list(map(str, rows[c.ATTRIBUTES].to_pylist()))})
    first_of_id = ~(known & frame[c.ITEM].duplicated())
    copy = known & content.duplicated()
    shown = first_of_id & titles.notna()  # the rows that can be taken for one another
    looks = titles.map(_folded, na_action="ignore")
    same, alike = (shown & column.where(shown).duplicated() for column in (titles, looks))
    return frame.assign(
        raw_title=pd.Series(raw, dtype=object),
        whole_title=pd.Series(whole, dtype=object),
        no_copy=~copy,
        first_of_id=first_of_id,
        no_control=[not any(is_control(character) or character in LINE_ENDS for character in title) for title in raw],
        no_null=[(title or "").casefold() not in NULL_LIKE for title in titles],
        title_alone=~same,
        looks_alone=same | ~alike,
        twin=_twins(titles, looks, shown, rows[c.LINE].to_pylist()),
    )


def _folded(title: str) -> str:
    """How a title looks: without case, width, ligatures, punctuation and blanks, its letters the Latin ones that they
    look like; a title of punctuation alone stays."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title).casefold())
    bare = "".join(character for character in plain if unicodedata.category(character)[0] not in "PZ")
    return (bare or plain).translate(LATIN_LOOKS)


def _twins(
    titles: "pd.Series[str]", looks: "pd.Series[str]", shown: "pd.Series[bool]", lines: Sequence[int]
) -> list[str | None]:
    """For each row that looks like an earlier one, that one's title and line."""
    earlier: dict[str, str] = {}
    twins: list[str | None] = []
    for title, look, counts, line in zip(titles, looks, shown, lines, strict=True):
        twins.append(earlier.get(look) if counts else None)
        if counts:
            earlier.setdefault(look, f"{title} (line {line})")
    return twins


@dataclass(frozen=True)
class _Faults:
    """Row numbers (from 0, ascending) of exact copies, of second rows with another rating, and of times that run
    backwards; whether the source says which event of a user came first."""

    copies: np.ndarray
    conflicts: np.ndarray
    late: np.ndarray
    ordered: bool


def _whole_log_faults(connection: "DuckDBPyConnection", path: Path, clock: bool) -> _Faults:
    """What only the whole log shows.

    A rating that is no number makes a row go by itself, so the row after it is no second one. Times that no clock shows
    (before 1990) are left out of the order, so that they do not blame their neighbours.
    """
    connection.execute(
        """create view log as select user_id, item_id, timestamp, rating, position, file_row_number as number
           from read_parquet($path, file_row_number = true)""".replace("$path", _literal(path))
    )
    again = connection.execute(
        """with twice as (
               select user_id, item_id, timestamp, min(number) as first from log
               where user_id is not null and item_id is not null and (rating is null or isfinite(rating))
               group by all having count(*) > 1),
           rows as (
               select number, first, min(number) over (
                   partition by log.user_id, log.item_id, log.timestamp, rating) as first_of_rating
               from log join twice on log.user_id = twice.user_id and log.item_id = twice.item_id
                   and log.timestamp is not distinct from twice.timestamp
               where rating is null or isfinite(rating))
           select number, number > first_of_rating as copy from rows where number > first order by number"""
    ).fetchnumpy()
    copies, conflicts = again["number"][again["copy"]], again["number"][~again["copy"]]
    if not clock:
        return _Faults(copies, conflicts, np.empty(0, dtype=np.int64), ordered=False)
    late = connection.execute(
        """select number from (
               select number, timestamp < lag(timestamp) over (
                   partition by user_id order by coalesce(position, number)) as backwards
               from log where timestamp >= $earliest and timestamp < now()::timestamp + interval 1 day)
           where backwards order by number""",
        {"earliest": EARLIEST},
    ).fetchnumpy()["number"]
    ordered = connection.execute("select count(position) > 0 from log").fetchone()
    return _Faults(copies, conflicts, late, ordered=bool(ordered and ordered[0]))


def _event_chunks(path: Path, chunk_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """The log in pieces of `chunk_rows`, each with its first row's number."""
    with pq.ParquetFile(path, pre_buffer=False) as file:  # a buffer would keep every row group it has read
        total = file.metadata.num_rows
        batches = track(file.iter_batches(chunk_rows), -(-total // chunk_rows), "validate", "chunks")
        first = 0
        for batch in batches:
            yield first, pa.Table.from_batches([batch])
            first += len(batch)


def _event_frame(rows: pa.Table, first: int, faults: _Faults, known: np.ndarray) -> "pd.DataFrame":
    """The checked columns of a chunk: times in seconds, for Great Expectations compares other times row by row."""
    import pandas as pd

    def none_of(numbers: np.ndarray) -> np.ndarray:
        start, end = np.searchsorted(numbers, [first, first + len(rows)])
        passed = np.ones(len(rows), dtype=bool)
        passed[numbers[start:end] - first] = False
        return passed

    rating, item = rows[c.RATING], rows[c.ITEM]
    return pd.DataFrame(
        {
            c.USER: rows[c.USER].to_pandas(),
            c.ITEM: item.to_pandas(),
            c.RATING: pc.if_else(pc.is_nan(rating), np.inf, rating).to_pandas(),  # NaN would pass for no rating
            "seconds": pc.divide(pc.cast(rows[c.TIMESTAMP].cast(pa.int64()), pa.float64()), 1e6).to_pandas(),
            "no_copy": none_of(faults.copies),
            "first_of_same": none_of(faults.conflicts),
            "item_known": pc.if_else(pc.is_null(item), True, pc.is_in(item, pa.array(known))).to_numpy(),
            "in_order": none_of(faults.late),
        }
    )


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def write_validated(params: Params, interactions: Path, folder: Path, spill: Path) -> Validation:
    """Write the contract's files into the existing `folder`, whatever the rules found; spill: DuckDB's folder."""
    validation = validate_tables(params, interactions, folder, spill)
    write_json(folder / "summary.json", validation.summary())
    for name in AS_THEY_ARE:
        if (interactions / name).exists():
            shutil.copyfile(interactions / name, folder / name)
    return validation
