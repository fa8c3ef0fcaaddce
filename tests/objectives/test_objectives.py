"""Preference objectives against golden numbers (float64, from the papers' formulas) and against one another."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recalign.common.errors import RecalignError
from recalign.objectives.losses import PreferenceBatch, RunningStatistics, keep_likely
from recalign.objectives.objective import PRESETS, SOURCES, build_objective, family_table
from recalign.params.align import ObjectiveSettings, Preset

POLICY = [[-5.0, -6.0, -5.5, -9.0], [-8.0, -7.0, -8.5, -6.0], [-4.0, -9.0, -7.0, -6.5]]
REFERENCE = [[-5.5, -5.8, -6.0, -8.0], [-7.5, -7.2, -8.0, -6.5], [-4.5, -8.0, -7.5, -6.0]]
LENGTHS = [[4, 5, 3, 3], [6, 4, 3, 3], [3, 6, 3, 3]]


def golden_batch(negatives: int = 3, dtype: torch.dtype = torch.float64) -> PreferenceBatch:
    columns = slice(0, 1 + negatives)
    policy = torch.tensor(POLICY, dtype=dtype)[:, columns].clone().requires_grad_()
    reference = torch.tensor(REFERENCE, dtype=dtype)[:, columns]
    lengths = torch.tensor(LENGTHS)[:, columns]
    return PreferenceBatch(policy, reference, lengths, lengths > 0)


def random_batch(seed: int, rows: int = 4, negatives: int = 5, scale: float = 3.0) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return scale * torch.randn(rows, 1 + negatives, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, 9, (rows, 1 + negatives), generator=generator)
    return PreferenceBatch(draw() - 20, draw() - 20, lengths, torch.ones_like(lengths).bool())


def assert_close(got: Tensor, expected: list, atol: float = 1e-11) -> None:
    torch.testing.assert_close(got.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def test_dpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch()
    out = build_objective("dpo", beta=0.1)(batch)
    out.loss.backward()
    assert_close(out.per_example, [0.6587595555486971, 0.7287595555486972, 0.6209570477895321])
    assert out.loss.item() == pytest.approx(0.669492052962, abs=1e-11)
    chosen = [-0.01608357141112034, -0.017249761922212992, -0.01541900515520835]
    assert_close(batch.policy.grad[:, 0], chosen)
    assert_close(batch.policy.grad[:, 1], [-value for value in chosen])
    assert batch.policy.grad[:, 2:].eq(0).all(), "DPO reads the first rejected response only"


def test_sdpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch()
    out = build_objective("sdpo", beta=1.0)(batch)
    out.loss.backward()
    assert_close(out.per_example, [1.0005272659903717, 1.9068774064297087, 0.9520476072156667])
    assert out.loss.item() == pytest.approx(1.286484093212, abs=1e-11)
    assert_close(batch.policy.grad[:, 0], [-0.21077149267281828, -0.283818831951277, -0.2046833533550531])
    assert_close(
        batch.policy.grad[:, 1:],
        [
            [0.06086240887763618, 0.12256184066051504, 0.027347243134667056],
            [0.0997099612171666, 0.04951450138205633, 0.134594369352054],
            [0.028705690635645962, 0.1286499799782802, 0.04732768274112696],
        ],
    )


LIKED = torch.tensor([[True, True, False, False], [True, False, False, False], [True, True, True, False]])


def several(batch: PreferenceBatch, liked: Tensor = LIKED) -> PreferenceBatch:
    return replace(batch, liked=liked)


def test_mult_dpo_gives_the_golden_losses_and_gradients():
    batch = several(golden_batch())
    out = build_objective("mult_dpo", beta=1.0)(batch)
    out.loss.backward()
    assert_close(out.per_example, [1.3505272659903718, 1.9068774064297087, 1.4520476072156667])
    share = torch.tensor([[0.5], [1.0], [1 / 3]], dtype=torch.float64)
    log_ratios = batch.policy.detach() - batch.reference
    wanted = (torch.softmax(log_ratios, dim=1) - LIKED * share) / 3
    torch.testing.assert_close(batch.policy.grad, wanted, rtol=0, atol=1e-11)
    assert_close(batch.policy.grad[0], [-0.0441048287, -0.1058042582, 0.1225618407, 0.0273472431], atol=1e-8)


@pytest.mark.parametrize("alone", [None, torch.tensor([[True, False, False, False]] * 3)])
def test_with_one_liked_response_mult_dpo_is_sdpo(alone):
    batch = several(golden_batch(), alone)
    torch.testing.assert_close(
        build_objective("mult_dpo", beta=0.7, rho=0.2)(batch).per_example,
        build_objective("sdpo", beta=0.7, rho=0.2)(batch).per_example,
        rtol=0,
        atol=1e-14,
    )


def test_mult_dpo_is_least_where_the_liked_share_all_probability_alike():
    """log P from below: the reward of each liked response equal, of the rejected one far lower."""
    policy = torch.tensor([[0.0, 0.0, 0.0, -50.0]], dtype=torch.float64)
    lengths, liked = torch.ones(1, 4, dtype=torch.long), torch.tensor([[True, True, True, False]])
    batch = PreferenceBatch(policy, torch.zeros_like(policy), lengths, lengths.bool(), liked)
    objective = build_objective("mult_dpo", beta=1.0)
    assert objective(batch).loss.item() == pytest.approx(math.log(3), abs=1e-12)
    uneven = replace(batch, policy=policy + torch.tensor([[0.5, -0.5, 0.0, 0.0]], dtype=torch.float64))
    assert objective(uneven).loss > objective(batch).loss


SHARES = [[0.5, 0.25, 0.125, 0.125], [0.125, 0.5, 0.25, 0.125], [0.25, 0.25, 0.25, 0.25]]


def offered(batch: PreferenceBatch, shares: list[list[float]] | None = None) -> PreferenceBatch:
    """The batch with each item's chance to be offered as a rejected one."""
    return replace(batch, log_q=torch.tensor(shares or SHARES, dtype=torch.float64).log())


