"""The registered model answers as MLflow serves it: titles or ids in, a ranking with its explanation out."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pytest
from registry_project import (
    TITLES,
    empty_registry,
    small_params,
    write_fusion,
    write_interactions,
    write_project,
    write_ranks,
)
from resealed import resealed
from rounding import rounding
from ruamel.yaml import YAML

from recalign import project as layout
from recalign.commands.opened import open_adapter
from recalign.commands.recommend import recommend
from recalign.commands.register import register
from recalign.common.artifacts import read_parquet, write_json, write_parquet
from recalign.common.errors import RecalignError
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.llm.model.base import load_language_model
from recalign.params.load import parse_params
from recalign.preferences.inference.engines import open_engine
from recalign.preferences.profiles import profiles
from recalign.preferences.profiles.profiles import Histories, closed_statements
from recalign.preferences.tastes.ledger import LEDGER, Edit, Value, write_edits
from recalign.ranking import language_model as under_test
from recalign.ranking.adapters import open_language_model
from recalign.ranking.package import package_digest, read_settings, settings_of, write_package
from recalign.registry import served_model
from recalign.registry.promotion import download_package
from recalign.registry.serving import Query, Service, find_base

ROOT = Path(__file__).parents[2]
CHAMPION = "models:/recalign@champion"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project whose S-DPO adapter is champion."""
    root = tmp_path_factory.mktemp("served") / "project"
    params = small_params()
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


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal but for rounding: rows of one call share forward passes, in which each adds up at a place of its own.

    A log-prob is a sum over up to 640 logits (its logarithm) and a width of 64, in two layers of seven sums.
    """
    scores = [[item["score"] for item in answer["items"]] for answer in (one, other)]
    told = [answer | {"items": [{**item, "score": None} for item in answer["items"]]} for answer in (one, other)]
    return told[0] == told[1] and scores[0] == pytest.approx(scores[1], rel=rounding(640 + 2 * 7 * 64), abs=1e-6)


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
    assert alike(by_id, by_title)
    assert alike(by_id, mixed)


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


CODES = {number: f"B0791{number:02}Q" for number in range(1, 11)} | {11: "1984", 12: "007"}


@pytest.fixture(scope="module")
def coded(project, tmp_path_factory) -> Service:
    """The champion as it is where the log's ids are codes; its eleventh film is called 007, as the twelfth's id is."""
    package = tmp_path_factory.mktemp("coded") / "package"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(project)
        shutil.copytree(download_package(CHAMPION), package)
        items = read_parquet(package / "items.parquet")
        titles = pa.array([*TITLES[:10], "007", TITLES[11]])
        with resealed(package) as out:
            write_parquet(out / "items.parquet", items.set_column(1, "title", titles))
            RawIds(CODES).write(out)
        return Service.load(package)


def test_the_ids_of_the_log_itself_are_taken_and_given(coded):
    """Codes in and out, also where a number is one, and what the history holds is not recommended."""
    answer = coded.answer(Query(history=["B079101Q", "B079104Q"], k=20))
    assert {item["item_id"] for item in answer["items"]} == set(CODES.values()) - {"B079101Q", "B079104Q"}
    assert answer["unknown"] == []
    by_title = coded.answer(Query(history=[TITLES[0], TITLES[3]], k=20))
    assert by_title == answer
    (best,) = coded.answer(Query(history=[1984], candidates=["B079102Q"], k=1))["items"]
    assert (best["item_id"], best["title"]) == ("B079102Q", TITLES[1])


def test_an_unknown_code_is_named_in_the_answer(coded):
    """It is read as a title, since it may be one."""
    assert coded.answer(Query(history=["B079101Q", "B0ZZZZZQ"]))["unknown"] == ["B0ZZZZZQ"]


@pytest.mark.parametrize("entry", [4, "4", "12.0", "+7", 2**70, "99999"])
def test_a_number_that_is_no_id_is_refused_and_not_read_as_a_title(coded, entry):
    """Nor as one of the numbers that stages count with."""
    with pytest.raises(RecalignError, match=r"history has item .* not in the catalogue of 12 films, as an id or as a"):
        coded.answer(Query(history=["B079101Q", entry]))


def test_a_text_that_is_the_id_of_one_and_the_title_of_another_is_refused(coded):
    """Both are named."""
    with pytest.raises(RecalignError, match=r"'007', which is the id of 'The Fire of Night' and the title of .*1984"):
        coded.answer(Query(history=["007"]))


def test_ids_as_text_mean_the_ids(model):
    """Where the log counts its items: "1" is item 1, and "99" is none."""
    by_text, by_number = ask(model, {"history": ["1", " 4"]}, {"history": [1, 4]})
    assert by_text == by_number


def test_a_version_from_before_ids_were_kept_still_answers(project, tmp_path):
    """By the numbers, which are all that it knows."""
    package = shutil.copytree(download_package(CHAMPION), tmp_path / "package")
    with resealed(package) as out:
        (out / "item_ids.parquet").unlink()
    service = Service.load(package)
    assert service.answer(Query(history=[1, "4"])) == service.answer(Query(history=["1", 4]))
    with pytest.raises(RecalignError, match="history has item '99'"):
        service.answer(Query(history=["99"]))


def test_recommend_takes_and_prints_the_logs_own_ids(project, tmp_path, monkeypatch, capsys):
    """User "U3" is not user 3, and the items are printed by their codes."""
    own = shutil.copytree(project, tmp_path / "own")
    monkeypatch.chdir(own)
    write_interactions(own, CODES)
    events = [{"user_id": 3, "item_id": item, "position": place} for place, item in enumerate((1, 4, 7))]
    write_parquet(own / layout.PREPARED / "events.parquet", pa.Table.from_pylist(events))
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params = parse_params(tree | {"budget": "smoke"})
    recommend(params, "U3", k=9)
    printed = capsys.readouterr().out
    assert "Liked: The House of Night, The Winter of Night, The Story of Night" in printed
    assert "B079102Q" in printed
    assert "B079101Q" not in printed
    for unknown in ("3", "U", "u3"):
        with pytest.raises(RecalignError, match=f"--user is {unknown}, whom the prepared log does not hold; .* U3 "):
            recommend(params, unknown)


def test_recommend_reads_what_a_user_said_of_claims_and_tells_which_edit_spoke(project, tmp_path, monkeypatch, capsys):
    """Drama, which was inferred, is forbidden, and crime changed to comedy: other users' edits change nothing."""
    own = shutil.copytree(project, tmp_path / "own")
    monkeypatch.chdir(own)
    events = [{"user_id": 3, "item_id": item, "position": place} for place, item in enumerate((1, 4, 7))]
    write_parquet(own / layout.PREPARED / "events.parquet", pa.Table.from_pylist(events))
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params = parse_params(tree | {"budget": "smoke"})

    def answer() -> dict[str, Any]:
        recommend(params, "U3", k=9, as_json=True)
        return dict(json.loads(capsys.readouterr().out))

    before = answer()
    drama, crime, comedy = (Value("genre", name) for name in ("drama", "crime", "comedy"))
    write_edits(own / LEDGER, {"U4": (Edit(comedy),)})
    assert answer() == before
    write_edits(own / LEDGER, {"U3": (Edit(drama), Edit(crime, comedy))})
    after = answer()
    comedies, numbers = {2, 5, 8, 11}, [item["item_id"] for item in after["items"]]
    assert before["preference"] == "Likes drama films."
    assert after["preference"] == "Likes comedy films."
    assert {item["item_id"] for item in before["items"]} - set(numbers) == {10}
    assert set(numbers[:4]) == comedies
    assert set(numbers[4:]) == {3, 6, 9, 12}
    assert after["edits"][0] == f"genre=drama forbidden: leaves out 1 item ({TITLES[9]})"
    assert after["edits"][1].startswith("genre=crime changed to genre=comedy: puts first 4 items (The ")
    recommend(params, "U3")
    assert "Your edit genre=drama forbidden: leaves out 1 item" in capsys.readouterr().out
    monkeypatch.setattr(profiles, "MAX_STATEMENTS", 1)  # drama is none of the most met values any more
    assert answer()["edits"] == after["edits"]


