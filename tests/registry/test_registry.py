"""Registration, promotion and roll-back, against a real MLflow registry in a folder of the test's own."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from registry_project import (
    as_evaluated,
    empty_registry,
    small_params,
    work_in,
    write_adapter,
    write_fusion,
    write_interactions,
    write_prepared,
    write_project,
    write_ranks,
)
from resealed import resealed
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from recalign import project as layout
from recalign.commands.compare import compare
from recalign.commands.opened import open_adapter
from recalign.commands.rank import Named
from recalign.commands.rank import rank as rank_lists
from recalign.commands.recommend import _print as print_answer
from recalign.commands.recommend import recommend
from recalign.commands.register import one_at_a_time, register
from recalign.common.artifacts import file_digest, read_parquet, write_json, write_parquet
from recalign.common.errors import RecalignError
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.evaluation.generation import FREE, Answer, write_answers
from recalign.evaluation.ranks import SystemRanks
from recalign.llm.model.adapters import adapter_digest
from recalign.llm.model.base import load_language_model
from recalign.params.load import Params, parse_params
from recalign.ranking.measured import ANSWERS, language_model_artifacts
from recalign.ranking.package import read_settings
from recalign.ranking.trial import rank_sampled, read_trial
from recalign.registry.log import check_params_ran
from recalign.registry.promotion import aliased, champions, current, download_adapter, pinned, promote, rollback
from recalign.registry.serving import Query, Service, load_recommender
from recalign.registry.tracking import EACH_CALL, connect, experiment, tracking_uri

ROOT = Path(__file__).parents[2]
NAME = "recalign"


@pytest.fixture(scope="module")
def params() -> Params:
    """The repository's params at budget smoke; this small project's users are enough."""
    return small_params()


@pytest.fixture(scope="module")
def made(params, tmp_path_factory) -> Path:
    """A project with an empty registry, made once."""
    root = tmp_path_factory.mktemp("made") / "project"
    write_project(params, ROOT / "params.yaml", root)
    shutil.copy(empty_registry(), root / "mlflow.db")
    return root


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A copy of that project, and the working directory."""
    root = shutil.copytree(made, tmp_path / "project")
    work_in(root, monkeypatch)
    return root


def new_adapter(params: Params, root: Path, seed: int) -> None:
    """Another S-DPO adapter in the place of the present one, evaluated with the same ranks."""
    write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=seed)
    as_evaluated(root)


def test_the_first_adapter_that_beats_popularity_is_champion_with_all_that_explains_it(params, project):
    """Params, metrics, report, verdict and lineage are in the run; the base's weights are nowhere."""
    outcome = register(params)
    assert outcome.startswith("recalign: version 1 (sdpo) is champion: NDCG@10 minus that of popularity is +0.500")
    client = connect(project)
    version = client.get_model_version(NAME, "1")
    run = client.get_run(version.run_id)
    assert run.data.params["sft.epochs"] == "1"
    assert run.data.metrics["ndcg_at_10"] == 1.0
    assert set(run.data.metrics) == {"hr_at_1", "hr_at_5", "ndcg_at_10", "mrr", "popularity_ndcg_at_10"}
    assert run.info.run_name == "llm-sdpo on simulated, smoke"
    assert (run.data.tags["random_model"], version.tags["random_model"]) == ("true", "true")
    for told in (run.data.tags["mlflow.note.content"], version.description):
        assert told.startswith("**Random model: the figures mean nothing.**")
        assert "Should you use the language model? No." in told
    read = {own.dataset.name: own.tags[0].value for own in run.inputs.dataset_inputs}
    assert read == {"simulated": "training", "simulated, warm test cases, uniform": "evaluation"}
    logged = {file.path for file in client.list_artifacts(version.run_id)}
    assert logged >= {"params.yaml", "metrics.json", "report.html", "gate.json", "systems.json", "ranks"}
    tags = [version.tags[name] for name in ("gate", "gate_bar", "gate_manifest")]
    assert tags == ["champion", "popularity", "first"]
    base = file_digest(next((project / layout.BASE).glob("*.safetensors")))
    files = [path for path in (project / "mlartifacts").rglob("*") if path.is_file()]
    assert base not in {file_digest(path) for path in files}
    assert not [path for path in files if path.suffix in {".pkl", ".pickle"}]


def test_a_random_model_is_registered_only_where_the_params_allow_it(params, project):
    """Refused before anything is looked up, for an adapter and a fusion alike; no version is left."""
    strict = params.model_copy(update={"registry": params.registry.model_copy(update={"allow_random": False})})
    write_ranks(project, {"popularity": [3], "llm-sdpo": [1], "fusion": [1]})
    write_fusion(params, project)
    for chosen in ("sdpo", "fusion"):
        with pytest.raises(RecalignError, match=r"tiny-random \(random model: the figures mean nothing\).*budget=demo"):
            register(strict, chosen)
    assert not connect(project).search_registered_models()


def test_an_adapter_that_loses_to_popularity_stays_challenger_and_stands_in(params, project, caplog):
    """There is no champion; recommending takes the challenger and says so."""
    caplog.set_level("INFO")
    write_ranks(project, {"popularity": [2], "llm-sdpo": [4]})
    assert "stays challenger" in register(params)
    found = current(params)
    assert (found.version, found.alias) == ("1", "challenger")
    assert "has no champion yet; the challenger, version 1, stands in" in caplog.text


def test_an_adapter_that_a_leak_probe_equals_stays_challenger_and_is_told_why(params, project):
    """It beats popularity, but the candidate lists alone give as much; without an audit nothing is registered."""
    path = project / layout.REPORTS / "metrics.json"
    write_json(path, {"audit": {"unbeaten": {"llm-sdpo": "NDCG@10 minus the probe's is not above zero"}}})
    outcome = register(params)
    assert "version 1 (sdpo) stays challenger" in outcome
    assert outcome.endswith("on 20 cases of 10 users; NDCG@10 minus the probe's is not above zero")
    assert aliased(connect(project), NAME, "champion") is None
    write_json(path, {})
    new_adapter(params, project, seed=9)
    with pytest.raises(RecalignError, match=r"metrics\.json holds no audit of the candidate lists; run 'dvc repro'"):
        register(params)


