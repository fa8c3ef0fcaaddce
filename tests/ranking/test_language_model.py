"""The language model as a recommender, on a tiny random model, against scores worked out the slow way."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from recalign.common.errors import RecalignError
from recalign.evaluation.ranking_rule import (
    LogprobScores,
    RankingRule,
    catalogue_rule,
    choose_rule,
    ranking_scores,
    rules_to_try,
)
from recalign.llm.model.base import LanguageModel
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.branches import Branches
from recalign.llm.scoring.logprobs import naive_logprobs
from recalign.params.prompt import PromptParams
from recalign.ranking import language_model as under_test
from recalign.ranking.language_model import Asked, LanguageModelRecommender
from recalign.recommenders.recommender import Request

ITEMS = tiny.items()
REQUESTS = [Request(1, (1, 2, 3)), Request(2, (4,)), Request(3, (5, 6, 7, 8, 9))]
LISTS = [[4, 5, 6, 7], [1, 2, 3, 5], [1, 2, 3, 4]]


def language_model(seed: int = 0) -> LanguageModel:
    identity = {"id": "tiny", "revision": "1", "sha256": "0"}
    return LanguageModel(
        tiny.model(seed=seed), tiny.tokenizer(), torch.device("cpu"), "fp32", "none", identity, f"digest-{seed}"
    )


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return language_model()


@pytest.fixture
def builder(policy: LanguageModel) -> PromptBuilder:
    params = PromptParams(form="history", history=8, training_history=8, profile=False, max_title_tokens=24)
    return PromptBuilder(policy.tokenizer, ITEMS, params, "films")


@pytest.fixture
def recommender(policy: LanguageModel, builder: PromptBuilder) -> LanguageModelRecommender:
    return LanguageModelRecommender(policy, builder, ITEMS, "llm-tiny", batch=2)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts in each forward pass that the recommender asks for."""
    seen: list[int] = []
    real = under_test.response_logprobs

    def counting(model: torch.nn.Module, prompts: list, responses: list):  # type: ignore[no-untyped-def]
        seen.append(len(prompts))
        return real(model, prompts, responses)

    monkeypatch.setattr(under_test, "response_logprobs", counting)
    return seen


def slow(policy: LanguageModel, builder: PromptBuilder, request: Request, items: list[int]) -> np.ndarray:
    """Each title on its own after the prompt, by a plain forward pass."""
    with torch.no_grad():
        return np.array(
            [
                naive_logprobs(policy.model, [builder.prompt(request.history)], [[builder.response(item)]]).sums.item()
                for item in items
            ]
        )


def test_a_score_is_the_log_prob_of_the_title_after_the_history(
    policy: LanguageModel, builder: PromptBuilder, recommender: LanguageModelRecommender
) -> None:
    expected = np.stack([slow(policy, builder, r, items) for r, items in zip(REQUESTS, LISTS, strict=True)])
    assert recommender.scores(REQUESTS, LISTS).numpy() == pytest.approx(expected, rel=1e-4)


