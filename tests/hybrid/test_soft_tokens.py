"""Prompts with vectors go through the one scorer: values and gradients as one by one, text as it was."""

import pytest
import tiny
import torch
from hybrid_world import lora_model

from recalign.common.errors import RecalignError
from recalign.hybrid.modality import ModalityAdapter, embedding_std
from recalign.hybrid.prompts import Projected, SoftEmbedding, attach, soft_id, text_only
from recalign.llm.scoring.branches import PROMPT_END, Branches
from recalign.llm.scoring.logprobs import naive_logprobs, one_by_one_logprobs, response_logprobs, tokens_at_once
from recalign.llm.scoring.ways import base_of

WIDTH, TEACHERS_ITEMS = 12, 9
FAMILIES = ("llama", "gemma3", "gpt2", "gemma3-cap")


def table() -> torch.Tensor:
    return torch.randn(TEACHERS_ITEMS, WIDTH, generator=torch.Generator().manual_seed(5))


def hybrid(family: str = "llama") -> torch.nn.Module:
    """A tiny model under a LoRA with non-zero factors that reads nine vectors."""
    model = lora_model(family)
    width = model.get_input_embeddings().weight.shape[-1]
    attach(model, Projected(table(), ModalityAdapter(WIDTH, width, std=embedding_std(model))))
    return model


