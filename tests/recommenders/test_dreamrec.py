"""The diffusion chain against golden values, and DreamRec: what guides, what is drawn, what training may touch."""

import math
from collections.abc import Iterator
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from neural_fit import fit_dreamrec, fit_next_item
from rounding import rounding
from test_next_item import FORTY, TWELVE, chain_log, quick
from test_next_item import SUMS as STATE
from torch import Tensor

from recalign.common.errors import RecalignError
from recalign.params.load import load_params
from recalign.params.recommenders import RecommendersParams
from recalign.recommenders.neural import sequential
from recalign.recommenders.neural.diffusion import CLEAN, Diffusion, SamplerName, ScheduleName, guided, variances
from recalign.recommenders.neural.dreamrec import Denoiser, DreamRec, Learner, Settings, sinusoids
from recalign.recommenders.neural.sequential import Sequential, build_encoder
from recalign.recommenders.recommender import Request, top
from recalign.recommenders.tuning import HeldOut, held_out

FILE = Path(__file__).parents[2] / "params.yaml"
DEFAULT = load_params(FILE).recommenders
GOLDEN = Diffusion("linear", 4)
SUMS = STATE + 5 * 3 * 24  # terms of a state, and of the denoiser's three layers (3 × 8 inputs) at each of five steps


def recommenders(next_item: Any = None, **given: Any) -> RecommendersParams:
    dreamrec = DEFAULT.dreamrec.model_copy(update={"steps": 20} | given)
    return DEFAULT.model_copy(update={"dreamrec": dreamrec, "next_item": next_item or quick(epochs=3)})


def untrained(**given: Any) -> DreamRec:
    """Over TWELVE, weights at random."""
    torch.manual_seed(0)
    shape = sequential.Settings(dimension=8, dropout=0.5, length=6)
    condition = Sequential(TWELVE, "sasrec", build_encoder("sasrec", 12, shape), shape)
    denoiser = Denoiser(8)
    torch.nn.init.normal_(denoiser.unknown)
    return DreamRec(condition, denoiser, Settings(**{"steps": 20, "sampler_steps": 5} | given))


def test_a_short_linear_chain_has_the_golden_coefficients() -> None:
    back = [GOLDEN.back(step, step - 1, "posterior") for step in range(4)]

    assert GOLDEN.alpha_bar.tolist() == pytest.approx([0.9999, 0.99316734, 0.979892003222, 0.96029416315756], abs=1e-13)
    clean = [1.0, 0.9854136834336167, 0.6624689469823097, 0.4986143218571856]
    noisy = [0.0, 0.014586232110930042, 0.33751952047319184, 0.5013343833530503]
    variance = [0.0, 9.85462957813289e-05, 0.00454196853495573, 0.010128484060311945]
    assert [a for a, _, _ in back] == pytest.approx(clean, abs=1e-13)
    assert [b for _, b, _ in back] == pytest.approx(noisy, abs=1e-13)
    assert [sigma**2 for _, _, sigma in back] == pytest.approx(variance, abs=1e-15)


def test_noising_and_one_guided_step_back_are_the_golden_ones() -> None:
    clean, noise = torch.tensor([[[0.2, -0.1, 0.4]], [[1.0, 0.0, -1.0]]], dtype=torch.float64)
    noised = GOLDEN.noised(clean, torch.tensor([2]), noise)
    expected = [0.3397816575542205, -0.09898949455482638, 0.25415530977473777]
    assert noised[0].tolist() == pytest.approx(expected, abs=1e-13)

    conditional, unconditional = torch.tensor([[1.0, -2.0], [0.5, -1.0]], dtype=torch.float64)
    predicted = guided(conditional, unconditional, 2.0)
    assert predicted.tolist() == [2.0, -4.0]
    of_clean, of_noisy, _ = GOLDEN.back(2, 1, "posterior")
    mean = of_clean * predicted + of_noisy * torch.tensor([0.3, 0.4], dtype=torch.float64)
    assert mean.tolist() == pytest.approx([1.4261937501065771, -2.5148679797399622], abs=1e-13)


