"""The scorer equals naive scoring, in values and gradients, on every family that can share a prompt."""

import logging

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from recalign.common.errors import RecalignError
from recalign.llm.scoring import ways
from recalign.llm.scoring.head import widen_head
from recalign.llm.scoring.logprobs import naive_logprobs, response_logprobs, why_not_shared

LORA_WEIGHTS = 0.1


def with_lora(model: torch.nn.Module) -> torch.nn.Module:
    """LoRA on every linear layer, with both factors non-zero, so that all of them get gradients."""
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(LORA_WEIGHTS * torch.randn(parameter.shape, generator=generator))
    return adapted


def gradients(model: torch.nn.Module, score, case=tiny.scoring_case) -> torch.Tensor:
    """The gradient of a softmax loss over each prompt's responses (the first one chosen), as one vector."""
    model.zero_grad()
    prompts, responses = case()
    result = score(model, prompts, responses)
    (-torch.log_softmax(result.sums.masked_fill(~result.mask, -torch.inf), dim=1)[:, 0].mean()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", tiny.SHARING)
def test_values_equal_naive_scoring(family):
    model = tiny.model(family)
    prompts, responses = tiny.scoring_case()
    assert why_not_shared(model) is None
    with torch.no_grad():
        shared, naive = response_logprobs(model, prompts, responses), naive_logprobs(model, prompts, responses)
    torch.testing.assert_close(shared.sums, naive.sums, rtol=1e-5, atol=1e-5)
    assert shared.lengths.tolist() == naive.lengths.tolist() == [[4, 1, 6, 0], [3, 0, 0, 0], [7, 2, 5, 5]]
    assert shared.mask.tolist() == naive.mask.tolist()
    assert shared.sums[1, 1:].tolist() == [0.0, 0.0, 0.0]
    assert shared.sums[shared.mask].max() < -1.0


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient-checkpointing"])
@pytest.mark.parametrize("family", tiny.SHARING)
def test_gradients_equal_naive_scoring_under_peft(family, checkpointing):
    model = with_lora(tiny.model(family)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    shared, naive = gradients(model, response_logprobs), gradients(model, naive_logprobs)
    assert naive.norm() > 1e-3
    assert (shared - naive).norm() / naive.norm() < 1e-4


@pytest.mark.parametrize("family", tiny.SHARING)
def test_prompts_that_begin_one_another_see_no_further_than_themselves(family):
    """Values and gradients along one history equal naive scoring."""
    model = with_lora(tiny.model(family))
    prompts, responses = tiny.nested_case()
    with torch.no_grad():
        shared, naive = response_logprobs(model, prompts, responses), naive_logprobs(model, prompts, responses)
    torch.testing.assert_close(shared.sums, naive.sums, rtol=1e-5, atol=1e-5)
    shared, naive = (gradients(model, score, tiny.nested_case) for score in (response_logprobs, naive_logprobs))
    assert (shared - naive).norm() / naive.norm() < 1e-4


def test_what_begins_alike_is_encoded_once():
    """An opening of all prompts, a prompt that begins another one or is it again, titles that begin with one word."""
    model = tiny.model()
    widen_head(model)  # scoring does, too: what listens to the head listens to the one that stays
    places, rows = [], []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: places.append(args[0].shape[1]))
    model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    opening, word = [5, 6, 7], 8
    titles = [[word, 20, 21, 2], [word, 20, 22, 2], [word, 2], [30, 2], [word, 20, 21, 2]]
    one, other = [*opening, 9], [*opening, 10]
    for prompts in ([one], [one, one], [one, other], [opening, one]):
        response_logprobs(model, prompts, [titles] * len(prompts))
    of_titles = 1 + 1 + 2 + 1  # the word, what follows it, the two after that, and the other word
    assert places[-4:] == [4 + of_titles, 4 + of_titles, 3 + 2 + 2 * of_titles, 4 + 2 * of_titles]
    assert rows[-4:] == [1 + of_titles, 1 + of_titles, 2 + 2 * of_titles, 2 + 2 * of_titles]


@pytest.mark.parametrize("family", tiny.SHARING)
def test_titles_and_prompts_that_begin_alike_score_as_each_alone(family):
    """Values and gradients; one response begins another, one stands twice, one goes on as a prompt does."""
    model = with_lora(tiny.model(family))

    def case():
        prompts, responses = tiny.scoring_case()
        titles = [[8, 20, 21, 2], [8, 20, 22, 2], [8, 2], [8], [8, 20, 21, 2], prompts[2][12:15]]
        return [prompts[2], prompts[2][:12], prompts[2], [*prompts[2][:4], 9]], [titles, titles, responses[0], titles]

    with torch.no_grad():
        shared, naive = response_logprobs(model, *case()), naive_logprobs(model, *case())
    torch.testing.assert_close(shared.sums, naive.sums, rtol=1e-5, atol=1e-5)
    shared, naive = (gradients(model, score, case) for score in (response_logprobs, naive_logprobs))
    assert (shared - naive).norm() / naive.norm() < 1e-4


@pytest.mark.parametrize("family", ["mistral-window", "gemma3"])
def test_the_window_is_shorter_than_the_prompt_and_matters(family):
    """Without the window the values are others: the equality above would see a row that ignores it."""
    prompts, responses = tiny.scoring_case()
    windowed, free = tiny.model(family), tiny.model(family)
    for layer in free.modules():
        if hasattr(layer, "sliding_window"):
            layer.sliding_window = None
    free.config.sliding_window = None
    with torch.no_grad():
        seen, unlimited = (ways.shared_logprobs(model, prompts, responses).sums for model in (windowed, free))
    assert (seen - unlimited)[0].abs().max() > 1e-2


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma2", "Gemma2ForCausalLM caps its attention logits"),
        ("bloom", "BloomForCausalLM does not take a registered attention function"),
        ("mpt", "MptForCausalLM does not take a registered attention function"),
        ("qwen3-next", "Qwen3NextForCausalLM does not take a registered attention function"),
        ("mamba", "MambaForCausalLM does not take a registered attention function"),
    ],
)
def test_families_that_cannot_share_are_scored_in_batches_and_the_log_says_why(family, reason, caplog):
    model = tiny.model(family)
    prompts, responses = tiny.scoring_case()
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="recalign"):
        result = response_logprobs(model, prompts, responses)
        response_logprobs(model, prompts, responses)
    one_by_one = naive_logprobs(model, prompts[:1], [responses[0][2:3]])
    torch.testing.assert_close(result.sums[0, 2], one_by_one.sums[0, 0], rtol=1e-5, atol=1e-4)
    said = [record.message for record in caplog.records if record.name == "recalign.llm.scoring.logprobs"]
    assert said == [f"scoring in padded batches: {reason}"]


