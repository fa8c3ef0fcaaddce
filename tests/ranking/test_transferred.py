"""Adapters that another run trained: found by name, checked, measured beside the project's own, never the best one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import run, set_params
from safetensors.numpy import save_file

from recalign.common.artifacts import write_json, write_text
from recalign.common.errors import RecalignError
from recalign.evaluation.ranks import CaseList, SystemRanks, in_case_order
from recalign.evaluation.scorecard import Scorecard, build_scorecard
from recalign.evaluation.systems import System, system_of
from recalign.params.load import Params, parse_params
from recalign.project import BASE as BASE_FOLDER
from recalign.project import OTHER, PREPARED, Project
from recalign.ranking.adapters import transferred
from recalign.report.table import cells
from recalign.report.verdict import verdict

BASE = {"id": "tiny", "revision": "1", "sha256": "34" * 32}
HERE = {"source": "lastfm", "data_digest": "ab" * 32}
THERE = {"source": "movielens-100k", "data_digest": "cd" * 32, "form": "history"}


@pytest.fixture
def params(tree: dict[str, Any]) -> Callable[..., Params]:
    """params.yaml with evaluate.adapters as given."""
    return lambda *names: parse_params(tree | {"evaluate": tree["evaluate"] | {"adapters": list(names)}})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The base and the data that adapters are held against."""
    write_json(tmp_path / BASE_FOLDER / "base.json", BASE)
    write_json(tmp_path / PREPARED / "summary.json", HERE)
    return tmp_path


def put(folder: Path, stage: str = "align@dmpo", base: dict[str, str] = BASE, **data: str) -> None:
    """An adapter as training leaves it."""
    folder.mkdir(parents=True)
    weights = {"base_model.model.layer.lora_A.weight": np.ones((2, 3), np.float32)}
    save_file(weights, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"r": 16, "peft_type": "LORA"})
    write_json(folder / "recalign.json", {"base": base})
    write_json(folder / "training.json", {"stage": stage, "data": THERE | data})


def found(params: Params, project: Path) -> dict[str, Any]:
    own = {name: transferred(params, name, Project(project)) for name in params.evaluate.adapters}
    return {system_of(name): adapter.about for name, adapter in own.items()}


def test_what_params_name_is_found_and_says_what_it_was_trained_on(params, project) -> None:
    put(project / OTHER / "films")
    put(project / OTHER / "films-sft", stage="sft")
    put(project / OTHER / "not-named")
    about = found(params("films", "films-sft"), project)
    assert list(about) == ["llm-films", "llm-films-sft"]
    assert [own["trained_as"] for own in about.values()] == ["llm-dmpo", "llm-sft"]
    assert {own["trained_on"] for own in about.values()} == {"movielens-100k"}


def test_by_default_there_are_none(params, project) -> None:
    assert found(params(), project) == {}


@pytest.mark.parametrize("inner", ["adapter", "artifacts/package/adapter"])
def test_a_version_from_the_registry_is_an_adapter_too(params, project, inner) -> None:
    put(project / OTHER / "version-3" / inner)
    assert found(params("version-3"), project)["llm-version-3"]["trained_as"] == "llm-dmpo"


def test_an_adapter_without_facts_is_taken_and_tells_nothing(params, project) -> None:
    put(project / OTHER / "films")
    (project / OTHER / "films" / "training.json").unlink()
    about = found(params("films"), project)["llm-films"]
    assert (about["trained_as"], about["trained_on"]) == (None, None)


def test_a_name_without_an_adapter_names_the_folder_and_the_mend(params, project) -> None:
    with pytest.raises(RecalignError, match=r"evaluate.adapters has 'films', but .*films holds no adapter.*dvc import"):
        found(params("films"), project)


@pytest.mark.parametrize("name", ["base", "sft", "sdpo"])
def test_the_name_of_a_model_trained_here_is_refused(params, project, name) -> None:
    put(project / OTHER / name)
    with pytest.raises(RecalignError, match=f"evaluate.adapters has '{name}', which names a model of this run"):
        found(params(name), project)


def test_an_adapter_of_another_base_is_refused(params, project) -> None:
    put(project / OTHER / "films", base=BASE | {"id": "large", "sha256": "56" * 32})
    with pytest.raises(RecalignError, match=r"was trained on base large .* not on tiny .* set base.model"):
        found(params("films"), project)


def test_prompts_of_another_form_are_refused(params, project) -> None:
    put(project / OTHER / "films", form="candidates")
    with pytest.raises(RecalignError, match=r"form 'candidates', but prompt.form is 'history'; set it to 'candidates'"):
        found(params("films"), project)


@pytest.mark.parametrize(
    ("data", "warned"),
    [(THERE, False), (HERE, False), (HERE | {"data_digest": "ef" * 32}, True)],
    ids=["another source", "the same data", "another state of the source"],
)
def test_an_adapter_that_may_know_the_answers_is_warned_of(params, project, caplog, data, warned) -> None:
    put(project / OTHER / "older", **data)
    found(params("older"), project)
    assert ("may have learned from this run's test events" in caplog.text) is warned


@pytest.mark.parametrize(
    ("names", "message"),
    [(["../films"], "should match pattern"), (["a", "a"], "an adapter is listed twice; name each once")],
)
def test_a_name_is_a_folder_and_stands_once(params, names, message) -> None:
    with pytest.raises(RecalignError, match=message):
        params(*names)