def test_the_schedules_end_where_they_should() -> None:
    assert Diffusion("linear", 500).alpha_bar[-1] == pytest.approx(0.0063527108, abs=1e-10)
    assert Diffusion("cosine", 2000).alpha_bar[-1] == pytest.approx(6.05572543e-11, abs=1e-18)
    assert variances("cosine", 2000)[0] == 1e-4
    exponential = variances("exponential", 500)
    assert exponential[[0, -1]].tolist() == pytest.approx([0.000219775846, 0.0198207344], abs=1e-10)
    assert Diffusion("exponential", 500).alpha_bar[-1] == pytest.approx(0.0063461941, abs=1e-10)
    root = Diffusion("square-root", 500).alpha_bar[[0, 249]] * 0.99  # 0.99: left at the start
    assert root.tolist() == pytest.approx([1 - math.sqrt(place / 500 + 1e-4) for place in (1, 250)], abs=1e-12)


@pytest.mark.parametrize("schedule", get_args(ScheduleName))
@pytest.mark.parametrize("steps", [1, 2, 50, 500])
def test_every_schedule_adds_noise_at_every_step(schedule: ScheduleName, steps: int) -> None:
    betas = variances(schedule, steps)
    left = Diffusion(schedule, steps).alpha_bar
    assert len(betas) == steps
    assert (betas > 0).all()
    assert (betas < 1).all()
    assert (np.diff(left, prepend=1.0) < 0).all()


@pytest.mark.parametrize("schedule", get_args(ScheduleName))
@pytest.mark.parametrize("sampler", get_args(SamplerName))
@pytest.mark.parametrize("visited", [1, 2, 7, 50])
def test_a_step_back_keeps_the_noise_that_its_place_has(
    schedule: ScheduleName, sampler: SamplerName, visited: int
) -> None:
    """With the true x₀ told, x_s has mean √ᾱ_s x₀ and variance 1 − ᾱ_s, whatever steps were left out."""
    chain = Diffusion(schedule, 50)
    for step, following in pairwise([*chain.way_back(visited).tolist(), CLEAN]):
        left = 1.0 if following == CLEAN else chain.alpha_bar[following]
        clean, noisy, sigma = chain.back(step, following, sampler)
        assert clean + noisy * math.sqrt(chain.alpha_bar[step]) == pytest.approx(math.sqrt(left), abs=1e-9)
        assert noisy**2 * (1 - chain.alpha_bar[step]) + sigma**2 == pytest.approx(1 - left, abs=1e-9)


def test_the_way_back_starts_at_the_most_noise_and_takes_each_step_once() -> None:
    chain = Diffusion("linear", 500)
    assert chain.way_back(500).tolist() == list(range(499, -1, -1))
    assert chain.way_back(1).tolist() == [499]
    for visited in (2, 3, 250, 333, 499):
        way = chain.way_back(visited)
        assert (len(way), way[0], way[-1]) == (visited, 499, 0)
        assert (np.diff(way) < 0).all()


def test_ddim_draws_its_start_alone_and_the_posterior_once_more_a_step_but_the_last() -> None:
    drawn = []

    def noise() -> Iterator[Tensor]:
        for number in range(100):
            drawn.append(number)
            yield torch.ones(1, 2)

    for sampler, expected in (("ddim", 1), ("posterior", 4)):
        drawn.clear()
        out = GOLDEN.sample(lambda noisy, step: noisy * 0 + 3.0, noise(), 4, sampler)
        assert len(drawn) == expected
        assert out.tolist() == [[3.0, 3.0]]  # the last step is x̂₀ itself


def test_ddim_in_few_steps_is_exact_where_the_clean_data_is_one_point() -> None:
    point = torch.tensor([[0.5, -1.5]])
    chain = Diffusion("cosine", 50)
    states = [chain.sample(lambda noisy, step: point, repeat(torch.randn(1, 2)), n, "ddim") for n in (1, 3, 50)]
    assert all(torch.equal(state, point) for state in states)


def test_a_sampler_that_knows_a_gaussian_draws_from_it() -> None:
    """Data N(1, 0.5²): the best x̂₀ is linear in x_t; both samplers give its mean and deviation back."""
    chain, draw = Diffusion("linear", 500), torch.Generator().manual_seed(0)
    for sampler in get_args(SamplerName):
        noise = iter(lambda: torch.randn(4000, 1, generator=draw), None)

        def predict(noisy: Tensor, step: int) -> Tensor:
            left = float(chain.alpha_bar[step])
            gain = math.sqrt(left) * 0.25 / (left * 0.25 + 1 - left)
            return 1.0 + gain * (noisy - math.sqrt(left))

        drawn = chain.sample(predict, noise, 500, sampler)
        assert drawn.mean().item() == pytest.approx(1.0, abs=0.05)
        assert drawn.std().item() == pytest.approx(0.5, abs=0.03)


