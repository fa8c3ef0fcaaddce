"""The ledger: claims with what supports them, edits kept apart, and what an edit does to a list."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preference_world import PreparedLog, random_log

from recalign.commands import profile as command
from recalign.commands.profile import profile
from recalign.common.artifacts import read_json, read_parquet, write_text
from recalign.common.errors import RecalignError
from recalign.common.locks import try_lock
from recalign.data.records import Items
from recalign.params.load import parse_params
from recalign.preferences.profiles import profiles as profiles_module
from recalign.preferences.profiles.profiles import Claim, Engine, Statement, make_profile, profiles_table
from recalign.preferences.tastes import ledger as module
from recalign.preferences.tastes.ledger import (
    LEDGER,
    Edit,
    Value,
    Wishes,
    edited_profile,
    ledger_of,
    parse_edit,
    read_edits,
    with_edit,
    write_edits,
)

CRIME = Statement("genre", "Crime", "crime films", frozenset({1, 2, 3}), 0.2)
WAR = Statement("genre", "War", "war films", frozenset({3, 4}), 0.2)
NOIR = Statement("decade", "1940s", "films of the 1940s", frozenset({5, 6}), 0.1)
STATEMENTS = [CRIME, WAR, NOIR]
EDITS = (Edit(Value("genre", "War")), Edit(Value("genre", "Crime"), Value("decade", "1940s")))
CLAIMS = [Claim("crime films", "genre", "Crime", 0.9), Claim("war films", "genre", "War", 0.4)]


def test_each_claim_has_the_interactions_that_support_it():
    """In the order of the history."""
    ledger = ledger_of(CLAIMS, "statements", (4, 3, 9, 1), STATEMENTS, ())
    assert [(entry.statement, entry.supports, entry.by) for entry in ledger.entries] == [
        ("crime films", (3, 1), "statements"),
        ("war films", (4, 3), "statements"),
    ]
    assert ledger.forbidden == ()


def test_an_edit_forbids_or_changes_a_claim_and_leaves_the_others():
    """A changed claim names the one in whose place it is."""
    edits = [Edit(Value("genre", "War")), Edit(Value("genre", "Crime"), Value("decade", "1940s"))]
    ledger = ledger_of(CLAIMS, "statements", (4, 3, 5), STATEMENTS, edits)
    assert [(e.statement, e.by, e.replaces, e.supports) for e in ledger.entries] == [
        ("films of the 1940s", "edit", "genre=Crime", (5,))
    ]
    assert [(e.statement, e.supports) for e in ledger.forbidden] == [("war films", (4, 3))]


def test_an_edit_holds_where_its_claim_is_not_inferred_any_more():
    """What a person said of himself does not depend on a rerun."""
    edits = [Edit(Value("genre", "War")), Edit(Value("genre", "Crime"), Value("decade", "1940s"))]
    ledger = ledger_of([], "statements", (4, 5), STATEMENTS, edits)
    assert [entry.about for entry in ledger.entries] == [Value("decade", "1940s")]
    assert [entry.about for entry in ledger.forbidden] == [Value("genre", "War")]


def test_a_list_leaves_out_what_is_forbidden_and_puts_what_was_put_in_first(monkeypatch):
    """Of the first places only; what no edit is about keeps its order."""
    monkeypatch.setattr(module, "DEPTH", 3)
    assert Wishes.of(EDITS, STATEMENTS).reordered([4, 1, 5, 2, 6, 3]) == [5, 1, 2, 6]
    assert Wishes.of((), STATEMENTS).reordered([4, 1, 5]) == [4, 1, 5]


def test_each_edit_says_what_it_did_to_a_list_and_one_that_did_nothing_says_so():
    """Before: without edits; after: with them."""
    titles = {4: "Das Boot", 3: "Ran", 5: "Laura"}
    said = [own.sentence(titles) for own in Wishes.of(EDITS, STATEMENTS).spoken([4, 1, 3], [5, 1, 2])]
    assert said == [
        "genre=War forbidden: leaves out 2 items (Das Boot, Ran)",
        "genre=Crime changed to decade=1940s: puts first 1 item (Laura)",
    ]
    assert Wishes.of(EDITS[:1], STATEMENTS).spoken([1], [1])[0].sentence(titles) == (
        "genre=War forbidden: changes nothing here"
    )


def test_what_one_edit_forbids_no_other_one_puts_in():
    """Crime is changed to war, and war is forbidden: nothing is put first."""
    edits = [Edit(Value("genre", "War")), Edit(Value("genre", "Crime"), Value("genre", "War"))]
    wishes = Wishes.of(edits, STATEMENTS)
    assert (wishes.excluded, wishes.wanted) == ({3, 4}, {})
    assert ledger_of(CLAIMS, "statements", (), STATEMENTS, edits).entries == ()


def test_a_profile_is_told_anew_where_an_edit_is_about_it_and_kept_as_it_is_where_none_is():
    """A model's own words, which may say elsewhere what is forbidden, give way to the claims that are left."""
    engine = Engine("generate", "m", "p")
    made = make_profile(engine, "test", 3, (1, 4), [(CRIME, None), (WAR, None)], "Loves war, and war again.")
    edited = edited_profile(made, (1, 4), STATEMENTS, EDITS[:1])
    assert (edited.text, edited.evidence, edited.engine) == ("Likes crime films.", (1,), "generate")
    assert edited_profile(made, (1, 4), STATEMENTS, [Edit(Value("decade", "1940s"))]) is made
    assert edited_profile(made, (1, 4), STATEMENTS, ()) is made


