"""The best titles by a search over their tree equal those of scoring every title, without computing every title."""

import math
import random

import numpy as np
import pytest
import tiny
import torch

from recalign.llm import trie as under_test
from recalign.llm.scoring.branches import PROMPT_END, Branches
from recalign.llm.scoring.logprobs import naive_logprobs
from recalign.llm.trie import Found, Trie, Wanted, best_items, item_logprobs

NEWLINE = 5
PROMPT = [40, 50, 60, 70, 80, 90, 41, 51, 61, 71, 81, 91, 42, 52, 62, 72]  # longer than the sliding windows of tiny.py


def catalogue(items: int = 60, seed: int = 0) -> dict[int, list[int]]:
    """Titles of one to five tokens over a few words, so that many begin alike; ids in no order of the titles."""
    draw = random.Random(seed)
    titles: set[tuple[int, ...]] = set()
    while len(titles) < items:
        titles.add(tuple(draw.choice(range(100, 112)) for _ in range(draw.randint(1, 5))))
    ids = draw.sample(range(1000), items)
    return {item: [*title, NEWLINE] for item, title in zip(ids, sorted(titles), strict=True)}


def slow(model: torch.nn.Module, titles: dict[int, list[int]]) -> np.ndarray:
    """Every title in a sequence of its own."""
    with torch.no_grad():
        return naive_logprobs(model, [PROMPT], [[titles[item] for item in sorted(titles)]]).sums[0].double().numpy()


def search(
    branches: Branches, trie: Trie, k: int, terms: np.ndarray | None = None, equals: list[int] | None = None
) -> Found:
    """After one prompt."""
    [found] = best_items(branches, trie, [Wanted(k, terms, equals)])
    return found


def in_order(items: list[int], scores: np.ndarray, k: int) -> list[int]:
    return [item for _, item in sorted(zip(-scores, items, strict=True))][:k]


def test_a_tree_shares_beginnings_and_counts_items_where_their_titles_end() -> None:
    trie = Trie({7: [1, 2, 9], 3: [1, 9], 5: [1, 2, 9], 4: [8, 9]})
    assert trie.items == [3, 4, 5, 7]
    assert trie.token == [-1, 1, 2, 9, 9, 8, 9]
    assert trie.parent == [-1, 0, 1, 2, 1, 0, 5]
    assert trie.depth == [0, 1, 2, 3, 2, 1, 2]
    assert trie.holds[3] == [2, 3]  # the items 5 and 7 read alike
    assert trie.ends == [4, 6, 3, 3]
    assert trie.inner == [1, 2, 5]
    assert trie.line(3) == [1, 2, 3]
    assert trie.tokens(3) == [1, 2, 9]
    assert sorted(trie.below([2, 5])) == [1, 2, 3]
    assert trie.largest_below(np.array([-1.0, -2.0, -4.0, -3.0])) == [-1.0, -1.0, -3.0, -3.0, -1.0, -2.0, -2.0]


def test_an_item_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="item 4 has no tokens"):
        Trie({3: [1], 4: []})


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        Branches(tiny.model(), [PROMPT, []])


@pytest.mark.parametrize("family", tiny.SHARING)
def test_grown_places_see_what_they_continue_and_nothing_else(family: str) -> None:
    model = tiny.model(family)
    branches = Branches(model, [PROMPT])
    first = branches.grow([100, 101, 102, 103], [PROMPT_END, PROMPT_END, 0, 2])  # 102 follows 100, 103 follows 102
    again = branches.grow([104, 105], [3, 1])
    with torch.no_grad():
        for row, ids in ((first[1], [101]), (first[3], [100, 102, 103]), (again[0], [100, 102, 103, 104]),
                         (again[1], [101, 105])):  # fmt: skip
            expected = torch.log_softmax(model(input_ids=torch.tensor([PROMPT + ids])).logits[0, -1], dim=-1)
            assert torch.allclose(row, expected, atol=1e-4)


def test_what_was_cut_is_forgotten() -> None:
    branches = Branches(tiny.model(), [PROMPT])
    first = branches.grow([100], [PROMPT_END])
    branches.grow([101, 102], [0, 1])
    branches.cut(1)
    second = branches.grow([103], [0])
    branches.cut()
    assert torch.allclose(branches.grow([100, 103], [PROMPT_END, 0]), torch.cat([first, second]), atol=1e-5)


@pytest.mark.parametrize("family", tiny.SHARING)
def test_the_search_equals_scoring_every_title(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "WIDTH", 4)
    monkeypatch.setattr(under_test, "NODES_AT_ONCE", 16)
    model, titles = tiny.model(family), catalogue()
    trie, branches, expected = Trie(titles), Branches(model, [PROMPT]), slow(model, titles)
    assert item_logprobs(branches, trie) == pytest.approx(expected, rel=1e-5)
    for k in (1, 10):
        found = search(branches, trie, k)
        assert [item for item, _ in found.items] == in_order(trie.items, expected, k)
        scores = dict(zip(trie.items, expected, strict=True))
        assert [score for _, score in found.items] == pytest.approx([scores[i] for i, _ in found.items], rel=1e-5)


