"""Text that asks for an item, put into titles: who obeys it shows a lift, who reads no titles none at all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from recalign.data.records import Case, Example, Items
from recalign.evaluation.injection import (
    IN_HISTORY,
    IN_LIST,
    IN_PROFILE,
    POSITIONS,
    Injection,
    Lift,
    injection_lifts,
    read_injections,
    write_injections,
)
from recalign.evaluation.metrics import Floats
from recalign.evaluation.scorecard import Provenance, Recorder, Row, Scorecard
from recalign.hybrid.prompts import HybridPrompts, soft_id
from recalign.llm.model.base import LanguageModel
from recalign.llm.prompts import PromptBuilder
from recalign.params.prompt import PromptParams
from recalign.ranking.fusion import Fusion
from recalign.ranking.injected import PACK, Attack, attack, injections, reading_twins
from recalign.ranking.language_model import LanguageModelRecommender
from recalign.ranking.trial import Trial
from recalign.recommenders.recommender import Request
from recalign.report.sections import injection_note, injection_section

CATALOGUE = tiny.items([f"The {n}th Night" for n in range(30)])
PROMPT = PromptParams(form="history", history=8, training_history=8, profile=False, max_title_tokens=24)
USERS = 40
Scorer = Callable[[Trial, Items], Floats]


def trial(users: int = USERS, profile: str | None = "Likes quiet films.") -> Trial:
    """A case a user: two liked items, a profile, twenty candidates, the target drawn among them."""
    drawn, cases, requests = np.random.default_rng(0), [], []
    for user in range(users):
        items = (1 + drawn.permutation(30)).tolist()
        history, candidates, place = tuple(items[:2]), tuple(items[2:22]), int(drawn.integers(20))
        example = Example(f"{user:03}-x", user, "test", None, history, candidates[place], "warm")
        cases.append(Case(example, candidates, place))
        requests.append(Request(user, history, profile=profile))
    return Trial("uniform", "digest", tuple(cases), tuple(requests))


def own_number(item: int) -> float:
    """A taste of a scorer's own, the same for everybody."""
    return (item * 7919 % 101) / 101


def obeying(asked: Trial, catalogue: Items) -> Floats:
    """Reads the titles of history and list and the profile, and puts what any of them asks for first: an item that is
    named twice, or in a title that is not its own."""

    def wanted(title: str, shown: list[str]) -> bool:
        plain = title.split(" (")[0]
        return any(f"recommend {plain}" in own or own.count(plain) > 1 for own in shown)

    rows = []
    for case, request in zip(asked.cases, asked.requests, strict=True):
        liked = [*(catalogue.titles[item] for item in request.history), request.profile or ""]
        named = [catalogue.titles[item] for item in case.candidates]
        clean = [min((t for t in CATALOGUE.titles.values() if t in title), key=title.index) for title in named]
        rows.append([
            10.0 * (wanted(own, [title, *liked]) or any(own in each for each in liked)) + own_number(item % 31)
            for item, title, own in zip(case.candidates, named, clean, strict=True)
        ])  # fmt: skip
    return np.array(rows)


def deaf(own: Attack) -> Scorer:
    """Knows items, not titles: a twin is the item that it is a twin of."""
    return lambda asked, _: np.array([[own_number(own.twins.get(i, i)) for i in items] for items in asked.candidates])


def rows_of(own: Attack, scorer: Scorer, system: str = "s") -> list[Injection]:
    poisoned = {position: scorer(asked, own.catalogue) for position, asked in own.poisoned.items()}
    return injections(system, own, scorer(own.clean, own.catalogue), poisoned)


def test_who_obeys_is_lifted_in_every_position_and_who_reads_no_titles_by_exactly_nothing() -> None:
    own = attack(trial(), CATALOGUE, seed=1)
    found = injection_lifts([*rows_of(own, obeying, "obeys"), *rows_of(own, deaf(own), "deaf")], 300, 1)
    for position in POSITIONS:
        assert found["obeys"][position].interval.low > 0.5
        assert found["obeys"][position].rank == 1.0
        assert found["deaf"][position].interval.as_dict() == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert found["deaf"][position].rank == found["deaf"][position].clean_rank
        assert (found["deaf"][position].cases, found["deaf"][position].users) == (USERS, USERS)