def test_the_signature_names_what_goes_in_and_what_comes_out(model):
    """Both, as Unity Catalog and Spark ask for; an answer has the fields that it names."""
    inputs, outputs = model.metadata.get_input_schema(), model.metadata.get_output_schema()
    assert [(spec.name, spec.required) for spec in inputs] == [("history", False), ("candidates", False), ("k", False)]
    (answer,) = ask(model, {"history": [1], "k": 1})
    assert list(answer) == outputs.input_names()
    types = {spec.name: str(spec.type) for spec in outputs}
    assert types["evidence"] == "Array(string)"
    assert "score: double" in types["items"]


def test_the_logged_example_is_answered_as_it_stands(model):
    """A title and an id, as MLflow keeps the body of such a request beside the version."""
    from mlflow.pyfunc.scoring_server import invocations

    body = model.metadata.get_serving_input(download_package(CHAMPION).parents[1])
    assert json.loads(body)["dataframe_split"]["data"] == [[[TITLES[0], 2], 3]]
    response = invocations(body, "application/json", model, model.metadata.get_input_schema())
    (answer,) = json.loads(response.response)["predictions"]
    assert (len(answer["items"]), answer["unknown"]) == (3, [])


def test_a_version_registered_before_signatures_had_inputs_answers_and_refuses_as_before(
    project, tmp_path, monkeypatch
):
    import mlflow
    from mlflow.models import ModelSignature

    own = shutil.copytree(project, tmp_path / "own", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    shutil.copy(empty_registry(), own / "mlflow.db")
    monkeypatch.chdir(own)
    monkeypatch.setattr(served_model, "SIGNATURE", ModelSignature(outputs=served_model.SIGNATURE.outputs))
    register(small_params(), root=own)
    before = mlflow.pyfunc.load_model("models:/recalign/1")
    assert before.metadata.get_input_schema() is None
    assert len(ask(before, {"history": [1, TITLES[3]], "k": 3})[0]["items"]) == 3
    with pytest.raises(mlflow.MlflowException, match="row 0: top_k: no such field"):
        ask(before, {"history": [1], "top_k": 3})


def test_a_field_that_is_refused_is_that_of_its_own_request(model):
    """MLflow tells of it in its log only, from where it is taken; nothing of one request is left for the next."""
    from concurrent.futures import ThreadPoolExecutor

    from mlflow.exceptions import MlflowException

    def said(number: int) -> str:
        odd = {f"odd_{number}": 1} if number % 2 else {}
        try:
            return str(len(ask(model, {"history": [1], "k": 2} | odd)[0]["items"]))
        except MlflowException as error:
            return error.message.partition(";")[0]

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(said, range(8)))
    assert found == ["2", "row 0: odd_1: no such field", "2", "row 0: odd_3: no such field",
                     "2", "row 0: odd_5: no such field", "2", "row 0: odd_7: no such field"]  # fmt: skip