def test_the_corrected_sdpo_gives_the_golden_losses_and_gradients():
    """Row 3, whose items are offered equally often, has the loss of S-DPO."""
    batch = offered(golden_batch())
    out = build_objective("sdpo", beta=1.0, log_q=1.0)(batch)
    out.loss.backward()
    assert_close(out.per_example, [1.9294455262951418, 1.55217314112522, 0.9520476072156667])
    assert_close(
        batch.policy.grad,
        [
            [-0.2849237661135417, 0.04807895928850181, 0.1936382688791667, 0.04320653794587318],
            [-0.26273759005391534, 0.035540592291204674, 0.03529787163970899, 0.19189912612300167],
            [-0.20468335335505314, 0.028705690635645955, 0.1286499799782802, 0.04732768274112697],
        ],
    )


def test_the_correction_takes_log_q_from_each_reward_of_the_softmax():
    for beta in (0.3, 1.0):
        batch = offered(golden_batch())
        logits = beta * (batch.policy.detach() - batch.reference) - batch.log_q
        wanted = -torch.log_softmax(logits, dim=1)[:, 0]
        out = build_objective("sdpo", beta=beta, log_q=1.0)(batch)
        torch.testing.assert_close(out.per_example.detach(), wanted, rtol=0, atol=1e-12)
        out.loss.backward()
        chosen = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        gradient = beta * (torch.softmax(logits, dim=1) - chosen) / 3
        torch.testing.assert_close(batch.policy.grad, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_without_popularity_skew_the_correction_changes_nothing(name):
    """All items are offered equally often: S-DPO exactly, and every other objective is itself."""
    batch = offered(golden_batch(), [[0.25] * 4] * 3)
    plain = build_objective(name, beta=0.7, rho=0.2)(golden_batch()).per_example
    torch.testing.assert_close(build_objective(name, beta=0.7, rho=0.2, log_q=1.0)(batch).per_example, plain)


def test_a_rejected_item_that_is_offered_more_often_is_pushed_down_less():
    often, rarely = ([[0.25, share, 0.25, 0.25]] * 3 for share in (0.5, 0.1))
    gradients = []
    for shares in (often, rarely):
        batch = offered(golden_batch(), shares)
        build_objective("sdpo", beta=1.0, log_q=1.0)(batch).loss.backward()
        gradients.append(batch.policy.grad[:, 1])
    assert (gradients[0] > 0).all()
    assert (gradients[0] < gradients[1]).all()


def test_half_of_the_correction_is_the_correction_for_the_root_of_the_shares():
    batch = offered(golden_batch())
    rooted = replace(batch, log_q=batch.log_q / 2)
    half = build_objective("sdpo", beta=1.0, log_q=0.5)(batch).per_example
    torch.testing.assert_close(half, build_objective("sdpo", beta=1.0, log_q=1.0)(rooted).per_example)


def test_the_correction_is_the_same_in_validation_and_in_parts_of_a_batch():
    batch = offered(golden_batch())
    objective = build_objective("sdpo", beta=0.5, log_q=1.0)
    whole = objective(batch).per_example
    assert objective(batch, training=False).per_example.tolist() == whole.tolist()
    rows = slice(1, 3)
    part = PreferenceBatch(
        batch.policy[rows], batch.reference[rows], batch.lengths[rows], batch.mask[rows], None, batch.log_q[rows]
    )
    torch.testing.assert_close(objective(part).per_example, whole[rows])
    torch.testing.assert_close(objective(part, plan=objective.plan(batch).rows(1, 3, 3)).per_example, whole[rows])


def test_a_correction_without_known_shares_is_refused_with_the_fix():
    with pytest.raises(RecalignError, match=r"log_q is 1, and the pairs do not say .* set pairs\.strategy to in_batch"):
        build_objective("sdpo", beta=1.0, log_q=1.0)(golden_batch())


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "mult_dpo"])
def test_other_objectives_leave_further_liked_responses_out(name):
    batch = golden_batch()
    cut = replace(batch, mask=batch.mask & ~(LIKED & (torch.arange(4) > 0)))
    objective, again = (build_objective(name, beta=1.0) for _ in range(2))
    left_out, absent = objective(several(batch)), again(cut)
    torch.testing.assert_close(left_out.per_example, absent.per_example)
    for key, values in absent.diagnostics.items():
        if key != "chosen_logp_drift":
            torch.testing.assert_close(left_out.diagnostics[key], values)


