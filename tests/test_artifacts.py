"""Writes are whole or not at all."""

import pytest

from recalign import artifacts
from recalign.errors import RecalignError


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    """When the block raises, readers still see the former artefact and no left-over."""
    place = tmp_path / "out"
    with artifacts.folder(place) as partial:
        (partial / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), artifacts.folder(place) as partial:
        (partial / "a.txt").write_text("new")
        _ = 1 / 0
    assert (place / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_new_folder_takes_the_place_of_the_old(tmp_path):
    """A second write replaces the first whole: files of the former are gone."""
    place = tmp_path / "out"
    for name in ("a.txt", "b.txt"):
        with artifacts.folder(place) as partial:
            (partial / name).write_text(name)
    assert sorted(p.name for p in place.iterdir()) == ["b.txt", "manifest.json"]
    artifacts.verify(place)


def test_left_overs_of_a_killed_run_are_swept(tmp_path):
    """A folder that a kill left half-written goes with the next run."""
    (tmp_path / ".out.partial-1").mkdir()
    with artifacts.folder(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("a")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_verify_names_the_changed_file(tmp_path):
    """One flipped byte is found and its file named."""
    with artifacts.folder(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("a")
    (tmp_path / "out" / "a.txt").write_text("b")
    with pytest.raises(RecalignError, match=r"a\.txt was changed after it was written"):
        artifacts.verify(tmp_path / "out")


def test_equal_values_have_equal_digests():
    """The digest does not depend on the order of keys."""
    assert artifacts.digest_of({"a": 1, "b": [2]}) == artifacts.digest_of({"b": [2], "a": 1})
    assert artifacts.digest_of({"a": 1}) != artifacts.digest_of({"a": 2})


def test_a_missing_file_says_how_to_make_it(tmp_path):
    """Reading what is not there is one line with the mend."""
    with pytest.raises(RecalignError, match=r"x\.json is missing; run 'dvc repro'"):
        artifacts.read_json(tmp_path / "x.json")