def test_the_same_adapter_again_is_the_same_version_and_moves_nothing(params, project):
    """So that a roll-back is not undone by the next registration."""
    write_ranks(project, {"popularity": [5], "llm-sdpo": [4]})
    register(params)
    new_adapter(params, project, seed=5)
    write_ranks(project, {"popularity": [5], "llm-sdpo": [1]})
    register(params)
    assert rollback(params, "complaints") == "1"
    assert register(params) == "recalign: this adapter (sdpo) is version 2 already; nothing was moved"
    assert aliased(connect(project), NAME, "champion") == "1"
    assert len(connect(project).search_model_versions(f"name = '{NAME}'")) == 2


def test_a_challenger_meets_the_champion_on_the_newest_manifest(params, project):
    """The champion, measured on an older log, is scored anew with its own adapter, and these ranks are kept."""
    register(params)
    new_adapter(params, project, seed=3)
    write_prepared(project, digest="second", days=3)
    write_ranks(project, {"popularity": [6], "llm-sdpo": [6]}, digest="second", days=3)
    outcome = register(params)
    assert outcome.startswith("recalign: version 2 (sdpo) stays challenger: NDCG@10 minus that of version 1 is −")
    client = connect(project)
    assert (aliased(client, NAME, "champion"), aliased(client, NAME, "challenger")) == ("1", "2")
    first, second = (client.get_model_version(NAME, version).run_id for version in "12")
    verdict = json.loads(Path(client.download_artifacts(second, "gate.json")).read_text())
    assert (verdict["manifest_digest"], verdict["bar"], verdict["decision"]) == ("second", "version 1", "challenger")
    assert registered_ranks(params, project).ranks.tolist() in kept_ranks(client, first)


def kept_ranks(client: MlflowClient, run: str) -> list[list[int]]:
    """The ranks of every file that a run keeps for comparisons."""
    files = [file.path for file in client.list_artifacts(run, "ranks")]
    return [read_parquet(Path(client.download_artifacts(run, file)))["rank"].to_pylist() for file in files]


def test_a_champion_is_scored_again_where_only_its_cases_histories_changed(params, project, caplog):
    """The same manifest digest, candidates and examples, another history: ranks of before are not those of now."""
    caplog.set_level("INFO")
    register(params)
    examples = read_parquet(project / layout.PREPARED / "examples.parquet").to_pylist()
    others = [row | {"history": [row["history"][0]]} for row in examples]
    with resealed(project / layout.PREPARED) as out:
        write_parquet(out / "examples.parquet", pa.Table.from_pylist(others))
    new_adapter(params, project, seed=3)
    write_ranks(project, {"popularity": [6], "llm-sdpo": [6]})
    register(params)
    assert "version 1: scored again on the newest cases" in caplog.text
    client = connect(project)
    assert registered_ranks(params, project).ranks.tolist() in kept_ranks(
        client, client.get_model_version(NAME, "1").run_id
    )
    caplog.clear()
    new_adapter(params, project, seed=4)
    register(params)
    assert "version 1: ranks on these very cases" in caplog.text


def test_tries_against_a_champion_share_one_budget_that_reruns_do_not_renew(params, project):
    """Another adapter is the next try, the same again none; what wins starts anew; a roll-back goes on where it was."""
    tries = []

    def tried(seed: int, rank: int) -> str:
        new_adapter(params, project, seed)
        write_ranks(project, {"popularity": [5], "llm-sdpo": [rank]})
        outcome = register(params)
        client = connect(project)
        newest = max(client.search_model_versions(f"name = '{NAME}'"), key=lambda version: int(version.version))
        tries.append((newest.tags["gate_bar"], newest.tags["gate_try"], newest.tags["gate"]))
        return outcome

    tried(2, 3)
    tried(3, 4)
    assert tried(3, 4).endswith("is version 2 already; nothing was moved")
    client = connect(project)
    client.delete_model_version(NAME, "2")  # its try stays spent
    tried(4, 4)
    tried(5, 1)
    tried(6, 2)
    rollback(params, "complaints")
    tried(7, 4)
    assert tries == [
        ("popularity", "1", "champion"),
        ("version 1", "1", "challenger"),
        ("version 1", "1", "challenger"),
        ("version 1", "2", "challenger"),
        ("version 1", "3", "champion"),
        ("version 4", "1", "challenger"),
        ("version 1", "4", "challenger"),
    ]
    promote(params, "3", "a person's choice")
    tried(8, 4)
    assert tries[-1][:2] == ("version 3", "5")


def test_a_run_of_too_few_users_spends_no_try_and_makes_no_champion(params, project):
    """The sentence names the parameter and what to do."""
    strict = params.model_copy(update={"registry": params.registry.model_copy(update={"min_users": 30})})
    outcome = register(strict)
    assert "version 1 (sdpo) stays challenger" in outcome
    assert "10 users are too few to decide: registry.min_users is 30; evaluate more cases" in outcome
    client = connect(project)
    assert client.get_model_version(NAME, "1").tags["gate_try"] == "0"
    assert "gate_tries" not in client.get_registered_model(NAME).tags


def test_losses_within_the_margin_do_not_add_up_over_champions(params, project):
    """Rank 1, then 2, then 3: each within 0.4 of the one before, the third 0.5 below the first; tries go on."""
    lenient = params.model_copy(update={"registry": params.registry.model_copy(update={"margin": 0.4})})
    outcomes = []
    for seed, rank in ((2, 1), (3, 2), (4, 3)):
        new_adapter(params, project, seed)
        write_ranks(project, {"popularity": [5], "llm-sdpo": [rank]})
        outcomes.append(register(lenient))
    assert "version 2 (sdpo) is champion" in outcomes[1]
    assert "version 3 (sdpo) stays challenger" in outcomes[2]
    assert "the lower end for try 2" in outcomes[2]
    assert outcomes[2].endswith("against version 1, the last champion that won outright, is −0.500, not above −0.4")