def test_a_later_edit_takes_the_place_of_an_earlier_one_and_can_be_undone():
    """Of the same claim."""
    war = Value("genre", "War")
    edits = with_edit(with_edit((), "forbid", [war]), "change", [war, Value("genre", "Crime")])
    assert edits == (Edit(war, Value("genre", "Crime")),)
    assert with_edit(edits, "undo", [war]) == ()
    with pytest.raises(RecalignError, match="undo genre=War: this user has no edit of it"):
        with_edit((), "undo", [war])


def test_a_claim_that_an_edit_put_in_can_be_changed_again():
    """Crime is changed to war, then war to noir: noir alone is told and put first. Undone, war is there again."""
    crime, war, noir = Value("genre", "Crime"), Value("genre", "War"), Value("decade", "1940s")
    first = with_edit((), "change", [crime, war])
    edits = with_edit(first, "change", [war, noir])
    for claims in ([], CLAIMS):
        assert [entry.about for entry in ledger_of(claims, "statements", (), STATEMENTS, edits).entries] == [noir]
    assert Wishes.of(edits, STATEMENTS).reordered([1, 3, 4, 5]) == [5, 1, 3, 4]
    undone = with_edit(edits, "undo", [war])
    assert [entry.about for entry in ledger_of([], "statements", (), STATEMENTS, undone).entries] == [war]
    back = with_edit(first, "change", [war, crime])
    assert [entry.about for entry in ledger_of(CLAIMS, "statements", (), STATEMENTS, back).entries] == [crime]


def test_a_change_to_the_same_claim_or_to_a_forbidden_one_is_refused():
    """It would be kept, and nobody would see anything of it."""
    crime, war = Value("genre", "Crime"), Value("genre", "War")
    with pytest.raises(RecalignError, match="changes genre=War to itself"):
        with_edit((), "change", [war, war])
    with pytest.raises(
        RecalignError, match="to genre=War, which this user has forbidden; '--edit undo genre=War' first"
    ):
        with_edit((Edit(war),), "change", [crime, war])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["forbid", "gnere=War"], r"attribute 'gnere'.* allowed are decade, genre \(did you mean genre\?\)"),
        (["forbid", "genre=Wra"], r"genre 'Wra', which no item has \(did you mean War\?\)"),
        (["forbid", "War"], "attribute 'War'"),
        (["ban", "genre=War"], "allowed are 'forbid ATTRIBUTE=VALUE'"),
        (["change", "genre=War"], "allowed are 'forbid ATTRIBUTE=VALUE'"),
        (["change", "genre=War", "taste=good"], "attribute 'taste'"),
        ([], "allowed are"),
    ],
)
def test_an_edit_of_what_the_catalogue_does_not_know_is_refused(words, said):
    """With what is allowed and what was meant."""
    with pytest.raises(RecalignError, match=said):
        parse_edit(words, STATEMENTS)


def test_case_does_not_matter_and_the_value_is_the_catalogues():
    """crime is Crime."""
    assert parse_edit(["forbid", "genre=crime"], STATEMENTS) == ("forbid", [Value("genre", "Crime")])


def test_edits_are_kept_as_they_were_and_a_file_that_is_none_is_named(tmp_path):
    """A user without edits any more is left out."""
    edits = {
        "7": (Edit(Value("genre", "War")),),
        "x": (Edit(Value("genre", "War"), Value("decade", "1940s")),),
        "y": (),
    }
    write_edits(tmp_path, edits)
    assert read_edits(tmp_path) == {user: own for user, own in edits.items() if own}
    assert read_edits(tmp_path / "none") == {}
    write_text(tmp_path / "edits.json", '{"version": 9, "users": {}}')
    with pytest.raises(RecalignError, match=r"edits\.json is no ledger of version 1"):
        read_edits(tmp_path)
    write_text(tmp_path / "edits.json", '{"version": 1, "us')
    with pytest.raises(RecalignError, match=r"edits\.json is not JSON; restore it from a backup, or move it away"):
        read_edits(tmp_path)


