"""The registered model answers as MLflow serves it: titles or ids in, a ranking with its explanation out."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from ruamel.yaml import YAML

from recalign import layout
from recalign.artifacts import write_json
from recalign.errors import RecalignError
from recalign.params import parse_params
from recalign.registry.package import read_settings
from recalign.registry.promotion import download_package
from recalign.registry.serving import find_base
from recalign.stages.register import register
from registry_project import TITLES, USERS, empty_registry, write_fusion, write_project, write_ranks

ROOT = Path(__file__).parent.parent
CHAMPION = "models:/recalign@champion"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project whose S-DPO adapter is champion."""
    root = tmp_path_factory.mktemp("served") / "project"
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params = parse_params(tree | {"budget": "smoke", "registry": tree["registry"] | {"min_users": USERS}})
    write_project(params, ROOT / "params.yaml", root)
    shutil.copy(empty_registry(), root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(params, root=root)
    return root


@pytest.fixture(autouse=True)
def in_project(project, monkeypatch) -> None:
    """The project is the working directory, and no registry or base is named by the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RECALIGN_BASE", raising=False)
    monkeypatch.chdir(project)


@pytest.fixture(scope="module")
def model(project) -> Any:
    """The champion as MLflow loads it."""
    import mlflow

    from recalign.registry.tracking import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(project)
        connect(project)
        return mlflow.pyfunc.load_model(CHAMPION)


def ask(model: Any, *queries: dict[str, Any]) -> list[dict[str, Any]]:
    """Predict for a frame of queries."""
    answers: list[dict[str, Any]] = model.predict(pd.DataFrame(list(queries)))
    return answers


def test_a_history_of_titles_is_answered_with_the_whole_catalogue_less_the_history(model):
    """Best first, scores beside."""
    (answer,) = ask(model, {"history": [TITLES[0], TITLES[3]], "k": 20})
    assert len(answer["items"]) == 10
    assert {item["title"] for item in answer["items"]} == set(TITLES) - {TITLES[0], TITLES[3]}
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)


def test_titles_and_ids_mean_the_same(model):
    """Titles are matched case aside."""
    histories = [1, 4], [TITLES[0].upper(), TITLES[3]], [1, TITLES[3]]
    by_id, by_title, mixed = ask(model, *({"history": history} for history in histories))
    assert by_id == by_title == mixed


def test_candidates_limit_what_is_ranked_and_k_what_is_returned(model):
    """In a frame where another row has neither."""
    first, second = ask(model, {"history": [1], "candidates": [7, TITLES[7], 9], "k": 2}, {"history": [2]})
    assert len(first["items"]) == 2
    assert {item["item_id"] for item in first["items"]} <= {7, 8, 9}
    assert len(second["items"]) == 10


def test_rows_that_are_asked_together_are_answered_as_each_alone(model):
    """Searches of several rows share forward passes; the answers do not change."""
    queries = [{"history": [item, item + 1], "k": item} for item in (1, 2, 3, 4, 5)]
    for query, together in zip(queries, ask(model, *queries), strict=True):
        (alone,) = ask(model, query)
        assert [item["item_id"] for item in together["items"]] == [item["item_id"] for item in alone["items"]]
        assert len(together["items"]) == query["k"]


def test_a_row_that_cannot_be_answered_is_named_among_others(model):
    """Here the third one."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="row 2: history has item 99"):
        ask(model, {"history": [1]}, {"history": [2]}, {"history": [99]})


def test_the_explanation_is_what_the_history_shows(model):
    """Three dramas where one in three is expected; the films that say so are named."""
    (answer,) = ask(model, {"history": [1, 4, 7]})
    assert answer["preference"] == "Likes drama films."
    assert answer["inferred_by"] == "counting"
    assert answer["evidence"] == [TITLES[0], TITLES[3], TITLES[6]]


def test_an_unknown_title_is_read_as_it_stands_and_named(model):
    """It changes the scores, so it was read."""
    known, unknown = ask(model, {"history": [1]}, {"history": [1, "A Film Nobody Made"]})
    assert (known["unknown"], unknown["unknown"]) == ([], ["A Film Nobody Made"])
    assert known["items"][0]["score"] != unknown["items"][0]["score"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"history": []}, "row 0: history: List should have at least 1 item"),
        ({"history": [99]}, "row 0: history has item 99, which is not in the catalogue of 12 films"),
        ({"history": ["\u200b"]}, "row 0: title .* is empty"),
        ({"history": [1], "candidates": ["Nobody's Film"]}, "row 0: candidates has .*only items of the catalogue"),
        ({"history": [1], "k": 0}, "row 0: k: Input should be greater than or equal to 1"),
        ({"history": "Alien"}, "row 0: history: Input should be a valid list"),
    ],
)
def test_what_a_caller_can_mend_is_one_line(model, query, said):
    """MLflow answers it as HTTP 400."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=said) as caught:
        ask(model, query)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_base_is_found_by_its_sha256_and_another_one_is_refused(project, monkeypatch, tmp_path):
    """RECALIGN_BASE first, then the project's own, then fetched into a cache."""
    settings = read_settings(download_package(CHAMPION))
    assert find_base(settings) == layout.BASE
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched = find_base(settings)
    assert fetched.is_relative_to(tmp_path / "recalign" / "bases")
    monkeypatch.setenv("RECALIGN_BASE", str(project / layout.BASE))
    assert find_base(settings) == project / layout.BASE
    other = shutil.copytree(fetched, tmp_path / "other")
    write_json(other / "base.json", {"id": "other", "revision": "1", "sha256": "0" * 64})
    monkeypatch.setenv("RECALIGN_BASE", str(other))
    with pytest.raises(RecalignError, match=r"RECALIGN_BASE is .*other, which holds a base with sha256 000000000000"):
        find_base(settings)


