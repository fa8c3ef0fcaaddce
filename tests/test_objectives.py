"""Preference objectives against golden numbers (float64, from the papers' formulas) and against one another."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recalign.errors import RecalignError
from recalign.objectives import PRESETS, PreferenceBatch, build_objective

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


def close(got: Tensor, expected: list) -> None:
    torch.testing.assert_close(got.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-11)


def test_dpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch()
    out = build_objective("dpo", beta=0.1)(batch)
    out.loss.backward()
    close(out.per_example, [0.6587595555486971, 0.7287595555486972, 0.6209570477895321])
    assert out.loss.item() == pytest.approx(0.669492052962, abs=1e-11)
    chosen = [-0.01608357141112034, -0.017249761922212992, -0.01541900515520835]
    close(batch.policy.grad[:, 0], chosen)
    close(batch.policy.grad[:, 1], [-value for value in chosen])
    assert batch.policy.grad[:, 2:].eq(0).all(), "DPO reads the first rejected response only"


def test_sdpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch()
    out = build_objective("sdpo", beta=1.0)(batch)
    out.loss.backward()
    close(out.per_example, [1.0005272659903717, 1.9068774064297087, 0.9520476072156667])
    assert out.loss.item() == pytest.approx(1.286484093212, abs=1e-11)
    close(batch.policy.grad[:, 0], [-0.21077149267281828, -0.283818831951277, -0.2046833533550531])
    close(
        batch.policy.grad[:, 1:],
        [
            [0.06086240887763618, 0.12256184066051504, 0.027347243134667056],
            [0.0997099612171666, 0.04951450138205633, 0.134594369352054],
            [0.028705690635645962, 0.1286499799782802, 0.04732768274112696],
        ],
    )


def test_dmpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch()
    out = build_objective("dmpo", beta=1.0)(batch)
    out.loss.backward()
    close(out.per_example, [0.39224835102243233, 1.0160935829472926, 0.36088481593420346])
    assert out.loss.item() == pytest.approx(0.589742249968, abs=1e-11)
    close(batch.policy.grad[:, 0], [-0.10815455900351525, -0.21266455688699462, -0.10098023867819757])
    rows = [0.03605151966783842, 0.07088818562899821, 0.03366007955939919]
    close(batch.policy.grad[:, 1:], [[value] * 3 for value in rows])


def test_dpo_on_every_pair_gives_the_golden_mean():
    out = build_objective("dpo_pairs", beta=1.0)(golden_batch())
    assert out.loss.item() == pytest.approx(0.623907063384, abs=1e-11)


def test_simpo_gives_the_golden_losses_and_gradients():
    batch = golden_batch(negatives=1)
    out = build_objective("simpo", beta=2.5, rho=0.55)(batch)
    out.loss.backward()
    close(out.per_example, [1.7014132779827527, 0.8736389080227417, 1.282972674334269])
    assert out.loss.item() == pytest.approx(1.286008286780, abs=1e-11)
    of_means = torch.tensor([-0.681312063494703, -0.4854751720519288, -0.6023233221926871], dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    close(batch.policy.grad[:, 0], (of_means / lengths[:, 0]).tolist())
    close(batch.policy.grad[:, 1], (-of_means / lengths[:, 1]).tolist())


def test_with_one_negative_every_reference_objective_is_dpo():
    for name in ("dpo", "dpo_pairs", "sdpo", "dmpo"):
        out = build_objective(name, beta=1.0)(golden_batch(negatives=1))
        close(out.per_example, [0.40318604888545784, 1.103186048885458, 0.2014132779827524])


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_a_policy_that_equals_its_reference_has_the_loss_of_chance(beta):
    batch = golden_batch()
    same = PreferenceBatch(batch.policy, batch.policy.detach(), batch.lengths, batch.mask)
    expected = {"dpo": math.log(2), "dpo_pairs": math.log(2), "dmpo": math.log(2), "sdpo": math.log(4)}
    for name, value in expected.items():
        out = build_objective(name, beta=beta)(same)
        close(out.per_example, [value] * 3)
        close(out.diagnostics["reward_accuracy"], [0.5] * 3)


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
    objective = build_objective(name, beta=1.0)
    torch.testing.assert_close(objective(batch).per_example, objective(shuffled).per_example)


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
    objective = build_objective(name, beta=1.0, rho=0.1, label_smoothing=0.1)
    out, expected = objective(padded), objective(batch)
    out.loss.backward()
    torch.testing.assert_close(out.per_example, expected.per_example)
    assert padded.policy.grad[:, -2:].eq(0).all()
    for key, values in expected.diagnostics.items():
        torch.testing.assert_close(out.diagnostics[key], values)


@pytest.mark.parametrize("name", PRESETS)
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
    close(out.diagnostics["reward_accuracy"], [2.5 / 3, 0.5 / 3, 2.5 / 3])
    close(out.diagnostics["chosen_logp_drift"], [0.5, -0.5, 0.5])
    close(out.diagnostics["rejected_logp_drift"], [-0.7 / 3, 0.2 / 3, -1 / 3])
    close(out.diagnostics["reward_margin"], [2 * (0.5 + 0.7 / 3), 2 * (-0.5 - 0.2 / 3), 2 * (0.5 + 1 / 3)])
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
    message = r"'sdop'; allowed are dpo, dpo_pairs, sdpo, dmpo, simpo \(did you mean sdpo\?\)"
    with pytest.raises(RecalignError, match=message):
        build_objective("sdop", beta=1.0)


def test_values_out_of_range_are_refused():
    with pytest.raises(RecalignError, match=r"align\.beta is 0"):
        build_objective("dpo", beta=0.0)
    with pytest.raises(RecalignError, match=r"label_smoothing is 0\.5"):
        build_objective("dpo", beta=1.0, label_smoothing=0.5)