def test_the_search_computes_part_of_the_tree_and_less_for_fewer_items() -> None:
    titles = catalogue(400)
    trie, branches = Trie(titles), Branches(tiny.model(), [PROMPT])
    nodes = [search(branches, trie, k).nodes for k in (1, 10)]
    assert 0 < nodes[0] <= nodes[1] < len(trie.inner)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_an_items_own_term_enters_the_search_exactly(weight: float) -> None:
    """The prior of a title is tens of nats: bounds without it would end branches that lead to the best."""
    model, titles = tiny.model(), catalogue(120)
    trie, branches = Trie(titles), Branches(model, [PROMPT])
    prior = item_logprobs(Branches(model, [PROMPT[:3]]), trie)
    expected = slow(model, titles) - weight * prior
    found = search(branches, trie, 10, -weight * prior)
    assert [item for item, _ in found.items] == in_order(trie.items, expected, 10)
    assert [score for _, score in found.items] == pytest.approx(sorted(expected, reverse=True)[:10], abs=1e-3)


def test_an_item_that_is_left_out_is_not_found_and_its_own_branch_not_computed() -> None:
    titles = catalogue(20)
    trie, branches = Trie(titles), Branches(tiny.model(), [PROMPT])
    best = search(branches, trie, 20)
    out = best.items[0][0]
    terms = np.zeros(20)
    terms[trie.items.index(out)] = -math.inf
    found = search(branches, trie, 20, terms)
    assert [item for item, _ in found.items] == [item for item, _ in best.items[1:]]
    only = np.full(20, -math.inf)
    only[trie.items.index(out)] = 0.0
    single = search(branches, trie, 3, only)
    assert [item for item, _ in single.items] == [out]
    assert single.nodes == len(titles[out]) - 1  # the last token is read off the one before it


def test_titles_that_read_alike_tie_and_stand_by_item_id() -> None:
    titles = {9: [100, NEWLINE], 2: [100, NEWLINE], 5: [101, NEWLINE], 4: [100, NEWLINE]}
    found = search(Branches(tiny.model(), [PROMPT]), Trie(titles), 4)
    alike = [item for item, _ in found.items if item != 5]
    assert alike == [2, 4, 9]
    assert len({score for item, score in found.items if item != 5}) == 1
    last_in = search(Branches(tiny.model(), [PROMPT]), Trie({i: t for i, t in titles.items() if i != 5}), 1)
    assert [item for item, _ in last_in.items] == [2]


