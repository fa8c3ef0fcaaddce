"""Promote and roll back by hand: what the guards said is shown, a broken one refuses, and the package answers first."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow.pyfunc import load_model as loaded
from registry_project import as_evaluated, new_project, write_adapter, write_ranks

from recalign import project as layout
from recalign.commands import champion
from recalign.commands.register import register
from recalign.common.artifacts import read_json, write_json
from recalign.common.errors import RecalignError
from recalign.params.load import Params
from recalign.registry.first_answer import Answers, first_answers
from recalign.registry.promotion import aliased
from recalign.registry.records import records_of
from recalign.registry.tracking import connect

ROOT = Path(__file__).parents[2]
NAME = "recalign"
BROKEN = "megabytes, times the champion's: +2.000, bound +1.500: broken"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Params, Path]:
    """A project with an S-DPO adapter and an empty registry, and the working directory."""
    root = tmp_path / "project"
    return new_project(root, monkeypatch), root


def with_megabytes(root: Path, value: float) -> None:
    path = root / layout.RANKS / "systems.json"
    write_json(path, {name: own | {"megabytes": value} for name, own in read_json(path).items()})


def heavier(params: Params, root: Path) -> None:
    """Version 1 is champion; version 2 ranks better and breaks a guard: it is twice as many megabytes."""
    write_ranks(root, {"popularity": [5], "llm-sdpo": [3]})
    with_megabytes(root, 100.0)
    register(params)
    write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=3)
    write_ranks(root, {"popularity": [5], "llm-sdpo": [1]})
    with_megabytes(root, 200.0)
    register(params)


def test_a_version_that_broke_a_guard_is_promoted_by_force_alone_which_is_kept(
    project: tuple[Params, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Its records are shown first, those that were not judged too; without force no alias and no tag changes."""
    params, root = project
    heavier(params, root)
    client = connect(root)
    caplog.clear()
    caplog.set_level("INFO")
    with pytest.raises(
        RecalignError, match=r"version 2 of recalign broke a guard against version 1: megabytes.*--force"
    ):
        champion.promote(params, "2", "A/B test won")
    assert "version 2 was compared with version 1:" in caplog.messages
    assert f"guard: {BROKEN}" in caplog.messages
    assert any(said.startswith("guard: seconds per answer") and "not judged" in said for said in caplog.messages)
    assert aliased(client, NAME, "champion") == "1"
    assert "moved_because" not in client.get_model_version(NAME, "2").tags

    champion.promote(params, "2", "A/B test won", force=True)
    assert aliased(client, NAME, "champion") == "2"
    tags = client.get_model_version(NAME, "2").tags
    assert (tags["moved_because"], tags["moved_although"]) == ("A/B test won", BROKEN)


