"""Generated titles counted as the papers count them, and the agreement of sampled with full ranking."""

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from project import FEW, copy_project, run
from recalign.data.records import Case, Example
from recalign.evaluation.generation import (
    EMPTY,
    FREE,
    FROM_CANDIDATES,
    FROM_CATALOGUE,
    FROM_HISTORY,
    NOT_A_CANDIDATE,
    SEVERAL,
    VALID,
    Answer,
    generation_rows,
    judge,
    read_answers,
    write_answers,
)
from recalign.evaluation.protocol_agreement import order_agreement, rank_agreement
from recalign.evaluation.second_view import second_view, second_view_metrics, second_view_sections
from recalign.evaluation.system_ranks import SystemRanks, in_case_order
from recalign.llm.base import LanguageModel
from recalign.params import PromptParams
from recalign.prompts import PromptBuilder
from recalign.recommenders.generated import answers
from recalign.recommenders.language_model import LanguageModelRecommender
from recalign.recommenders.seam import Request
from recalign.recommenders.trial import Trial, full_ranks, rank_catalogue, whole_catalogue

CANDIDATES = ["Rebecca Black", "Black", "Air", "Air Supply"]
HISTORY = ["Enigma"]


@pytest.mark.parametrize(
    ("text", "by_title", "by_substring"),
    [
        ("Air", (VALID, 2), (VALID, 2)),
        ("  air \nand more", (VALID, 2), (VALID, 2)),
        ("Air Supply", (VALID, 3), (SEVERAL, None)),
        ("Rebecca Black", (VALID, 0), (SEVERAL, None)),
        ("I think of Black", (NOT_A_CANDIDATE, None), (VALID, 1)),
        ("Enigma", (FROM_HISTORY, None), (FROM_HISTORY, None)),
        ("More Enigma", (NOT_A_CANDIDATE, None), (FROM_HISTORY, None)),
        ("Abba", (NOT_A_CANDIDATE, None), (NOT_A_CANDIDATE, None)),
        (" \n\t", (EMPTY, None), (EMPTY, None)),
        ("", (EMPTY, None), (EMPTY, None)),
    ],
)
def test_what_a_text_counts_as(text, by_title, by_substring) -> None:
    assert judge(text, CANDIDATES, HISTORY, "title") == by_title
    assert judge(text, CANDIDATES, HISTORY, "substring") == by_substring


def test_titles_that_differ_in_letter_case_alone_are_several() -> None:
    assert judge("abba", ["ABBA", "Abba"], [], "title") == (SEVERAL, None)


def given(n: int, outcome: str, hits: int = 0, first: int = 0) -> list[Answer]:
    return [
        Answer("llm", FREE, "title", f"{user}-1", user, "x", outcome, user - first < hits)
        for user in range(first, first + n)
    ]


def test_hits_over_all_rows_and_over_valid_rows_stand_side_by_side() -> None:
    """200 rows, 190 valid, 80 right: 0.400 by S-DPO's convention, 0.42105 by that of LLaRA's code."""
    found = [*given(190, VALID, hits=80), *given(6, EMPTY, first=190), *given(4, SEVERAL, first=196)]
    (row,) = generation_rows(found, 200, 1)
    assert (row.cases, row.valid.value, row.hit_all.value) == (200, 0.95, 0.4)
    assert row.hit_valid is not None
    assert row.hit_valid.value == pytest.approx(0.42105, abs=5e-6)
    assert row.errors == {NOT_A_CANDIDATE: 0, FROM_HISTORY: 0, SEVERAL: 4, EMPTY: 6}
    assert row.hit_all.low < 0.4 < row.hit_all.high


def test_without_a_valid_answer_there_is_no_share_of_valid_ones() -> None:
    (row,) = generation_rows(given(3, NOT_A_CANDIDATE), 100, 1)
    assert (row.valid.value, row.hit_all.value, row.hit_valid) == (0.0, 0.0, None)
    assert generation_rows([], 100, 1) == []


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = given(2, VALID, hits=1)
    write_answers(tmp_path / "generations.parquet", found)
    assert read_answers(tmp_path / "generations.parquet") == found


def ranks(system: str, values: list[int], manifest: str = "uniform") -> SystemRanks:
    cases = [(f"{user}-1", user) for user in range(len(values))]
    return in_case_order(system, "p", manifest, "d", cases, np.array(values), np.zeros(len(values)))


def test_agreement_of_a_systems_ranks() -> None:
    full = ranks("a", [10, 20, 30, 40])
    assert rank_agreement(ranks("a", [1, 2, 3, 4]), full).tau == pytest.approx(1.0)
    assert rank_agreement(ranks("a", [4, 3, 2, 1]), full).tau == pytest.approx(-1.0)
    assert rank_agreement(ranks("a", [1, 3, 2, 4]), full).tau == pytest.approx(4 / 6)  # one of six pairs is turned
    assert rank_agreement(ranks("a", [1, 1, 2, 2]), full).tau == pytest.approx(4 / np.sqrt(4 * 6))  # tau-b, two ties


def test_agreement_is_over_the_cases_that_were_ranked_both_ways_and_has_no_value_where_nothing_differs() -> None:
    found = rank_agreement(ranks("a", [1, 2, 3, 9, 9]), ranks("a", [5, 6, 7]))
    assert (found.tau, found.cases) == (pytest.approx(1.0), 3)
    assert rank_agreement(ranks("a", [1, 1]), ranks("a", [3, 4])).tau is None
    assert rank_agreement(ranks("a", [1]), ranks("a", [3])).tau is None


