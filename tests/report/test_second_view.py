"""Generated titles counted as the papers count them, and the agreement of sampled with full ranking."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from project import FEW, copy_project, run
from scipy.stats import kendalltau

from recalign.common.errors import RecalignError
from recalign.data.records import Case, Example, Items, Met
from recalign.evaluation.comparison import Run, compare_agreements, compare_answers
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
from recalign.evaluation.metrics import draw_lots
from recalign.evaluation.protocol_agreement import Agreement, order_agreement, rank_agreement, resampled_taus
from recalign.evaluation.ranking_rule import Kind, RankingRule
from recalign.evaluation.ranks import CaseList, SystemRanks, in_case_order
from recalign.evaluation.scorecard import ANSWERS, Provenance, Recorder, Row, Scorecard
from recalign.evaluation.significance import user_draws
from recalign.llm.model.base import LanguageModel
from recalign.llm.prompts import PromptBuilder
from recalign.params.prompt import PromptParams
from recalign.ranking.fused import catalogue_ranks
from recalign.ranking.generated import answers
from recalign.ranking.language_model import Asked, LanguageModelRecommender
from recalign.ranking.trial import Trial, full_ranks, rank_catalogue, searched_ranks, whole_catalogue
from recalign.recommenders.recommender import Request
from recalign.report.second_view import second_view, second_view_metrics, second_view_sections

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
    assert 0.0 < row.error_shares[NOT_A_CANDIDATE].high < 0.05  # none in 200: Wilson's, not a point


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
    return in_case_order(system, CaseList("p", manifest, "d", cases), np.array(values), np.zeros(len(values)))


def agreed(sampled: list[int], full: SystemRanks) -> Agreement:
    return rank_agreement(ranks("a", sampled), full, 200, 1)


def test_agreement_of_a_systems_ranks() -> None:
    full = ranks("a", [10, 20, 30, 40])
    assert agreed([1, 2, 3, 4], full).tau == pytest.approx(1.0)
    assert agreed([4, 3, 2, 1], full).tau == pytest.approx(-1.0)
    assert agreed([1, 3, 2, 4], full).tau == pytest.approx(4 / 6)  # one of six pairs is turned
    assert agreed([1, 1, 2, 2], full).tau == pytest.approx(4 / np.sqrt(4 * 6))  # tau-b, two ties


def test_agreement_is_over_the_cases_that_were_ranked_both_ways_and_has_no_value_where_nothing_differs() -> None:
    found = agreed([1, 2, 3, 9, 9], ranks("a", [5, 6, 7]))
    assert (found.tau, found.cases) == (pytest.approx(1.0), 3)
    assert agreed([1, 1], ranks("a", [3, 4])).tau is None
    assert agreed([1], ranks("a", [3])).tau is None


def test_agreement_of_the_order_of_systems() -> None:
    sampled = [ranks("a", [1, 1]), ranks("b", [2, 2]), ranks("c", [3, 3])]
    full = [ranks("a", [5, 5]), ranks("c", [6, 6]), ranks("b", [7, 7])]
    found = order_agreement(sampled, full, 200, 1)
    assert found is not None
    assert (found.tau, found.cases) == (pytest.approx(1 / 3), 2)
    assert order_agreement(sampled[:2], full, 200, 1) is None


def test_resampled_agreement_is_scipys_on_the_drawn_cases() -> None:
    """A user's cases are drawn together, as often as the user is."""
    generator = np.random.default_rng(3)
    one, other, users = generator.integers(1, 6, 30), generator.integers(1, 40, 30), generator.integers(0, 8, 30)
    fast = resampled_taus(one, other, users.tolist(), 20, 7)
    for drawn, tau in zip(next(user_draws(8, 20, 7)), fast, strict=True):
        rows = [row for user, times in enumerate(drawn) for _ in range(times) for row in np.flatnonzero(users == user)]
        assert tau == pytest.approx(kendalltau(one[rows], other[rows]).statistic, abs=1e-12)
    assert np.isnan(resampled_taus([1, 2], [1, 2], [4, 5], 50, 0)).any()  # the same user twice: nothing to order


