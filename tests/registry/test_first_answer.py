"""Before an alias moves: the logged package is loaded in a fresh process, answers, and is timed beside the champion."""

import json
from pathlib import Path

import pytest
from registry_project import as_evaluated, new_project, write_adapter, write_ranks

from recalign import project as layout
from recalign.commands.register import register
from recalign.data.records import Example, Items
from recalign.evaluation.injection import IN_HISTORY, INJECTION_LIFT, Lift
from recalign.evaluation.significance import Interval
from recalign.params.load import Params
from recalign.ranking.trial import Trial
from recalign.registry.first_answer import requests_of
from recalign.registry.promotion import aliased
from recalign.registry.tracking import connect

ROOT = Path(__file__).parents[2]
NAME = "recalign"


@pytest.fixture
def project(tmp_path, monkeypatch) -> tuple[Params, Path]:
    """A project with an S-DPO adapter and an empty registry, and the working directory."""
    root = tmp_path / "project"
    return new_project(root, monkeypatch), root


@pytest.mark.fresh_process
def test_what_does_not_answer_gets_no_alias_and_is_judged_once_it_does(project, tmp_path, monkeypatch) -> None:
    """The base is another folder's: the sentence says so, no alias moves; then champion, then a timed challenger."""
    params, root = project
    monkeypatch.setenv("RECALIGN_BASE", str(tmp_path))
    outcome = register(params)
    assert "version 1 (sdpo): not judged, since its logged package did not answer a request in a fresh" in outcome
    assert "RECALIGN_BASE is" in outcome
    client = connect(root)
    assert (aliased(client, NAME, "champion"), aliased(client, NAME, "challenger")) == (None, None)
    assert client.get_model_version(NAME, "1").tags["gate"] == "not judged"

    monkeypatch.delenv("RECALIGN_BASE")
    assert "version 1 (sdpo) is champion" in register(params)
    assert aliased(client, NAME, "champion") == "1"

    write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=3)
    as_evaluated(root)
    register(params)
    tags = client.get_model_version(NAME, "2").tags
    assert tags["guard_leak_probes"] == "leak probes: held"
    assert tags["guard_latency_ratio"].startswith("seconds per answer, times the champion's: +")
    run = client.get_model_version(NAME, "2").run_id
    verdict = json.loads(Path(client.download_artifacts(run, "gate.json")).read_text())
    (latency,) = [guard for guard in verdict["guards"] if guard["name"] == "latency_ratio"]
    assert (latency["users"], latency["outcome"]) == (10, "held")
    assert "Guards" in Path(client.download_artifacts(run, "gate.html")).read_text()


def test_a_broken_guard_keeps_the_champion(project) -> None:
    """Its weights are twice as many megabytes: a better model stays challenger, and the tag says why."""
    params, root = project
    write_ranks(root, {"popularity": [5], "llm-sdpo": [3]})
    with_megabytes(root, 100.0)
    register(params)
    write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=3)
    write_ranks(root, {"popularity": [5], "llm-sdpo": [1]})
    with_megabytes(root, 200.0)
    outcome = register(params)
    client = connect(root)
    told = client.get_model_version(NAME, "2").tags
    assert "version 2 (sdpo) stays challenger" in outcome
    assert outcome.endswith("refused by a guard: megabytes, times the champion's: +2.000, bound +1.500: broken")
    assert (aliased(client, NAME, "champion"), told["gate"]) == ("1", "challenger")
    assert told["guard_megabytes_ratio"].endswith("broken")
    assert "not judged" in told["guard_user_cold"]


def test_a_model_that_obeys_texts_in_titles_more_than_the_champion_stays_challenger(project) -> None:
    """The champion's lift is in its run, the challenger's in the project; of the other position nothing is known."""
    params, root = project
    for seed, rank, lift in ((2, 3, 0.01), (3, 1, 0.4)):
        write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=seed)
        write_ranks(root, {"popularity": [5], "llm-sdpo": [rank]})
        with_lift(root, lift)
        outcome = register(params)
    assert outcome.endswith(
        "refused by a guard: lift by a text in a liked title: +0.390 [+0.370, +0.410], bound +0.050: broken"
    )
    tags = connect(root).get_model_version(NAME, "2").tags
    assert tags["guard_injection_lift_history"].endswith("broken")
    assert "not measured for both (evaluate.injection_cases)" in tags["guard_injection_lift_list"]


def with_lift(root: Path, value: float) -> None:
    """As the report leaves it in metrics.json."""
    path = root / layout.REPORTS / "metrics.json"
    lift = Lift(Interval(value, value - 0.01, value + 0.01), 40, 20, 9.0, 3.0)
    told = {INJECTION_LIFT: {"llm-sdpo": {IN_HISTORY: lift.as_dict()}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def with_megabytes(root: Path, value: float) -> None:
    path = root / layout.RANKS / "systems.json"
    systems = json.loads(path.read_text())
    path.write_text(json.dumps({name: own | {"megabytes": value} for name, own in systems.items()}))


def test_titles_that_could_mean_something_else_are_not_asked_with() -> None:
    """ "1984" may be an id, and two titles differ in case alone."""
    from recalign.data.records import Case
    from recalign.recommenders.recommender import Request

    titles = {1: "1984", 2: "Heat", 3: "heat", 4: "Alien", 5: "Up"}
    items = Items(tuple(titles), titles, {item: {} for item in titles}, dict.fromkeys(titles, 1))

    def case(user: int, history: tuple[int, ...]) -> Case:
        return Case(Example(str(user), user, "test", None, history, 5), (5, 1, 3), 0)

    cases = (case(1, (1, 4)), case(1, (4,)), case(2, (1,)), case(3, (5, 4)))
    trial = Trial("uniform", "d", cases, tuple(Request(own.example.user_id, own.example.history) for own in cases))
    assert requests_of(trial, items, 5) == [
        {"history": ["Alien"], "candidates": ["Up"], "k": 1},
        {"history": ["Up", "Alien"], "candidates": ["Up"], "k": 1},
    ]
    assert len(requests_of(trial, items, 1)) == 1