def test_several_liked_responses_need_the_softmax():
    with pytest.raises(RecalignError, match=r"positives is 'all' with negatives 'mean'.*logsumexp and logistic"):
        build_objective("mult_dpo", beta=1.0, negatives="mean")


def test_a_row_whose_responses_were_all_liked_is_named():
    everything = torch.ones_like(LIKED)
    with pytest.raises(RecalignError, match="row 0 of the batch has no chosen or no rejected response"):
        build_objective("mult_dpo", beta=1.0)(several(golden_batch(), everything))


def test_dmpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch()
    out = build_objective("dmpo", beta=1.0)(batch)
    out.loss.backward()
    assert_close(out.per_example, [0.39224835102243233, 1.0160935829472926, 0.36088481593420346])
    assert out.loss.item() == pytest.approx(0.589742249968, abs=1e-11)
    assert_close(batch.policy.grad[:, 0], [-0.10815455900351525, -0.21266455688699462, -0.10098023867819757])
    rows = [0.03605151966783842, 0.07088818562899821, 0.03366007955939919]
    assert_close(batch.policy.grad[:, 1:], [[value] * 3 for value in rows])


def test_dpo_on_every_pair_gives_the_golden_mean():
    out = build_objective("dpo_pairs", beta=1.0)(golden_batch())
    assert out.loss.item() == pytest.approx(0.623907063384, abs=1e-11)


def test_simpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch(negatives=1)
    out = build_objective("simpo", beta=2.5, rho=0.55)(batch)
    out.loss.backward()
    assert_close(out.per_example, [1.7014132779827527, 0.8736389080227417, 1.282972674334269])
    assert out.loss.item() == pytest.approx(1.286008286780, abs=1e-11)
    of_means = torch.tensor([-0.681312063494703, -0.4854751720519288, -0.6023233221926871], dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    assert_close(batch.policy.grad[:, 0], (of_means / lengths[:, 0]).tolist())
    assert_close(batch.policy.grad[:, 1], (-of_means / lengths[:, 1]).tolist())


def test_with_one_negative_every_reference_objective_is_dpo():
    for name in ("dpo", "dpo_pairs", "sdpo", "dmpo"):
        out = build_objective(name, beta=1.0)(golden_batch(negatives=1))
        assert_close(out.per_example, [0.40318604888545784, 1.103186048885458, 0.2014132779827524])


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_a_policy_that_equals_its_reference_has_the_loss_of_chance(beta):
    batch = golden_batch()
    same = PreferenceBatch(batch.policy, batch.policy.detach(), batch.lengths, batch.mask)
    expected = {"dpo": math.log(2), "dpo_pairs": math.log(2), "dmpo": math.log(2), "sdpo": math.log(4)}
    for name, value in expected.items():
        out = build_objective(name, beta=beta)(same)
        assert_close(out.per_example, [value] * 3)
        assert_close(out.diagnostics["reward_accuracy"], [0.5] * 3)


def test_simpo_without_margin_on_one_token_responses_is_dpo_with_a_constant_reference():
    batch = random_batch(1)
    ones = torch.ones_like(batch.lengths)
    simpo = build_objective("simpo", beta=0.7)(PreferenceBatch(batch.policy, None, ones, batch.mask))
    constant = PreferenceBatch(batch.policy, torch.full_like(batch.policy, -3.0), ones, batch.mask)
    torch.testing.assert_close(simpo.per_example, build_objective("dpo_pairs", beta=0.7)(constant).per_example)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(0.05, 5.0))
def test_dmpo_is_at_most_pairwise_dpo_which_is_at_most_sdpo(seed, beta):
    batch = random_batch(seed)
    dmpo, pairs, sdpo = (build_objective(n, beta=beta)(batch).per_example for n in ("dmpo", "dpo_pairs", "sdpo"))
    assert (dmpo <= pairs + 1e-12).all()
    assert (pairs <= sdpo + 1e-12).all()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "dpo"])
def test_the_order_of_the_negatives_does_not_matter(name):
    batch = random_batch(2)
    order = torch.tensor([0, 4, 2, 5, 1, 3])
    shuffled = PreferenceBatch(batch.policy[:, order], batch.reference[:, order], batch.lengths[:, order], batch.mask)
    one, other = (build_objective(name, beta=1.0)(read).per_example for read in (batch, shuffled))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["dpo", "dpo_pairs", "sdpo", "dmpo"])
def test_a_constant_added_to_all_log_ratios_of_a_prompt_changes_nothing(name):
    batch = random_batch(3)
    shift = torch.tensor([[5.0], [-2.0], [100.0], [0.5]], dtype=torch.float64)
    shifted = PreferenceBatch(batch.policy + shift, batch.reference, batch.lengths, batch.mask)
    objective = build_objective(name, beta=1.0)
    torch.testing.assert_close(objective(batch).per_example, objective(shifted).per_example)