def test_a_registered_fusion_answers_with_the_same_explanation(project, tmp_path, monkeypatch):
    """As MLflow loads it: another ranking, the same preference, ids and titles alike."""
    import mlflow

    own = shutil.copytree(project, tmp_path / "own", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    shutil.copy(empty_registry(), own / "mlflow.db")
    monkeypatch.chdir(own)
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params = parse_params(tree | {"budget": "smoke", "registry": tree["registry"] | {"min_users": USERS}})
    write_ranks(own, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, own, weight=0.01)
    register(params, "fusion", root=own)
    answer, again = ask(mlflow.pyfunc.load_model(CHAMPION), {"history": [1, 4, 7], "k": 3},
                        {"history": [TITLES[0], TITLES[3], TITLES[6]], "k": 3})  # fmt: skip
    assert answer == again
    assert answer["preference"] == "Likes drama films."
    assert [item["item_id"] for item in answer["items"]] == [2, 3, 5]  # by popularity, which weighs the most


@pytest.mark.slow
def test_mlflow_serves_it_over_http(project):
    """The README's command, with a server of its own on the loopback."""
    port = _free_port()
    command = ["mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local"]
    command += ["-h", "127.0.0.1", "-p", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db"}
    server = subprocess.Popen(command, cwd=project, env=environment, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", seconds=180)
        good = _post(port, {"dataframe_records": [{"history": [TITLES[0], 4], "k": 3}]})
        assert good[0] == 200
        assert len(good[1]["predictions"][0]["items"]) == 3
        bad = _post(port, {"dataframe_records": [{"history": [99]}]})
        assert bad[0] == 400
        assert "history has item 99" in bad[1]["message"]
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            httpx.get(url, timeout=5)
        except httpx.HTTPError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(1)
        else:
            return


def _post(port: int, body: dict[str, Any]) -> tuple[int, Any]:
    response = httpx.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)
    return response.status_code, response.json()
