"""What the report finds beyond the scorecard, and the facts of cases and items that it needs for that.

The audit inside the pipeline: the frozen test cases, with all that a system may have learned from.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow.compute as pc

from recalign.audit.audit import ProbeContest, audit_cases, probe_contest
from recalign.audit.cases import LARGEST, CaseSet, Log, case_set
from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.common.item_groups import POPULARITY, popularity_fifths
from recalign.data.prepared import Prepared
from recalign.data.records import Case, Items, read_cases
from recalign.evaluation.comparison import oracle_shares
from recalign.evaluation.exposure import Exposure, measure_exposure
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import Interval
from recalign.evaluation.slices import AFTER, BEFORE, LATE, NEVER, CaseFacts, Slice, build_slices
from recalign.params.load import Params


@dataclass(frozen=True)
class Known:
    """cases: facts by example id; popularity: train events by item; attribute: the first one of the items, None where
    they have none; groupings: name -> item -> groups, by popularity and by that attribute."""

    cases: dict[str, CaseFacts]
    popularity: dict[int, int]
    attribute: str | None
    groupings: dict[str, Mapping[int, list[str]]]


def read_known(prepared: Path, split: str = c.TEST, by: str | None = None) -> Known:
    """Facts of all warm cases of a split, from data/prepared; by: one more attribute that items are grouped by.

    Raises RecalignError when a file is missing.
    """
    items = Items.read(prepared)
    attribute = next((name for item in items.ids for name in items.attributes[item]), None)
    fifths = popularity_fifths(items.popularity)
    groups = {item: own.get(attribute or "", []) for item, own in items.attributes.items()}
    groupings: dict[str, Mapping[int, list[str]]] = {POPULARITY: {item: [fifth] for item, fifth in fifths.items()}}
    if attribute:
        groupings[attribute] = groups
    if by and by not in groupings:
        groupings[by] = {item: own.get(by, []) for item, own in items.attributes.items()}
    train = read_parquet(prepared / "events.parquet", [c.USER], pc.field(c.SPLIT) == c.TRAIN)[c.USER].value_counts()
    known = Counter(dict(zip(*(train.field(name).to_pylist() for name in ("values", "counts")), strict=True)))
    starts = read_starts(prepared, split)
    wanted = {name: pc.field(name) for name in (c.EXAMPLE, c.USER, c.TARGET)}
    wanted["length"] = pc.list_value_length(pc.field(c.HISTORY))
    warm = (pc.field(c.SPLIT) == split) & (pc.field(c.VIEW) == c.WARM)
    own = read_parquet(prepared / "examples.parquet", wanted, warm)
    rows = zip(*(own[name].to_pylist() for name in wanted), strict=True)
    cases = {
        example: CaseFacts(
            length, known[user], items.popularity[target], fifths[target], tuple(groups[target]), starts.get(example)
        )
        for example, user, target, length in rows
    }
    return Known(cases, items.popularity, attribute, groupings)


@dataclass(frozen=True)
class Findings:
    """Slices and shares of the oracle's gain on the main table's manifest; exposures by manifest, then system;
    all of the main view."""

    slices: list[Slice]
    shares: dict[str, Interval]
    exposures: dict[str, dict[str, Exposure]]


def find(params: Params, groups: Sequence[Sequence[SystemRanks]], known: Known, candidates: int) -> Findings:
    """The findings of the systems of each manifest of the main view, the main table's group first."""
    resamples, seed = params.evaluate.resamples, params.seed
    exposures: dict[str, dict[str, Exposure]] = {}
    for group in groups:
        made = {s.system: measure_exposure(s, known.popularity, known.groupings, resamples, seed) for s in group}
        exposures[group[0].manifest] = {name: exposure for name, exposure in made.items() if exposure}
    return Findings(
        build_slices(groups[0], known.cases, known.attribute, resamples, seed),
        oracle_shares(groups[0], candidates, resamples, seed),
        exposures,
    )


RECENT = 0.1  # share of train's time, at its end, in which a start is late


def read_starts(prepared: Path, split: str) -> dict[str, tuple[str, str]]:
    """Labels of (the user's first like, the target's first like) of the warm cases, by example id; empty where
    no global time splits.

    A like at a case's cutoff or later is not looked at.
    """
    train_end = Prepared(prepared).cutoff(c.VALIDATION)
    if train_end is None:
        return {}
    file = prepared / "events.parquet"
    bounds = pc.min_max(read_parquet(file, [c.TIMESTAMP], pc.field(c.SPLIT) == c.TRAIN)[c.TIMESTAMP]).as_py()
    if bounds["max"] is None or bounds["max"] >= train_end:  # no clock, or each user is split at a time of its own
        return {}
    late = train_end - RECENT * (train_end - bounds["min"])
    users, items = _firsts(file, c.USER), _firsts(file, c.ITEM)
    warm = (pc.field(c.SPLIT) == split) & (pc.field(c.VIEW) == c.WARM)
    columns = [c.EXAMPLE, c.USER, c.CUTOFF, c.TARGET]
    rows = read_parquet(prepared / "examples.parquet", columns, warm).to_pylist()

    def label(first: datetime, cutoff: datetime) -> str:
        if first >= cutoff:
            return NEVER
        return AFTER if first >= train_end else LATE if first >= late else BEFORE

    return {
        row[c.EXAMPLE]: (label(users[row[c.USER]], row[c.CUTOFF]), label(items[row[c.TARGET]], row[c.CUTOFF]))
        for row in rows
    }


def _firsts(file: Path, column: str) -> Mapping[int, datetime]:
    grouped = read_parquet(file, [column, c.TIMESTAMP]).group_by(column).aggregate([(c.TIMESTAMP, "min")])
    return dict(zip(grouped[column].to_pylist(), grouped[f"{c.TIMESTAMP}_min"].to_pylist(), strict=True))


UNIFORM = "uniform"  # the manifest whose candidates are drawn without regard to counts


def probe(params: Params, prepared: Path, systems: Sequence[SystemRanks], *, main: bool = True) -> ProbeContest:
    """Audit the test cases of the view and manifest that `systems` ranked, and set the systems against the leak probes.

    The gate's metric counts. The probes learn from the view's validation cases and the training events. Raises
    RecalignError when a file is missing.
    """
    view, manifest, clock = systems[0].view, systems[0].manifest, Prepared(prepared).clock
    limit = max(LARGEST, len(systems[0].ranks))
    tested = read_cases(prepared, c.TEST, manifest, limit, seed=params.seed, view=view)
    learned = read_cases(prepared, c.VALIDATION, manifest, LARGEST, seed=params.seed, view=view)
    cases = _case_set("the test cases", tested)
    audit = audit_cases(
        cases,
        _case_set("the validation cases", learned) if learned else None,
        _train_log(prepared),
        Items.read(prepared).titles,
        "time" if clock else "user",
        by_count=manifest != UNIFORM or view in (c.NATURAL, c.HIDDEN),
    )
    names = [case.example.example_id for case in tested]
    return probe_contest(audit, cases, names, systems, params, main=main)


def _case_set(name: str, cases: Sequence[Case]) -> CaseSet:
    examples = [case.example for case in cases]
    return case_set(
        name,
        [example.user_id for example in examples],
        [example.history for example in examples],
        [case.candidates for case in cases],
        [example.target for example in examples],
    )


def _train_log(prepared: Path) -> Log:
    events = read_parquet(prepared / "events.parquet")  # in each user's order
    events = events.filter(pc.equal(events[c.SPLIT], c.TRAIN))
    return Log("the training events", events[c.USER].to_numpy(), events[c.ITEM].to_numpy())