def test_another_negative_never_lowers_the_sdpo_loss():
    batch = random_batch(4)
    fewer = PreferenceBatch(batch.policy[:, :-1], batch.reference[:, :-1], batch.lengths[:, :-1], batch.mask[:, :-1])
    objective = build_objective("sdpo", beta=1.0)
    assert (objective(fewer).per_example <= objective(batch).per_example).all()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("margin", [-1000.0, -100.0, 0.0, 100.0, 1000.0])
def test_loss_and_gradients_stay_finite_at_extreme_margins_in_fp32(name, margin):
    policy = torch.tensor([[margin, 0.0, 2.0, 1.0]], requires_grad=True)
    lengths = torch.ones_like(policy).long()
    out = build_objective(name, beta=1.0)(PreferenceBatch(policy, torch.zeros_like(policy), lengths, lengths.bool()))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(policy.grad).all()
    assert float(policy.grad.abs().max()) <= 1.001
    if margin == -1000.0:
        assert out.loss.item() >= 1000.0


@pytest.mark.parametrize("name", PRESETS)
def test_what_stands_in_masked_columns_changes_nothing(name):
    batch = random_batch(5)
    padded = PreferenceBatch(
        torch.cat([batch.policy, torch.full((4, 2), float("nan"), dtype=torch.float64)], dim=1).requires_grad_(),
        torch.cat([batch.reference, torch.full((4, 2), float("-inf"), dtype=torch.float64)], dim=1),
        torch.cat([batch.lengths, torch.zeros(4, 2, dtype=torch.long)], dim=1),
        torch.cat([batch.mask, torch.zeros(4, 2, dtype=torch.bool)], dim=1),
    )
    out, expected = (build_objective(name, beta=1.0, rho=0.1, label_smoothing=0.1)(read) for read in (padded, batch))
    out.loss.backward()
    torch.testing.assert_close(out.per_example, expected.per_example)
    assert padded.policy.grad[:, -2:].eq(0).all()
    for key, values in expected.diagnostics.items():
        torch.testing.assert_close(out.diagnostics[key], values)


@pytest.mark.parametrize("name", [n for n in PRESETS if not build_objective(n, beta=1.0).needs_whole_batch])
def test_a_ragged_batch_equals_its_rows_one_by_one(name):
    batch = random_batch(6)
    kept = [1, 5, 3, 2]
    mask = torch.arange(6)[None, :] <= torch.tensor(kept)[:, None]
    objective = build_objective(name, beta=0.5, rho=0.2)
    ragged = objective(PreferenceBatch(batch.policy, batch.reference, batch.lengths, mask))
    for row, k in enumerate(kept):
        cut = (slice(row, row + 1), slice(0, 1 + k))
        alone = PreferenceBatch(batch.policy[cut], batch.reference[cut], batch.lengths[cut], mask[cut])
        torch.testing.assert_close(ragged.per_example[row], objective(alone).loss)


def test_label_smoothing_mixes_the_loss_with_that_of_swapped_labels():
    batch = golden_batch(negatives=1)
    plain = build_objective("dpo", beta=1.0)(batch).per_example
    flip = [1, 0]
    swapped = PreferenceBatch(batch.policy[:, flip], batch.reference[:, flip], batch.lengths[:, flip], batch.mask)
    mixed = 0.8 * plain + 0.2 * build_objective("dpo", beta=1.0)(swapped).per_example
    torch.testing.assert_close(build_objective("dpo", beta=1.0, label_smoothing=0.2)(batch).per_example, mixed)


def test_diagnostics_are_accuracy_margin_and_drift():
    out = build_objective("sdpo", beta=2.0)(golden_batch())
    # log-ratios: [.5, −.2, .5, −1], [−.5, .2, −.5, .5], [.5, −1, .5, −.5]
    assert_close(out.diagnostics["reward_accuracy"], [2.5 / 3, 0.5 / 3, 2.5 / 3])
    assert_close(out.diagnostics["chosen_logp_drift"], [0.5, -0.5, 0.5])
    assert_close(out.diagnostics["rejected_logp_drift"], [-0.7 / 3, 0.2 / 3, -1 / 3])
    assert_close(out.diagnostics["reward_margin"], [2 * (0.5 + 0.7 / 3), 2 * (-0.5 - 0.2 / 3), 2 * (0.5 + 1 / 3)])
    assert not any(values.requires_grad for values in out.diagnostics.values())


def test_outside_training_no_graph_is_kept():
    assert not build_objective("sdpo", beta=1.0)(golden_batch(), training=False).loss.requires_grad


def test_no_rejected_response_is_refused_by_row():
    batch = random_batch(7, rows=2, negatives=1)
    mask = torch.tensor([[True, True], [True, False]])
    with pytest.raises(RecalignError, match=r"'sdpo'.*row 1 .*K = 0.*pairs\.negatives"):
        build_objective("sdpo", beta=1.0)(PreferenceBatch(batch.policy, batch.reference, batch.lengths, mask))