def test_the_interval_of_an_agreement_holds_it_and_shrinks_with_the_cases() -> None:
    generator = np.random.default_rng(5)
    widths = []
    for count in (30, 300):
        noise = generator.normal(size=count)
        full = (noise.argsort().argsort() + 1).tolist()
        near = ((noise + 0.5 * generator.normal(size=count)).argsort().argsort() + 1).tolist()
        found = agreed(near, ranks("a", full))
        assert found.tau is not None
        assert found.interval is not None
        assert found.interval.low < found.tau < found.interval.high <= 1.0
        widths.append(found.interval.high - found.interval.low)
    assert widths[1] < 0.5 * widths[0]


def card(cases: int) -> Scorecard:
    row = Row("a", "id", "x", {}, None)
    return Scorecard("sampled-20", "uniform", "d1", cases, cases, (row,), "a", None, ())


def test_the_second_view_is_recorded_like_every_other_figure() -> None:
    """Each record says over which answers, by which rule, in which mode; a rate over valid answers counts those."""
    recorder = Recorder(card(200), Provenance("simulated", "test", "x", ""))
    found = [*given(190, VALID, hits=80), *given(6, EMPTY, first=190), *given(4, SEVERAL, first=196)]
    figures = recorder.generations(generation_rows(found, 200, 1))
    told = {(own.metric, own.denominator): (own.value, own.n, own.users) for own in figures}
    assert told == {
        ("ValidRatio", "all answers"): (0.95, 200, 200),
        ("hit", "all answers"): (0.4, 200, 200),
        ("hit", "valid answers"): (pytest.approx(0.421053, abs=1e-6), 190, 190),
        ("error: not a candidate", "all answers"): (0.0, 200, 200),
        ("error: from the history", "all answers"): (0.0, 200, 200),
        ("error: several", "all answers"): (0.02, 200, 200),
        ("error: empty", "all answers"): (0.03, 200, 200),
    }
    assert {own.protocol for own in figures} == {"generation, free"}
    assert {own.matching_rule for own in figures} == {ANSWERS["title"]}
    assert {(own.candidate_digest, own.data_digest, own.split) for own in figures} == {("d1", "x", "test")}
    assert all(own.low is not None and own.low <= own.value <= (own.high or 0) for own in figures)


def test_agreement_is_recorded_with_both_protocols_and_none_without_a_value() -> None:
    recorder = Recorder(card(4), Provenance("simulated", "test", "x", ""))
    full = ranks("a", [10, 20, 30, 40], "catalogue")
    (own,) = recorder.agreements([agreed([1, 3, 2, 4], full), agreed([1, 1, 1, 1], full)])
    assert (own.metric, own.value, own.n, own.users) == ("Kendall's tau-b", pytest.approx(0.666667), 4, 4)
    assert (own.protocol, own.manifest, own.candidate_digest) == ("p against p", "uniform, catalogue", "d, d")


def second_run(name: str, answers: list[Answer], sampled: list[int], full: list[int]) -> Run:
    about = {"source": "s", "split": "test", "data_digest": "x", "matching_rule": "m"}
    return Run(name, about, {"llm": ranks("llm", sampled)}, "llm", {"llm": ranks("llm", full, "catalogue")}, answers)


def test_generated_titles_of_two_runs_are_compared_in_pairs() -> None:
    """8 of 20 answers against 4, all valid; then 10 of 20 valid: hits over valid ones are a ratio of their own."""
    one = second_run("one", given(20, VALID, hits=8), [1], [1])
    other = second_run("other", given(20, VALID, hits=4), [1], [1])
    (found,) = compare_answers(one, other, 500, 1)
    assert (found.mode, found.matching, found.cases) == (FREE, "title", 20)
    values = {name: told.interval.value for name, told in found.metrics.items() if told}
    assert values == {"valid_ratio": 0.0, "hit_over_all": pytest.approx(0.2), "hit_over_valid": pytest.approx(0.2)}
    half = second_run("half", [*given(10, VALID, hits=4), *given(10, EMPTY, first=10)], [1], [1])
    (found,) = compare_answers(one, half, 500, 1)
    told = found.metrics["hit_over_valid"]
    assert told is not None
    assert (told.interval.value, told.words) == (pytest.approx(0.0), "level with")
    assert told.interval.low < 0 < told.interval.high
    none = second_run("none", given(20, EMPTY), [1], [1])
    assert compare_answers(one, none, 200, 1)[0].metrics["hit_over_valid"] is None
    assert compare_answers(one, second_run("silent", [], [1], [1]), 200, 1) == []


