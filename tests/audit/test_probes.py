"""The audit inside the pipeline, on data as preparation leaves it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from candidate_faults import clean_cases, draw_cases, draw_logs

from recalign.audit.cases import CaseSet
from recalign.common.artifacts import write_json, write_parquet
from recalign.common.errors import RecalignError
from recalign.evaluation.ranks import CaseList, SystemRanks, in_case_order
from recalign.params.load import Params, parse_params
from recalign.report.findings import probe


@pytest.fixture
def params(tree: dict[str, Any]) -> Params:
    return parse_params(tree | {"evaluate": tree["evaluate"] | {"resamples": 200}})


def prepared(out: Path, test: CaseSet, validation: CaseSet) -> Path:
    """data/prepared with these cases, and a training log of other people."""
    log = draw_logs(99, first_user=9000)
    examples, lists = [], []
    for split, cases in (("test", test), ("validation", validation)):
        for row, user in enumerate(cases.users.tolist()):
            target = int(cases.targets[row])
            examples.append({
                "example_id": f"{user}-{target}", "user_id": user, "split": split, "view": "warm", "cutoff": None,
                "history": list(cases.histories[row]), "target": target,
            })  # fmt: skip
            lists.append({
                "manifest": "uniform", "example_id": f"{user}-{target}", "user_id": user,
                "candidates": cases.candidates[row].tolist(), "target_index": int(cases.places[row]),
            })  # fmt: skip
    items = pa.table({
        "item_id": list(range(log.items)),
        "title": [f"Title {item}" for item in range(log.items)],
        "attributes": pa.array([[]] * log.items, pa.map_(pa.string(), pa.list_(pa.string()))),
        "popularity": [0] * log.items,
    })  # fmt: skip
    width = log.logs.shape[1]
    events = {"user_id": np.repeat(log.users, width), "item_id": log.logs.ravel(), "split": ["train"] * log.logs.size}
    write_parquet(out / "examples.parquet", pa.Table.from_pylist(examples))
    write_parquet(out / "candidates.parquet", pa.Table.from_pylist(lists))
    write_parquet(out / "items.parquet", items)
    write_parquet(out / "events.parquet", pa.table(events))
    write_json(out / "summary.json", {"clock": False})
    return out


def system(name: str, cases: CaseSet, ranks: int, count: int = 200) -> SystemRanks:
    """A system that ranks the targets of the first cases alike."""
    keys = [(f"{user}-{target}", int(user)) for user, target in zip(cases.users, cases.targets, strict=True)][:count]
    return in_case_order(name, CaseList("sampled-20", "uniform", "d", keys), np.full(count, ranks), np.zeros(count))


def test_on_clean_cases_a_good_system_beats_the_probes_and_a_poor_one_is_named(params: Params, tmp_path: Path) -> None:
    test = clean_cases(1)
    folder = prepared(tmp_path, test, clean_cases(2, first_user=500))
    contest = probe(params, folder, [system("good", test, 1), system("poor", test, 15)])
    assert contest.audit.verdict == "clean"
    assert contest.audit.cases == len(test)
    assert contest.reached.high < 0.6
    assert list(contest.unbeaten) == ["poor"]
    assert "NDCG@10 of poor minus that of the leak probe" in contest.unbeaten["poor"]
    assert contest.lines[1] == "† does not beat that probe by its interval and cannot become champion."


def test_where_lists_are_seeded_by_their_targets_a_ranker_of_seconds_does_not_beat_the_lookup(
    params: Params, tmp_path: Path
) -> None:
    """The lookup puts most targets first: NDCG@10 of rank 2, 0.631, is less than that."""
    test = draw_cases(draw_logs(1), 2, seeded=1.0, seeded_place=True)
    learned = draw_cases(draw_logs(3, first_user=500), 4, seeded=1.0, seeded_place=True)
    contest = probe(params, prepared(tmp_path, test, learned), [system("second", test, 2), system("first", test, 1)])
    assert (contest.audit.verdict, contest.probe) == ("leak", "lookup")
    assert list(contest.unbeaten) == ["second"]
    kept = contest.as_dict()
    assert kept["best_probe"]["name"] == "lookup"
    assert kept["probes"]["lookup"]["verdict"] == "leak"


def test_the_probes_are_set_against_the_metric_that_the_gate_compares(tree: dict[str, Any], tmp_path: Path) -> None:
    """At rank 2 a system has NDCG@10 0.631 but never HR@1: it beats the probes by the one and not by the other."""
    test = clean_cases(1)
    folder = prepared(tmp_path, test, clean_cases(2, first_user=500))
    told = {}
    for metric in ("ndcg_at_10", "hr_at_1"):
        few = {"evaluate": tree["evaluate"] | {"resamples": 200}, "registry": tree["registry"] | {"metric": metric}}
        told[metric] = probe(parse_params(tree | few), folder, [system("second", test, 2)])
    assert told["ndcg_at_10"].unbeaten == {}
    assert "HR@1 of second minus that of the leak probe" in told["hr_at_1"].unbeaten["second"]
    assert "reaches HR@1 " in told["hr_at_1"].lines[0]
    assert set(told["hr_at_1"].as_dict()["best_probe"]) == {"name", "hr_at_1"}


def test_ranks_of_other_cases_are_refused(params: Params, tmp_path: Path) -> None:
    test, other = clean_cases(1), clean_cases(7, first_user=3000)
    folder = prepared(tmp_path, test, clean_cases(2, first_user=500))
    with pytest.raises(RecalignError, match="was ranked but is no case any more; run 'dvc repro'"):
        probe(params, folder, [system("old", other, 1)])
