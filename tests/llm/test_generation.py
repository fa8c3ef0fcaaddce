"""Texts are generated greedily in batches, and a batch gives each prompt what it would get alone."""

import random

import pytest
import tiny
import torch
from transformers import PreTrainedTokenizerFast

from recalign.llm.generation import generate_texts
from recalign.llm.model.base import LanguageModel
from recalign.llm.scoring.branches import Branches
from recalign.llm.trie import Trie, Wanted, best_items, generate_title, item_logprobs


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


BEGUN = [7, 300, 12, *range(40, 60)]
SHARING = [[*BEGUN, 61, 62, 63, 64], [*BEGUN, 65], [*BEGUN, 61, 70]]


def test_what_prompts_begin_with_is_read_once_and_changes_no_text(language_model):
    """Rows of unequal length behind a common beginning: each its own greedy text, the beginning read once for all."""
    expected = [
        language_model.tokenizer.decode(greedy(language_model, p, 12), skip_special_tokens=True).strip()
        for p in SHARING
    ]
    generate_texts(language_model, SHARING, 1)  # a model that is new here is tried first
    read: list[tuple[int, int]] = []
    embedding = language_model.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, given, __: read.append(tuple(given[0].shape)))
    assert generate_texts(language_model, SHARING, 12, stop="\x00") == expected
    hook.remove()
    assert read[:2] == [(1, len(BEGUN)), (3, 4)]
    assert set(read[2:]) == {(3, 1)}
    assert len(set(expected)) == 3


def test_equal_prompts_share_all_but_their_last_token(language_model):
    one = generate_texts(language_model, SHARING[:1], 12, stop="\x00")
    assert generate_texts(language_model, SHARING[:1] * 4, 12, stop="\x00") == one * 4


@pytest.mark.parametrize("prompts", [SHARING[:1], PROMPTS, [[*BEGUN[:10], 1], [*BEGUN[:10], 2]]])
def test_little_in_common_is_not_read_apart(language_model, prompts):
    read: list[tuple[int, int]] = []
    embedding = language_model.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, given, __: read.append(tuple(given[0].shape)))
    generate_texts(language_model, prompts, 2, stop="\x00")
    hook.remove()
    assert read[0] == (len(prompts), max(map(len, prompts)))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_batch_writes_what_each_prompt_alone_does_in_every_family(family):
    """Windows, biases by distance and states among them, whether or not what is common is read once."""
    own = LanguageModel(tiny.model(family), tiny.tokenizer(), torch.device("cpu"), "fp32", "none", {}, "")
    alone = [generate_texts(own, [prompt], 10, stop="\x00")[0] for prompt in SHARING]
    assert generate_texts(own, SHARING, 10, stop="\x00") == alone


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


PROMPT = [40, 50, 60, 70, 80, 90]
TITLES = {3: [100, 101, 5], 8: [100, 102, 103, 5], 2: [104, 5], 6: [101, 100, 5], 9: [104, 105, 5], 4: [101, 5]}


def test_greedy_generation_held_to_titles_is_that_of_the_library(language_model):
    """transformers' own generate, each step's tokens limited to those that go on to a title."""
    model, trie = language_model.model, Trie(TITLES)

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        begun = ids.tolist()[len(PROMPT) :]
        going_on = [title for title in TITLES.values() if title[: len(begun)] == begun and title != begun]
        return [title[len(begun)] for title in going_on]

    whole = model.generate(
        input_ids=torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        do_sample=False, max_new_tokens=8, eos_token_id=5, pad_token_id=2, prefix_allowed_tokens_fn=allowed,
    )  # fmt: skip
    assert TITLES[generate_title(Branches(model, [PROMPT]), trie)] == whole[0, len(PROMPT) :].tolist()


def test_as_many_beams_as_titles_find_the_most_probable_one(language_model):
    draw = random.Random(3)
    titles = {item: [*(draw.choice(range(100, 108)) for _ in range(draw.randint(1, 4))), 5] for item in range(40)}
    trie, branches = Trie(titles), Branches(language_model.model, [PROMPT])
    best = best_items(branches, trie, [Wanted(1)])[0].items[0][0]
    assert generate_title(branches, trie, beams=40) == best
    assert best_items(branches, trie, [Wanted(1)])[0].items[0][0] == best  # nothing has grown on the prompt


def test_few_beams_end_with_a_title_that_no_beam_beats(language_model):
    """More beams never lose what is best here; each answer is a title of the tree."""
    trie, branches = Trie(TITLES), Branches(language_model.model, [PROMPT])
    scores = dict(zip(trie.items, item_logprobs(branches, trie), strict=True))
    found = [generate_title(branches, trie, beams) for beams in (1, 2, 6)]
    assert set(found) <= set(TITLES)
    assert scores[found[2]] == max(scores.values())


def test_of_titles_that_read_alike_the_smaller_id_is_generated(language_model):
    trie = Trie({7: [100, 5], 4: [100, 5]})
    assert generate_title(Branches(language_model.model, [PROMPT]), trie) == 4


def test_no_beams_are_refused(language_model):
    with pytest.raises(ValueError, match="beams is 0; 1 or more is allowed"):
        generate_title(Branches(language_model.model, [PROMPT]), Trie(TITLES), beams=0)