def test_columns_of_unequal_length_are_refused_without_a_word_of_them(model):
    """MLflow makes a table of `inputs` before the model sees it, and would repeat all of it."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        model.predict({"history": [[1], ["Heat " * 1000]], "k": [1]})
    assert (caught.value.error_code, len(caught.value.message) < 200) == ("INVALID_PARAMETER_VALUE", True)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"history": [1], "top_k": 3}, "top_k: no such field; allowed are history, candidates, k"),
        ({"history": [1], "top_k": None, "histroy": [2]}, "histroy, top_k: no such field"),
        ({"k": 3}, "row 0: history: Field required"),
        ({"history": ["99"]}, "row 0: history has item '99', which is not in the catalogue of 12 films"),
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


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"history": list(range(1001))}, "history: List should have at most 1000 items"),
        ({"history": [1], "candidates": ["x"] * 100_000}, "candidates: List should have at most 1000 items"),
        ({"history": [1], "k": 1001}, "k: Input should be less than or equal to 1000"),
        ({"history": ["A" * 10_000_000]}, r"history\.0: String should have at most 1000 characters"),
        ({"history": [10**400]}, "history has item 10000.*…, which is not in the catalogue"),
        ({"history": [1], "x" * 100_000: 1}, "x…: no such field"),
    ],
)
def test_what_is_too_long_is_refused_at_once_by_its_limit_and_not_echoed(model, query, said):
    """Ten megabytes took eleven seconds, and came back."""
    from mlflow.exceptions import MlflowException

    started = time.monotonic()
    with pytest.raises(MlflowException, match=said) as caught:
        ask(model, query)
    assert time.monotonic() - started < 2
    assert len(caught.value.message) < 600
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_call_of_too_many_rows_is_refused(model):
    """With the number that may be asked."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="one call has 1000 rows at most, not 1001"):
        ask(model, *[{"history": [1]}] * 1001)