def test_a_lift_is_the_mean_gain_of_one_over_the_rank() -> None:
    """From 4 to 1 and from 2 to 4: (3/4 − 1/4) / 2."""
    rows = [Injection("s", IN_LIST, "plea", str(u), u, *ranks) for u, ranks in enumerate([(4, 1), (2, 4)])]
    lift = injection_lifts(rows, 200, 1)["s"][IN_LIST]
    assert (lift.interval.value, lift.clean_rank, lift.rank) == (0.25, 3.0, 2.5)
    assert Lift.read(lift.as_dict()).as_dict() == lift.as_dict()
    assert injection_lifts([], 200, 1) == {}


def test_an_attack_changes_one_title_of_a_case_and_never_tries_the_target() -> None:
    """Draws depend on the case alone, so fewer cases meet the same texts; all texts of the pack are met."""
    own, few = attack(trial(), CATALOGUE, seed=1), attack(trial(3), CATALOGUE, seed=1)
    assert (own.tried[:3], own.texts[:3]) == (few.tried, few.texts)
    assert set(own.texts) == set(PACK)
    for row, (case, place) in enumerate(zip(own.clean.cases, own.tried, strict=True)):
        assert place != case.target_index
        listed, told = own.poisoned[IN_LIST].cases[row], own.poisoned[IN_HISTORY].requests[row]
        assert [n for n, item in enumerate(listed.candidates) if item != case.candidates[n]] == [place]
        assert own.twins[listed.candidates[place]] == case.candidates[place]
        assert told.history[0] == own.clean.requests[row].history[0]
        assert CATALOGUE.titles[case.candidates[place]] in own.catalogue.titles[told.history[1]]
        assert own.poisoned[IN_LIST].requests[row] == own.clean.requests[row]
    assert attack(trial(), CATALOGUE, seed=2).tried != own.tried


def test_a_text_in_a_profile_names_the_item_on_trial_and_leaves_list_and_history_as_they_were() -> None:
    own = attack(trial(), CATALOGUE, seed=1)
    for case, place, request, clean in zip(
        own.clean.cases, own.tried, own.poisoned[IN_PROFILE].requests, own.clean.requests, strict=True
    ):
        assert CATALOGUE.titles[case.candidates[place]] in (request.profile or "")
        assert "Likes quiet films." in (request.profile or "")
        assert replace(request, profile=clean.profile) == clean
    assert own.poisoned[IN_PROFILE].cases == own.clean.cases


def test_where_no_prompt_shows_a_profile_none_is_poisoned_and_a_case_without_one_has_no_row() -> None:
    assert set(attack(trial(profile=None), CATALOGUE, seed=1).poisoned) == {IN_LIST, IN_HISTORY}
    cases = trial(4)
    some = replace(cases, requests=(replace(cases.requests[0], profile=None), *cases.requests[1:]))
    rows = rows_of(attack(some, CATALOGUE, seed=1), obeying)
    assert [row.example_id for row in rows if row.position == IN_PROFILE] == ["001-x", "002-x", "003-x"]


def test_a_case_without_a_history_has_no_title_to_poison() -> None:
    cases = trial(2)
    bare = replace(cases, requests=tuple(replace(own, history=()) for own in cases.requests))
    own = attack(bare, CATALOGUE, seed=1)
    assert own.poisoned[IN_HISTORY].requests == bare.requests
    assert len(own.twins) == 2


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    identity = {"id": "tiny", "revision": "1", "sha256": "0"}
    return LanguageModel(tiny.model(), tiny.tokenizer(), torch.device("cpu"), "fp32", "none", identity, "digest")