def test_the_decoder_sees_each_prompt_once_and_no_last_token_and_the_head_only_needed_rows():
    model = tiny.model()
    widen_head(model)
    prompts, responses = tiny.scoring_case()
    seen = {}
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.update(decoder=args[0].shape[:2]))
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.update(head=args[0].shape[:2]))
    response_logprobs(model, prompts, responses)
    branches = [(4 - 1) + (1 - 1) + (6 - 1), 3 - 1, (7 - 1) + (2 - 1) + (5 - 1) + (5 - 1)]
    assert seen["decoder"] == (1, 20 + 1 + 33 + sum(branches))
    assert seen["head"] == (1, 3 + sum(branches))


def test_a_prompt_scores_the_same_alone_and_in_company():
    model = tiny.model()
    prompts, responses = tiny.scoring_case()
    with torch.no_grad():
        together = response_logprobs(model, prompts, responses)
        alone = response_logprobs(model, prompts[2:], responses[2:])
    torch.testing.assert_close(alone.sums[0], together.sums[2], rtol=1e-5, atol=1e-5)


def test_naive_scoring_is_the_sum_of_next_token_log_probs():
    model = tiny.model()
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0], dim=-1)
        result = naive_logprobs(model, [[5, 6]], [[[7, 8]]])
    torch.testing.assert_close(result.sums[0, 0], logprobs[1, 7] + logprobs[2, 8])