def test_a_long_title_is_read_by_its_beginning(model):
    """Its tokens are cut in any case; so is the text, before anything is spent on it."""
    long, longer = ask(model, {"history": ["Heat " * 150]}, {"history": ["Heat " * 190]})
    assert [item["item_id"] for item in long["items"]] == [item["item_id"] for item in longer["items"]]
    builder = model.unwrap_python_model().service.recommender.builder
    started = time.monotonic()
    assert builder.title_ids("Heat " * 2_000_000) == builder.title_ids("Heat " * 400)
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("history,k\nHeat,3\n", "row 0: history: Input should be a valid list"),
        ("history,k\n1,3\n", "row 0: history: Input should be a valid list"),
        ('history,k\n"[1, 4]",2.5\n', "row 0: history: Input should be a valid list"),
        ("Heat,3\nAlien,4\n", "row 0: 3, Heat: no such field; allowed are history, candidates, k, as dataframe"),
        ("history,history\n1,2\n", "no such field"),
        ("k\n3\n", "row 0: history: Field required"),
        ("history\n\x00\x01\n", "row 0: history: Input should be a valid list"),
    ],
)
def test_csv_that_is_no_query_is_one_line(model, text, said):
    """As MLflow reads the body of text/csv; HTTP 400 and no stack trace."""
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    with pytest.raises(MlflowException, match=said) as caught:
        invocations(text, "text/csv", model, None)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "stack_trace" not in caught.value.serialize_as_json()


def test_an_answer_names_model_and_version_and_what_ranked(model):
    """Lists by their rule, the catalogue by its own; a package that no registry gave has neither name nor version."""
    (answer,) = ask(model, {"history": [1], "k": 2})
    told = {name: answer[name] for name in ("model", "version", "system", "ranked_by")}
    assert told == {"model": "recalign", "version": "1", "system": "llm-sdpo", "ranked_by": "log-prob"}


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
    params = small_params()
    write_ranks(own, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, own, weight=0.01)
    register(params, "fusion", root=own)
    answer, again = ask(mlflow.pyfunc.load_model(CHAMPION), {"history": [1, 4, 7], "k": 3},
                        {"history": [TITLES[0], TITLES[3], TITLES[6]], "k": 3})  # fmt: skip
    assert alike(answer, again)
    assert answer["preference"] == "Likes drama films."
    assert [item["item_id"] for item in answer["items"]] == [2, 3, 5]  # by popularity, which weighs the most