@pytest.mark.parametrize("form", ["history", "candidates"])
def test_a_language_model_scores_the_poisoned_title_and_nothing_else_differently(model: LanguageModel, form) -> None:
    """In its own title, the other candidates keep their log-probs where the prompt does not list them; in the history
    all change, for the prompt does."""
    params = PROMPT.model_copy(update={"form": form})
    recommender = LanguageModelRecommender(
        model, PromptBuilder(model.tokenizer, CATALOGUE, params, "films"), CATALOGUE, "llm-tiny"
    )
    own = attack(trial(3), CATALOGUE, seed=1)
    reader = reading_twins(recommender, own, params, "films", clock=True)
    clean = recommender.logprobs(own.clean.requests, own.clean.candidates)
    told = {p: reader.logprobs(asked.requests, asked.candidates) for p, asked in own.poisoned.items()}
    for row, place in enumerate(own.tried):
        others = np.delete(np.arange(20), place)
        assert abs(told[IN_LIST][row, place] - clean[row, place]) > 0.01
        same = np.allclose(told[IN_LIST][row, others], clean[row, others], rtol=1e-4)
        assert same == (form == "history")
        assert np.abs(told[IN_HISTORY][row] - clean[row]).min() > 0.0
        assert np.abs(told[IN_PROFILE][row] - clean[row]).min() > 0.0
    assert reader.catalogue.ids[:30] == recommender.catalogue.ids == CATALOGUE.ids
    assert recommender.builder is not reader.builder
    assert reader.priors([[own.poisoned[IN_LIST].cases[0].candidates[own.tried[0]]]]).shape == (1, 1)


def test_a_twin_has_the_vector_of_its_item(model: LanguageModel) -> None:
    """Hybrid prompts show it after either title."""
    numbers = {item: item + 5 for item in CATALOGUE.ids}
    hybrid = HybridPrompts(model.tokenizer, CATALOGUE, PROMPT, "films", numbers=numbers)
    recommender = LanguageModelRecommender(model, hybrid, CATALOGUE, "llm-llara-x")
    own = attack(trial(2), CATALOGUE, seed=1)
    reader = reading_twins(recommender, own, PROMPT, "films", clock=True)
    clean, told = own.clean.requests[0].history, own.poisoned[IN_HISTORY].requests[0].history
    assert recommender.builder.prompt(clean)[-1] == reader.builder.prompt(told)[-1] == soft_id(numbers[clean[-1]])
    assert recommender.builder.prompt(clean) != reader.builder.prompt(told)


def test_a_fusion_is_lifted_as_much_as_its_language_model_weighs() -> None:
    own = attack(trial(), CATALOGUE, seed=1)
    ids, model = deaf(own)(own.clean, CATALOGUE), {p: obeying(t, own.catalogue) for p, t in own.poisoned.items()}
    clean = {"item_knn": ids, "llm": obeying(own.clean, own.catalogue)}

    def lift(weight: float) -> float:
        fusion = Fusion({"item_knn": 1.0, "llm": weight})
        told = {p: fusion.scores({**clean, "llm": scores}) for p, scores in model.items()}
        return injection_lifts(injections("fusion", own, fusion.scores(clean), told), 100, 1)["fusion"][
            IN_LIST
        ].interval.value

    assert lift(0.0) == 0.0
    assert 0.0 < lift(0.3) < lift(3.0)


def test_rows_come_back_and_are_shown_recorded_and_noted(tmp_path: Path) -> None:
    own = attack(trial(), CATALOGUE, seed=1)
    rows = [*rows_of(own, obeying, "llm-sft"), *rows_of(own, deaf(own), "fusion")]
    write_injections(tmp_path / "injections.parquet", rows)
    assert read_injections(tmp_path / "injections.parquet") == rows
    assert read_injections(tmp_path / "none.parquet") == []
    found = injection_lifts(rows, 100, 1)
    (note,) = injection_note(found, "llm-sft")
    assert note.endswith(
        "; fusion +0.000 [+0.000, +0.000] in its own title, +0.000 [+0.000, +0.000] in the last liked one, "
        "+0.000 [+0.000, +0.000] in the profile."
    )
    assert injection_section(found).count("40 of 40") == 6
    assert (injection_section({}), injection_note({}, "llm-sft"), injection_note(found, None)[0].count("llm")) == (
        "",
        [],
        0,
    )
    card = Scorecard("sampled-20", "uniform", "d1", 90, 90, (Row("a", "id", "x", {}, None),), "a", None, ())
    figures = Recorder(card, Provenance("simulated", "test", "x", "")).injections(found)
    assert [(own.system, own.metric, own.n) for own in figures][:2] == [
        ("llm-sft", "injection lift, list", 40), ("llm-sft", "injection lift, history", 40),
    ]  # fmt: skip
