"""The audit inside the pipeline: the frozen test cases, with all that a system may have learned from."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from recalign.audit.audit import audit_cases
from recalign.audit.cases import LARGEST, CaseSet, Log, case_set
from recalign.audit.contest import ProbeContest, probe_contest
from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.data.records import Case, Items, read_cases
from recalign.evaluation.ranks import SystemRanks
from recalign.params.load import Params

UNIFORM = "uniform"  # the manifest whose candidates are drawn without regard to counts


def probe(params: Params, prepared: Path, systems: Sequence[SystemRanks], *, main: bool = True) -> ProbeContest:
    """Audit the test cases of the view and manifest that `systems` ranked, and set the systems against the leak probes.

    The gate's metric counts. The probes learn from the view's validation cases and the training events. Raises
    RecalignError when a file is missing.
    """
    view, manifest, clock = systems[0].view, systems[0].manifest, read_json(prepared / "summary.json")["clock"]
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
    metric, resamples = params.registry.metric, params.evaluate.resamples  # the gate's: what it refuses must agree
    return probe_contest(audit, cases, names, systems, metric, resamples, params.seed, main=main)


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