def case() -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts that begin alike but for a vector, or end in one, and a continuation that holds some itself."""
    a, b, c = (soft_id(number) for number in (0, 3, 8))
    prompts = [[40, 41, a, 42, 43, b], [40, 41, a, 42, 43, c], [40, 41, 50], [60, b]]
    titles = [[70, 71, 72], [70, 75], [80]]
    return prompts, [titles, titles[:2], titles, [[70, 71, a, 72, 90, c, 91]]]


def slopes(model: torch.nn.Module, score) -> torch.Tensor:
    """The gradient of everything that trains."""
    model.zero_grad()
    result = score(model, *case())
    signs = torch.tensor([1.0, -1.0, 2.0])[: result.sums.shape[1]]
    (result.sums * signs).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_scoring_one_by_one(family):
    model = hybrid(family)
    with torch.no_grad():
        shared, alone = response_logprobs(model, *case()), one_by_one_logprobs(model, *case())
        padded = naive_logprobs(model, *case())
    torch.testing.assert_close(shared.sums, alone.sums, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(padded.sums, alone.sums, rtol=1e-5, atol=1e-4)
    assert shared.lengths.tolist() == alone.lengths.tolist() == padded.lengths.tolist()
    assert shared.lengths.tolist() == [[3, 2, 1], [3, 2, 0], [3, 2, 1], [5, 0, 0]]
    own, other = slopes(model, response_logprobs), slopes(model, one_by_one_logprobs)
    assert own.norm() > 1e-3
    assert (own - other).norm() / other.norm() < 1e-4


def test_a_case_alone_scores_as_in_a_batch():
    model = hybrid()
    prompts, responses = case()
    with torch.no_grad():
        together = response_logprobs(model, prompts, responses)
        for row, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
            alone = response_logprobs(model, [prompt], [group]).sums[0]
            torch.testing.assert_close(together.sums[row, : len(group)], alone, rtol=1e-5, atol=1e-4)


def test_another_vector_is_another_prompt():
    model = hybrid()
    prompts, responses = case()
    with torch.no_grad():
        sums = response_logprobs(model, prompts[:2], [responses[1], responses[1]]).sums
    assert float((sums[0] - sums[1]).abs().min()) > 1e-3


def test_a_search_on_cached_prompts_reads_vectors_too():
    model = hybrid()
    prompts, responses = case()
    with torch.no_grad():
        sums = response_logprobs(model, prompts[:2], [[responses[0][0]], [responses[0][0]]]).sums
    first, *rest = responses[0][0]
    branches = Branches(base_of(model), prompts[:2])
    for row in range(2):
        start = len(branches)
        grown = branches.grow([first, rest[0]], [PROMPT_END - row, start])
        total = branches.first[row, first] + grown[0, rest[0]] + grown[1, rest[1]]
        torch.testing.assert_close(total, sums[row, 0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_scores_to_the_bit_as_without_the_embedding(family):
    plain, other = tiny.model(family), tiny.model(family)
    attach(other, Projected(table(), ModalityAdapter(WIDTH, other.get_input_embeddings().weight.shape[-1])))
    prompts, responses = tiny.scoring_case()
    with torch.no_grad():
        for _ in range(2):
            before, now = response_logprobs(plain, prompts, responses), response_logprobs(other, prompts, responses)
            assert torch.equal(before.sums, now.sums)
    assert tokens_at_once(plain, prompts, responses) == tokens_at_once(other, prompts, responses)


def test_the_frozen_model_gets_no_gradient_and_text_gives_the_adapter_none():
    model = hybrid()
    prompts, responses = case()
    response_logprobs(model, prompts, responses).sums.sum().backward()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    adapter = base_of(model).get_input_embeddings().vectors.adapter
    assert len(frozen) > 10
    assert all(p.grad is None for p in frozen)
    assert all(float(p.grad.norm()) > 0 for p in adapter.parameters())
    model.zero_grad(set_to_none=True)
    text = [text_only(prompt) for prompt in prompts]
    response_logprobs(model, text, [[text_only(r) for r in group] for group in responses]).sums.sum().backward()
    assert all(p.grad is None for p in adapter.parameters())
    assert any(float(p.grad.norm()) > 0 for n, p in model.named_parameters() if "lora_" in n and p.grad is not None)


def test_an_adapter_whose_last_layer_is_zero_reads_zeros_in_the_vectors_places():
    """As if the placeholders' embeddings were zero, which is not the same as no placeholder."""
    model = hybrid()
    embedding = base_of(model).get_input_embeddings()
    with torch.no_grad():
        embedding.vectors.adapter.out.weight.zero_()
        prompts, responses = case()
        sums = response_logprobs(model, prompts[:1], responses[:1]).sums[0, 0]
        ids = torch.tensor([prompts[0] + responses[0][0][:-1]])
        embedded = embedding.plain(ids.clamp(min=0)) * (ids >= 0)[..., None]
        logits = base_of(model)(inputs_embeds=embedded, use_cache=False).logits[0, len(prompts[0]) - 1 :]
        asked = torch.tensor(responses[0][0])[:, None]
        expected = torch.log_softmax(logits, -1).gather(-1, asked).sum()
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-4)
        text = response_logprobs(model, [text_only(prompts[0])], responses[:1]).sums[0, 0]
    assert abs(float(text - sums)) > 1e-3


def test_attaching_again_replaces_the_vectors():
    model = hybrid()
    adapter = ModalityAdapter(WIDTH, 64)
    attach(model, Projected(table(), adapter))
    embedding = base_of(model).get_input_embeddings()
    assert isinstance(embedding, SoftEmbedding)
    assert not isinstance(embedding.plain, SoftEmbedding)
    assert embedding.vectors.adapter is adapter


def test_bad_vectors_are_refused():
    model = tiny.model()
    with pytest.raises(RecalignError, match="width 13"):
        Projected(table(), ModalityAdapter(13, 64))
    with pytest.raises(RecalignError, match="not finite"):
        Projected(table() / 0, ModalityAdapter(WIDTH, 64))
    with pytest.raises(RecalignError, match="width 32, but the base's embeddings have 64"):
        attach(model, Projected(table(), ModalityAdapter(WIDTH, 32)))
    attach(model, Projected(table(), ModalityAdapter(WIDTH, 64)))
    with pytest.raises(RecalignError, match="asks for vector 9 of a teacher that has 9"):
        response_logprobs(model, [[40, soft_id(9)]], [[[50]]])