@pytest.mark.parametrize("part", ["policy", "reference"])
def test_a_log_prob_that_is_not_a_number_is_named(part):
    parts = {"policy": torch.tensor(POLICY), "reference": torch.tensor(REFERENCE)}
    parts[part][1, 2] = float("nan")
    lengths = torch.tensor(LENGTHS)
    with pytest.raises(RecalignError, match=rf"the {part} log-prob of row 1, response 2 is nan"):
        build_objective("sdpo", beta=1.0)(PreferenceBatch(**parts, lengths=lengths, mask=lengths > 0))


def test_a_missing_reference_is_refused_where_one_is_needed():
    batch = random_batch(8)
    bare = PreferenceBatch(batch.policy, None, batch.lengths, batch.mask)
    with pytest.raises(RecalignError, match="'dmpo' compares with a reference"):
        build_objective("dmpo", beta=1.0)(bare)
    assert "chosen_logp_drift" not in build_objective("simpo", beta=1.0)(bare).diagnostics


def test_an_unknown_objective_names_the_allowed_ones():
    message = r"'sdop'; allowed are dpo, dpo_pairs, sdpo, mult_dpo, dmpo, simpo, .* \(did you mean sdpo\?\)"
    with pytest.raises(RecalignError, match=message):
        build_objective("sdop", beta=1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta", 0.0), ("label_smoothing", 0.5), ("drop", 1.0), ("momentum", 1.0), ("beta_prime", 0.0), ("loss", "l2")],
)
def test_values_out_of_range_are_refused(key, value):
    settings = {"beta": 1.0, key: value}
    with pytest.raises(RecalignError, match=rf"objective 'sdpo': {key} is '?{value}'?; input should be"):
        build_objective("sdpo", **settings)


def test_an_objective_without_a_scale_is_refused():
    with pytest.raises(RecalignError, match="'sdpo' has no beta"):
        build_objective("sdpo")


def test_a_name_of_ones_own_is_like_a_preset_and_any_choice_of_it_can_be_changed():
    own = build_objective("robust", like="dr_dpo", beta=1.0, negatives="logsumexp")
    assert (own.name, own.reward, own.negatives, own.beta_prime) == ("robust", "log_ratio", "logsumexp", 1.0)


# ---- the other losses of a pair


def test_ipo_is_the_squared_distance_of_the_margin_from_its_target():
    """(Δ − 1/(2β))² with Δ = 0.7, −0.7, 1.5 and β = 0.25: the target is 2."""
    batch = golden_batch(negatives=1)
    out = build_objective("dpo", beta=0.25, loss="ipo")(batch)
    out.loss.backward()
    assert_close(out.per_example, [1.69, 7.29, 0.25])
    assert_close(batch.policy.grad[:, 0], [-2 * 1.3 / 3, -2 * 2.7 / 3, -2 * 0.5 / 3])


def test_hinge_is_zero_beyond_a_margin_of_one():
    out = build_objective("dpo", beta=1.0, loss="hinge")(golden_batch(negatives=1))
    assert_close(out.per_example, [0.3, 1.7, 0.0])


def test_without_the_reference_dmpo_gives_what_its_released_code_gives():
    """That code passes the chosen reference twice, so that it cancels; K = 1, β = 0.1."""
    out = build_objective("dmpo", beta=0.1, reward="sum")(golden_batch(negatives=1))
    assert_close(out.per_example, [0.6443966600735709, 0.7443966600735709, 0.4740769841801067])


def test_reference_free_is_a_constant_reference():
    batch = random_batch(9)
    constant = PreferenceBatch(batch.policy, torch.full_like(batch.policy, -7.0), batch.lengths, batch.mask)
    free = PreferenceBatch(batch.policy, None, batch.lengths, batch.mask)
    for name in ("dpo", "dpo_pairs", "sdpo", "dmpo"):
        expected = build_objective(name, beta=0.7)(constant).per_example
        torch.testing.assert_close(build_objective(name, beta=0.7, reward="sum")(free).per_example, expected)


# ---- α-DPO