def test_several_cases_share_a_forward_pass_and_the_order_of_the_answers_stays(
    recommender: LanguageModelRecommender, passes: list[int]
) -> None:
    together = recommender.scores(REQUESTS, LISTS)
    assert passes == [2, 1]
    backwards = recommender.scores(REQUESTS[::-1], LISTS[::-1])
    assert torch.allclose(together, backwards.flip(0), rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the second one cannot share a prompt
def test_the_whole_catalogue_is_scored_in_ascending_item_id_as_a_tree_after_one_prompt(
    family: str, builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(language_model(), model=tiny.model(family))
    recommender = LanguageModelRecommender(other, builder, ITEMS, "llm-tiny", batch=2)
    whole = recommender.scores(REQUESTS, None)
    monkeypatch.setattr(under_test, "RESPONSES_AT_ONCE", 4)
    tree = recommender.scores(REQUESTS, None)
    assert whole.shape == (3, 10)
    assert torch.allclose(whole, tree, rtol=1e-4)
    assert torch.allclose(tree[0, 3:7], recommender.scores(REQUESTS[:1], LISTS[:1])[0], rtol=1e-4)


def test_the_prior_is_the_log_prob_after_a_prompt_without_a_history(
    policy: LanguageModel, builder: PromptBuilder, recommender: LanguageModelRecommender
) -> None:
    with torch.no_grad():
        expected = naive_logprobs(policy.model, [builder.neutral()], [[builder.response(i) for i in (4, 5)]]).sums
    assert recommender.priors([[4, 5]]) == pytest.approx(expected.numpy(), rel=1e-4)


def test_each_title_prior_is_computed_once(recommender: LanguageModelRecommender, passes: list[int]) -> None:
    first = recommender.priors([[1, 2, 3], [3, 2, 4]])
    again = recommender.priors([[4, 3, 2], [1, 2, 4]])
    assert passes == [1]
    assert (first[1, 2], first[0, 2]) == (again[0, 0], again[0, 1])


def test_log_prob_less_prior_and_reward_follow_from_the_raw_scores(
    policy: LanguageModel, builder: PromptBuilder, recommender: LanguageModelRecommender
) -> None:
    sft = language_model(seed=1)
    plain = recommender.scores(REQUESTS, LISTS).numpy()
    rule = RankingRule("logprob_less_prior", 0.5)
    less = LanguageModelRecommender(policy, builder, ITEMS, "a", rule).scores(REQUESTS, LISTS).numpy()
    reward = LanguageModelRecommender(policy, builder, ITEMS, "b", RankingRule("reward"), reference=sft)
    other = LanguageModelRecommender(sft, builder, ITEMS, "c").scores(REQUESTS, LISTS).numpy()
    assert less == pytest.approx(plain - 0.5 * recommender.priors(LISTS), abs=1e-3)
    assert reward.scores(REQUESTS, LISTS).numpy() == pytest.approx(plain - other, abs=1e-3)


def test_the_reward_without_a_reference_is_refused(policy: LanguageModel, builder: PromptBuilder) -> None:
    with pytest.raises(RecalignError, match="'x' is ranked by the reward, which needs a reference"):
        LanguageModelRecommender(policy, builder, ITEMS, "x", RankingRule("reward"))


def test_lists_of_different_length_are_refused(recommender: LanguageModelRecommender) -> None:
    with pytest.raises(RecalignError, match="candidate lists differ in length"):
        recommender.scores(REQUESTS[:2], [[1, 2], [1, 2, 3]])


def test_stored_log_probs_save_the_second_pass_and_another_model_does_not_read_them(
    policy: LanguageModel, builder: PromptBuilder, passes: list[int], tmp_path: Path
) -> None:
    def fresh(model: LanguageModel) -> np.ndarray:
        return LanguageModelRecommender(model, builder, ITEMS, "x", store=tmp_path).logprobs(REQUESTS, LISTS)

    first = fresh(policy)
    passes.clear()
    assert fresh(policy).tolist() == first.tolist()
    assert passes == []
    fresh(replace(policy, digest="another"))
    assert passes != []


def test_the_best_items_of_the_catalogue_leave_out_the_history(recommender: LanguageModelRecommender) -> None:
    scores = recommender.scores([Request(None, (1, 2))], None)[0]
    best = recommender.rank_items([1, 2], None, 3)
    expected = sorted((-float(scores[item - 1]), item) for item in range(3, 11))[:3]
    assert [scored.item_id for scored in best] == [item for _, item in expected]
    assert best[0].score >= best[1].score >= best[2].score


@pytest.mark.parametrize("rule", [RankingRule("logprob_less_prior", 0.5), RankingRule("reward")])
def test_the_best_items_of_the_catalogue_follow_the_rule(
    policy: LanguageModel, builder: PromptBuilder, rule: RankingRule
) -> None:
    recommender = LanguageModelRecommender(policy, builder, ITEMS, "x", rule, reference=language_model(seed=1))
    row = recommender.scores([Request(None, (1, 2))], None)[0]
    expected = sorted((-float(row[item - 1]), item) for item in range(3, 11))[:3]
    best = recommender.rank_items([1, 2], None, 3)
    assert [scored.item_id for scored in best] == [item for _, item in expected]
    assert [scored.score for scored in best] == pytest.approx([-score for score, _ in expected], abs=1e-3)


@pytest.mark.parametrize("rule", [RankingRule("logprob_less_prior", 0.5), RankingRule("reward")])
def test_the_whole_catalogue_may_be_ranked_by_another_rule_than_lists(
    policy: LanguageModel, builder: PromptBuilder, recommender: LanguageModelRecommender, rule: RankingRule
) -> None:
    of_lists = LanguageModelRecommender(policy, builder, ITEMS, "x", rule, reference=language_model(seed=1))
    both = LanguageModelRecommender(
        policy, builder, ITEMS, "x", rule, over_catalogue=RankingRule(), reference=language_model(seed=1)
    )
    assert torch.allclose(both.scores(REQUESTS, LISTS), of_lists.scores(REQUESTS, LISTS), atol=1e-3)
    assert torch.allclose(both.scores(REQUESTS, None), recommender.scores(REQUESTS, None), atol=1e-3)
    assert both.rank_items([1, 2], [4, 9, 5], 3) == of_lists.rank_items([1, 2], [4, 9, 5], 3)
    assert both.rank_items([1, 2], None, 3) == recommender.rank_items([1, 2], None, 3)
    alike = both.as_over_catalogue.scores(REQUESTS, LISTS)
    assert torch.allclose(alike, recommender.scores(REQUESTS, LISTS), atol=1e-3)
    assert not torch.allclose(alike, both.scores(REQUESTS, LISTS), atol=1e-3)


@pytest.mark.parametrize("rule", [RankingRule(), RankingRule("logprob_less_prior", 0.5), RankingRule("reward")])
def test_many_rankings_at_once_are_each_what_it_is_alone(
    policy: LanguageModel, builder: PromptBuilder, rule: RankingRule
) -> None:
    """With a catalogue or with candidates, of any length and in any order; `batch` prompts a search."""
    recommender = LanguageModelRecommender(policy, builder, ITEMS, "x", rule, reference=language_model(seed=1), batch=2)
    asked = [
        Asked([1, 2], None, 3), Asked([4], [9, 2, 9, 5], 2), Asked(["A Film Nobody Listed"], None, 20),
        Asked([3], [], 5), Asked([5, 6, 7], [1, 2, 3], 3), Asked([8], None, 1), Asked([8, 1], [4, 2, 6], 9),
    ]  # fmt: skip
    for each, together in zip(asked, recommender.rank_many(asked), strict=True):
        alone = recommender.rank_items(each.history, each.candidates, each.k)
        assert [scored.item_id for scored in together] == [scored.item_id for scored in alone]
        assert [scored.score for scored in together] == pytest.approx([scored.score for scored in alone], abs=1e-3)
    assert recommender.rank_many([]) == []


def test_searches_at_once_are_batch_prompts_a_time(
    policy: LanguageModel, builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender, sizes = LanguageModelRecommender(policy, builder, ITEMS, "x", batch=2), []
    searching = under_test.Branches

    def counted(model: torch.nn.Module, prompts: list[list[int]]) -> Branches:
        sizes.append(len(prompts))
        return searching(model, prompts)

    monkeypatch.setattr(under_test, "Branches", counted)
    recommender.rank_many([Asked([item], None, 3) for item in (1, 2, 3, 4, 5)])
    assert sizes == [2, 2, 1]


def test_a_model_that_cannot_share_a_prompt_finds_the_best_by_scoring_all(builder: PromptBuilder) -> None:
    other = replace(language_model(), model=tiny.model("gemma2"))
    recommender = LanguageModelRecommender(other, builder, ITEMS, "x")
    row = recommender.scores([Request(None, (1,))], None)[0]
    assert recommender.rank_items([1], None, 2)[0].score == pytest.approx(float(row[1:].max()), rel=1e-5)


def test_a_whole_history_of_the_catalogue_leaves_nothing(recommender: LanguageModelRecommender) -> None:
    assert recommender.rank_items(list(ITEMS.ids), None, 3) == []


def test_a_catalogue_cannot_be_searched_where_prompts_list_the_candidates(policy: LanguageModel) -> None:
    params = PromptParams(form="candidates", history=8, training_history=8, profile=False, max_title_tokens=24)
    listing = PromptBuilder(policy.tokenizer, ITEMS, params, "films")
    recommender = LanguageModelRecommender(policy, listing, ITEMS, "x")
    with pytest.raises(RecalignError, match=r"prompt\.form is 'candidates'"):
        recommender.rank_items([1], None, 3)
    assert len(recommender.rank_items([1], [2, 3, 4], 2)) == 2


def test_given_candidates_are_ranked_whether_or_not_they_are_in_the_history(
    recommender: LanguageModelRecommender,
) -> None:
    best = recommender.rank_items([1, 2], [2, 9, 9, 4], 10)
    assert {scored.item_id for scored in best} == {2, 4, 9}


def test_titles_that_are_not_in_the_catalogue_can_be_a_history(recommender: LanguageModelRecommender) -> None:
    free = recommender.rank_items(["A Film Nobody Listed", 2], [3, 4], 2)
    assert [s.score for s in free] != [s.score for s in recommender.rank_items([2], [3, 4], 2)]


def test_no_candidates_give_no_items(recommender: LanguageModelRecommender) -> None:
    assert recommender.rank_items([1], [], 5) == []


LOG3 = math.log2(3)
RAW = LogprobScores(
    logprob=np.array([[-4.0, -2.0, -9.0], [-5.0, -1.0, -7.0]]),
    prior=np.array([[-8.0, -1.0, -9.0], [-8.0, -1.0, -9.0]]),
    reference=np.array([[-4.0, -2.0, -9.0], [-5.0, -1.0, -6.0]]),
)


def test_ranking_scores_of_each_rule() -> None:
    assert ranking_scores(RankingRule(), RAW).tolist() == RAW.logprob.tolist()
    assert ranking_scores(RankingRule("logprob_less_prior", 0.5), RAW)[0].tolist() == [0.0, -1.5, -4.5]
    assert ranking_scores(RankingRule("reward"), RAW).tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, -1.0]]


def lots_of(scores: LogprobScores) -> np.ndarray:
    """By which the first column stands after its equals."""
    return np.broadcast_to(np.arange(scores.logprob.shape[1])[::-1], scores.logprob.shape)


def test_a_rule_that_is_clearly_the_best_on_validation_is_chosen_and_all_are_recorded() -> None:
    rules = rules_to_try("auto", [0.5, 1.0], has_reference=True)
    assert RAW.reference is not None
    often = LogprobScores(*(np.tile(raw, (8, 1)) for raw in (RAW.logprob, RAW.prior, RAW.reference)))
    choice = choose_rule(rules, often, [0] * 16, lots_of(often))
    assert choice.rule == RankingRule("logprob_less_prior", 1.0)
    assert [rule.kind for rule, _ in choice.tried] == ["logprob", "logprob_less_prior", "logprob_less_prior", "reward"]
    reached = [value for _, value in choice.tried]
    assert reached == pytest.approx([1 / LOG3, (1 + 1 / LOG3) / 2, 1, (1 / 2 + 1 / LOG3) / 2])
    assert choice.as_dict()["tried"][2] == {"kind": "logprob_less_prior", "prior_weight": 1.0, "ndcg_at_10": 1.0}


def test_a_rule_that_is_better_by_less_than_one_standard_error_is_luck() -> None:
    """The reward is right in all nine cases; one more than the log-prob is one standard error, two are more."""
    rules = [RankingRule(), RankingRule("reward")]

    def chosen(won: int) -> str:
        logprob = np.array([[-2.0, -1.0]] * won + [[-1.0, -2.0]] * (9 - won))
        scores = LogprobScores(logprob, np.zeros((9, 2)), np.array([[-9.0, 0.0]] * 9))
        return choose_rule(rules, scores, [0] * 9, lots_of(scores)).rule.kind

    assert [chosen(won) for won in (0, 1, 2)] == ["logprob", "logprob", "reward"]


def test_of_equal_rules_the_simplest_is_chosen() -> None:
    choice = choose_rule(rules_to_try("auto", [0.5, 1.0], has_reference=False), RAW, [1, 1], lots_of(RAW))
    assert choice.rule == RankingRule("logprob", 0.0)


def test_a_model_without_a_reference_takes_the_log_prob_where_the_reward_is_asked_for() -> None:
    assert rules_to_try("reward", [0.5], has_reference=False) == [RankingRule()]
    assert rules_to_try("reward", [0.5], has_reference=True) == [RankingRule("reward")]


def test_no_weights_to_try_name_the_key() -> None:
    with pytest.raises(RecalignError, match=r"evaluate\.prior_weights is empty"):
        rules_to_try("logprob_less_prior", [], has_reference=True)


def test_a_choice_among_candidates_does_not_rank_the_whole_catalogue_and_a_named_score_does() -> None:
    less, reward = RankingRule("logprob_less_prior", 0.5), RankingRule("reward")
    assert catalogue_rule("auto", less) == catalogue_rule("auto", reward) == RankingRule()
    assert catalogue_rule("logprob_less_prior", less) == less
    assert catalogue_rule("reward", reward) == reward


@pytest.mark.parametrize("rule", [RankingRule(), RankingRule("logprob_less_prior", 0.5)])
def test_a_model_whose_weights_are_not_finite_answers_nothing_but_its_name(
    rule: RankingRule, builder: PromptBuilder, tmp_path: Path
) -> None:
    """Lists, the whole catalogue and a search of it; and nothing of it is kept for the next run."""
    broken = language_model(seed=3)
    with torch.no_grad():
        next(iter(broken.model.parameters())).fill_(torch.nan)
    ranker = LanguageModelRecommender(broken, builder, ITEMS, "llm-broken", rule, batch=2, store=tmp_path)
    for ask in (
        lambda: ranker.scores(REQUESTS, LISTS),
        lambda: ranker.scores(REQUESTS, None),
        lambda: ranker.rank_items([1, 2], None, 3),
        lambda: ranker.rank_items([1, 2], [3, 4], 3),
    ):
        with pytest.raises(RecalignError, match="gives log-probs that are not finite"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_stored_log_probs_of_another_scorer_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    before = under_test.store_key("model", [[1]], [[[2]]])
    assert under_test.store_key("model", [[1]], [[[2]]]) == before
    monkeypatch.setattr(under_test, "SCORER", under_test.SCORER + 1)
    assert under_test.store_key("model", [[1]], [[[2]]]) != before