def test_generation_and_padded_batches_still_work_after_scoring():
    """The attention stays registered on the model; without a packed row it must be the library's own."""
    model, untouched = tiny.model(), tiny.model()
    response_logprobs(model, [[5, 6]], [[[7]]])
    ids, mask = torch.tensor([[2, 2, 9, 10], [11, 12, 13, 14]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    assert model.generate(ids, **options).tolist() == untouched.generate(ids, **options).tolist()


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([[]], [[[1]]], "a prompt is empty"),
        ([[1]], [[[]]], "a response is empty"),
        ([[1]], [[]], "a response is empty, or a prompt has none"),
        ([[1], [2]], [[[1]]], "2 prompts and 1 groups"),
    ],
)
def test_nothing_to_score_is_refused(prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        response_logprobs(tiny.model(), prompts, responses)


def test_a_model_loaded_with_eager_attention_is_scored_by_the_registered_one():
    """Eager attention adds a mask instead of reading it as true or false: the values would be wrong in silence."""
    eager, sdpa = tiny.model(), tiny.model()
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        apart = response_logprobs(eager, *tiny.scoring_case()).sums - naive_logprobs(sdpa, *tiny.scoring_case()).sums
    assert apart.abs().max() < 1e-5


def test_attention_dropout_acts_in_training_and_not_in_evaluation():
    model = tiny.model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with torch.no_grad():
        torch.testing.assert_close(
            response_logprobs(model, *tiny.scoring_case()).sums, naive_logprobs(tiny.model(), *tiny.scoring_case()).sums
        )
        once, again = (response_logprobs(model.train(), *tiny.scoring_case()).sums for _ in range(2))
    assert (once - again).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_angles_that_change_with_length_are_shared_up_to_the_limit_and_refused_beyond(kind):
    half = tiny.SIZES["head_dim"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [4.0] * half} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 40, **factors}
    model = tiny.model("llama", max_position_embeddings=40 if kind == "dynamic" else 160, rope_parameters=rope)
    prompts, responses = tiny.scoring_case()  # 33 + 7 − 1 positions at most
    with torch.no_grad():
        shared, naive = response_logprobs(model, prompts, responses), naive_logprobs(model, prompts, responses)
    torch.testing.assert_close(shared.sums, naive.sums, rtol=1e-5, atol=1e-5)
    with pytest.raises(RecalignError, match=rf"has 41 tokens.*\({kind}\) changes beyond 40; lower prompt.history"):
        response_logprobs(model, [[*prompts[2], 5, 6], prompts[0]], [responses[2], responses[0]])


def test_half_precision_models_are_scored_with_logits_of_full_precision():
    """Against logits rounded to bf16 the log-probs move; generation keeps the head that it had."""
    model = tiny.model().to(torch.bfloat16)
    prompts, responses = tiny.scoring_case()
    dtypes = []
    with torch.no_grad():
        naive = naive_logprobs(model, prompts, responses)
        result = response_logprobs(model, prompts, responses)
        model.lm_head.register_forward_hook(lambda *arguments: dtypes.append(arguments[-1].dtype))
        response_logprobs(model, prompts, responses)
        model(input_ids=torch.tensor([[5, 6]]))
    assert dtypes == [torch.float32, torch.bfloat16]
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert result.sums.dtype == torch.float32
    assert ((result.sums - naive.sums).abs() / naive.sums.abs().clamp(min=1)).max() < 5e-2


def test_the_gradient_of_gathered_log_probs_is_that_of_log_softmax():
    """Several responses read the same row, some the same token of it, and some rows nobody reads."""
    logits = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rows = torch.tensor([[[0, 2], [0, 3]], [[0, 2], [2, 2]]])
    tokens = torch.tensor([[[5, 1], [6, 0]], [[5, 1], [0, 4]]])

    def gathered(values):
        return ways._TokenLogprobs.apply(values, rows, tokens)

    assert torch.equal(gathered(logits), torch.log_softmax(logits, dim=-1)[rows, tokens])
    assert torch.autograd.gradcheck(gathered, (logits,))
    weights = torch.arange(8, dtype=torch.float64).reshape(2, 2, 2) - 3.0
    [ours] = torch.autograd.grad((gathered(logits) * weights).sum(), logits)
    [theirs] = torch.autograd.grad((torch.log_softmax(logits, dim=-1)[rows, tokens] * weights).sum(), logits)
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert not ours[1].any()
