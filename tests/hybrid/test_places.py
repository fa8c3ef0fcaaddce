"""The position probe: what follows the item, what follows the place, and the prompts that a real model reads."""

import numpy as np
import pytest
import tiny
import torch
from training_world import make_params

from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.hybrid.llara import drawn_places, exchanged, position_probe
from recalign.hybrid.modality import ModalityAdapter, embedding_std
from recalign.hybrid.prompts import HybridPrompts, Projected, attach, soft_id
from recalign.llm.scoring.logprobs import response_logprobs

LISTS = [[11, 12, 13, 14], [21, 22, 23, 24]]
PLACES = [(0, 2), (3, 1)]


def test_two_items_change_places_and_the_others_stay():
    assert exchanged(LISTS, PLACES) == [[13, 12, 11, 14], [21, 24, 23, 22]]
    assert LISTS[0] == [11, 12, 13, 14]


def test_places_are_drawn_by_the_name_of_the_case():
    drawn = drawn_places([f"case {number}" for number in range(300)], 4)
    assert drawn == drawn_places([f"case {number}" for number in range(300)], 4)
    assert all(one != other for one, other in drawn)
    counts = np.bincount([place for pair in drawn for place in pair], minlength=4)
    assert counts.min() > 150 - 4 * np.sqrt(300 * 0.25)
    with pytest.raises(RecalignError, match=r"lists of 1 have no two places"):
        drawn_places(["a"], 1)


def test_scores_by_the_item_follow_it():
    before = np.array(LISTS, dtype=float)
    probe = position_probe(before, np.array(exchanged(LISTS, PLACES), dtype=float), PLACES)
    assert probe.follows.tolist() == [1.0, 1.0]
    assert probe.item.tolist() == [2.0, 2.0]
    assert probe.place.tolist() == [0.0, 0.0]


def test_scores_by_the_place_do_not():
    by_place = np.array([[4.0, 3.0, 2.5, 1.0]] * 2)
    probe = position_probe(by_place, by_place, PLACES)
    assert probe.follows.tolist() == [0.0, 0.0]
    assert probe.item.tolist() == [0.0, 0.0]
    assert probe.place.tolist() == [1.5, 2.0]


def test_both_add_up_and_equal_scores_decide_nothing():
    """An item worth 1 more at a place worth 3 more: the place wins, and the parts are told apart."""
    before, after = np.array([[4.0, 0.0]]), np.array([[3.0, 1.0]])
    probe = position_probe(before, after, [(0, 1)])
    assert (probe.follows[0], probe.item[0], probe.place[0]) == (0.0, 1.0, 3.0)
    assert position_probe(np.zeros((1, 2)), after, [(0, 1)]).follows.tolist() == [0.5]


def test_an_exchange_moves_title_and_vector_together_in_what_a_model_reads():
    items = Items((1, 2, 3), {1: "One", 2: "Two", 3: "Three"}, {1: {}, 2: {}, 3: {}}, {1: 1, 2: 1, 3: 1})
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    params = make_params(prompt__form="candidates").prompt
    numbers = {item: item - 1 for item in items.ids}
    builder = HybridPrompts(tokenizer, items, params, "films", numbers=numbers)
    width = model.get_input_embeddings().weight.shape[-1]
    table = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    attach(model, Projected(table, ModalityAdapter(8, width, std=embedding_std(model))))
    lists = [[1, 2, 3]], exchanged([[1, 2, 3]], [(0, 2)])
    prompts = [builder.prompt([2], candidates=own[0]) for own in lists]
    assert [[token for token in prompt if token < 0] for prompt in prompts] == [
        [soft_id(1), soft_id(0), soft_id(1), soft_id(2)],
        [soft_id(1), soft_id(2), soft_id(1), soft_id(0)],
    ]
    with torch.no_grad():
        told = [
            response_logprobs(model, [prompt], [[builder.response(item) for item in own[0]]]).sums.numpy()
            for prompt, own in zip(prompts, lists, strict=True)
        ]
    probe = position_probe(*told, [(0, 2)])
    assert probe.place[0] > 0  # a random model reads both
    assert probe.item[0] > 0
