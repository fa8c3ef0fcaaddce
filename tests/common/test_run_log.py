"""The closing screen: what each stage took and left."""

import json
import time

import pyarrow as pa
import pytest

from recalign import project as layout
from recalign.common import artifacts, progress
from recalign.common.run_log import LEFT, NOTES, note_costs, noted, noted_costs, print_stages, stage_lines
from recalign.pipeline import STAGES


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, worked in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_pairs(rows: int) -> None:
    with artifacts.folder(layout.PAIRS) as folder:
        artifacts.write_parquet(folder / "pairs.parquet", pa.table({"example_id": ["1-2"] * rows}))


def write_adapter(objective: str, examples: int) -> None:
    with artifacts.folder(layout.ALIGN / objective) as folder:
        artifacts.write_json(folder / "training.json", {"examples": examples})


def test_every_stage_before_the_report_has_a_line():
    """A stage that is added has a folder, and its line follows."""
    assert [*LEFT, "report"] == list(STAGES)


def test_a_stage_is_noted_with_its_seconds_rows_and_digest(project):
    """The digest is that of the folder's manifest."""
    with noted("pairs"):
        write_pairs(1234)
        time.sleep(0.02)
    (line,) = stage_lines({})
    assert (line.stage, line.rows, line.digest) == ("pairs", "1,234 pairs", artifacts.folder_digest(layout.PAIRS))
    assert line.seconds is not None
    assert line.seconds >= 0.02
    assert line.peak_mb is not None
    assert line.peak_mb > 10


def test_bytes_that_were_not_made_here_show_no_seconds(project):
    """After a `dvc checkout` of other data the old note is about something else."""
    with noted("pairs"):
        write_pairs(3)
    write_pairs(4)
    assert [(line.rows, line.seconds) for line in stage_lines({})] == [("4 pairs", None)]


def test_a_stage_that_failed_is_not_noted(project):
    """Its output is what it was before, and so is its note."""
    write_pairs(3)
    with pytest.raises(ValueError), noted("pairs"):
        raise ValueError("out of memory, say")
    assert not NOTES.exists()


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"seconds": 3}'])
def test_a_broken_note_is_no_note(project, broken):
    """data/cache may be deleted or spoilt at any time."""
    write_pairs(3)
    artifacts.write_text(NOTES / "pairs.json", broken)
    assert [line.seconds for line in stage_lines({})] == [None]


def test_costs_are_those_of_the_very_bytes_and_known_ones_stay(project):
    """Stored log-probs make a second evaluation too fast to be timed; other bytes were never timed."""
    write_pairs(3)
    assert noted_costs(layout.PAIRS) == {}
    note_costs(layout.PAIRS, {"llm-sft": 12.5, "ease": 0.5})
    note_costs(layout.PAIRS, {"llm-sft": None, "ease": 0.25})
    assert noted_costs(layout.PAIRS) == {"llm-sft": 12.5, "ease": 0.25}
    write_pairs(4)
    assert noted_costs(layout.PAIRS) == {}


def test_each_objective_has_a_line_and_yesterdays_have_none(project):
    """An adapter of an objective that the params no longer name stays on the disk."""
    for objective, examples in (("sdpo", 160), ("dmpo", 80)):
        with noted(f"align@{objective}"):
            write_adapter(objective, examples)
    assert [(line.stage, line.rows) for line in stage_lines({})] == [
        ("align@dmpo", "80 pairs"),
        ("align@sdpo", "160 pairs"),
    ]
    assert [line.stage for line in stage_lines({"align": ["sdpo"]})] == ["align@sdpo"]


def test_the_screen_names_stage_seconds_rows_and_digest(project, capsys):
    """One line a stage, and a sum."""
    with noted("pairs"):
        write_pairs(12)
    note = json.loads((NOTES / "pairs.json").read_text())
    artifacts.write_json(NOTES / "pairs.json", note | {"seconds": 61.25})
    print_stages({})
    screen = capsys.readouterr().out
    (row,) = [line.split() for line in screen.splitlines() if line.split()[:1] == ["pairs"]]
    assert row == ["pairs", "61.2", f"{note['peak_mb']:,}", "12", "pairs", note["digest"][:12]]
    assert "cache" not in screen


def test_nothing_is_shown_before_anything_ran(project, capsys):
    """An empty project has no closing screen."""
    print_stages({})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (3600, "1 h 00 min"), (7799, "2 h 09 min")],
)
def test_a_duration_reads_as_people_say_it(seconds, text):
    """Seconds, minutes, then hours."""
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "seconds", "text"), [(25, 2.0, "12.5/s"), (2, 2.0, "1.0/s"), (5, 40.0, "8.0 s each"), (0, 3.0, "—")]
)
def test_a_pace_below_one_a_second_is_told_the_other_way_round(done, seconds, text):
    """'0.1/s' tells little of a step that takes eight seconds."""
    assert progress.pace(done, seconds) == text


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    """What, how many, pace and time left; later lines stand further apart; the end is told."""
    clock = iter([0.0, *(8.0 * step for step in range(1, 1001)), 8000.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track(range(1000), 1000, "sft", "steps")) == list(range(1000))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sft: 2 of 1000 steps, 8.0 s each, 2 h 13 min left"
    assert lines[-1] == "sft: 1000 steps in 2 h 13 min, 8.0 s each"
    assert 60 < len(lines) < 120


def test_short_work_leaves_no_line(capsys):
    """What ends within ten seconds needs no report."""
    assert list(progress.track([1, 2], 2, "pairs")) == [1, 2]
    assert capsys.readouterr().err == ""