def test_a_champion_that_was_deleted_by_hand_leaves_the_one_before_as_the_bar(params, project, caplog):
    """Not popularity, and no refused challenger as stand-in."""
    for seed, rank in ((2, 3), (3, 2)):
        new_adapter(params, project, seed)
        write_ranks(project, {"popularity": [5], "llm-sdpo": [rank]})
        register(params)
    connect(project).delete_model_version(NAME, "2")
    found = current(params)
    assert (found.version, found.alias) == ("1", "champion")
    assert "no version has the alias champion; the champion before, version 1, counts" in caplog.text
    new_adapter(params, project, seed=4)
    write_ranks(project, {"popularity": [5], "llm-sdpo": [4]})
    assert "stays challenger: NDCG@10 minus that of version 1" in register(params)


def flip_bytes(file: Path) -> None:
    """Turn over 200 bytes in the middle of a file."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(255 - byte for byte in content[middle : middle + 200])
    file.write_bytes(content)


def put_another(params: Params, folder: Path) -> None:
    """A whole and sound adapter of the same base that nobody evaluated."""
    write_adapter(params, folder.parents[3], folder, seed=77)


@pytest.mark.parametrize("change", [lambda _, place: flip_bytes(place / "adapter_model.safetensors"), put_another])
def test_an_adapter_that_did_not_make_the_ranks_is_neither_registered_nor_compared_nor_asked(params, project, change):
    """Changed bytes and another adapter alike; both digests and the fix are named, and the registry stays empty."""
    place = project / layout.ALIGN / "sdpo"
    before = adapter_digest(place)[:12]
    change(params, place)
    now = adapter_digest(place)[:12]
    said = rf"has digest {now}, but the ranks of llm-sdpo were made by {before}: .* run 'dvc repro'"
    for ask in (lambda: register(params), lambda: register(params, "sdpo"), lambda: compare(params, ".", ".")):
        with pytest.raises(RecalignError, match=said):
            ask()
    with pytest.raises(RecalignError, match=rf"{said}|was changed after it was written"):
        open_adapter(params, str(layout.ALIGN / "sdpo"), Items.read(layout.PREPARED))
    write_fusion(params, project)
    with pytest.raises(RecalignError, match=said):
        register(params, "fusion")
    assert connect(project).search_registered_models() == []


def test_a_reference_a_base_and_popularity_belong_to_the_ranks_as_the_adapter_does(params, project):
    """The reward needs the SFT adapter; the first champion is measured by popularity's ranks."""
    path = project / layout.RANKS / "systems.json"
    systems = json.loads(path.read_text())
    made = language_model_artifacts(layout.BASE, layout.ALIGN / "sdpo", layout.SFT)
    for role in ("reference", "base"):
        entry = systems["llm-sdpo"] | {"ranked_by": "reward", "artifacts": made | {role: "0" * 64}}
        write_json(path, systems | {"llm-sdpo": entry})
        with pytest.raises(RecalignError, match=f"the {role} in .* the ranks of llm-sdpo were made by 000000000000"):
            register(params)
    write_json(path, systems)
    write_fusion(params, project)  # fits popularity
    write_json(path, systems | {"popularity": systems["popularity"] | {"artifacts": {"recommender": "0" * 64}}})
    for ask in (lambda: register(params), lambda: compare(params, ".", ".")):
        with pytest.raises(RecalignError, match="the ranks of popularity were made by 000000000000"):
            ask()


def test_ranks_that_do_not_say_what_made_them_are_evaluated_again_before_they_are_registered(params, project):
    """Of an earlier version."""
    path = project / layout.RANKS / "systems.json"
    systems = json.loads(path.read_text())
    write_json(path, systems | {"llm-sdpo": {k: v for k, v in systems["llm-sdpo"].items() if k != "artifacts"}})
    with pytest.raises(RecalignError, match=r"does not say what made the ranks of llm-sdpo .*; run 'dvc repro'"):
        register(params)


def test_a_package_with_another_adapter_is_not_served(params, project, tmp_path):
    """Even where its manifest was written anew over it."""
    register(params)
    package = shutil.copytree(download_adapter("models:/recalign/1").parent, tmp_path / "package")
    write_adapter(params, project, package / "adapter", seed=77)
    seal(package)
    with pytest.raises(RecalignError, match=f"the adapter in {package} has digest .* of llm-sdpo were made by"):
        load_recommender(package, layout.BASE, Items.read(layout.PREPARED))


def test_a_run_with_hidden_items_is_not_registered(params, project):
    """It is evaluation: its model was kept from items that people like."""
    path = project / layout.PREPARED / "summary.json"
    write_json(path, json.loads(path.read_text()) | {"hidden_items": 0.1})
    with pytest.raises(RecalignError, match=r"prepare\.hidden_items was 0\.1 in this run: .*; set it to 0\.0 and run"):
        register(params)
    assert connect(project).search_registered_models() == []


def test_ranks_of_other_cases_than_the_projects_are_not_registered(params, project):
    """data/prepared was made anew, and not evaluated since."""
    write_prepared(project, digest="second", days=3)
    with pytest.raises(RecalignError, match=r"was made on other cases than those in data/prepared; run 'dvc repro'"):
        register(params)


def registered_ranks(params: Params, project: Path) -> SystemRanks:
    """The ranks of version 1 on the present cases, worked out here."""
    package = download_adapter("models:/recalign/1").parent
    trial = read_trial(project / layout.PREPARED, "test", "uniform", None, params.seed)
    return rank_sampled(load_recommender(package, project / layout.BASE, Items.read(project / layout.PREPARED)), trial)