def test_alpha_dpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch(negatives=1)
    objective = build_objective("alpha_dpo", beta=2.5, rho=0.55, alpha=0.2)
    out = objective(batch)
    out.loss.backward()
    assert_close(out.per_example, [1.7769823363347137, 0.5953695867703263, 1.6253537000586415])
    assert out.loss.item() == pytest.approx(1.332568541055, abs=1e-11)
    of_means = torch.tensor([-0.6923768257621654, -0.3738677055783241, -0.6692983001259435], dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    assert_close(batch.policy.grad[:, 0], (of_means / lengths[:, 0]).tolist())
    assert_close(batch.policy.grad[:, 1], (-of_means / lengths[:, 1]).tolist())
    assert objective.gaps.mean == pytest.approx(0.1216666666667, abs=1e-12)
    assert objective.gaps.std == pytest.approx(0.23633192289188906, abs=1e-12)


def test_alpha_dpo_without_alpha_is_simpo():
    batch = random_batch(10)
    alpha = build_objective("alpha_dpo", beta=2.5, rho=0.3, alpha=0.0)
    assert not alpha.needs_reference
    assert not alpha.needs_whole_batch
    expected = build_objective("simpo", beta=2.5, rho=0.3)(batch).per_example
    assert torch.equal(alpha(batch).per_example, expected)


def test_alpha_dpo_is_simpo_with_each_pairs_margin_as_a_number():
    """No gradient flows through the margin."""
    lengths, mask = random_batch(11).lengths, random_batch(11).mask
    policy = random_batch(11).policy.requires_grad_()
    batch = PreferenceBatch(policy, random_batch(11).reference, lengths, mask)
    objective = build_objective("alpha_dpo", beta=2.0, rho=0.1, alpha=0.3)
    out = objective(batch)
    out.loss.backward()
    shift = build_objective("alpha_dpo", beta=2.0, rho=0.1, alpha=0.3).plan(batch).shift
    means = random_batch(11).policy.requires_grad_()
    gaps = (means / lengths)[:, :1] - (means / lengths)[:, 1:]
    by_hand = torch.nn.functional.softplus(-2.0 * (gaps - shift)).mean()
    by_hand.backward()
    torch.testing.assert_close(out.loss, by_hand)
    torch.testing.assert_close(policy.grad, means.grad)


def test_a_constant_added_to_all_gaps_leaves_alpha_dpo_unchanged():
    """It moves the mean of the gaps, and nothing else."""
    batch = random_batch(12)
    ones = torch.ones_like(batch.lengths)
    moved = batch.reference.clone()
    moved[:, 0] += 4.0
    one, other = (
        build_objective("alpha_dpo", beta=2.5)(PreferenceBatch(batch.policy, reference, ones, batch.mask)).per_example
        for reference in (batch.reference, moved)
    )
    torch.testing.assert_close(one, other)


# ---- β-DPO


def test_beta_dpo_gives_the_golden_beta_loss_and_gradients():
    """From (mean, std) = (0.3, 0.8), keeping the first and the third of three examples."""
    batch = golden_batch(negatives=1)
    settings = {"beta": 0.1, "beta_scale": 0.6, "drop": 1 / 3}
    seed = next(s for s in range(99) if started(settings, s).plan(batch).weights.tolist() == [0.5, 0.0, 0.5])
    objective = started(settings, seed)
    out = objective(batch)
    out.loss.backward()
    assert objective.margins.mean == pytest.approx(0.32, abs=1e-12)
    assert objective.margins.std == pytest.approx(0.8313552872566006, abs=1e-12)
    assert_close(out.diagnostics["beta"], [0.1468] * 3)
    assert out.loss.item() == pytest.approx(0.616091266074, abs=1e-11)
    assert_close(batch.policy.grad[:, 0], [-0.03481601155809479, 0, -0.03267557823409174])


def started(settings: dict, seed: int):
    """β-DPO that has seen batches before."""
    objective = build_objective("beta_dpo", seed=seed, **settings)
    objective.load_state_dict(objective.state_dict() | {"margins.mean": 0.3, "margins.std": 0.8, "margins.batches": 7})
    return objective


def test_the_filter_keeps_examples_as_often_as_their_weights_say():
    """Of two, drawn one at a time: golden weights 0.9008 and 0.4711, so 0.6566 and 0.3434 of 4,000 draws."""
    log_weights = torch.tensor([0.9008078282470333, 0.47111320892001124]).log()
    generator = torch.Generator().manual_seed(1)
    first = sum(int(keep_likely(log_weights, 1, generator)[0]) for _ in range(4000))
    assert first / 4000 == pytest.approx(0.6566, abs=0.025)


def test_the_filter_survives_examples_so_unlikely_that_their_weight_is_zero():
    log_weights = torch.tensor([-1e6, -1e7, 0.0, -1e8])
    assert keep_likely(log_weights, 2, torch.Generator().manual_seed(0)).tolist() == [True, False, True, False]


def test_beta_dpo_without_its_two_parts_is_dpo():
    batch = random_batch(13)
    bare = build_objective("beta_dpo", beta=0.5, beta_scale=0.0, drop=0.0)
    assert not bare.needs_whole_batch
    assert torch.equal(bare(batch).per_example, build_objective("dpo_pairs", beta=0.5)(batch).per_example)


def test_beta_dpo_whose_batch_is_like_all_before_it_is_dpo():
    """f = 0 and mean(A) = μ, as in the first batch: β stays, whatever the factor."""
    batch = random_batch(14)
    out = build_objective("beta_dpo", beta=0.5, beta_scale=3.0, drop=0.0)(batch)
    torch.testing.assert_close(out.per_example, build_objective("dpo_pairs", beta=0.5)(batch).per_example)


def test_a_filter_alone_drops_examples_and_leaves_the_others_their_dpo_loss():
    batch = random_batch(15, rows=10)
    objective = build_objective("beta_dpo", beta=0.5, beta_scale=0.0, drop=0.3)
    out = objective(batch)
    weights = build_objective("beta_dpo", beta=0.5, beta_scale=0.0, drop=0.3).plan(batch).weights
    assert sorted(weights.tolist()) == pytest.approx([0.0] * 3 + [1 / 7] * 7)
    assert "beta" not in out.diagnostics
    plain = build_objective("dpo_pairs", beta=0.5)(batch).per_example
    torch.testing.assert_close(out.per_example, plain)
    torch.testing.assert_close(out.loss, plain[weights > 0].mean())


def test_a_dynamic_beta_never_reaches_zero():
    objective = build_objective("beta_dpo", beta=0.5, beta_scale=50.0, drop=0.0)
    objective(random_batch(16))
    worse = random_batch(16)
    worse.policy[:, 0] -= 30.0
    assert objective(worse).diagnostics["beta"].tolist() == [1e-3] * 4


# ---- Dr. DPO


@pytest.mark.parametrize(("beta_prime", "loss"), [(1.0, 0.501109381809), (0.1, 0.298780682059), (1e6, 0.569261717320)])
def test_dr_dpo_gives_the_golden_losses(beta_prime, loss):
    out = build_objective("dr_dpo", beta=1.0, beta_prime=beta_prime)(golden_batch(negatives=1))
    assert out.loss.item() == pytest.approx(loss, abs=1e-9 if beta_prime > 1e3 else 1e-11)


def test_dr_dpo_gives_the_golden_weights_and_gradients():
    batch = golden_batch(negatives=1)
    objective = build_objective("dr_dpo", beta=1.0, beta_prime=1.0)
    objective(batch).loss.backward()
    assert_close(objective.plan(batch).weights, [0.367626075805973, 0.18255770653575285, 0.4498162176582741])
    assert_close(batch.policy.grad[:, 0], [-0.12198282722225455, -0.12198282722225456, -0.08205795912290466])


def test_dr_dpo_equals_its_formula_value_and_gradient():
    """−β' log mean exp(−ℓ/β'), differentiated as it stands."""
    policy = random_batch(17).policy.requires_grad_()
    batch = PreferenceBatch(policy, random_batch(17).reference, random_batch(17).lengths, random_batch(17).mask)
    build_objective("dr_dpo", beta=0.7, beta_prime=0.5, negatives="logsumexp")(batch).loss.backward()
    found, policy.grad = policy.grad, None
    losses = build_objective("sdpo", beta=0.7)(batch).per_example
    expected = -0.5 * torch.exp(-losses / 0.5).mean().log()
    expected.backward()
    torch.testing.assert_close(found, policy.grad)


def test_dr_dpo_does_not_underflow():
    """Losses of 200 and 300: the released form takes log 0; the true value is 200 + log 2."""
    policy = torch.tensor([[-200.0, 0.0], [-300.0, 0.0]], requires_grad=True)
    batch = PreferenceBatch(policy, torch.zeros(2, 2), torch.ones(2, 2).long(), torch.ones(2, 2).bool())
    out = build_objective("dr_dpo", beta=1.0)(batch)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(200 + math.log(2), abs=1e-4)
    assert torch.isfinite(policy.grad).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), beta_prime=st.floats(0.01, 100.0))
