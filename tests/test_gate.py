"""What the gate lets through."""

import json

import numpy as np
import pytest

from recalign.errors import RecalignError
from recalign.evaluation.system_ranks import SAMPLED, SystemRanks, in_case_order
from recalign.params import Params, parse_params
from recalign.registry.gate import judge


def params_with(tree, **registry) -> Params:
    tree["registry"] |= registry
    return parse_params(tree)


def ranked(system: str, *ranks: int, digest: str = "d") -> SystemRanks:
    """Ranks of as many users with one case each."""
    keys = [(f"{user:03}-1", user) for user in range(len(ranks))]
    return in_case_order(system, SAMPLED, "uniform", digest, keys, np.array(ranks), np.zeros(len(ranks)))


def test_better_in_every_case_is_let_through(tree):
    """NDCG@10 of rank 1 is 1, of rank 3 it is 1/2: the gain is 1/2 with no spread."""
    verdict = judge(params_with(tree), ranked("new", 1, 1, 1), ranked("old", 3, 3, 3), "version 1", first=False)
    assert (verdict.accepted, verdict.gain.value, verdict.gain.low) == (True, 0.5, 0.5)


def test_equal_is_not_better(tree):
    """A lower end of exactly zero is not above zero."""
    same = ranked("new", 1, 2, 3), ranked("old", 1, 2, 3)
    assert not judge(params_with(tree, margin=0.0), *same, "version 1", first=False).accepted
    assert judge(params_with(tree, margin=0.01), *same, "version 1", first=False).accepted


def test_a_gain_within_the_error_is_not_enough(tree):
    """Two users gain, one loses: the interval reaches below zero."""
    verdict = judge(params_with(tree), ranked("new", 1, 1, 4), ranked("old", 2, 2, 2), "version 1", first=False)
    assert verdict.gain.low < 0 < verdict.gain.high
    assert not verdict.accepted


def test_the_margin_allows_a_small_loss_but_not_for_the_first_champion(tree):
    """The first must beat popularity outright."""
    slightly_worse = ranked("new", 2, 1, 1, 1), ranked("old", 1, 1, 1, 1)
    params = params_with(tree, margin=0.5)
    assert judge(params, *slightly_worse, "version 1", first=False).accepted
    assert not judge(params, *slightly_worse, "popularity", first=True).accepted


def test_the_metric_is_that_of_params(tree):
    """Rank 6 against rank 9: level by HR@5, above by MRR."""
    pair = ranked("new", 6, 6), ranked("old", 9, 9)
    assert not judge(params_with(tree, metric="hr_at_5"), *pair, "version 1", first=False).accepted
    assert judge(params_with(tree, metric="mrr"), *pair, "version 1", first=False).accepted


def test_ranks_on_another_manifest_are_not_compared(tree):
    """The message names what differs."""
    with pytest.raises(RecalignError, match="digest is 'd' for the one and 'e'"):
        judge(params_with(tree), ranked("new", 1), ranked("old", 2, digest="e"), "version 1", first=False)


def test_the_verdict_says_in_words_and_json_what_was_compared(tree):
    """A person reads the sentence; gate.json holds the rest."""
    verdict = judge(params_with(tree), ranked("new", 1, 1), ranked("old", 3, 3), "version 4", first=False)
    assert verdict.reason == (
        "NDCG@10 less that of version 4 is +0.500 [+0.500, +0.500] on 2 cases of 2 users; the lower end is above zero"
    )
    kept = json.loads(json.dumps(verdict.as_dict()))
    assert (kept["decision"], kept["manifest_digest"], kept["bar"], kept["cases"]) == ("champion", "d", "version 4", 2)


def test_what_a_leak_probe_reaches_as_well_is_not_let_through(tree):
    """However much was gained; the reason stands in the sentence and in gate.json."""
    pair = ranked("new", 1, 1), ranked("old", 3, 3)
    verdict = judge(params_with(tree), *pair, "popularity", first=True, barred="NDCG@10 of new less the probe's is …")
    assert not verdict.accepted
    assert verdict.reason.endswith("the lower end is above zero; NDCG@10 of new less the probe's is …")
    assert verdict.as_dict()["decision"] == "challenger"
