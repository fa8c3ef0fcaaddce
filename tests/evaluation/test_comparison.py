"""Two runs side by side: what is compared, and the field that forbids it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from recalign.commands.compare import compare, folder_runs
from recalign.common.artifacts import folder, read_json, write_json
from recalign.common.errors import RecalignError
from recalign.evaluation.comparison import Run, compare_runs
from recalign.evaluation.ranks import CaseList, SystemRanks, in_case_order, write_system_ranks
from recalign.evaluation.significance import paired_difference
from recalign.params.load import parse_params

USERS = 40
KINDS = {
    "item_knn": {"kind": "id", "ranked_by": "counts", "validation": {"ndcg_at_10": 0.4}},
    "popularity": {"kind": "id", "ranked_by": "counts", "validation": {"ndcg_at_10": 0.4}},
    "llm-sdpo": {"kind": "llm", "ranked_by": "logprob", "validation": {"ndcg_at_10": 0.5}},
    "llm-dpo": {"kind": "llm", "ranked_by": "logprob", "validation": {"ndcg_at_10": 0.6}},
}


def ranked(name: str, rank: int, digest: str = "d1", users: int = USERS) -> SystemRanks:
    cases = [(f"{user}-1", user) for user in range(users)]
    return in_case_order(name, CaseList("sampled-20", "uniform", digest, cases), np.full(users, rank), np.zeros(users))


def project(root: Path, ranks: dict[str, int], digest: str = "d1", users: int = USERS, **about: Any) -> Path:
    """A project's data/ranks as stage evaluate writes it."""
    told = {"source": "simulated", "split": "test", "data_digest": "x", "manifests": {"uniform": digest}} | about
    with folder(root / "data" / "ranks") as out:
        write_system_ranks(out / "ranks.parquet", [ranked(name, rank, digest, users) for name, rank in ranks.items()])
        write_json(out / "cases.json", told)
        write_json(out / "systems.json", {name: KINDS[name] for name in ranks})
    return root


def warm_run(root: Path) -> Run:
    """What the main comparison reads."""
    return folder_runs(root)["warm"]


def test_systems_of_one_name_are_compared_and_the_best_llms_where_their_names_differ(tmp_path: Path) -> None:
    first = warm_run(project(tmp_path / "a", {"popularity": 2, "llm-sdpo": 1}))
    second = warm_run(project(tmp_path / "b", {"popularity": 2, "llm-sdpo": 2, "llm-dpo": 4}))
    compared = compare_runs(first, second, 200, 1)
    told = [(own.first, own.second, own.metrics["mrr"].interval.value, own.metrics["mrr"].words) for own in compared]
    assert told == [
        ("popularity", "popularity", 0.0, "level with"),
        ("llm-sdpo", "llm-sdpo", 0.5, "above"),
        ("llm-sdpo", "llm-dpo", 0.75, "above"),
    ]


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("source", {"source": "lastfm"}),
        ("split", {"split": "validation"}),
        ("data_digest", {"data_digest": "y"}),
        ("digest", {"digest": "d2"}),
        ("example_id 39-1 was ranked by one of them only", {"users": USERS - 1}),
    ],
)
def test_runs_on_other_data_or_manifests_are_refused_and_the_field_is_named(
    tmp_path: Path, field: str, other: dict[str, Any]
) -> None:
    first = warm_run(project(tmp_path / "a", {"popularity": 2}))
    second = warm_run(project(tmp_path / "b", {"popularity": 2}, **other))
    with pytest.raises(RecalignError, match=f"cannot be compared: {field}"):
        compare_runs(first, second, 200, 1)


def test_a_run_of_one_system_is_compared_with_the_others_best(tmp_path: Path) -> None:
    """As a registered version is, whose run holds its own ranks alone."""
    first = warm_run(project(tmp_path / "a", {"llm-sdpo": 1}))
    second = warm_run(project(tmp_path / "b", {"popularity": 3, "llm-dpo": 2}))
    assert [(own.first, own.second) for own in compare_runs(first, second, 200, 1)] == [("llm-sdpo", "llm-dpo")]


