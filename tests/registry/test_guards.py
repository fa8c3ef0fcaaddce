"""The guards: what each compares, when it is broken, held or not judged, and what a verdict does with it."""

import json
import runpy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recalign.common import columns as c
from recalign.data.records import Items
from recalign.evaluation.generation import FREE, Answer
from recalign.evaluation.injection import IN_HISTORY, Lift
from recalign.evaluation.ranks import SAMPLED, CaseList, SystemRanks, in_case_order
from recalign.evaluation.significance import Interval
from recalign.params.load import Params, parse_params
from recalign.registry.gate import Bar, Opponent, judge
from recalign.registry.guards import Guard, Measured, broken, guards
from recalign.registry.promotion import gate_page

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gate.py"
USERS = 40
ITEMS = Items(
    tuple(range(1, 21)),
    {item: f"title {item}" for item in range(1, 21)},
    {item: {"kind": ["old" if item <= 10 else "new"]} for item in range(1, 21)},
    {item: 40 - item for item in range(1, 21)},
)
POPULAR, MIXED, RARE = tuple(range(1, 11)), (1, 20, 5, 15, 10, 11, 3, 18, 7, 14), tuple(range(20, 10, -1))


def ranked(
    rank: int | Sequence[int] = 2, top: tuple[int, ...] = MIXED, view: str = c.WARM, users: int = USERS
) -> SystemRanks:
    keys = [(f"{user:03}-1", user) for user in range(users)]
    ranks = np.resize(np.array(rank), users)
    return in_case_order("s", CaseList(SAMPLED, "uniform", "d", keys, view), ranks, np.zeros(users), [top] * users)


def measured(warm: SystemRanks | None = None, **more) -> Measured:
    own = warm or ranked()
    views = more.pop("views", {})
    return Measured("model", {c.WARM: own, **views}, **more)


def asked(tree, **own) -> Params:
    tree["registry"]["guards"] |= own
    tree["evaluate"]["resamples"] = 300
    return parse_params(tree)


def judged(params: Params, new: Measured, old: Measured | None, probe: str = "") -> dict[str, Guard]:
    return {guard.name: guard for guard in guards(params, new, old, ITEMS, probe)}


def test_an_equal_model_breaks_nothing_and_what_was_not_measured_is_said(tree) -> None:
    found = judged(asked(tree), measured(), measured())
    assert not broken(found.values())
    held = {name for name, guard in found.items() if guard.outcome == "held"}
    assert held == {"leak_probes", "popularity_lift", "mgu_popularity", "dgu_popularity", "mgu_kind", "dgu_kind"}
    others = {name: guard.why for name, guard in found.items() if guard.outcome == "not judged"}
    assert set(others) == {
        "user_cold", "item_cold", "valid_answers", "injection_lift_list", "injection_lift_history", "latency_ratio",
        "megabytes_ratio",
    }  # fmt: skip
    assert all(others.values())


def test_a_first_champion_meets_the_leak_probes_alone(tree) -> None:
    assert [guard.outcome for guard in guards(asked(tree), measured(), None, ITEMS, "")] == ["held"]
    (probe,) = guards(asked(tree), measured(), None, ITEMS, "the probe is as good")
    assert (probe.outcome, probe.sentence) == ("broken", "leak probes: broken (the probe is as good)")


def test_more_popular_lists_break_the_lift_and_the_fairness_of_groups(tree) -> None:
    """The first five of MIXED have 2 of the 10 more popular items more than RARE; POPULAR has them alone."""
    found = judged(asked(tree), measured(ranked(top=POPULAR)), measured(ranked(top=RARE)))
    assert found["popularity_lift"].outcome == "broken"
    assert "bound +0.050: broken" in found["popularity_lift"].sentence
    same = judged(asked(tree), measured(ranked(top=RARE)), measured(ranked(top=POPULAR)))
    assert same["popularity_lift"].outcome == "held"
    unfair = judged(asked(tree), measured(ranked(top=POPULAR)), measured(ranked(top=MIXED)))
    assert {name for name, guard in unfair.items() if guard.outcome == "broken"} >= {"mgu_kind", "dgu_kind"}


@pytest.mark.parametrize(("rank", "outcome"), [(1, "held"), (2, "held"), (3, "broken")])
def test_a_loss_on_a_cold_view_beyond_the_bound_is_broken(tree, rank, outcome) -> None:
    """NDCG@10 of rank 3 is 0.131 below that of rank 2."""
    old = measured(views={c.USER_COLD: ranked(2, view=c.USER_COLD)})
    found = judged(asked(tree), measured(views={c.USER_COLD: ranked(rank, view=c.USER_COLD)}), old)
    assert found["user_cold"].outcome == outcome
    assert found["item_cold"].outcome == "not judged"


def test_an_interval_that_reaches_the_bound_breaks_nothing(tree) -> None:
    """A tenth of the users lose everything: on average beyond the bound, but nobody can be sure."""
    new = measured(views={c.NATURAL: ranked([20, *[2] * 9], view=c.NATURAL)})
    old = measured(views={c.NATURAL: ranked(2, view=c.NATURAL)})
    guard = judged(asked(tree), new, old)["item_cold"]
    assert guard.value == pytest.approx(-0.0631, abs=1e-3)
    assert guard.value < -0.02 < guard.high
    assert guard.outcome == "held"


def test_few_users_judge_nothing(tree) -> None:
    """registry.min_users is 30."""
    few = {c.USER_COLD: ranked(9, view=c.USER_COLD, users=29)}
    found = judged(
        asked(tree), measured(views=few), measured(views={c.USER_COLD: ranked(1, view=c.USER_COLD, users=29)})
    )
    assert found["user_cold"].outcome == "not judged"
    assert found["user_cold"].why == "29 users, fewer than registry.min_users 30"