def test_a_better_challenger_takes_over_and_a_roll_back_returns(params, project):
    """Roll-backs walk back through the champions, as often as there are any."""
    write_ranks(project, {"popularity": [5], "llm-sdpo": [4]})
    for seed, rank in ((2, 4), (3, 2), (4, 1)):
        new_adapter(params, project, seed)
        write_ranks(project, {"popularity": [5], "llm-sdpo": [rank]})
        assert "is champion" in register(params)
    client = connect(project)
    assert champions(client, NAME) == ["1", "2", "3"]
    assert aliased(client, NAME, "previous_champion") == "2"
    assert rollback(params, "worse for new users") == "2"
    assert (aliased(client, NAME, "champion"), aliased(client, NAME, "previous_champion")) == ("2", "1")
    reason = client.get_model_version(NAME, "2").tags["moved_because"]
    assert reason == "rolled back from version 3: worse for new users"
    left = client.get_model_version(NAME, "3").tags
    assert left["moved_because"] == "rolled back to version 2: worse for new users"
    assert left["was_champion_because"].startswith("gate: NDCG@10 minus that of version 2")
    assert client.get_model_version(NAME, "1").tags["moved_because"].startswith("replaced by version 2: gate: ")
    assert rollback(params, "older still") == "1"
    assert aliased(client, NAME, "previous_champion") is None
    with pytest.raises(RecalignError, match="cannot be rolled back: its only champion is version 1"):
        rollback(params, "and again")


def test_a_promotion_in_mlflows_own_page_is_honoured(params, project):
    """The alias decides; the roll-back goes to the champion that it replaced."""
    register(params)
    for seed in (3, 4):
        new_adapter(params, project, seed)
        register(params)
    client = connect(project)
    client.set_registered_model_alias(NAME, "champion", "3")  # what the page does
    assert current(params).version == "3"
    assert rollback(params, "a slip of the hand") == "1"


def test_promotion_names_what_is_registered(params, project):
    """Unknown versions, empty reasons and the present champion are refused in one line."""
    with pytest.raises(RecalignError, match="registered are none: run 'recalign register' first"):
        promote(params, "1", "why not")
    with pytest.raises(RecalignError, match="has no champion and no challenger; run 'recalign register' first"):
        current(params)
    register(params)
    for version, said in (("7", "registered are 1"), ("new", "registered are 1"), ("1", "is the champion already")):
        with pytest.raises(RecalignError, match=said):
            promote(params, version, "a reason")
    new_adapter(params, project, 3)
    register(params)
    with pytest.raises(RecalignError, match="--reason is empty"):
        promote(params, "2", " ")


def test_an_adapter_comes_back_by_alias_and_by_version(params, project):
    """What is downloaded is what was trained, and loads on the base."""
    register(params)
    for uri in ("models:/recalign@champion", "models:/recalign/1"):
        adapter = download_adapter(uri)
        trained = project / layout.ALIGN / "sdpo" / "adapter_model.safetensors"
        assert file_digest(adapter / "adapter_model.safetensors") == file_digest(trained)
        assert load_language_model(project / layout.BASE, params.base, adapter=adapter).identity["id"] == "tiny-random"
    assert pinned("models:/recalign@champion") == pinned("models:/recalign/1") == "models:/recalign/1"
    with pytest.raises(RecalignError, match="models:/recalign@nobody is not in the registry"):
        pinned("models:/recalign@nobody")
    for uri in ("models:/recalign@nobody", "models:/recalign/9", "models:/other/1"):
        with pytest.raises(RecalignError, match="is not in the registry"):
            download_adapter(uri)


def test_figures_of_other_params_are_not_registered(params, project):
    """dvc.lock knows what the stages ran with."""
    lock = "stages: {sft: {params: {params.yaml: {sft.learning_rate: 0.5}}}}"
    (project / "dvc.lock").write_text(lock, encoding="utf-8")
    own = params.sft.learning_rate
    with pytest.raises(RecalignError, match=rf"sft\.learning_rate is {own}, but stage sft ran with 0\.5; run"):
        register(params)


@pytest.mark.parametrize(
    ("stage", "counts"),
    [
        ("align@sdpo", True),
        ("baselines@item_knn", True),
        ("pairs", True),
        ("by hand@1", True),
        ("align@dmpo", False),
        ("baselines@sasrec", False),
        ("distil", False),
        ("distil@sdpo", False),
    ],
)
def test_a_stage_that_dvc_yaml_has_no_more_does_not_stop_a_registration(project, stage, counts):
    """DVC leaves in dvc.lock what an objective, a recommender or a stage that was taken out once ran with."""
    shipped = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    added = shipped.replace("\nstages:\n", "\nstages:\n  by hand: {matrix: {n: [1, 2]}, cmd: 'true'}\n")
    (project / "dvc.yaml").write_text(added, encoding="utf-8")
    lock = f"stages:\n  {stage}:\n    params:\n      params.yaml:\n        align.batch: 31\n"
    (project / "dvc.lock").write_text(lock, encoding="utf-8")
    with pytest.raises(RecalignError, match="ran with 31") if counts else nullcontext():
        check_params_ran(project)


def test_two_registrations_at_once_make_one_version(params, project):
    """The one registers, the other waits and finds it."""
    start = threading.Barrier(2)

    def registered() -> str:
        start.wait()
        return register(params)

    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(each.result() for each in [pool.submit(registered) for _ in range(2)])
    assert first == "recalign: this adapter (sdpo) is version 1 already; nothing was moved"
    assert second.startswith("recalign: version 1 (sdpo) is champion")
    assert len(connect(project).search_model_versions(f"name = '{NAME}'")) == 1


KILLED = """
import importlib, os, sys
from registry_project import small_params
from recalign.commands.register import register
for place in sys.argv[1:]:
    if child := os.fork():
        print(place.rpartition(".")[2], os.WTERMSIG(os.waitpid(child, 0)[1]))
        continue
    module, name = place.rsplit(".", 1)
    setattr(importlib.import_module(module), name, lambda *_, **__: os.kill(os.getpid(), 9))
    register(small_params())
"""


