"""`recalign estimate`: coldness, text and cost of a log, and a verdict by the stated rule."""

import json
from pathlib import Path

import pytest
from project import set_params
from table_world import smoke_folder, write_log

from recalign.cli import main
from recalign.data.records import Items
from recalign.doctor.estimate import Coldness, Text, text_of, verdict_of
from recalign.llm.model.base import fetch_base
from recalign.params.base import BaseParams


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and nothing else, worked in."""
    return smoke_folder(tmp_path, monkeypatch)


def estimated(place: Path, *, fresh: int, worded: bool = True) -> dict:
    log, items = write_log(place / "raw", fresh=fresh, worded=worded)
    assert main(["estimate", str(log), "--items", str(items), "--json", "told.json"]) == 0
    return json.loads(Path("told.json").read_text(encoding="utf-8"))


def test_a_log_whose_newest_likes_are_of_new_items_is_one_for_the_language_model(place, capsys) -> None:
    """The windows of validation and test are the fresh items' own, but for what lies before them."""
    told = estimated(place, fresh=40)
    said = capsys.readouterr().out

    assert told["verdict"] == "only for new items"
    assert told["coldness"]["under"]["1"] > 0.3
    assert told["coldness"]["rare_items"] >= 20
    assert told["cost"] is None
    assert "none of item-cold-hidden: prepare.hidden_items is 0" in said
    assert "Cost: not measured, no base model lies here; 'dvc repro base' fetches it" in said
    assert said.rstrip().splitlines()[-1].startswith("Language model: only for new items. Why: ")


def test_a_log_of_known_items_is_none(place) -> None:
    told = estimated(place, fresh=0)
    assert (told["verdict"], told["coldness"]["under"]["5"]) == ("no", 0.0)
    assert "has fewer than 5 train events (below 5%)" in told["reason"]


def test_few_new_items_are_too_few_to_measure_on(place) -> None:
    told = estimated(place, fresh=10)
    assert told["verdict"] == "no"
    assert "only 10 rare items are asked for, and a list takes 20" in told["reason"]


def test_titles_that_are_numbers_tell_nothing(place) -> None:
    told = estimated(place, fresh=40, worded=False)
    assert (told["verdict"], told["text"]) == ("no", {"attributes": 0.0, "titles": 0.0})
    assert "neither titles nor attributes say what items have in common" in told["reason"]


def test_what_all_items_have_tells_none_from_another() -> None:
    """Titles that are all the same, a word that all have, an attribute of one value."""
    ids = tuple(range(8))

    def said(title, attributes) -> Text:
        told = {item: attributes(item) for item in ids}
        return text_of(Items(ids, {item: title(item) for item in ids}, told, dict.fromkeys(ids, 0)))

    same = said(lambda item: f"Thing ({item})", lambda item: {"kind": ["film"], "year": []})
    assert same == Text(attributes=0.0, titles=0.0)
    assert verdict_of(Coldness(1000, {1: 0.1, 5: 0.3, 10: 0.4}, 90, {}), same, None)[0] == "no"
    two = said(lambda item: f"Film of {'fire' if item < 4 else 'stone'}", lambda item: {"kind": ["film"] * (item < 2)})
    assert two == Text(attributes=0.25, titles=1.0)


def test_a_log_whose_items_have_no_title_is_refused_with_the_cause(place, capsys) -> None:
    """What took the interactions are the items: they are named, and where to read more."""
    log, items = write_log(place / "raw", fresh=0)
    items.write_text("item_id,title\n" + "".join(f"{item},\n" for item in range(60)), encoding="utf-8")
    assert main(["estimate", str(log), "--items", str(items)]) == 2
    said = capsys.readouterr().err
    assert "every one of 960 interactions is in quarantine" in said
    assert "60 items are in quarantine themselves, most under 'empty title'" in said
    assert f"'recalign doctor {log} --items {items}' says more" in said


def test_with_a_base_the_cost_is_measured(place) -> None:
    fetch_base(
        BaseParams(model="tiny-random", revision=None, quantisation="none", compute="auto"), Path("data/models/base")
    )
    cost = estimated(place, fresh=40)["cost"]
    assert cost["model"] == "tiny-random"
    assert cost["per_thousand"] == pytest.approx(1000 * cost["case_tokens"] / cost["scoring"])
    assert cost["case_tokens"] > 20
    few, many = cost["sft"].values()
    assert 0 < few < many


def test_another_log_need_not_have_the_attributes_of_the_projects_prompts(place) -> None:
    """Its titles are then read alone."""
    fetch_base(
        BaseParams(model="tiny-random", revision=None, quantisation="none", compute="auto"), Path("data/models/base")
    )
    set_params(place, prompt__attributes=["genre"])
    assert estimated(place, fresh=40)["cost"]["case_tokens"] > 20


def test_yes_comes_from_a_measured_table_alone() -> None:
    known, new = Coldness(1000, {1: 0.0, 5: 0.01, 10: 0.02}, 3, {}), Coldness(1000, {1: 0.1, 5: 0.3, 10: 0.4}, 90, {})
    says, mute = Text(0.0, 0.9), Text(0.05, 0.05)

    assert verdict_of(known, says, "above")[0] == "yes"
    for measured in ("below", "level with", None):
        assert [verdict_of(cold, says, measured)[0] for cold in (known, new)] == ["no", "only for new items"]
    assert verdict_of(new, mute, None)[0] == "no"
    assert "with minilm among its encoders" in verdict_of(new, says, None)[1]  # names alone
    assert "minilm" not in verdict_of(new, Text(0.9, 0.9), None)[1]


def test_what_is_missing_is_named(place, capsys) -> None:
    assert main(["estimate"]) == 2
    assert "data/prepared is missing; run 'dvc repro prepare', or name a log" in capsys.readouterr().err
    assert main(["estimate", "--items", "items.csv"]) == 2
    assert "--items is items.csv, and there is no log beside it" in capsys.readouterr().err
    Path("bad.csv").write_text("a,b\n1,x\n2,y\n", encoding="utf-8")
    assert main(["estimate", "bad.csv"]) == 2
    assert "bad.csv cannot be prepared: no column looks like the user; a log needs a column" in capsys.readouterr().err