@pytest.fixture
def project(tree, tmp_path, monkeypatch):
    """A prepared log with a fitted recommender, and profiles by statements of user 3."""
    PreparedLog(random_log()).write(tmp_path / "data")
    params = parse_params(tree)
    made = make_profile(Engine("statements", "m", "p"), "test", 3, (1, 4), [(CRIME, 0.5)])
    other = make_profile(Engine("generate", "other", "p"), "test", 4, (1,), [(WAR, None)])
    (tmp_path / "data/profiles").mkdir()
    pq.write_table(profiles_table([made, other]), tmp_path / "data/profiles/profiles.parquet")
    (tmp_path / "data/interactions").mkdir()
    for name, column, count in (("users", "user_id", 30), ("items", "item_id", 41)):
        table = pa.table({column: list(range(count)), "raw_id": [str(n) for n in range(count)]})
        pq.write_table(table, tmp_path / f"data/interactions/{name}.parquet")
    monkeypatch.chdir(tmp_path)
    return params


def told(capsys, params, user, **options):
    profile(params, user, as_json=True, **options)
    return json.loads(capsys.readouterr().out)


def test_the_command_shows_edits_and_shows_again(project, tmp_path, capsys):
    """Before and after; the inferred profile keeps its bytes, and a later call still knows the edit."""
    first = told(capsys, project, "3")
    assert [claim["claim"] for claim in first["claims"]] == ["crime films"]
    assert first["claims"][0]["by"] == "statements"
    assert all("Story" in item["title"] for item in first["claims"][0]["supports"])
    kept = (tmp_path / "data/profiles/profiles.parquet").read_bytes()
    edited = told(capsys, project, "3", edit=["forbid", "genre=Crime"])
    crime = {item for item in range(1, 41) if item % 4 == 0}
    assert {item["item_id"] for item in edited["before"]} & crime
    assert not {item["item_id"] for item in edited["after"]} & crime
    assert edited["claims"] == []
    assert [claim["claim"] for claim in edited["forbidden"]] == ["crime films"]
    assert (tmp_path / "data/profiles/profiles.parquet").read_bytes() == kept
    again = told(capsys, project, "3")
    assert again["items"] == edited["after"]
    assert again["edits"] == ["genre=Crime forbidden"]
    told(capsys, project, "3", edit=["undo", "genre=Crime"])
    assert told(capsys, project, "3") == first


def test_an_edit_is_heard_of_a_value_that_nothing_is_inferred_of(project, tmp_path, monkeypatch, capsys):
    """Too few items for a claim, or beyond the most met values; well-known is by the catalogue's own popularity."""
    monkeypatch.setattr(profiles_module, "MAX_STATEMENTS", 1)
    items = Items.read(tmp_path / "data/prepared")
    known = set(sorted(items.ids, key=lambda item: (-items.popularity[item], item))[:4])
    for word, banned in (("genre=musical", {10, 20, 30, 40}), ("popularity=well-known", known)):
        edited = told(capsys, project, "3", edit=["forbid", word], k=40)
        before, after = ({item["item_id"] for item in edited[key]} for key in ("before", "after"))
        assert before & banned
        assert after == before - banned


def test_case_decides_between_two_values_that_differ_by_it_alone():
    """Free tags hold both."""
    low = Statement("genre", "crime", "crime films", frozenset({9}), 0.1)
    assert parse_edit(["forbid", "genre=crime"], [*STATEMENTS, low]) == ("forbid", [Value("genre", "crime")])
    assert parse_edit(["forbid", "genre=Crime"], [*STATEMENTS, low]) == ("forbid", [Value("genre", "Crime")])


def test_an_edit_can_be_undone_when_the_catalogue_has_its_value_no_more(project, capsys):
    """Case aside, where no other edit is spelt so; an undo of something else is still refused."""
    horror, low = Value("genre", "Horror"), Value("genre", "horror")
    write_edits(LEDGER, {"3": (Edit(horror), Edit(low), Edit(Value("mood", "Dark")))})
    assert told(capsys, project, "3", edit=["undo", "genre=horror"])["edits"] == [
        "genre=Horror forbidden", "mood=Dark forbidden",
    ]  # fmt: skip
    told(capsys, project, "3", edit=["undo", "mood=dark"])
    assert read_edits(LEDGER) == {"3": (Edit(horror),)}
    with pytest.raises(RecalignError, match="attribute 'mood'"):
        profile(project, "3", edit=["undo", "mood=Dark"])