def test_a_registration_that_was_killed_ends_in_one_version_with_all_that_belongs_to_it(params, project):
    """While it logs, before the version is there, and before its run has ended: none stays open, nothing is missing."""
    answer = Answer("llm-sdpo", FREE, "title", "1-8", 1, "x", "valid", hit=False)
    write_answers(project / layout.RANKS / ANSWERS, [answer])
    moments = ("recalign.registry.contest.write_answers", "mlflow.register_model", "mlflow.tracking.fluent.end_run")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests/worlds")])}
    command = [sys.executable, "-c", KILLED, *moments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["write_answers", "9", "register_model", "9", "end_run", "9"], done.stderr
    assert "version 1 (sdpo) is champion" in register(params)
    client = connect(project)
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    runs = client.search_runs([experiment(client, NAME).experiment_id])
    ended = {run.info.run_id: run.info.status for run in runs}
    assert (ended.pop(version.run_id), list(ended.values())) == ("FINISHED", ["KILLED", "KILLED"])
    assert len(client.list_artifacts(version.run_id, "answers")) == 1
    assert "Should you use the language model? No." in version.description


def test_a_registration_that_waits_in_vain_names_the_one_that_it_waited_for(params, project):
    """And what to do."""
    at_once = params.model_copy(update={"schedule": params.schedule.model_copy(update={"wait_minutes": 0.0})})
    with one_at_a_time(project, params), pytest.raises(RecalignError, match=r"waited 0 minutes for recalign register"):
        register(at_once)
    assert "is champion" in register(at_once)


def test_what_was_not_evaluated_is_not_registered(params, project):
    """The objective is named, and nothing is logged."""
    with pytest.raises(RecalignError, match="holds no llm-dmpo"):
        register(params, "dmpo")
    shutil.rmtree(project / layout.RANKS)
    with pytest.raises(RecalignError, match=r"systems\.json is missing; run 'dvc repro'"):
        register(params)
    assert connect(project).search_registered_models() == []


def test_a_worktree_registers_in_the_main_checkout(params, project, tmp_path):
    """Outputs come from the one, the registry is that of the other."""
    worktree = tmp_path / "worktree"
    shutil.copytree(project / "data", worktree / "data")
    shutil.copytree(project / "reports", worktree / "reports")
    shutil.copy(project / "params.yaml", worktree)
    register(params, root=worktree, home=project)
    assert current(params, project).alias == "champion"
    assert not (worktree / "mlflow.db").exists()


def test_the_environment_names_another_registry(monkeypatch, tmp_path):
    """Else it is an absolute path, so that every folder of the project means the same one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking_uri(tmp_path) == "http://127.0.0.1:9"


def test_two_checkouts_in_one_process_have_a_registry_each(params, project, tmp_path):
    """MLflow would export the first one's address to all that follows."""
    register(params)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(empty_registry(), other / "mlflow.db")
    with pytest.raises(RecalignError, match="has no champion and no challenger"):
        current(params, other)
    assert current(params, project).version == "1"


def test_a_registry_that_does_not_answer_is_one_line(monkeypatch, tmp_path):
    """The address and the variable are named."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RecalignError, match=r"MLFLOW_TRACKING_URI is http://127\.0\.0\.1:9, which does not answer"):
        connect(tmp_path)


def test_a_registry_that_hangs_is_given_up_soon_and_its_password_is_not_printed(monkeypatch, tmp_path):
    """A server that takes the call and never answers; here a second a try in place of nine."""
    monkeypatch.setitem(EACH_CALL, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:s3cret@127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(RecalignError, match="which does not answer within 30 s") as caught:
            connect(tmp_path)
    assert time.monotonic() - started < 30
    assert "s3cret" not in str(caught.value)
    assert "anna" not in str(caught.value)


class AnswersOnce(BaseHTTPRequestHandler):
    """A registry that answers its first call, and then is away or hangs."""

    def do_GET(self) -> None:
        body = b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not to the test's output."""


@pytest.mark.parametrize("hangs", [True, False])
def test_a_registry_that_stops_answering_after_the_first_call_is_one_line_without_its_password(
    params, monkeypatch, tmp_path, hangs
):
    """Whichever command meets it."""
    monkeypatch.setitem(EACH_CALL, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    said = r"http://…@127\.0\.0\.1:\d+ stopped answering \(each call has 30 s\)"

    def serve(server: HTTPServer) -> None:
        server.handle_request()
        if not hangs:
            server.server_close()

    for ask in (
        lambda: current(params, tmp_path),
        lambda: promote(params, "1", "why", tmp_path),
        lambda: rollback(params, "why", tmp_path),
    ):
        server = HTTPServer(("127.0.0.1", 0), AnswersOnce)
        threading.Thread(target=serve, args=[server]).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:s3cret@127.0.0.1:{server.server_port}")
        started = time.monotonic()
        with pytest.raises(RecalignError, match=said) as caught:
            ask()
        assert time.monotonic() - started < 30
        assert not {"anna", "s3cret"} & set(re.findall(r"\w+", str(caught.value)))
        server.server_close()


def packaged(project: Path) -> Path:
    """Where the registry keeps the package of its first version."""
    (settings,) = (project / "mlartifacts").rglob("package/settings.json")
    return settings.parent


def gone(project: Path) -> None:
    """Somebody made room."""
    shutil.rmtree(packaged(project))


def not_finite(project: Path) -> None:
    """Weights that are NaN, registered by a version that did not look."""
    package = packaged(project)
    file = package / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file)
    write_json(package / "settings.json", json.loads((package / "settings.json").read_text()) | {"artifacts": None})
    for folder in (package / "adapter", package):
        (folder / "manifest.json").unlink()


def flipped(project: Path) -> None:
    """A disk's fault."""
    flip_bytes(packaged(project) / "adapter" / "adapter_model.safetensors")


def foreign(project: Path) -> None:
    """A champion that some other tool made."""
    client = connect(project)
    made = client.create_model_version(NAME, (project / "data").as_uri())
    client.set_registered_model_alias(NAME, "champion", made.version)


@pytest.mark.parametrize("damage", [gone, not_finite, flipped, foreign])
def test_a_champion_that_cannot_be_scored_leaves_the_newcomer_a_challenger_and_says_what_to_do(params, project, damage):
    """No error after hours of training; the alias stays, no try is spent, and the next registration judges it."""
    register(params)
    damage(project)
    client = connect(project)
    champion = aliased(client, NAME, "champion")
    new_adapter(params, project, seed=3)
    write_prepared(project, digest="second", days=3)
    write_ranks(project, {"popularity": [6], "llm-sdpo": [1]}, digest="second", days=3)
    outcome = register(params)
    version = aliased(client, NAME, "challenger")
    assert outcome.startswith(
        f"recalign: version {version} (sdpo) stays challenger: not judged, since version {champion}, which it must "
        "beat, cannot be scored ("
    )
    assert "choose another champion ('recalign rollback --reason …', or 'recalign promote VERSION" in outcome
    assert "dvc repro" not in outcome.partition(")")[2]
    tags = client.get_model_version(NAME, version).tags
    assert (tags["gate"], tags["gate_bar"]) == ("not judged", f"version {champion}")
    assert aliased(client, NAME, "champion") == champion
    assert "gate_tries" not in client.get_model_version(NAME, champion).tags
    with pytest.raises(RecalignError, match=f"models:/recalign/{champion}, which answers where --adapter names no"):
        recommend(params, ["The House of Night"])
    promote(params, version, "the champion is damaged")
    new_adapter(params, project, seed=4)
    assert f"minus that of version {version}" in register(params)


def test_a_version_that_was_not_judged_is_judged_once_the_champion_is_back(params, project):
    """It is the same version, registered once."""
    register(params)
    package = packaged(project)
    aside = package.rename(project / "aside")
    new_adapter(params, project, seed=3)
    write_ranks(project, {"popularity": [6], "llm-sdpo": [4]})
    assert "version 2 (sdpo) stays challenger: not judged" in register(params)
    assert "version 2 (sdpo) stays challenger: not judged" in register(params)
    aside.rename(package)
    assert "version 2 (sdpo) stays challenger: NDCG@10 minus that of version 1" in register(params)


@pytest.mark.parametrize("name", ["team/recalign", "films: prod", "o'neill", "../../x", "a..b", "", ".hidden", "a\nb"])
def test_a_model_name_that_mlflow_or_a_folder_cannot_have_is_refused_with_the_params(name):
    """So before any training, by the doctor too."""
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    with pytest.raises(RecalignError, match=r"registry\.model.*use letters, digits, spaces"):
        parse_params(tree | {"registry": tree["registry"] | {"model": name}})


def test_a_deleted_experiment_and_an_unwritable_folder_are_named_before_a_run_begins(project):
    """One line with the fix, and no failed run is left."""
    client = connect(project)
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(RecalignError, match="experiment 'deleted' was deleted in MLflow; 'mlflow experiments"):
        experiment(client, "deleted")
    (project / "file").write_text("no folder", encoding="utf-8")
    for place in (project / "file" / "artifacts", Path("/proc/server-only/artifacts")):
        made = client.create_experiment(f"odd {place.name}{len(str(place))}", artifact_location=str(place))
        with pytest.raises(RecalignError, match=f"belong in {place}, which this machine cannot write"):
            experiment(client, client.get_experiment(made).name)


def test_registered_versions_are_compared_with_each_other_and_with_a_project(params, project, capsys):
    """The second adapter ranks every target second, so the first is ahead by 1 - 1 / log2(3) in NDCG@10."""
    register(params)
    new_adapter(params, project, seed=5)
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2]})
    register(params)
    compare(params, "models:/recalign/1", "models:/recalign/2")
    printed = capsys.readouterr().out
    assert "20 cases of 10 users" in printed
    assert "+0.369" in printed
    assert "[+0.369, +0.369]" in printed
    compare(params, "models:/recalign@champion", ".")
    assert "above" in capsys.readouterr().out