@pytest.mark.parametrize(("name", "value"), [("SEARCHED", 8), ("SEARCHED", 0), ("MANY", 1)])
def test_a_search_that_takes_too_long_ends_in_one_pass_over_what_is_left(
    name: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = catalogue(80)
    trie, branches = Trie(titles), Branches(tiny.model(), [PROMPT])
    terms = np.linspace(0.0, 3.0, 80)
    terms[::7] = -math.inf
    whole = search(branches, trie, 10, terms)
    monkeypatch.setattr(under_test, "WIDTH", 4)
    monkeypatch.setattr(under_test, name, value)
    short = search(branches, trie, 10, terms)
    assert [item for item, _ in short.items] == [item for item, _ in whole.items]
    assert [score for _, score in short.items] == pytest.approx([score for _, score in whole.items], rel=1e-5)


def test_more_items_than_there_are_gives_them_all_and_none_of_none() -> None:
    titles = catalogue(5)
    trie, branches = Trie(titles), Branches(tiny.model(), [PROMPT])
    assert len(search(branches, trie, 50).items) == 5
    assert search(branches, trie, 3, np.full(5, -math.inf)).items == []


def test_a_search_leaves_the_prompt_as_it_was() -> None:
    trie, branches = Trie(catalogue(30)), Branches(tiny.model(), [PROMPT])
    first = search(branches, trie, 5).items
    assert search(branches, trie, 5).items == first


LENGTHS = (16, 3, 9, 1, 16)  # of the prompts that are searched at once, from the end of PROMPT


@pytest.mark.parametrize("family", tiny.SHARING)
def test_prompts_at_once_see_their_own_places_alone(family: str) -> None:
    """Places of several prompts grow in one pass, in any order, and on top of each other."""
    model = tiny.model(family)
    prompts = [PROMPT, PROMPT[7:10], PROMPT[5:6]]
    branches = Branches(model, prompts)
    ends = [PROMPT_END - number for number in range(3)]
    rows = branches.grow([100, 101, 102, 103], [ends[2], ends[0], ends[2], 0])  # 103 follows 100
    again = branches.grow([104, 105, 106], [3, 1, ends[1]])
    lines = ((rows[0], [*prompts[2], 100]), (rows[1], [*PROMPT, 101]), (rows[3], [*prompts[2], 100, 103]),
             (again[0], [*prompts[2], 100, 103, 104]), (again[1], [*PROMPT, 101, 105]), (again[2], [*prompts[1], 106]),
             (branches.first[1], prompts[1]))  # fmt: skip
    with torch.no_grad():
        for row, ids in lines:
            expected = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], dim=-1)
            assert torch.allclose(row, expected, atol=1e-4)
    branches.cut(1)
    assert torch.allclose(branches.grow([103, 106], [0, ends[1]]), torch.stack([rows[3], again[2]]), atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("WIDTH", 5), ("SEARCHED", 30), ("KEPT", 60), ("NODES_AT_ONCE", 3)])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_searches_at_once_equal_each_alone_and_scoring_every_title(
    family: str, name: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, titles = tiny.model(family), catalogue(150, seed=3)
    trie, prompts = Trie(titles), [PROMPT[-length:] for length in LENGTHS]
    terms = [np.zeros(150), np.linspace(0.0, 3.0, 150), np.zeros(150), np.full(150, -math.inf), np.zeros(150)]
    terms[2][::3] = -math.inf
    wanted = [Wanted(k, own) for k, own in zip((10, 3, 120, 5, 1), terms, strict=True)]
    with torch.no_grad():
        responses = [[titles[item] for item in trie.items]] * len(prompts)
        scores = naive_logprobs(model, prompts, responses).sums.double().numpy() + np.stack(terms)
    monkeypatch.setattr(under_test, name, value)
    together = best_items(Branches(model, prompts), trie, wanted)
    for prompt, each, found, row in zip(prompts, wanted, together, scores, strict=True):
        [alone] = best_items(Branches(model, [prompt]), trie, [each])
        expected = [item for item in in_order(trie.items, row, each.k) if row[trie.items.index(item)] > -math.inf]
        assert [item for item, _ in found.items] == [item for item, _ in alone.items] == expected
        best = sorted(row, reverse=True)[: len(expected)]
        assert [score for _, score in found.items] == pytest.approx(best, rel=1e-5)


def test_equals_stand_in_the_search_as_it_is_told_and_by_id_by_default() -> None:
    """The items 2, 4 and 9 read alike."""
    titles = {9: [100, NEWLINE], 2: [100, NEWLINE], 5: [101, NEWLINE], 4: [100, NEWLINE]}
    trie, branches = Trie(titles), Branches(tiny.model(), [PROMPT])
    whole = [item for item, _ in search(branches, trie, 4, equals=[2**63, 7, 1, 9]).items]  # of the items 2, 4, 5, 9
    assert [item for item in whole if item != 5] == [4, 9, 2]
    alike = np.array([0.0, 0.0, -math.inf, 0.0])  # without the item 5
    assert [item for item, _ in search(branches, trie, 2, alike, equals=[3, 1, 0, 2]).items] == [4, 9]
    assert [item for item, _ in search(branches, trie, 2, alike).items] == [2, 4]


def test_searches_at_once_compute_no_more_than_their_share_of_a_pass() -> None:
    model, trie = tiny.model(), Trie(catalogue(400))
    prompts = [PROMPT[-length:] for length in LENGTHS]
    branches, largest = Branches(model, prompts), 0
    grow = branches.grow

    def counted(tokens: list[int], parents: list[int]) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, len(tokens))
        return grow(tokens, parents)

    branches.grow = counted  # type: ignore[method-assign, assignment]
    together = best_items(branches, trie, [Wanted(10)] * len(prompts))
    assert largest <= under_test.NODES_AT_ONCE
    assert sum(found.nodes for found in together) < len(prompts) * len(trie.inner)
    assert len(branches) == 0


@pytest.mark.parametrize(("name", "value"), [("WIDTH", 64), ("SEARCHED", 0), ("SEARCHED", 2), ("MANY", 1), ("KEPT", 1)])
def test_no_item_is_found_twice_where_a_sequence_goes_on_from_another(name: str, value: int, monkeypatch) -> None:
    """Without an end of their own, "Alien" is offered on the way to "Aliens" and must not be offered again below it."""
    monkeypatch.setattr(under_test, name, value)
    model = tiny.model()
    titles = {1: [100], 2: [100, 101], 3: [100, 101, 102], 4: [100, 101, 102, 103], 5: [100, 104], 6: [105]}
    titles[7] = titles[2]
    scores = slow(model, titles)
    found = search(Branches(model, [PROMPT]), Trie(titles), 10)
    items = [item for item, _ in found.items]
    assert sorted(items) == [1, 2, 3, 4, 5, 6, 7]
    assert [score for _, score in found.items] == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