def test_the_denoiser_is_one_linear_layer_over_what_it_is_told() -> None:
    model = untrained()
    noisy, condition, step = torch.randn(3, 8), torch.randn(3, 8), torch.tensor([0, 7, 19])
    told = torch.cat([noisy, condition, model.denoiser.step(sinusoids(step, 8))], dim=1)
    by_hand = told @ model.denoiser.clean.weight.T + model.denoiser.clean.bias
    assert torch.allclose(model.denoiser(noisy, condition, step), by_hand, atol=rounding(SUMS))
    assert sinusoids(torch.tensor([2]), 5).shape == (1, 5)
    assert sinusoids(torch.tensor([2]), 1)[0, 0].item() == pytest.approx(math.sin(2))


@pytest.mark.parametrize("dropped", [0.0, 1.0])
def test_a_dropped_condition_teaches_the_unconditional_prediction_alone(dropped: float) -> None:
    model = untrained()
    condition = torch.randn(6, 8, requires_grad=True)
    model.denoiser.loss(model.diffusion, torch.randn(6, 8), condition, dropped).backward()

    assert condition.grad is not None
    assert model.denoiser.unknown.grad is not None
    assert (condition.grad.abs().sum() > 0) == (dropped == 0.0)
    assert (model.denoiser.unknown.grad.abs().sum() > 0) == (dropped == 1.0)


def test_a_share_of_the_rows_loses_its_condition() -> None:
    model = untrained()
    condition = torch.randn(4000, 8, requires_grad=True)
    model.denoiser.loss(model.diffusion, torch.randn(4000, 8), condition, 0.1).backward()
    assert condition.grad is not None
    assert (condition.grad.abs().sum(dim=1) == 0).double().mean().item() == pytest.approx(0.1, abs=0.02)


