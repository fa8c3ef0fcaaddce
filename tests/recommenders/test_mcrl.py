"""MCRL: each term by hand and alone, what it leaves alone, and that without any term it is its backbone."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from neural_fit import fit_mcrl, fit_next_item
from rounding import rounding
from test_next_item import SUMS, chain_log, quick
from torch import Tensor

from recalign.data.records import Items
from recalign.params.load import load_params
from recalign.params.recommenders import McrlParams, RecommendersParams
from recalign.recommenders.neural import losses as mcrl_losses
from recalign.recommenders.neural.encoders import EncoderName
from recalign.recommenders.neural.mcrl import MCRL, DecisionHeads, DecisionLosses, Steps
from recalign.recommenders.neural.next_item import Batch, Histories
from recalign.recommenders.neural.sequential import Sequential, Settings, build_encoder
from recalign.recommenders.recommender import Request

DEFAULT = load_params(Path(__file__).parents[2] / "params.yaml").recommenders
TWELVE = Items(tuple(range(100, 112)), {}, {}, {})
TERMS = ("temporal_difference", "conservative", "reward", "transition")
NONE = dict.fromkeys(TERMS, 0.0)
GOLDEN = torch.tensor([[1.0, 0.2, -0.5, 0.3]], dtype=torch.float64)


def weights(**given: object) -> McrlParams:
    """No term but the given ones."""
    return DEFAULT.mcrl.model_copy(update=NONE | {"negatives": 8} | given)


def params(next_item: object = None, **given: object) -> RecommendersParams:
    return DEFAULT.model_copy(update={"next_item": next_item or quick(epochs=3), "mcrl": weights(**given)})


def small_batch() -> tuple[Histories, Batch, Tensor]:
    """Users 0 (six likes: a row of four and one of two) and 1 (three), and random states of their rows."""
    table = chain_log(users=2, each=6)
    histories = Histories(TWELVE, table.slice(0, 9))
    (batch,) = histories.batches(8, Settings(length=4), np.random.default_rng(0))
    states = torch.randn(*batch.inputs.shape, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return histories, batch, states


def small_losses(**given: object) -> tuple[DecisionLosses, torch.nn.Module]:
    torch.manual_seed(0)
    heads = DecisionHeads(12, 8).double()
    return DecisionLosses(heads, weights(**given), 0), build_encoder("sasrec", 12, Settings(dimension=8)).double()


def transitions(batch: Batch) -> list[tuple[int, int, int, bool, bool]]:
    """(row, place, action, whether a next place follows, terminal) of each target, by walking over it."""
    found = []
    for row, (targets, ended) in enumerate(zip(batch.targets.tolist(), batch.ended.tolist(), strict=True)):
        real = [target for target in targets if target >= 0]
        for place, action in enumerate(real):
            last = place == len(real) - 1
            found.append((row, place, action, not last, last and ended))
    return found


def test_a_values_error_is_its_distance_from_the_reward_and_the_discounted_next_value() -> None:
    value, reward, following = (torch.tensor([x], dtype=torch.float64) for x in (1.0, 1.0, 0.9))
    error = mcrl_losses.temporal_difference(value, reward, following, torch.tensor([False]), 0.5)
    assert error.item() == pytest.approx(0.2025, abs=1e-15)  # (1 − (1 + 0.5 · 0.9))²


def test_a_terminal_step_has_no_next_value_whatever_stands_there() -> None:
    value, reward = torch.tensor([0.3, 0.3]), torch.tensor([1.0, 1.0])
    following, terminal = torch.tensor([math.nan, 7.0]), torch.tensor([True, True])
    error = mcrl_losses.temporal_difference(value, reward, following, terminal, 0.5)
    assert error.tolist() == pytest.approx([0.49, 0.49], abs=1e-6)


def test_only_the_value_that_is_learned_gets_a_gradient() -> None:
    own, other = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    following = mcrl_losses.double_q(own, other)
    assert not following.requires_grad

    value, reward, following = (torch.tensor([x], requires_grad=True) for x in (1.0, 1.0, 0.9))
    mcrl_losses.temporal_difference(value, reward, following, torch.tensor([False]), 0.5).sum().backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(2 * (1 - 1.45))
    assert reward.grad is None
    assert following.grad is None


def test_one_head_chooses_the_action_and_the_other_one_judges_it() -> None:
    own = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    other = torch.tensor([[9.0, 0.5, 8.0], [0.25, 7.0, 6.0]])
    assert mcrl_losses.double_q(own, other).tolist() == [0.5, 0.25]


def test_choosing_and_judging_apart_does_not_take_noise_for_value() -> None:
    """All actions are worth 0; the best of 50 noisy values is far above it, judged by the other head it is not."""
    noise = torch.randn(2, 4000, 50, generator=torch.Generator().manual_seed(0))
    assert noise[0].max(dim=1).values.mean().item() > 2.0
    assert abs(mcrl_losses.double_q(noise[0], noise[1]).mean().item()) < 0.05


def test_the_conservative_term_is_the_golden_one_and_so_is_the_sum_of_both_terms_of_values() -> None:
    values = GOLDEN.clone().requires_grad_()
    taken = torch.tensor([0])
    cautious = mcrl_losses.conservative(values, taken)
    one = torch.ones(1, dtype=torch.float64)
    error = mcrl_losses.temporal_difference(values[:, 0], one, 0.9 * one, torch.tensor([False]), 0.5)
    total = (error + 0.1 * cautious).sum()
    total.backward()

    assert cautious.item() == pytest.approx(0.774286714833, abs=1e-12)
    assert total.item() == pytest.approx(0.279928671483, abs=1e-12)
    expected = [-0.9538967488602453, 0.020715526077062035, 0.010287025810176717, 0.02289419697300667]
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx(expected, abs=1e-15)


def test_the_reward_model_is_told_the_logs_action_from_drawn_ones() -> None:
    asked = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    positive = torch.tensor([[2.0, 5.0], [2.0, 5.0]], dtype=torch.float64)
    negative = torch.tensor([[0.5, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    allowed = torch.tensor([[True, True], [False, False]])
    loss = mcrl_losses.contrastive_reward(asked, positive, negative, allowed).tolist()
    assert loss == pytest.approx([0.24131129665715703, 0.0], abs=1e-15)


def test_the_transition_model_is_told_the_state_that_came_from_others() -> None:
    """Cosines 1, 1/4 and −1/2, whatever the lengths, over a temperature of 1/2: scores 2, 0.5 and −1."""
    predicted = torch.tensor([[3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    following = torch.tensor([[5.0, 0.0]], dtype=torch.float64, requires_grad=True)
    others = torch.tensor([[1.0, math.sqrt(15)], [-1.0, math.sqrt(3)]], dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True, True]])
    loss = mcrl_losses.contrastive_transition(predicted, following, others, allowed, 0.5)
    loss.sum().backward()

    assert loss.item() == pytest.approx(0.24131129665715703, abs=1e-15)
    assert predicted.grad is not None
    assert predicted.grad.abs().sum() > 0
    assert following.grad is None
    assert others.grad is None


def test_the_mean_of_no_loss_is_nought_and_not_nan() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    mcrl_losses.mean(nothing).backward()
    assert mcrl_losses.mean(nothing).item() == 0.0


def test_steps_follow_each_other_within_a_row_and_only_a_historys_end_is_terminal() -> None:
    _, batch, states = small_batch()
    steps, walked = Steps(states, batch), transitions(batch)

    assert sorted(len(row[row >= 0]) for row in batch.targets) == [2, 3, 4]
    assert steps.actions.tolist() == [action for _, _, action, _, _ in walked]
    assert steps.terminal.tolist() == [terminal for *_, terminal in walked]
    assert steps.followed.tolist() == [place for place, step in enumerate(walked) if step[3]]
    assert steps.terminal.sum() == 2
    assert len(steps.followed) + 2 == len(walked) - 1  # the last step of the row that a cut ends is neither
    for flat, (row, place, *_) in enumerate(walked):
        assert torch.equal(steps.states[flat], states[row, place])
        assert steps.users[flat] == batch.users[row]


def test_the_temporal_difference_of_a_batch_is_that_of_its_steps_one_by_one() -> None:
    histories, batch, states = small_batch()
    losses, encoder = small_losses(temporal_difference=1.0)
    errors = []
    for own, other in (losses.heads.values, list(losses.heads.values)[::-1]):
        for row, place, action, follows, terminal in transitions(batch):
            if follows:
                best = int(own(states[row, place + 1]).argmax())
                goal = 1.0 + losses.params.discount * float(other(states[row, place + 1])[best].detach())
            elif terminal:
                goal = 1.0
            else:
                continue
            errors.append((own(states[row, place])[action].item() - goal) ** 2)

    found = losses.terms(encoder, states, batch, histories)
    assert found["temporal_difference"].item() == pytest.approx(np.mean(errors), rel=1e-6)


def test_the_conservative_term_of_a_batch_is_the_mean_over_steps_and_heads() -> None:
    histories, batch, states = small_batch()
    losses, encoder = small_losses(conservative=1.0)
    each = []
    for head in losses.heads.values:
        for row, place, action, _, _ in transitions(batch):
            values = head(states[row, place]).tolist()
            each.append(math.log(sum(map(math.exp, values))) - values[action])

    found = losses.terms(encoder, states, batch, histories)
    assert found["conservative"].item() == pytest.approx(np.mean(each), rel=1e-9)


def test_the_reward_term_of_a_batch_leaves_out_what_the_user_likes() -> None:
    histories, batch, states = small_batch()
    losses, encoder = small_losses(reward=1.0)
    drawn = np.random.default_rng(0).integers(12, size=8).tolist()
    liked = [set(likes.tolist()) for likes in histories.likes]
    each = []
    for row, place, action, _, _ in transitions(batch):
        asked = losses.heads.reward(states[row, place])
        scores = {item: (asked @ encoder.embedding.weight[item]).item() for item in range(12)}
        wrong = [scores[item] for item in drawn if item not in liked[int(batch.users[row])]]
        each.append(math.log(sum(map(math.exp, [scores[action], *wrong]))) - scores[action])

    assert any(item in liked[0] for item in drawn)
    assert losses.terms(encoder, states, batch, histories)["reward"].item() == pytest.approx(np.mean(each), rel=1e-9)


def test_the_transition_term_of_a_batch_compares_with_other_users_states_only() -> None:
    histories, batch, states = small_batch()
    losses, encoder = small_losses(transition=1.0, temperature=0.5)
    came = [(row, place + 1) for row, place, _, follows, _ in transitions(batch) if follows]
    drawn = [came[place] for place in np.random.default_rng(0).integers(len(came), size=8)]
    each = []
    for row, place, action, follows, _ in transitions(batch):
        if not follows:
            continue
        of = torch.cat([states[row, place], encoder.embedding.weight[action]])
        predicted = losses.heads.transition(of)
        others = [states[at] for at in drawn if batch.users[at[0]] != batch.users[row]]
        near = [torch.cosine_similarity(predicted, state, dim=0).item() / 0.5 for state in others]
        own = torch.cosine_similarity(predicted, states[row, place + 1], dim=0).item() / 0.5
        each.append(math.log(sum(map(math.exp, [own, *near]))) - own)

    assert min(each) >= 0.0
    assert losses.terms(encoder, states, batch, histories)["transition"].item() == pytest.approx(np.mean(each))


def test_rows_of_one_like_have_no_transition_to_learn() -> None:
    histories = Histories(TWELVE, chain_log(users=3, each=1))
    (batch,) = histories.batches(8, Settings(length=4), np.random.default_rng(0))
    losses, encoder = small_losses(transition=1.0, temporal_difference=1.0)
    states = torch.randn(3, 1, 8, dtype=torch.float64, requires_grad=True)
    found = losses.terms(encoder, states, batch, histories)
    torch.stack(list(found.values())).sum().backward()

    assert found["transition"].item() == 0.0
    assert found["temporal_difference"].item() > 0.0
    assert states.grad is not None
    assert states.grad.isfinite().all()


def test_the_loss_is_the_weighted_sum_of_its_terms_and_none_without_weights() -> None:
    histories, batch, states = small_batch()
    chosen = {"temporal_difference": 0.5, "conservative": 2.0, "reward": 0.25, "transition": 3.0}
    losses, encoder = small_losses(**chosen)
    terms = small_losses(**chosen)[0].terms(encoder, states, batch, histories)
    total = losses.loss(encoder, states, batch, histories)

    assert total is not None
    assert total.item() == pytest.approx(sum(chosen[name] * value.item() for name, value in terms.items()), rel=1e-12)
    assert small_losses()[0].loss(encoder, states, batch, histories) is None


@pytest.mark.parametrize("backbone", get_args(EncoderName))
@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_without_any_term_it_is_its_backbone_bit_for_bit(backbone: EncoderName, loss: str) -> None:
    own = params(quick(epochs=2, loss=loss), backbone=backbone)
    model, report = fit_mcrl(TWELVE, chain_log(40), True, 1, own)
    plain, plain_report = fit_next_item(backbone, TWELVE, chain_log(40), True, 1, own.next_item)
    requests = [Request(1, (100, 101)), Request(None, ())]

    assert report == plain_report
    ours = model.backbone.encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in plain.encoder.state_dict().items())
    assert torch.equal(model.scores(requests, None), plain.scores(requests, None))


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_moves_the_encoder_and_its_own_heads_only(term: str) -> None:
    small = quick(epochs=1)
    plain, _ = fit_mcrl(TWELVE, chain_log(40), True, 1, params(small))
    model, _ = fit_mcrl(TWELVE, chain_log(40), True, 1, params(small, **{term: 0.5}))
    own = {"temporal_difference": "values", "conservative": "values"}.get(term, term)

    assert not torch.equal(model.backbone.encoder.embedding.weight, plain.backbone.encoder.embedding.weight)
    start = plain.heads.state_dict()
    moved = [name for name, value in model.heads.state_dict().items() if not torch.equal(value, start[name])]
    assert {name.split(".")[0] for name in moved} == {own}


def test_training_with_all_terms_repeats_byte_for_byte_and_moves_nobody_elses_random_numbers() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    own = params(**dict.fromkeys(TERMS, 0.2))
    one, again = (fit_mcrl(TWELVE, chain_log(40), True, 1, own)[0] for _ in range(2))
    other, _ = fit_mcrl(TWELVE, chain_log(40), True, 2, own)

    assert torch.equal(one.values([(100, 101)]), again.values([(100, 101)]))
    assert not torch.equal(one.values([(100, 101)]), other.values([(100, 101)]))
    assert torch.equal(torch.get_rng_state(), before)


def learned_values(conservative: float) -> Tensor:
    """Values [3, 12] of the states of one history, 100 → 101 → 102, which stand still while the heads learn."""
    histories = Histories(TWELVE, chain_log(users=1, each=3))
    (batch,) = histories.batches(1, Settings(length=4), np.random.default_rng(0))
    losses, encoder = small_losses(temporal_difference=1.0, conservative=conservative, discount=0.5)
    states = torch.eye(3, 8, dtype=torch.float64)[None]
    optimiser = torch.optim.Adam(losses.parameters(), lr=0.05)
    for _ in range(400):
        loss = losses.loss(encoder, states, batch, histories)
        assert loss is not None
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.stack([head(states[0]) for head in losses.heads.values]).mean(dim=0).detach()


def test_values_are_the_discounted_likes_to_come() -> None:
    """Where the actions of the log are the best ones, Q is 1, 1 + 1/2 and 1 + 1/2 + 1/4 from the end."""
    values = learned_values(conservative=0.01)
    taken = values[torch.arange(3), torch.arange(3)].tolist()
    assert values.argmax(dim=1).tolist() == [0, 1, 2]
    assert taken == pytest.approx([1.75, 1.5, 1.0], abs=0.03)


def test_the_conservative_term_lowers_what_the_log_never_shows() -> None:
    taken = torch.eye(3, 12, dtype=torch.bool)
    free, cautious = (learned_values(weight)[~taken] for weight in (0.0, 0.1))
    assert cautious.max() < free.min()


def test_what_is_saved_has_its_values_and_its_backbone(tmp_path: Path) -> None:
    model, _ = fit_mcrl(TWELVE, chain_log(20), True, 1, params(backbone="gru4rec", reward=0.5))
    model.save(tmp_path)
    loaded = MCRL.load(tmp_path, TWELVE)

    assert loaded.backbone.name == "gru4rec"
    assert torch.equal(loaded.values([(100, 105), ()]), model.values([(100, 105), ()]))
    assert loaded.values([(100, 105), ()]).shape == (2, 12)
    assert not loaded.backbone.encoder.training


def test_the_backbones_states_are_those_of_a_sequence_encoder() -> None:
    model, _ = fit_mcrl(TWELVE, chain_log(20), True, 1, params(reward=0.5))
    states, lengths = model.backbone.states([(100, 101), (105,)])
    assert isinstance(model.backbone, Sequential)
    assert lengths.tolist() == [3, 2]
    assert torch.allclose(states[1, 1], model.backbone.last([(105,)])[0], atol=rounding(2 * SUMS))