VALIDATION = {"item_knn": 0.6, "llm-base": 0.2, "llm-sft": 0.3, "llm-dmpo": 0.4, "llm-films": 0.9}
RANKS = {"item_knn": 2, "llm-base": 10, "llm-sft": 8, "llm-dmpo": 4, "llm-films": 5}


def card(films: int = 5, trained_as: str | None = "llm-dmpo", trained_on: str | None = "movielens-100k") -> Scorecard:
    """Twenty cases, each system at one rank; llm-films came from another run and is best on validation."""

    def about(name: str) -> dict[str, Any]:
        kind = {"item_knn": "id", "llm-films": "transferred"}.get(name, "llm")
        own = {"kind": kind, "ranked_by": "logprob", "prior_weight": 0.0}
        own["validation"] = {"ndcg_at_10": VALIDATION[name]}
        return own | ({"trained_as": trained_as, "trained_on": trained_on} if kind == "transferred" else {})

    def ranked(name: str, rank: int) -> SystemRanks:
        cases = [(f"{user}-1", user) for user in range(20)]
        return in_case_order(name, CaseList("sampled-20", "uniform", "ab" * 32, cases), np.full(20, rank), np.zeros(20))

    ranks = RANKS | {"llm-films": films}
    return build_scorecard(
        [ranked(*own) for own in ranks.items()], {name: System(**about(name)) for name in ranks}, 200, 1
    )


def pairs(made: Scorecard) -> list[tuple[str, str]]:
    return [(pair.first, pair.second) for pair in made.comparisons if pair.first == "llm-films"]


def test_an_adapter_from_elsewhere_is_never_the_best_one() -> None:
    assert card().llm == "llm-dmpo"


@pytest.mark.parametrize(
    ("trained_as", "alike"),
    [("llm-dmpo", "llm-dmpo"), ("llm-sft", "llm-sft"), ("llm-simpo", "llm-dmpo"), (None, "llm-dmpo")],
)
def test_it_is_compared_with_its_like_from_here_else_the_best_and_with_the_untrained(trained_as, alike) -> None:
    assert pairs(card(trained_as=trained_as)) == [("llm-films", alike), ("llm-films", "llm-base")]


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        (5, "llm-films, trained elsewhere, is worse than DMPO trained here (NDCG@10 −0.044 [−0.044, −0.044])."),
        (4, "llm-films, trained elsewhere, cannot be told from DMPO trained here (NDCG@10 +0.000 [+0.000, +0.000])."),
        (1, "llm-films, trained elsewhere, is better than DMPO trained here (NDCG@10 +0.569 [+0.569, +0.569])."),
    ],
)
def test_the_verdict_says_what_transfer_costs(rank, said) -> None:
    assert said in verdict(card(films=rank))


def test_the_verdict_says_what_it_carries_over() -> None:
    said = "llm-films, trained elsewhere, is better than the untrained model (NDCG@10 +0.098 [+0.098, +0.098])."
    assert said in verdict(card())


@pytest.mark.parametrize(("source", "told"), [("movielens-100k", "on movielens-100k"), (None, "elsewhere")])
def test_the_table_says_where_it_was_trained(source, told) -> None:
    ranked_by = {row[0]: row[-1] for row in cells(card(trained_on=source))}
    assert (ranked_by["llm-films"], ranked_by["llm-dmpo"]) == (f"log-prob; trained {told}", "log-prob")


@pytest.mark.slow
def test_few_examples_and_an_adapter_of_an_earlier_run_go_through_the_chain(smoke, tmp_path) -> None:
    """Ten examples for DMPO, beside the S-DPO adapter that this clone trained before: from params, tracked by DVC."""
    project = tmp_path / "project"
    shutil.copytree(smoke, project, symlinks=True)
    run(project, "cp", "-r", "data/models/align/sdpo", "data/models/other/earlier")
    run(project, "dvc", "add", "data/models/other/earlier")
    few = {"sft__examples": 10, "pairs__examples": 10, "align__objectives": ["dmpo"]}
    set_params(project, **few, evaluate__adapters=["earlier"])
    screen = run(project, "dvc", "repro").stdout

    assert "llm-earlier, trained elsewhere, " in screen
    facts = {name: json.loads((project / name).read_text(encoding="utf-8")) for name in (
        "data/models/sft/training.json", "data/models/align/dmpo/training.json", "data/ranks/systems.json",
        "reports/metrics.json",
    )}  # fmt: skip
    trained = [facts[f"data/models/{name}/training.json"]["examples"] for name in ("sft", "align/dmpo")]
    assert trained == [10, 10]
    about, metrics = facts["data/ranks/systems.json"]["llm-earlier"], facts["reports/metrics.json"]
    assert (about["kind"], about["trained_as"], about["trained_on"]) == ("transferred", "llm-sdpo", "simulated")
    assert {"llm-earlier", "llm-dmpo"} < set(metrics["systems"])
    assert {"llm-earlier_less_llm-base", "llm-earlier_less_llm-dmpo"} & set(metrics["paired"])
    assert metrics["best"]["llm"] != "llm-earlier"
    assert "Data and pipelines are up to date." in run(project, "dvc", "repro").stdout
    write_text(project / "data/models/other/earlier/training.json", "{}")
    stale = run(project, "dvc", "status", "rank-other@earlier", "sft").stdout
    assert "data/models/other" in stale
    assert "sft:" not in stale