def test_runs_without_a_common_system_are_refused(tmp_path: Path) -> None:
    first = warm_run(project(tmp_path / "a", {"popularity": 2, "item_knn": 1}))
    second = warm_run(project(tmp_path / "b", {"llm-sdpo": 2}))
    with pytest.raises(RecalignError, match="share no system: popularity, item_knn against llm-sdpo"):
        compare_runs(first, second, 200, 1)


def old_project(root: Path, ranks: dict[str, int]) -> Path:
    """As a version wrote it that knew no views: no such column, a digest a manifest, none of it about histories."""
    place = project(root, ranks) / "data" / "ranks"
    kept = {name: read_json(place / name) for name in ("cases.json", "systems.json")}
    table = pq.read_table(place / "ranks.parquet").drop_columns(["view"])
    with folder(place) as out:
        pq.write_table(table, out / "ranks.parquet")
        for name, value in kept.items():
            write_json(out / name, value)
    return root


def test_a_run_from_before_digests_covered_histories_is_read_and_never_compared(tmp_path: Path) -> None:
    """Nobody knows what its histories were: neither with a new run nor with another old one."""
    new, old = project(tmp_path / "new", {"popularity": 2}), old_project(tmp_path / "old", {"popularity": 2})
    (view, run), (_, now) = *folder_runs(old).items(), *folder_runs(new).items()
    assert (view, run.systems["popularity"].ranks.tolist()) == ("unknown", [2] * USERS)
    for pair in ((run, now), (now, run), (run, run)):
        with pytest.raises(RecalignError, match=r"old' cannot be compared: histories unknown.*'dvc repro'"):
            compare_runs(*pair, 200, 1)
    with pytest.raises(RecalignError, match="histories unknown"):
        run.systems["popularity"].check_comparable(now.systems["popularity"])


def test_two_views_are_never_compared(tmp_path: Path) -> None:
    warm = ranked("popularity", 2)
    with pytest.raises(RecalignError, match="view is 'warm' for the one and 'user-cold' for the other"):
        warm.check_comparable(replace(warm, view="user-cold"))
    with pytest.raises(RecalignError, match="view is 'warm'"):
        paired_difference(warm, replace(warm, view="item-cold-hidden"), "mrr", 100, 1)


def test_each_view_has_its_own_table_and_natural_new_items_no_verdict(
    tmp_path: Path, tree: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    params = parse_params(tree | {"evaluate": tree["evaluate"] | {"resamples": 200}})
    for name, rank in (("a", 4), ("b", 1)):
        place = project(tmp_path / name, {"llm-sdpo": rank}) / "data" / "ranks"
        digests = {"uniform": {"warm": "d1", "user-cold": "d2", "item-cold-natural": "d3"}}
        views = [replace(ranked("llm-sdpo", rank), view=view) for view in digests["uniform"]]
        about, kinds = read_json(place / "cases.json"), read_json(place / "systems.json")
        with folder(place) as out:
            write_system_ranks(out / "ranks.parquet", views)
            write_json(out / "cases.json", about | {"manifests": digests})
            write_json(out / "systems.json", kinds)
    compare(params, str(tmp_path / "a"), str(tmp_path / "b"))
    warm, cold, natural = capsys.readouterr().out.split("simulated, test split, ")[1:]
    assert (warm[:5], cold[:10], natural[:18]) == ("warm,", "user-cold,", "item-cold-natural,")
    assert "manifest uniform d2" in cold
    assert "below" in warm
    assert "below" in cold
    assert "below" not in natural
    assert "no verdict: 40 cases of 40 users, fewer than 200 users" in natural


def test_a_folder_without_ranks_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecalignError, match=r"holds no data/ranks/ranks\.parquet; run 'dvc repro' there"):
        warm_run(tmp_path)


def test_the_command_prints_the_differences_with_what_they_are_about(
    tmp_path: Path, tree: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    params = parse_params(tree | {"evaluate": tree["evaluate"] | {"resamples": 200}})
    first, second = (project(tmp_path / name, {"llm-sdpo": rank}) for name, rank in (("a", 4), ("b", 1)))
    compare(params, str(first), str(second / "data" / "ranks"))
    printed = capsys.readouterr().out
    for told in ("simulated, test split, warm, sampled-20, manifest uniform d1, 40 cases of 40 users", "below",
                 "−0.750", "[−0.750, −0.750]"):  # fmt: skip
        assert told in printed, told