def test_a_fusion_whose_language_model_weighs_nothing_answers_without_loading_it(project, tmp_path, monkeypatch):
    """As it answers where it is loaded, but for the time that takes; its warning of a random model goes as well."""
    own = shutil.copytree(project, tmp_path / "own", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    monkeypatch.chdir(own)
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params = parse_params(tree | {"budget": "smoke"})
    write_ranks(own, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    loaded = []
    real = under_test.load_language_model

    def load(*given, **named):
        loaded.append(given)
        return real(*given, **named)

    monkeypatch.setattr(under_test, "load_language_model", load)
    for weight, loads in ((0.5, 1), (0.0, 0)):
        write_fusion(params, own, weight=weight)
        settings = settings_of(params, "fusion", own)
        write_package(settings, own, tmp_path / f"package-{weight}")
        loaded.clear()
        answer = Service.load(tmp_path / f"package-{weight}").answer(Query(history=[1, 4, 7], k=3))
        assert len(loaded) == loads
        assert settings.random_model == (weight > 0)
    assert [item["item_id"] for item in answer["items"]] == [2, 3, 5]  # popularity alone


@pytest.mark.parametrize("engine", ["statements", "generate", "counting"])
def test_where_prompts_show_profiles_serving_infers_them_by_the_engine_that_was_measured(project, tmp_path, engine):
    """The base without the adapter writes them, as in stage profiles, and the ranking reads what the answer shows."""
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"budget": "smoke"}
    tree["prompt"]["profile"] = True
    tree["profiles"] |= {"engine": engine, "claims": 2, "max_new_tokens": 6}
    params = parse_params(tree)
    settings = settings_of(params, "sdpo", project)
    package = tmp_path / "package"
    write_package(settings, project, package)
    service = Service.load(package)
    answer, other = service.answers([Query(history=[1, 4, 7], k=3), Query(history=[TITLES[1], "A Film Nobody Made"])])
    catalogue = Items.read(project / layout.PREPARED)
    infer = open_engine(
        params.profiles, catalogue, "films", lambda: load_language_model(project / layout.BASE, params.base), None,
        clock=True,
    )  # fmt: skip
    statements = closed_statements(catalogue, catalogue.popularity, "films")
    measured, _ = infer(Histories("test", None, {0: (1, 4, 7), 1: (2,)}, catalogue.popularity), statements)
    assert (answer["preference"], answer["inferred_by"]) == (measured.text, engine)
    assert answer["evidence"] == [TITLES[item - 1] for item in measured.evidence]
    assert other["inferred_by"] == engine
    assert answer["preference"] or engine == "generate"
    ranked = service.recommender.rank_items([1, 4, 7], None, 3, profile=measured.text)
    assert [item["item_id"] for item in answer["items"]] == [best.item_id for best in ranked]
    assert answer["items"][0]["score"] == pytest.approx(ranked[0].score, abs=1e-4)


def test_a_history_of_unknown_titles_alone_has_no_preference(project, tmp_path):
    """Nor does it stop the answer."""
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"budget": "smoke"}
    tree["prompt"]["profile"] = True
    package = tmp_path / "package"
    write_package(settings_of(parse_params(tree), "sdpo", project), project, package)
    answer = Service.load(package).answer(Query(history=["A Film Nobody Made"], k=2))
    assert (answer["preference"], answer["inferred_by"], answer["evidence"]) == ("", "statements", [])
    assert len(answer["items"]) == 2


def test_a_version_of_before_keeps_its_digest(project):
    """What an engine was is no part of a package whose prompts show no profile."""
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"budget": "smoke"}
    settings = settings_of(parse_params(tree), "sdpo", project)
    assert settings.profiles is None
    assert "profiles" not in settings.model_dump(exclude_none=True)
    tree["profiles"]["claims"] = 1
    other = settings_of(parse_params(tree), "sdpo", project)
    assert package_digest(settings, project) == package_digest(other, project)


def test_evaluation_ranking_and_serving_open_the_model_with_the_same_seed_and_threads(project, monkeypatch):
    """Threads order sums: what is served by another number of them differs from what was measured."""
    seen = []
    real = under_test.load_language_model

    def load(base, params, *, adapter, seed, threads):
        seen.append((adapter is not None, params, seed, threads))
        return real(base, params, adapter=adapter, seed=seed, threads=threads)

    monkeypatch.setattr(under_test, "load_language_model", load)
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params = parse_params(tree | {"budget": "smoke"})
    catalogue = Items.read(layout.PREPARED)
    sdpo = layout.ALIGN / "sdpo"
    trials = SimpleNamespace(catalogue=catalogue)
    open_language_model("llm-sdpo", sdpo, params, layout.Project(), trials)
    open_adapter(params, str(sdpo), catalogue)
    Service.load(download_package(CHAMPION))
    assert seen == [(True, params.base, params.seed, params.threads)] * 3


def test_a_package_of_before_keeps_its_digest(project):
    """Neither field of the opener makes another version of the same adapter."""
    settings = read_settings(download_package(CHAMPION))
    other = settings.model_copy(update={"seed": 7, "threads": 3})
    assert package_digest(other, project) == package_digest(settings, project)


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
        for body in ({"inputs": {"history": [[1, 4]], "k": [3]}}, {"instances": [{"history": [1, 4], "k": 3}]}):
            assert len(_post(port, body)[1]["predictions"][0]["items"]) == 3
        unknown = _post(port, {"dataframe_records": [{"history": [1], "top_k": 3}]})
        assert unknown[0] == 400
        assert "top_k: no such field; allowed are history, candidates, k" in unknown[1]["message"]
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
