"""What the report says of cost against gain, from figures made by hand."""

import numpy as np

from recalign.evaluation.ranks import CaseList, in_case_order
from recalign.evaluation.scorecard import Scorecard, build_scorecard
from recalign.evaluation.systems import Cost, System, per_thousand, total
from recalign.report.verdict import cost_sentences

KINDS = {"popularity": "id", "item_knn": "id", "ease": "id", "llm-sft": "llm"}


def card(**ranks: int) -> Scorecard:
    """Forty cases; every system ranks every target at one place."""
    keys = [(f"{row:03d}", row) for row in range(40)]
    systems = [
        in_case_order(name, CaseList("sampled-20", "uniform", "d", keys), np.full(40, rank), np.zeros(40))
        for name, rank in ranks.items()
    ]
    about = {
        name: System(kind=KINDS[name], ranked_by="logprob", prior_weight=0.0, validation={"ndcg_at_10": 1 / rank})
        for name, rank in ranks.items()
    }
    return build_scorecard(systems, about, 200, 1)


def costs(**seconds: float | None) -> list[Cost]:
    return [Cost(name, own, None, None) for name, own in seconds.items()]


def test_the_cheapest_of_the_best_is_named_and_what_the_llms_training_buys() -> None:
    made = card(popularity=4, item_knn=2, ease=2, **{"llm-sft": 4})
    assert cost_sentences(made, costs(popularity=1.0, item_knn=3.5, ease=21.0, **{"llm-sft": 210.0})) == [
        "Item-kNN, 3.5 s of fitting, reaches the highest NDCG@10, 0.631; nothing cheaper is within 0.01.",
        "The SFT model takes 210 s, 60 times as many, and is 0.200 below item-kNN.",
    ]


def test_a_cheap_system_near_a_dear_one_is_said_to_be() -> None:
    keys = [(f"{row:03d}", row) for row in range(100)]
    places = {"item_knn": [2] * 99 + [1], "ease": [2] * 100, "popularity": [9] * 100}
    systems = [
        in_case_order(name, CaseList("sampled-20", "uniform", "d", keys), np.array(own), np.zeros(100))
        for name, own in places.items()
    ]
    about = {name: System(kind="id", ranked_by="x", validation={"ndcg_at_10": 0.5}) for name in places}
    made = build_scorecard(systems, about, 200, 1)
    assert cost_sentences(made, costs(item_knn=30.0, ease=3.0, popularity=0.1)) == [
        "EASE, 3.0 s of fitting, is within 0.01 NDCG@10 of item-kNN, 30 s (0.631 against 0.635)."
    ]


def test_where_nothing_cheap_is_near_the_best_of_the_cheap_ones_is_named() -> None:
    made = card(popularity=4, item_knn=2, ease=1)
    assert cost_sentences(made, costs(popularity=1.0, item_knn=3.0, ease=30.0)) == [
        "EASE, 30 s of fitting, reaches the highest NDCG@10, 1.000; item-kNN, 3.0 s, is 0.369 below."
    ]


def test_without_seconds_nothing_is_said() -> None:
    assert cost_sentences(card(item_knn=1, popularity=2), costs(item_knn=None, popularity=None)) == []


def test_costs_add_up_only_where_all_are_known() -> None:
    assert total([1.5, 2.25]) == 3.75
    assert total([1.5, None]) is None
    assert total([]) == 0.0
    assert per_thousand(0.5, 40) == 12.5
