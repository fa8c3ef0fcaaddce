"""Texts are generated greedily in batches, and a batch gives each prompt what it would get alone."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import tiny
from recalign.llm.base import LanguageModel
from recalign.llm.generation import generate_texts


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    return LanguageModel(tiny.model(), tiny.tokenizer(), torch.device("cpu"), "fp32", "none", {}, "")


def greedy(language_model: LanguageModel, prompt: list[int], steps: int) -> list[int]:
    """The slow way: one forward pass over everything for each token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(language_model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


PROMPTS = [[40, 50, 60, 70, 80, 90], [300], [9, 10, 11]]


def test_a_padded_batch_gives_each_prompt_its_own_greedy_text(language_model):
    tokenizer: PreTrainedTokenizerFast = language_model.tokenizer
    decoded = [tokenizer.decode(greedy(language_model, p, 12), skip_special_tokens=True) for p in PROMPTS]
    expected = [text.strip() for text in decoded]
    assert generate_texts(language_model, PROMPTS, 12, stop="\x00") == expected
    assert len(set(expected)) == 3


def test_a_text_ends_before_the_stop(language_model):
    whole = generate_texts(language_model, PROMPTS[:1], 12, stop="\x00")[0]
    stop = whole[len(whole) // 2]
    assert generate_texts(language_model, PROMPTS[:1], 12, stop=stop) == [whole.split(stop)[0].strip()]


def test_generation_stops_once_every_text_holds_the_stop(language_model):
    calls = []
    hook = language_model.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    first = generate_texts(language_model, PROMPTS[:1], 12, stop="\x00")[0][0]
    whole = len(calls)
    generate_texts(language_model, PROMPTS[:1], 12, stop=first)
    hook.remove()
    assert whole == 12
    assert len(calls) - whole < 12


def test_the_mode_of_the_model_is_left_as_it_was(language_model):
    language_model.model.train()
    generate_texts(language_model, PROMPTS[:1], 2)
    assert language_model.model.training
    language_model.model.eval()


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_an_empty_prompt_is_refused(language_model, prompts):
    with pytest.raises(ValueError, match="a prompt is empty"):
        generate_texts(language_model, prompts, 2)