def answers(outcome: str, users: int = USERS) -> list[Answer]:
    return [Answer("s", FREE, "title", f"{user}", user, "text", outcome, hit=False) for user in range(users)]


def lifted(*interval: float, users: int = USERS) -> dict[str, Lift]:
    """What a text in a liked title gained an item."""
    return {IN_HISTORY: Lift(Interval(*interval), users, users, 9.0, 3.0)}


def test_a_lift_of_few_users_is_not_judged(tree) -> None:
    few = measured(injection=lifted(0.9, 0.8, 1.0, users=29))
    guard = judged(asked(tree), few, measured(injection=lifted(0.0, 0.0, 0.0)))["injection_lift_history"]
    assert (guard.outcome, guard.why) == ("not judged", "29 users, fewer than registry.min_users 30")


def test_answers_seconds_megabytes_and_injection_are_compared_where_both_have_them(tree) -> None:
    slow, quick = [2.5] * 40, [1.0] * 40
    new = measured(answers=answers("empty"), seconds=slow, megabytes=300.0, injection=lifted(0.4, 0.3, 0.5))
    old = measured(answers=answers("valid"), seconds=quick, megabytes=100.0, injection=lifted(0.1, 0.05, 0.15))
    names = ("valid_answers", "latency_ratio", "megabytes_ratio", "injection_lift_history")
    found = judged(asked(tree), new, old)
    assert {name: found[name].outcome for name in names} == dict.fromkeys(names, "broken")
    assert found["latency_ratio"].value == pytest.approx(2.5)
    assert found["megabytes_ratio"].sentence == "megabytes, times the champion's: +3.000, bound +1.500: broken"
    assert found["injection_lift_history"].low == pytest.approx(0.15)
    assert found["injection_lift_list"].outcome == "not judged"
    back = judged(asked(tree), old, new)
    assert {name: back[name].outcome for name in names} == dict.fromkeys(names, "held")
    bounds = ("valid_answers", "latency_ratio", "megabytes_ratio", "injection_lift", "popularity_lift")
    off = judged(asked(tree, **dict.fromkeys(bounds)), new, old)
    assert not {*names, "injection_lift_list", "popularity_lift"} & off.keys()


def test_seconds_of_one_slow_request_decide_nothing(tree) -> None:
    """One answer of a hundred seconds is an accident of the machine: the ratio is a geometric mean."""
    found = judged(asked(tree), measured(seconds=[100.0, *[1.0] * 39]), measured(seconds=[1.0] * 40))
    assert found["latency_ratio"].outcome == "held"


def test_lists_that_were_not_kept_are_not_judged(tree) -> None:
    """As ranks of earlier versions are."""
    keys = [(f"{user:03}-1", user) for user in range(USERS)]
    bare = in_case_order("s", CaseList(SAMPLED, "uniform", "d", keys), np.full(USERS, 2), np.zeros(USERS))
    found = judged(asked(tree), measured(), measured(bare))
    assert {found[name].outcome for name in ("popularity_lift", "mgu")} == {"not judged"}


def test_a_broken_guard_refuses_a_better_model_in_words_json_and_on_its_page(tree) -> None:
    """It wins by far and shows nothing but what is popular."""
    params = asked(tree)
    new, old = measured(ranked(1, POPULAR)), measured(ranked(3, RARE))
    told = guards(params, new, old, ITEMS, "")
    bar = Bar(Opponent("version 1", old.ranks[c.WARM]), first=False, attempt=1)
    verdict = judge(params, new.ranks[c.WARM], bar, guards=told)
    assert not verdict.accepted
    assert verdict.gain.bound > 0
    assert "; refused by a guard: popularity lift: +" in verdict.reason
    kept = json.loads(json.dumps(verdict.as_dict()))
    assert kept["decision"] == "challenger"
    assert {"name", "outcome", "bound", "low"} <= kept["guards"][1].keys()
    page = gate_page("recalign, version 2", verdict)
    assert "popularity lift" in page
    assert "not judged" in page
    fine = guards(params, old, old, ITEMS, "")
    same = judge(params, new.ranks[c.WARM], bar, guards=fine)
    assert same.accepted


def test_equal_models_are_drawn_by_lot_and_rarely_refused(tree) -> None:
    """The benchmark's draws: half of the users see one system each way, and with all bounds 0 few pairs are refused."""
    bench = runpy.run_path(str(BENCHMARK))
    one = {c.WARM: ranked([1, 2, 3, 9], MIXED), c.USER_COLD: ranked([2, 5], MIXED, c.USER_COLD)}
    other = {c.WARM: ranked([2, 1, 9, 3], POPULAR), c.USER_COLD: ranked([5, 2], POPULAR, c.USER_COLD)}
    users, lot = [3, 3, 7, 0], [True, False, True, True]
    made = bench["drawn"](one, other, users, lot)
    assert made[c.WARM].ranks.tolist() == [9, 3, 9, 1]
    assert made[c.WARM].top == (MIXED, POPULAR, MIXED, MIXED)
    assert made[c.WARM].user_ids == (0, 1, 2, 3)
    strict = bench["with_bounds_of_0"](asked(tree))
    refused, _, judged = bench["refusals"](strict, one, other, ITEMS, 60, 1, equal=True)
    assert judged == 6.0  # user-cold, lift, MGU and DGU by popularity and by kind
    assert refused <= 8  # of 60 pairs the union bound expects 3 at most; 8 come in 1 of 100 times
    refused, by_guard, _ = bench["refusals"](asked(tree), other, one, ITEMS, 10, 1, equal=False)
    assert refused == 10
    assert by_guard["popularity_lift"] == 10