def test_a_roll_back_shows_what_was_broken_and_refuses_nothing(
    project: tuple[Params, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Back to version 2, which was forced once: it is compared with a champion of then, and says so."""
    params, root = project
    heavier(params, root)
    write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=4)
    write_ranks(root, {"popularity": [5], "llm-sdpo": [4]})
    register(params)
    champion.promote(params, "2", "a reason", force=True)
    champion.promote(params, "3", "another")
    caplog.clear()
    caplog.set_level("INFO")
    champion.rollback(params, "complaints")
    client = connect(root)
    assert aliased(client, NAME, "champion") == "2"
    assert "version 2 was compared with version 1, which is not the present champion, version 3:" in caplog.messages
    assert f"guard: {BROKEN}" in caplog.messages
    assert "moved_although" not in client.get_model_version(NAME, "2").tags  # nothing was overruled this time


def test_a_roll_back_goes_nowhere_when_another_champion_came_while_the_version_was_asked(
    project: tuple[Params, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, root = project
    heavier(params, root)
    champion.promote(params, "2", "a reason", force=True)
    client = connect(root)
    made = client.create_model_version(NAME, (root / "data").as_uri())

    def meanwhile(*_: object) -> Answers:
        client.set_registered_model_alias(NAME, "champion", made.version)
        return Answers()

    monkeypatch.setattr("recalign.commands.champion.first_answers", meanwhile)
    with pytest.raises(RecalignError, match=r"has another champion by now, version 3, .* to version 2 and not to 1"):
        champion.rollback(params, "complaints")
    assert aliased(client, NAME, "champion") == str(made.version)


def test_what_was_never_judged_is_promoted_and_said_to_have_no_records(
    project: tuple[Params, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A version that another tool made, and one whose guards could not be judged."""
    params, root = project
    register(params)
    client = connect(root)
    made = client.create_model_version(NAME, (root / "data").as_uri())
    caplog.set_level("INFO")
    assert records_of(client, NAME, str(made.version)).guards == ()
    champion.promote(params, str(made.version), "a person knows")
    assert f"version {made.version} has no records of guards" in caplog.text
    assert aliased(client, NAME, "champion") == str(made.version)
    champion.promote(params, "1", "back")
    assert aliased(client, NAME, "champion") == "1"


def test_bad_input_is_told_before_anything_is_asked(project: tuple[Params, Path], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """No process is started for a version that there is not, for the champion, or without a reason."""
    params, _ = project
    register(params)
    monkeypatch.setattr("recalign.commands.champion.first_answers", None)
    for version, reason, said in (
        ("7", "why", "registered are 1"), ("1", "why", "is the champion already"),
    ):  # fmt: skip
        with pytest.raises(RecalignError, match=said):
            champion.promote(params, version, reason)
    with pytest.raises(RecalignError, match="cannot be rolled back: its only champion is version 1"):
        champion.rollback(params, "why")


def test_what_does_not_answer_is_moved_to_by_force_alone(
    project: tuple[Params, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither command moves the alias; what was overruled is kept with the version until it is moved to again."""
    params, root = project
    register(params)
    write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=3)
    as_evaluated(root)
    register(params)
    client = connect(root)
    asked = []

    def silent(name: str, versions: Sequence[str], *_: object) -> Answers:
        asked.append((name, *versions))
        return Answers(silent="no base")

    monkeypatch.setattr("recalign.commands.champion.first_answers", silent)
    said = r"its logged package did not answer a request in a fresh process \(no base\)"
    with pytest.raises(RecalignError, match=f"version 2 of recalign: {said}; no alias was moved; --force moves"):
        champion.promote(params, "2", "why")
    champion.promote(params, "2", "why", force=True)
    with pytest.raises(RecalignError, match=f"version 1 of recalign: {said}; no alias was moved; --force moves"):
        champion.rollback(params, "complaints")
    assert aliased(client, NAME, "champion") == "2"
    champion.rollback(params, "complaints", force=True)
    tags = client.get_model_version(NAME, "1").tags
    assert (aliased(client, NAME, "champion"), tags["moved_because"]) == ("1", "rolled back from version 2: complaints")
    assert re.fullmatch(said, tags["moved_although"])
    assert asked == [(NAME, "2"), (NAME, "2"), (NAME, "1"), (NAME, "1")]

    monkeypatch.setattr("recalign.commands.champion.first_answers", lambda *_: Answers())
    champion.promote(params, "2", "it answers now")
    assert "moved_although" not in client.get_model_version(NAME, "2").tags


@pytest.mark.slow
@pytest.mark.fresh_process
def test_the_registered_example_is_what_a_version_answers_in_a_fresh_process(
    project: tuple[Params, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its base; where the base is another folder's, the sentence says so."""
    params, root = project
    with monkeypatch.context() as at_once:
        at_once.setattr("recalign.commands.register.first_answers", lambda *_: Answers())
        register(params)
    assert first_answers(NAME, ["1"], [], root, root) == Answers(((),))
    example = loaded(f"models:/{NAME}/1").input_example
    assert example is not None
    assert example.to_dict("records")[0]["k"] == 3
    monkeypatch.setenv("RECALIGN_BASE", str(tmp_path))
    assert "RECALIGN_BASE is" in first_answers(NAME, ["1"], [], root, root).silent


def test_the_verdict_of_the_last_registration_is_a_page_next_to_the_report(project: tuple[Params, Path]) -> None:
    """Every guard is in it; the report, which was written before, names the page."""
    params, root = project
    heavier(params, root)
    page = (root / layout.REPORTS / "gate.html").read_text(encoding="utf-8")
    assert "recalign, version 2" in page
    assert "It is not champion" in page
    assert "+2.000, bound +1.500: broken" in page
    assert page.count("<tr>") >= 10


def test_of_what_was_not_judged_the_page_says_why(project: tuple[Params, Path]) -> None:
    params, root = project
    register(params)
    (settings,) = (root / "mlartifacts").rglob("package/settings.json")
    shutil.rmtree(settings.parent)
    write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=3)
    as_evaluated(root)
    client = connect(root)
    run_id = client.get_model_version(NAME, "1").run_id
    shutil.rmtree(next((root / "mlartifacts").rglob(f"{run_id}/artifacts/ranks")))
    register(params)
    page = (root / layout.REPORTS / "gate.html").read_text(encoding="utf-8")
    assert "It is not judged, since version 1, which it must beat, cannot be scored" in page
