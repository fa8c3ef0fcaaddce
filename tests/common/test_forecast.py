"""What a stage says beforehand: the work in figures, and what it takes as far as an earlier run here measured it."""

import logging

import pytest
from training_world import make_params, make_world

from recalign.common.artifacts import folder_digest, write_json
from recalign.common.progress import fitting_forecast, forecast, ranking_forecast, reading_forecast

CASES = {"validation": 64, "warm": 120, "user-cold": 16}


def noted(notes, stage, *, seconds, peak_mb, costs):
    """Notes of a run of `stage` that ended here."""
    write_json(notes.parent / "stages" / f"{stage}.json", {"digest": "ab12", "seconds": seconds, "peak_mb": peak_mb})
    write_json(notes / "ab12.json", costs)


def test_what_never_ran_here_is_told_by_its_counts_and_the_least_memory():
    assert forecast("sft: 180 examples", None, None, 538.1) == (
        "sft: 180 examples; how long is not known, since nothing like it has run here, at least 538 MB of memory"
    )


def test_what_ran_here_is_told_by_its_pace_and_its_memory():
    assert forecast("sft: 180 examples", 336.6, 2572.0, 538.1) == (
        "sft: 180 examples; some 5 min 37 s at the pace of the last run here, 2,572 MB of memory as then"
    )


def test_a_training_takes_its_tokens_at_the_pace_of_the_last_one(tmp_path):
    """The pace is that of training, 90 tokens per second, not of the stage's 384 seconds."""
    notes = tmp_path / "costs"
    noted(notes, "sft", seconds=384.5, peak_mb=2572, costs={"tokens_per_second": 90.0, "weights_mb": 542.98})
    assert reading_forecast("sft", "180 examples", 27_000, 542.98, notes) == (
        "sft: 180 examples, 27,000 tokens; some 5 min 00 s at the pace of the last run here, 2,572 MB of memory as then"
    )


@pytest.mark.parametrize(("stage", "weights"), [("sft", 0.4), ("align@sdpo", 542.98)])
def test_another_base_or_another_stage_tells_nothing(tmp_path, stage, weights):
    """A smoke run's random model takes a second; a day's training must not be promised by it."""
    notes = tmp_path / "costs"
    noted(notes, "sft", seconds=1.0, peak_mb=500, costs={"tokens_per_second": 9000.0, "weights_mb": 542.98})
    assert "how long is not known" in reading_forecast(stage, "180 examples", 27_000, weights, notes)


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"seconds": "x"}', '{"digest": "ab12", "seconds": null}'])
def test_spoilt_notes_are_no_notes(tmp_path, broken):
    """data/cache may be deleted or spoilt at any time."""
    notes = tmp_path / "costs"
    noted(notes, "baselines@sasrec", seconds=1.0, peak_mb=500, costs={"work": 5, "items": 300})
    (tmp_path / "stages" / "baselines@sasrec.json").write_text(broken, encoding="utf-8")
    assert "how long is not known" in fitting_forecast("baselines@sasrec", "5 events", 5, 300, 2.0, notes)
    (notes / "ab12.json").write_text(broken, encoding="utf-8")
    assert "how long is not known" in reading_forecast("baselines@sasrec", "5 events", 5, 2.0, notes)


def test_a_sequence_model_takes_its_events_times_epochs_at_the_last_pace(tmp_path):
    """Four times the work of a run of 252 s; a catalogue more than twice as large has another pace."""
    notes = tmp_path / "costs"
    noted(notes, "baselines@sasrec", seconds=252.0, peak_mb=1015, costs={"work": 1_000, "items": 300})
    said = "baselines@sasrec: 40 events; some 16 min 48 s at the pace of the last run here, 1,015 MB of memory as then"
    assert fitting_forecast("baselines@sasrec", "40 events", 4_000, 600, 55.0, notes) == said
    assert fitting_forecast("baselines@sasrec", "40 events", 4_000, 601, 55.0, notes) == (
        "baselines@sasrec: 40 events; how long is not known, since nothing like it has run here, "
        "at least 55 MB of memory"
    )


def test_a_ranking_is_told_by_its_cases_and_searches(tmp_path):
    """200 sampled cases and 10 searches, each as five: 250 cases at 4 s."""
    notes = tmp_path / "costs"
    noted(notes, "rank@llm-sft", seconds=900.0, peak_mb=1775, costs={"per_thousand": 4000.0, "weights_mb": 269.061})
    assert ranking_forecast("llm-sft", CASES, 10, 269.061, notes) == (
        "rank@llm-sft: the candidates of 200 cases (64 validation, 120 warm, 16 user-cold) and the whole catalogue for "
        "10; some 16 min 40 s at the pace of the last run here, 1,775 MB of memory as then"
    )
    assert ranking_forecast("llm-sft", CASES, 0, 269.062, notes) == (
        "rank@llm-sft: the candidates of 200 cases (64 validation, 120 warm, 16 user-cold); "
        "how long is not known, since nothing like it has run here, at least 269 MB of memory"
    )


def test_the_stages_themselves_say_it_and_know_their_pace_the_second_time(tmp_path, caplog):
    """Before the first step, with what is left to do: a run that has nothing to compute promises nothing."""
    caplog.set_level(logging.INFO, logger="recalign")
    params, world = make_params(sft__epochs=1, sft__evaluations=1, align__evaluations=1), make_world(tmp_path)

    def said(stage):
        lines = [line for line in caplog.messages if line.startswith(f"{stage}: ") and "MB of memory" in line]
        caplog.clear()
        return lines

    for stage, run, work in (
        ("sft", lambda: world.sft(params), "32 examples, epochs 1, 4 steps left of 4"),
        ("reference", lambda: world.reference(params), "the titles of 120 pairs"),
        ("align@sdpo", lambda: world.align(params), "96 examples, epochs 1, 12 steps left of 12"),
    ):
        out = run()
        (line,) = said(stage)
        assert line.startswith(f"{stage}: {work}, ")
        assert "how long is not known" in line
        note = {"digest": folder_digest(out), "seconds": 9.0, "peak_mb": 700}
        write_json(tmp_path / "cache" / "stages" / f"{stage}.json", note)
    world.reference(params)
    assert said("reference") == []
    world.sft(params)
    (line,) = said("sft")
    assert line.endswith(" at the pace of the last run here, 700 MB of memory as then")