def test_no_guidance_follows_the_condition_alone_and_guidance_goes_beyond() -> None:
    """With one step, x₀ = (1 + w) f(x, h) − w f(x, ∅): linear in w."""
    histories = [(100, 101), ()]
    none, one, two = (untrained(guidance=w, sampler_steps=1).generated(histories) for w in (0.0, 1.0, 2.0))
    assert torch.allclose(one - none, two - one, atol=rounding(SUMS))
    assert not torch.allclose(none, one)

    changed = untrained(guidance=0.0, sampler_steps=1)
    torch.nn.init.normal_(changed.denoiser.unknown)
    assert torch.equal(changed.generated(histories), none)


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_noise_belongs_to_the_request_and_not_to_its_batch(sampler: SamplerName) -> None:
    model = untrained(sampler=sampler)
    histories = [(100, 101), (), (105,), (100, 101), (101, 100)]
    before = torch.get_rng_state()
    together = model.generated(histories)

    assert torch.allclose(model.generated(histories[::-1]), together.flip(0), atol=rounding(SUMS))
    assert torch.allclose(model.generated([(105,)])[0], together[2], atol=rounding(SUMS))
    assert torch.allclose(together[0], together[3], atol=rounding(SUMS))
    assert not torch.allclose(together[0], together[4], atol=1e-2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(untrained(sampler=sampler, seed=1).generated(histories), together, atol=1e-2)


def test_only_the_latest_items_of_a_long_history_count() -> None:
    model, latest = untrained(), (103, 104, 105, 106, 107, 108)
    assert torch.equal(model.generated([(100, 101, *latest)]), model.generated([(111, *latest)]))


def test_items_rank_by_their_product_with_what_was_generated() -> None:
    model = untrained()
    scores = model.scores([Request(1, (100, 105))], None)
    by_hand = model.clean_embeddings() @ model.generated([(100, 105)])[0]

    assert scores.shape == (1, 12)
    assert torch.allclose(scores[0].float(), by_hand, atol=rounding(SUMS))
    with pytest.raises(RecalignError, match="item 77 is not among the 12 items"):
        model.scores([Request(1, (77,))], None)


def test_clean_embeddings_have_the_variance_of_the_noise() -> None:
    clean = untrained().clean_embeddings().detach()
    assert torch.allclose(clean.mean(dim=0), torch.zeros(8), atol=rounding(SUMS))
    assert torch.allclose(clean.square().mean(dim=0), torch.ones(8), atol=rounding(SUMS))
    joint = untrained(embeddings="joint").clean_embeddings().detach()
    assert torch.allclose(joint.norm(dim=1), torch.full((12,), math.sqrt(8)), atol=rounding(SUMS))


def test_the_encoder_that_epochs_are_chosen_on_is_sasrecs_of_its_best_epoch() -> None:
    params, events = quick(epochs=12, patience=2, learning_rate=1e-2), chain_log(60, items=40)
    cases = held_out(FORTY, events, True, 1)
    part, _, epochs = Learner(FORTY, True, 1, recommenders(params)).pretrained(events, cases)
    alone = params.model_copy(update={"epochs": epochs})
    sasrec, report = fit_next_item("sasrec", FORTY, events, True, 1, params)

    assert part is not None
    assert epochs == report["chosen"]["epochs"]
    assert cases.value(part) == report["tried"][epochs - 1]["ndcg_at_10"]
    assert max(row["ndcg_at_10"] for row in report["tried"]) == cases.value(part) != cases.value(sasrec)
    no_case = HeldOut(events, [], [], np.zeros(0, np.int64))
    nothing, _, all_epochs = Learner(FORTY, True, 1, recommenders(alone)).pretrained(events, no_case)
    assert (nothing, all_epochs) == (None, epochs)


def test_the_pretrained_encoder_stays_as_sasrec_left_it() -> None:
    events, params = chain_log(40), recommenders()
    model, report = fit_dreamrec(TWELVE, events, True, 1, params)
    sasrec, first = fit_next_item("sasrec", TWELVE, events, True, 1, params.next_item)
    for name, value in sasrec.encoder.state_dict().items():
        assert torch.equal(model.condition.encoder.state_dict()[name], value)
    assert report["chosen"]["sasrec_epochs"] == first["chosen"]["epochs"]


def test_joint_training_moves_the_encoder_and_its_embeddings() -> None:
    events, joint = chain_log(40), recommenders(embeddings="joint")
    brief, longer = (
        fit_dreamrec(TWELVE, events.slice(0, 9), True, 1, params)[0]
        for params in (joint.model_copy(update={"next_item": quick(epochs=n)}) for n in (1, 2))
    )
    for name, value in brief.condition.encoder.state_dict().items():
        if name != "bias":  # scores are products alone
            assert not torch.equal(longer.condition.encoder.state_dict()[name], value), name


@pytest.mark.parametrize("embeddings", ["pretrained", "joint"])
def test_training_repeats_byte_for_byte_and_moves_nobody_elses_random_numbers(embeddings: str) -> None:
    params, events = recommenders(embeddings=embeddings), chain_log(40)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    shuffled = events.take(np.random.default_rng(1).permutation(len(events)))
    one, again = (fit_dreamrec(TWELVE, log, True, 1, params)[0] for log in (events, shuffled))
    other, _ = fit_dreamrec(TWELVE, events, True, 2, params)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.denoiser.clean.weight, again.denoiser.clean.weight)
    assert not torch.equal(one.denoiser.clean.weight, other.denoiser.clean.weight)


@pytest.mark.parametrize("embeddings", ["pretrained", "joint"])
def test_training_finds_the_order_of_a_ring_of_items(embeddings: str) -> None:
    next_item = quick(learning_rate=1e-2, epochs=15, patience=15, batch=8, dropout=0.0)
    params = recommenders(next_item, embeddings=embeddings, steps=500)
    model, report = fit_dreamrec(FORTY, chain_log(100, each=8, items=40), True, 1, params)
    best = top(model, FORTY, [Request(None, (135, 136, 137, 138, 139))], 4)

    assert 100 in [scored.item_id for scored in best[0]]
    assert report["tried"][report["chosen"]["epochs"] - 1]["ndcg_at_10"] > 0.8


def test_what_is_saved_generates_alike_with_the_settings_it_had(tmp_path: Path) -> None:
    model = untrained(schedule="cosine", guidance=1.5, sampler="posterior", seed=2**60 - 1)
    model.save(tmp_path)
    loaded = DreamRec.load(tmp_path, TWELVE)
    assert loaded.settings == model.settings
    assert torch.equal(loaded.generated([(100,), ()]), model.generated([(100,), ()]))


def test_more_sampler_steps_than_the_chain_has_are_refused(tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8").replace("    sampler_steps: 2 ", "    sampler_steps: 501 ")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecalignError, match=r"sampler_steps.*the chain has 500 steps"):
        load_params(tmp_path / "params.yaml")