def test_agreement_of_the_order_of_systems() -> None:
    sampled = [ranks("a", [1, 1]), ranks("b", [2, 2]), ranks("c", [3, 3])]
    full = [ranks("a", [5, 5]), ranks("c", [6, 6]), ranks("b", [7, 7])]
    found = order_agreement(sampled, full)
    assert found is not None
    assert (found.tau, found.cases) == (pytest.approx(1 / 3), 2)
    assert order_agreement(sampled[:2], full) is None


ITEMS = tiny.items()


def recommender(form: str = "history") -> LanguageModelRecommender:
    model = LanguageModel(
        tiny.model(), tiny.tokenizer(), tiny.torch.device("cpu"), "fp32", "none", {"id": "tiny"}, "digest"
    )
    params = PromptParams(form=form, history=8, training_history=8, profile=False, max_title_tokens=24)
    builder = PromptBuilder(model.tokenizer, ITEMS, params, "films")
    return LanguageModelRecommender(model, builder, ITEMS, "llm", batch=2)


def trial() -> Trial:
    histories, targets = [(1, 2, 3), (4,), (5, 6)], [4, 5, 1]
    lists = [(4, 5, 6, 7), (1, 2, 3, 5), (1, 2, 3, 4)]
    cases = tuple(
        Case(Example(f"{user}-{target}", user, "test", None, history, target), listed, listed.index(target))
        for user, (history, target, listed) in enumerate(zip(histories, targets, lists, strict=True))
    )
    requests = tuple(Request(case.example.user_id, case.example.history) for case in cases)
    return Trial("uniform", "d", cases, requests)


@pytest.mark.parametrize("form", ["history", "candidates"])
def test_a_model_answers_freely_and_held_to_titles(form: str) -> None:
    found = answers(recommender(form), trial(), max_new_tokens=6, beams=2)
    assert [(row.mode, row.matching) for row in found[::3]] == [
        (FREE, "title"), (FREE, "substring"), (FROM_CANDIDATES, "title"), (FROM_CATALOGUE, "title"),
    ]  # fmt: skip
    held = [row for row in found if row.mode == FROM_CANDIDATES]
    assert {row.outcome for row in held} == {VALID}  # ValidRatio is 1 by construction
    for row, case in zip([row for row in found if row.mode == FROM_CATALOGUE], trial().cases, strict=True):
        assert row.text in set(ITEMS.titles.values()) - {ITEMS.titles[item] for item in case.example.history}
        assert row.hit == (row.text == ITEMS.titles[case.example.target])


def test_the_few_cases_of_the_whole_catalogue_are_ranked_as_any_recommender_ranks_it() -> None:
    asked = whole_catalogue(trial(), ITEMS, 2)
    system = recommender()
    scores = system.logprobs(asked.requests, asked.candidates)
    few, whole = full_ranks("llm", asked, scores), rank_catalogue(system, ITEMS, trial())
    shared = [place for place, example in enumerate(whole.example_ids) if example in few.example_ids]
    assert few.ranks.tolist() == whole.ranks[shared].tolist()
    assert (few.manifest, few.digest, few.protocol) == ("catalogue-cases", whole.digest, "full")


def test_the_sections_and_metrics_name_the_number_of_cases(tmp_path: Path) -> None:
    write_answers(tmp_path / "g.parquet", given(4, VALID, hits=1))
    systems = [
        ranks("a", [1, 2, 3]), ranks("b", [1, 3, 2]), ranks("c", [2, 3, 4]),
        ranks("a", [4, 5, 6], "catalogue"), ranks("b", [4, 5, 6], "catalogue"), ranks("c", [9, 8, 7], "catalogue"),
    ]  # fmt: skip
    view = second_view(tmp_path / "g.parquet", systems, "uniform", 100, 1)
    metrics = second_view_metrics(view)
    assert metrics["generation"][0]["cases"] == 4
    assert metrics["generation"][0]["hit_over_all"]["value"] == 0.25
    assert metrics["sampled_against_full"]["b"] == {"kendall_tau": pytest.approx(1 / 3, abs=1e-6), "cases": 3}
    assert "order of the systems" in metrics["sampled_against_full"]
    generated, agreement = second_view_sections(view)
    assert "<td>4</td>" in generated
    assert "<td>0.33</td><td>3</td>" in agreement


def test_nothing_generated_and_nothing_ranked_in_full_shows_nothing(tmp_path: Path) -> None:
    view = second_view(tmp_path / "none.parquet", [ranks("a", [1, 2])], "uniform", 100, 1)
    assert (second_view_metrics(view), second_view_sections(view)) == ({}, [])


@pytest.mark.slow
def test_the_chain_fills_both_views_where_they_are_asked_for(tmp_path: Path) -> None:
    """Language models rank the whole catalogue and write titles on as many cases as params.yaml says."""
    project = copy_project(
        tmp_path / "project", budget="smoke", recommenders__systems=FEW,
        evaluate__full_catalogue_cases=3, evaluate__generation_cases=4,
    )  # fmt: skip
    run(project, "dvc", "pull", "data/raw/films.dvc")
    run(project, "dvc", "repro")
    metrics = json.loads((project / "reports/metrics.json").read_text(encoding="utf-8"))
    models = {"llm-base", "llm-sft", "llm-sdpo"}
    assert models < set(metrics["full_catalogue_with_llms"])
    assert metrics["sampled_against_full"]["llm-sft"]["cases"] == 3
    assert {(row["system"], row["cases"]) for row in metrics["generation"]} == {(name, 4) for name in models}