def test_dr_dpo_lies_between_the_smallest_loss_and_the_mean_and_rises_with_its_temperature(seed, beta_prime):
    batch = random_batch(seed)
    plain = build_objective("dpo_pairs", beta=1.0)(batch).per_example
    cooler, warmer = (
        build_objective("dr_dpo", beta=1.0, beta_prime=b)(batch).loss for b in (beta_prime, 2 * beta_prime)
    )
    assert plain.min() - 1e-9 <= cooler <= warmer + 1e-9
    assert warmer <= plain.mean() + 1e-9


def test_dr_dpo_of_equal_losses_or_of_one_example_is_that_loss():
    batch = random_batch(18, rows=1)
    plain = build_objective("dpo_pairs", beta=1.0)(batch).loss
    rows = [torch.cat([part] * 3) for part in (batch.policy, batch.reference, batch.lengths, batch.mask)]
    torch.testing.assert_close(build_objective("dr_dpo", beta=1.0)(batch).loss, plain)
    torch.testing.assert_close(build_objective("dr_dpo", beta=1.0)(PreferenceBatch(*rows)).loss, plain)


# ---- conventions, statistics, parts of a batch

WHOLE = {
    "alpha_dpo": {"like": "alpha_dpo"},
    "beta_dpo": {"like": "beta_dpo"},
    "dr_dpo": {"like": "dr_dpo"},
    "dr_dpo over S-DPO": {"like": "dr_dpo", "negatives": "logsumexp"},
    "β-DPO's filter over DMPO": {"like": "beta_dpo", "negatives": "mean"},
    "all at once": {"like": "alpha_dpo", "reward": "log_ratio", "beta_scale": 0.5, "drop": 0.3, "beta_prime": 0.5},
}


@pytest.mark.parametrize(
    ("preset", "key", "code", "paper"), [("alpha_dpo", "alpha", 0.2, 0.5), ("beta_dpo", "beta_scale", 1.5, 0.6)]
)
def test_the_papers_convention_is_the_codes_in_units_of_beta(preset, key, code, paper):
    """β = 2.5: α = 0.5 of β·z is 0.2 of z; a = 0.6 per unit of β·A is 1.5 per unit of A."""
    first, second = (build_objective(preset, beta=2.5, **{key: v}, convention=c) for v, c in
                     ((code, "code"), (paper, "paper")))  # fmt: skip
    for seed in (1, 2):
        torch.testing.assert_close(first(random_batch(seed)).loss, second(random_batch(seed)).loss)