def seal(folder: Path) -> None:
    """Write a folder's manifest anew over what lies in it."""
    manifest = folder / "manifest.json"
    files = [file for file in folder.rglob("*") if file.is_file() and file != manifest]
    write_json(manifest, {"sha256": {str(file.relative_to(folder)): file_digest(file) for file in files}})


def put_into_package(params: Params, project: Path) -> None:
    """Another adapter, whole and sound, with settings that call it the one that was measured."""
    package = packaged(project)
    write_adapter(params, project, package / "adapter", seed=77)
    settings = json.loads((package / "settings.json").read_text())
    own = {**settings["artifacts"], "adapter": adapter_digest(package / "adapter")}
    write_json(package / "settings.json", settings | {"artifacts": own})
    seal(package)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _, project: flip_bytes(packaged(project) / "adapter/adapter_model.safetensors"), "was changed after"),
        (put_into_package, "the adapter in .*package has digest .* the ranks of llm-sdpo were made by"),
        (lambda _, project: gone(project), "holds no package .* or its files are gone"),
    ],
)
def test_a_version_whose_package_did_not_make_its_ranks_is_not_compared(params, project, change, said):
    """Flipped bytes, another adapter under digests of its own, and files that are gone."""
    register(params)
    change(params, project)
    for pair in (("models:/recalign/1", "."), (".", "models:/recalign@champion")):
        with pytest.raises(RecalignError, match=said):
            compare(params, *pair)


def test_a_fusions_package_is_checked_with_its_recommenders_before_it_is_compared(params, project):
    write_fusion(params, project)
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, project)
    register(params, "fusion")
    compare(params, "models:/recalign/1", ".")
    part = packaged(project) / "recommenders/popularity"
    flip_bytes(part / "model.safetensors")
    seal(part)
    seal(packaged(project))
    with pytest.raises(RecalignError, match=r"recommender in .*package has digest .* ranks of popularity were made"):
        compare(params, "models:/recalign/1", ".")


@pytest.mark.parametrize("inner", [".", "adapter", "artifacts/package/adapter"])
def test_an_adapter_of_another_run_that_did_not_make_the_ranks_is_not_compared(params, project, inner):
    """However it was brought: data/models/other/films, whose ranks are those of llm-films."""
    place = project / layout.OTHER / "films" / inner
    write_adapter(params, project, place, seed=9)
    write_ranks(project, {"popularity": [3], "llm-sdpo": [1], "llm-films": [2]})
    path = project / layout.RANKS / "systems.json"
    systems = json.loads(path.read_text())
    made = language_model_artifacts(layout.BASE, place)
    write_json(path, systems | {"llm-films": systems["llm-films"] | {"kind": "transferred", "artifacts": made}})
    compare(params, ".", ".")
    flip_bytes(place / "adapter_model.safetensors")
    with pytest.raises(RecalignError, match=r"the adapter in .*other/films has digest .* ranks of llm-films were made"):
        compare(params, ".", ".")