def test_answers_to_other_cases_are_refused() -> None:
    one, other = (second_run(name, given(count, VALID), [1], [1]) for name, count in (("one", 3), ("other", 4)))
    with pytest.raises(RecalignError, match=r"compared: example_id 3-1 was answered by one .* \(3 and 4 answers"):
        compare_answers(one, other, 100, 1)


def test_agreements_of_two_runs_are_compared_on_the_same_draws() -> None:
    places = list(range(1, 21))
    one = second_run("one", [], places, places)
    other = second_run("other", [], places[::-1], places)
    (found,) = compare_agreements(one, other, 200, 1)
    assert (found.interval.value, found.words) == (pytest.approx(2.0), "above")
    (same,) = compare_agreements(one, one, 200, 1)
    assert (same.interval.value, same.interval.low, same.interval.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    few = second_run("few", [], places[:19], places[:19])
    with pytest.raises(RecalignError, match="19-1 was ranked by one of them only"):
        compare_agreements(one, few, 100, 1)


ITEMS = tiny.items()


def recommender(form: str = "history", items: Items = ITEMS) -> LanguageModelRecommender:
    model = LanguageModel(
        tiny.model(), tiny.tokenizer(), tiny.torch.device("cpu"), "fp32", "none", {"id": "tiny"}, "digest"
    )
    params = PromptParams(form=form, history=8, training_history=8, profile=False, max_title_tokens=24)
    builder = PromptBuilder(model.tokenizer, items, params, "films")
    return LanguageModelRecommender(model, builder, items, "llm", batch=2)


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
    few, whole = full_ranks("llm", asked, scores), rank_catalogue(system, whole_catalogue(trial(), ITEMS))
    shared = [place for place, example in enumerate(whole.example_ids) if example in few.example_ids]
    assert few.ranks.tolist() == whole.ranks[shared].tolist()
    assert (few.manifest, few.protocol, few.view) == ("catalogue-cases", "full", "warm")
    assert few.digest != whole.digest  # it covers the cases and what is excluded


@pytest.mark.parametrize("rule", [RankingRule(), RankingRule("logprob_less_prior", 0.5)])
@pytest.mark.parametrize("depth", [1, 3, 10])
def test_the_places_of_a_search_are_those_of_scoring_every_title(rule: RankingRule, depth: int) -> None:
    """Beyond its depth a target counts as the last, for a system that scores every title too."""
    asked, system = whole_catalogue(trial(), ITEMS, 3), recommender()
    system.over_catalogue = rule
    wanted = [
        Asked(request.history, None, depth, None, request.unranked, case.example.example_id)
        for case, request in zip(asked.cases, asked.requests, strict=True)
    ]
    searched = searched_ranks("llm", asked, system.rank_many(wanted), depth)
    scored = full_ranks("llm", asked, system.scores(list(asked.requests), None).numpy(), depth)
    assert searched.ranks.tolist() == scored.ranks.tolist()
    assert set(searched.ranks.tolist()) <= {*range(1, depth + 1), len(ITEMS.ids)}
    assert [top[:depth] for top in scored.top] == list(searched.top)
    inside = searched.ranks <= depth if depth < 10 else ~np.isnan(searched.scores)
    assert searched.scores[inside] == pytest.approx(scored.scores[inside], abs=1e-3)
    every = rank_catalogue(system, whole_catalogue(trial(), ITEMS), depth)
    assert every.ranks[:3].tolist() == scored.ranks.tolist()


@pytest.mark.parametrize("depth", [None, 3, 40])
def test_language_models_leave_out_all_that_was_met_by_search_and_by_every_score(depth: int | None) -> None:
    """What a search may return is what scoring every title may: nothing that was met, shown in the history or not."""
    met = {
        case.example.user_id: Met(dict.fromkeys(ITEMS.ids[::2]), frozenset(), frozenset({case.example.target}))
        for case in trial().cases
    }
    asked, system = whole_catalogue(trial(), ITEMS, 3, met), recommender()
    found = catalogue_ranks(system, asked, depth)
    expected = full_ranks("llm", asked, system.scores(list(asked.requests), None).numpy(), depth)
    assert (found.ranks.tolist(), found.digest) == (expected.ranks.tolist(), expected.digest)
    for top, example in zip(found.top, found.example_ids, strict=True):
        (case,) = [case for case in asked.cases if case.example.example_id == example]
        gone = met[case.example.user_id].before(case.example)
        assert len(gone) > len(case.example.history)
        assert not gone & set(top)


@pytest.mark.parametrize("kind", ["logprob", "reward"])
@pytest.mark.parametrize("depth", [None, 3])
def test_the_stage_ranks_the_whole_catalogue_by_search_or_by_every_score(kind: Kind, depth: int | None) -> None:
    """No search bounds the implicit reward, and none tells every place: both are scored, and count as many places."""
    asked, system = whole_catalogue(trial(), ITEMS, 3), recommender()
    system.over_catalogue = RankingRule(kind)
    system.reference = replace(system.language_model, model=tiny.model(seed=1))
    found = catalogue_ranks(system, asked, depth)
    expected = full_ranks("llm", asked, system.scores(list(asked.requests), None).numpy(), depth)
    assert found.ranks.tolist() == expected.ranks.tolist()
    assert np.isnan(found.scores).any() == (kind == "logprob" and depth is not None)


def test_a_target_in_its_own_history_is_searched_and_equals_stand_by_lot() -> None:
    """Titles that read alike tie: which of them is the target makes no difference."""
    twins = tiny.items(["Same", "Same", "Same", "Other"])
    system = recommender(items=twins)
    by_lot = sorted((1, 2, 3), key=lambda item: draw_lots(["0-x"], [item])[0, 0])
    for target in (1, 2, 3):
        case = Case(Example("0-x", 0, "test", None, (target, 4), target), (target,), 0)
        asked = whole_catalogue(Trial("uniform", "d", (case,), (Request(0, (target, 4)),)), twins, 1)
        three, two = (system.rank_many([Asked((target, 4), None, k, None, frozenset({4}), "0-x")]) for k in (3, 2))
        assert [scored.item_id for scored in three[0]] == by_lot
        place = by_lot.index(target) + 1
        assert searched_ranks("llm", asked, three, 3).ranks.tolist() == [place]
        assert searched_ranks("llm", asked, two, 2).ranks.tolist() == [place if place <= 2 else 4]
        assert full_ranks("llm", asked, system.scores(list(asked.requests), None).numpy()).ranks.tolist() == [place]


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
    tau = metrics["sampled_against_full"]["b"]
    assert tau == {"kendall_tau": pytest.approx(1 / 3, abs=1e-6), "low": -1.0, "high": 1.0, "cases": 3}
    assert "order of the systems" in metrics["sampled_against_full"]
    generated, agreement = second_view_sections(view)
    assert "<td>4</td>" in generated
    assert "0.333" in agreement


def test_nothing_generated_and_nothing_ranked_in_full_shows_nothing(tmp_path: Path) -> None:
    view = second_view(tmp_path / "none.parquet", [ranks("a", [1, 2])], "uniform", 100, 1)
    assert (second_view_metrics(view), second_view_sections(view)) == ({}, [])


@pytest.mark.slow
def test_the_chain_fills_both_views_where_they_are_asked_for(tmp_path: Path) -> None:
    """Language models rank the whole catalogue, write titles and meet texts in titles on as many cases as asked."""
    project = copy_project(
        tmp_path / "project", budget="smoke", recommenders__systems=FEW,
        evaluate__full_catalogue_cases=3, evaluate__generation_cases=4, evaluate__injection_cases=5,
    )  # fmt: skip
    run(project, "dvc", "pull", "data/raw/films.dvc")
    run(project, "dvc", "repro")
    metrics = json.loads((project / "reports/metrics.json").read_text(encoding="utf-8"))
    models = {"llm-base", "llm-sft", "llm-sdpo"}
    assert models | {"fusion"} < set(metrics["full_catalogue_with_llms"])
    assert metrics["sampled_against_full"]["llm-sft"]["cases"] == 3
    assert {(row["system"], row["cases"]) for row in metrics["generation"]} == {(name, 4) for name in models}
    lifts = metrics["injection_lift"]
    assert lifts.keys() == models | {"fusion"}
    assert {lift["cases"] for own in lifts.values() for lift in own.values()} == {5}
    assert {lift["value"] for lift in lifts["fusion"].values()} == {0.0}  # a random base weighs nothing in it
    assert any(lift["value"] for lift in lifts["llm-sft"].values())