@pytest.mark.parametrize("name", WHOLE)
def test_where_policy_equals_reference_nothing_is_standardised_by_rounding(name):
    batch = random_batch(19, rows=6)
    noise = 1e-6 * random_batch(20, rows=6).policy
    same = PreferenceBatch(batch.policy.requires_grad_(), (batch.policy + noise).detach(), batch.lengths, batch.mask)
    objective = build_objective("x", beta=1.0, **WHOLE[name])
    plan = objective.plan(same)
    assert plan.shift.eq(objective.rho).all()
    assert plan.beta == pytest.approx(1.0, abs=1e-3)
    out = objective(same)
    out.loss.backward()
    assert torch.isfinite(batch.policy.grad).all()
    assert objective.gaps.std == objective.margins.std == 0.0


@pytest.mark.parametrize("name", WHOLE)
def test_parts_of_a_batch_add_up_to_the_whole_value_and_gradient(name):
    """Twelve rows, ragged, at once and in parts of 1, 4 and 7: what the plan of the whole is for."""
    whole, grad, statistics = in_parts(name, [12])
    for parts in ([1] * 12, [1, 4, 7]):
        value, gradient, state = in_parts(name, parts)
        assert value == pytest.approx(whole, abs=1e-12)
        torch.testing.assert_close(gradient, grad, rtol=1e-9, atol=1e-12)
        assert state == statistics


def in_parts(name: str, parts: list[int]) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and state after a second batch (the first one starts the statistics)."""
    objective = build_objective("x", beta=0.8, **WHOLE[name])
    objective(random_batch(21, rows=12))
    full = random_batch(22, rows=12)
    mask = torch.arange(6)[None, :] <= (1 + torch.arange(12) % 5)[:, None]
    policy = full.policy.requires_grad_()
    plan = objective.plan(PreferenceBatch(policy, full.reference, full.lengths, mask))
    total, start = 0.0, 0
    for rows in parts:
        stop = start + rows
        width = int(mask[start:stop].sum(dim=1).max())
        cut = (slice(start, stop), slice(0, width))
        part = PreferenceBatch(policy[cut], full.reference[cut], full.lengths[cut], mask[cut])
        share = objective(part, plan=plan.rows(start, stop, width - 1)).loss
        share.backward()
        total, start = total + share.item(), stop
    return total, policy.grad, objective.state_dict()


def test_statistics_start_from_the_first_batch_and_then_follow():
    statistics = RunningStatistics(momentum=0.9)
    statistics.update(torch.tensor([1.0, 3.0]))
    assert (statistics.mean, statistics.std) == (2.0, pytest.approx(math.sqrt(2)))
    statistics.update(torch.tensor([2.0, 2.0, 8.0]))
    assert statistics.mean == pytest.approx(0.9 * 2 + 0.1 * 4)
    assert statistics.std == pytest.approx(0.9 * math.sqrt(2) + 0.1 * math.sqrt(12))
    assert statistics.batches == 2


def test_a_batch_of_one_has_a_mean_and_no_spread():
    statistics = RunningStatistics(momentum=0.9)
    statistics.update(torch.tensor([5.0]))
    assert (statistics.mean, statistics.std) == (5.0, 0.0)
    assert statistics.standardised(torch.tensor([7.0])).tolist() == [0.0]


@pytest.mark.parametrize("name", WHOLE)
def test_outside_training_the_loss_is_a_fixed_function_and_the_statistics_stay(name):
    """So that the validation losses of two steps compare: no running statistics, no filter, constant β."""
    objective = build_objective("x", beta=0.8, **WHOLE[name])
    before = objective(random_batch(23), training=False).loss
    state = objective.state_dict()
    for seed in range(3):
        objective(random_batch(seed))
    assert objective(random_batch(23), training=False).loss == before
    fresh = build_objective("x", beta=0.8, **WHOLE[name])
    fresh(random_batch(23), training=False)
    assert fresh.state_dict() == state


@pytest.mark.parametrize("name", WHOLE)
def test_an_objective_goes_on_from_its_state(name):
    """As after a kill: the same losses, and the same draws of the filter."""
    whole = build_objective("x", beta=0.8, **WHOLE[name])
    for seed in range(3):
        whole(random_batch(seed, rows=8))
    resumed = build_objective("x", beta=0.8, **WHOLE[name])
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for seed in range(3, 6):
        assert whole(random_batch(seed, rows=8)).loss == resumed(random_batch(seed, rows=8)).loss


# ---- the page

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")


def test_the_page_shows_the_family_as_the_code_has_it():
    table = PAGE.split("family_table -->\n")[1].split("\n<!-- end of the family")[0]
    assert table == family_table()


def test_every_identity_of_the_page_is_a_test_of_this_file():
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 20
    assert [name for name in named if name not in globals()] == []


def test_every_setting_and_every_value_of_a_choice_is_on_the_page():
    for key, setting in ObjectiveSettings.model_fields.items():
        assert f"`{key}`" in PAGE
        for choice in get_args(get_args(setting.annotation)[0]):
            assert f"`{choice}`" in PAGE, key
    assert set(PRESETS) == set(SOURCES) == set(get_args(Preset))