def test_a_version_on_another_manifest_or_none_at_all_is_not_compared(params, project):
    """The error names what differs, or what is missing."""
    register(params)
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2]}, digest="second", days=1)
    with pytest.raises(RecalignError, match="cannot be compared: digest is 'first' for the one and 'second'"):
        compare(params, "models:/recalign/1", ".")
    with pytest.raises(RecalignError, match="models:/recalign/7 is not in the registry"):
        compare(params, "models:/recalign/7", ".")
    with pytest.raises(RecalignError, match="names no version; write models:/recalign/3"):
        compare(params, "models:/recalign", ".")


def artifact_folder(client, run_id: str) -> Path:
    """Where a run's artifacts lie on this disk."""
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def forget_the_view(client, version: str) -> None:
    """Make a version's evidence what it was before views: no such column, a digest that says nothing of histories."""
    run_id = client.get_model_version(NAME, version).run_id
    place = Path(client.download_artifacts(run_id, "ranks/first.parquet"))
    old = place.parent / "old"
    old.mkdir()
    pq.write_table(read_parquet(place).drop_columns(["view"]), old / "first.parquet")
    for kept in client.list_artifacts(run_id, "ranks"):  # under the manifest's digest alone: cases had none
        if kept.path != "ranks/first.parquet":
            (artifact_folder(client, run_id) / kept.path).unlink()
    client.log_artifact(run_id, str(old / "first.parquet"), "ranks")
    client.log_dict(run_id, {"about": {"manifests": {"uniform": "first"}}, "figures": []}, "scorecard.json")


def test_a_version_from_before_digests_covered_histories_is_not_compared_and_the_gate_scores_it_again(params, project):
    """Its ranks may be of other histories, whatever the digest says."""
    register(params)
    client = connect(project)
    forget_the_view(client, "1")
    for pair in (("models:/recalign/1", "."), (".", "models:/recalign@champion")):
        with pytest.raises(RecalignError, match=r"cannot be compared: histories unknown.*register it again"):
            compare(params, *pair)
    new_adapter(params, project, seed=3)
    write_ranks(project, {"popularity": [6], "llm-sdpo": [6]})
    assert "minus that of version 1" in register(params)
    run_id = client.get_model_version(NAME, "1").run_id
    assert registered_ranks(params, project).ranks.tolist() in kept_ranks(client, run_id)


def test_a_fusion_is_registered_with_its_parts_and_becomes_champion(params, project):
    """Adapter, fitted recommenders and weights are in the version, the base's weights are not; again is no version."""
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, project)
    assert register(params, "fusion").startswith("recalign: version 1 (fusion) is champion")
    package = download_adapter("models:/recalign@champion").parent
    settings = read_settings(package)
    assert (settings.system, settings.language_model) == ("fusion", "llm-sdpo")
    assert settings.sentence == settings.catalogue_sentence == "0.67 popularity + 0.33 llm-sdpo; log-prob"
    less = settings.model_copy(update={"ranked_by": "logprob_less_prior", "prior_weight": 0.25})
    assert less.sentence.endswith("; log-prob − 0.25 × prior")
    assert less.catalogue_sentence == settings.catalogue_sentence
    before = less.model_copy(update={"catalogue_ranked_by": None})  # registered when one rule ranked both
    assert before.catalogue_sentence == before.sentence == less.sentence
    kept = file_digest(package / "recommenders" / "popularity" / "model.safetensors")
    assert kept == file_digest(project / layout.BASELINES / "popularity" / "model.safetensors")
    base = file_digest(next((project / layout.BASE).glob("*.safetensors")))
    assert base not in {file_digest(path) for path in package.rglob("*") if path.is_file()}
    assert register(params, "fusion") == "recalign: this fusion is version 1 already; nothing was moved"
    assert "version 2 (sdpo) stays challenger" in register(params)


def test_params_make_the_fusion_what_is_registered(params, project):
    """So that a schedule renews a fusion as it renews an adapter; a changed weight is another version."""
    fused = params.model_copy(update={"registry": params.registry.model_copy(update={"system": "fusion"})})
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [2]})
    write_fusion(params, project)
    assert "version 1 (fusion) is champion" in register(fused)
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, project, weight=0.25)
    assert "version 2 (fusion) is champion" in register(fused)
    assert rollback(params, "complaints") == "1"


def test_a_champion_fusion_is_scored_anew_on_a_newer_catalogue(params, project):
    """Its recommender never saw the newest film, and its items are met by title."""
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, project)
    register(params, "fusion")
    new_adapter(params, project, seed=3)
    write_prepared(project, digest="second", days=3)
    with_a_newer_film(project / layout.PREPARED)
    write_ranks(project, {"popularity": [6], "llm-sdpo": [6]}, digest="second", days=3)
    assert "version 2 (sdpo) stays challenger: NDCG@10 minus that of version 1 is −" in register(params)


def with_a_newer_film(prepared: Path) -> None:
    """Add a thirteenth film to the catalogue."""
    items = read_parquet(prepared / "items.parquet")
    row = items.slice(0, 1).to_pylist()[0] | {"item_id": 99, "title": "A Newer Film", "popularity": 0}
    newer = pa.concat_tables([items, pa.Table.from_pylist([row], schema=items.schema)])
    with resealed(prepared) as out:
        write_parquet(out / "items.parquet", newer)


def test_a_fusion_that_was_not_fitted_or_whose_part_changed_is_refused(params, project):
    """The part is named, and nothing is logged."""
    with pytest.raises(RecalignError, match=r"fusion\.json is missing; set evaluate\.fusion to true"):
        register(params, "fusion")
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, project)
    new_adapter(params, project, seed=5)
    with pytest.raises(RecalignError, match=r"the llm-sdpo in the project has digest .* ranks of fusion were made by"):
        register(params, "fusion")
    assert connect(project).search_registered_models() == []