def test_what_is_written_while_a_list_is_ranked_is_kept(project, monkeypatch, capsys):
    """Another user's edit, and one by the same user from another window."""
    other, first = Edit(Value("genre", "War")), Edit(Value("genre", "Drama"))

    def slowly(*asked):
        write_edits(LEDGER, {"3": (first,), "4": (other,)})
        return ranked(*asked)

    ranked = command._ranked
    monkeypatch.setattr(command, "_ranked", slowly)
    edited = told(capsys, project, "3", edit=["forbid", "genre=Crime"])
    assert edited["edits"] == ["genre=Drama forbidden", "genre=Crime forbidden"]
    assert read_edits(LEDGER) == {"3": (first, Edit(Value("genre", "Crime"))), "4": (other,)}


def test_two_edits_are_written_one_after_the_other(project, tmp_path, monkeypatch):
    """Who holds the lock is named; nothing is written without it."""
    monkeypatch.setattr(command, "LOCK_SECONDS", 0.0)
    (tmp_path / "data/cache").mkdir(exist_ok=True)
    lock = try_lock(tmp_path / "data/cache/ledger.lock", "another window")
    with pytest.raises(RecalignError, match=r"recalign profile --edit waited .* for another window"):
        profile(project, "3", edit=["forbid", "genre=Crime"])
    os.close(lock)
    assert not (tmp_path / LEDGER).exists()


def test_what_another_engine_inferred_is_not_shown(project, capsys):
    """User 4's profile is by generate, profiles.engine is statements: counting tells instead."""
    assert {claim["by"] for claim in told(capsys, project, "4")["claims"]} == {"counting"}


def test_profiles_that_are_all_by_another_engine_are_said_to_be_passed_over(project, tree, capsys, caplog):
    """And claims are by counting; where there are some by profiles.engine nothing is said."""
    told(capsys, project, "3")
    assert "holds no profile" not in caplog.text
    tree["profiles"]["engine"] = "endpoint"
    assert {claim["by"] for claim in told(capsys, parse_params(tree), "3")["claims"]} == {"counting"}
    assert "data/profiles holds no profile by profiles.engine 'endpoint', so claims are by counting" in caplog.text


def test_a_refused_edit_writes_nothing_and_an_unknown_user_is_named(project, tmp_path, capsys):
    """Nor does k below 1."""
    with pytest.raises(RecalignError, match="attribute 'director2'"):
        profile(project, "3", edit=["forbid", "director2=x"])
    with pytest.raises(RecalignError, match="--user is 999"):
        profile(project, "999")
    with pytest.raises(RecalignError, match="-k is 0"):
        profile(project, "3", k=0)
    assert not (tmp_path / LEDGER).exists()


def test_the_page_for_people_has_a_line_a_claim(project, capsys):
    """And says by what the list is ranked."""
    profile(project, "3", edit=["change", "genre=Crime", "genre=War"])
    said = capsys.readouterr().out
    assert "war films (genre=War; by edit, in place of genre=Crime)" in said
    assert "Edits, which 'undo' takes back: genre=Crime changed to genre=War" in said
    assert "Before the edit, by item_knn: " in said
    assert read_json(LEDGER / "edits.json")["users"]["3"][0]["to"] == {"attribute": "genre", "value": "War"}


def test_the_claims_of_everybody_are_exported_as_parquet_and_as_json_alike(project, tmp_path, capsys):
    """With what was edited and forbidden; of one user the same rows as of him among all."""
    profile(project, "3", edit=["forbid", "genre=Crime"])
    profile(project, None, export=tmp_path / "claims.parquet")
    profile(project, None, export=tmp_path / "claims.json")
    profile(project, "3", export=tmp_path / "own.json")
    everybody = 24 + 40  # of random_log, forty of them with one item
    assert capsys.readouterr().out.count(f"claims of {everybody} users -> ") == 2
    rows = read_parquet(tmp_path / "claims.parquet").to_pylist()
    assert rows == read_json(tmp_path / "claims.json")
    own = [row for row in rows if row["user"] == "3"]
    assert own == read_json(tmp_path / "own.json")
    assert [(row["claim"], row["status"], row["by"]) for row in own] == [("crime films", "forbidden", "statements")]
    assert {row["status"] for row in rows if row["user"] != "3"} == {"inferred"}
    assert all(row["supports"] for row in rows)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"user": None}, "name a USER, or give --export FILE"),
        ({"user": "3", "export": Path("x.csv")}, r"ends in '\.csv'; allowed are \.parquet, \.json"),
        ({"user": "3", "export": Path("x.json"), "edit": ["forbid", "genre=Crime"]}, "two commands"),
        ({"user": "999", "export": Path("x.json")}, "--user is 999"),
    ],
)
def test_an_export_that_cannot_be_is_refused_and_writes_nothing(project, tmp_path, asked, said):
    """In one line."""
    with pytest.raises(RecalignError, match=said):
        profile(project, **asked)
    assert not list(tmp_path.glob("x.*"))
    assert not (tmp_path / LEDGER).exists()