def test_the_fusion_ranks_anyones_lists_with_recommenders_fitted_on_their_log(params, project, tmp_path, capsys):
    """Popularity of the given log weighs the most here, so that its favourite stands first."""
    write_fusion(params, project, weight=0.01)
    (tmp_path / "items.csv").write_text("item_id,title\n1,Alien\n2,Heat\n3,Up\n4,Jaws\n", encoding="utf-8")
    (tmp_path / "train.csv").write_text("user_id,item_id\n1,4\n2,4\n3,4\n1,3\n2,3\n1,2\n", encoding="utf-8")
    case = {"case": 0, "user_id": 7, "history": [1], "candidates": [2, 3, 4], "target": 3}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    given = tmp_path / "cases.jsonl", tmp_path / "items.csv", tmp_path / "out.jsonl"
    rank_lists(params, *given, Named(fusion=True, train=tmp_path / "train.csv"))
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"case": 0, "rank": 2, "ranked": [4, 3, 2]}
    assert "fusion, 0.99 popularity + 0.01 llm-sdpo" in capsys.readouterr().out
    with pytest.raises(RecalignError, match="--fusion needs --train"):
        rank_lists(params, *given, Named(fusion=True))


def test_items_that_the_log_lacks_are_read_and_the_part_that_reads_them_is_named(params, project, tmp_path, capsys):
    """Popularity knows nothing of film 5, so it stands below the films that it ranks."""
    write_fusion(params, project, weight=0.0, new_weight=1.0)
    (tmp_path / "items.csv").write_text("item_id,title\n1,Alien\n2,Heat\n4,Jaws\n5,Up\n6,Ran\n", encoding="utf-8")
    (tmp_path / "train.csv").write_text("user_id,item_id\n1,4\n2,4\n3,1\n1,2\n", encoding="utf-8")
    case = {"case": 0, "user_id": 7, "history": [1], "candidates": [5, 2, 6, 4], "target": 5}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    given = tmp_path / "cases.jsonl", tmp_path / "items.csv", tmp_path / "out.jsonl"
    rank_lists(params, *given, Named(fusion=True, train=tmp_path / "train.csv"))
    assert json.loads((tmp_path / "out.jsonl").read_text())["ranked"][:2] == [4, 2]
    said = capsys.readouterr().out
    assert "New items: 2 of 4 candidates, read by llm-sdpo" in said
    assert "fusion, 1.00 popularity + 0 (llm-sdpo); new items: 1.00 llm-sdpo" in said


def test_new_films_of_a_table_are_ranked_for_a_history_in_the_catalogues_place(params, project, tmp_path, capsys):
    """By the champion, a fusion, with ids of the table's own; a known item is refused by file and line."""
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, project, weight=0.0, new_weight=1.0)
    register(params, "fusion")
    ids = {item: f"f{item}" for item in range(1, 13)}
    write_interactions(project, ids)
    new = tmp_path / "new.csv"
    new.write_text(
        "item_id,title,genre,price\nn1,Ran &amp; Up,drama|comedy,9\nn2,A <s>Newer Film,,9\n", encoding="utf-8"
    )
    recommend(params, ["The House of Night"], items=new, k=5)
    said = " ".join(capsys.readouterr().out.split())
    assert all(own in said for own in ("Ran & Up n1", "A Newer Film n2", "new item: read by llm-sdpo"))
    assert said.count("of Night") == 2  # the history, and what its preference is inferred from
    title = Items.read(project / layout.PREPARED).titles[3]
    for row, why in (
        ("f3,Ran", f"item_id f3 is that of '{title}'; give each new item an id of its own"),
        ("n1,Ran\nn1,Up", "item_id n1 is that of 'Ran'"),
        (f"n1,{title.upper()}", f"title '{title.upper()}' is that of item f3"),
        ("n1,<s>", "title is empty; give each item an id and a visible title"),
        (",Ran", "item_id is empty"),
    ):
        new.write_text(f"item_id,title\n{row}\n", encoding="utf-8")
        with pytest.raises(RecalignError, match=rf"new\.csv:{row.count(chr(10)) + 2}: {re.escape(why)}"):
            recommend(params, [title], items=new)
    new.write_text("item_id,title\n", encoding="utf-8")
    with pytest.raises(RecalignError, match=r"new\.csv holds no item; --items needs a row an item"):
        recommend(params, [title], items=new)


@pytest.mark.parametrize("new_weight", [0.0, None])
def test_new_films_that_nothing_reads_are_not_ranked_in_the_order_of_their_file(params, project, tmp_path, new_weight):
    """Popularity alone weighs in this champion; the language model of the project is named by --adapter."""
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, project, weight=0.0, new_weight=new_weight)
    register(params, "fusion")
    new = tmp_path / "new.csv"
    new.write_text("item_id,title\n101,Ran\n102,Up\n", encoding="utf-8")
    with pytest.raises(RecalignError, match=r"reads text \(1\.00 popularity.*add content to .* with --adapter"):
        recommend(params, ["The House of Night"], items=new)
    recommend(params, ["The House of Night"], items=new, adapter=str(layout.ALIGN / "sdpo"))


def test_a_served_fusion_says_what_read_a_film_that_came_after_it_was_fitted(params, project, capsys):
    """On a newer catalogue: the log counts events of it by now, but the recommenders of the package know none."""
    write_ranks(project, {"popularity": [3], "llm-sdpo": [2], "fusion": [1]})
    write_fusion(params, project, weight=0.0, new_weight=1.0)
    register(params, "fusion")
    package = download_adapter("models:/recalign@champion").parent
    with_a_newer_film(project / layout.PREPARED)
    newer = Items.read(project / layout.PREPARED)
    newer = replace(newer, train_events=dict.fromkeys(newer.ids, 5))
    fused = load_recommender(package, project / layout.BASE, newer)
    service = Service.of(read_settings(package), fused, RawIds({}))
    answer = service.answer(Query.of({"history": [1], "candidates": [2, 99, 3]}))
    assert [(item["item_id"], item.get("read_by")) for item in answer["items"]][-1] == (99, "llm-sdpo")
    assert not any("read_by" in item for item in answer["items"][:2])
    print_answer(answer, ["Alien"], "the fusion")
    assert "new item: read by llm-sdpo" in " ".join(capsys.readouterr().out.split())
