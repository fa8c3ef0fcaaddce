"""What every recommender of the roster keeps, whatever it is made of."""

from datetime import datetime
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.params.load import load_params
from recalign.recommenders.recommender import Recommender, Request
from recalign.recommenders.roster import ROSTER, fit, load_fitted

CATALOGUE = Items((1, 2, 3, 4, 9), {i: f"Item {i}" for i in (1, 2, 3, 4, 9)}, {}, {})
LIKES = {10: [1, 2, 3], 11: [1, 2], 12: [2, 9]}
REQUESTS = [Request(10, (1, 2)), Request(None, (9,)), Request(11, ())]
SHIPPED = load_params(Path(__file__).parents[2] / "params.yaml")
QUICK = SHIPPED.recommenders.next_item.model_copy(update={"dimension": 8, "epochs": 3, "max_history": 4})
PARAMS = SHIPPED.model_copy(update={"recommenders": SHIPPED.recommenders.model_copy(update={"next_item": QUICK})})


def events_of(likes: dict[int, list[int]]) -> pa.Table:
    """A train log; each user's likes in order, one a day."""
    rows = [(user, item, place) for user, items in likes.items() for place, item in enumerate(items)]
    days = pa.array([datetime(2024, 1, 1 + place) for _, _, place in rows], pa.timestamp("us"))
    users, items, places = (list(column) for column in zip(*rows, strict=True))
    return pa.table({c.USER: users, c.ITEM: items, c.TIMESTAMP: days, c.POSITION: places})


@cache
def fitted(name: str) -> Recommender:
    """Fitted once for all tests, and only where one asks for it."""
    return fit(name, CATALOGUE, events_of(LIKES), True, PARAMS)[0]


every = pytest.mark.parametrize("name", ROSTER)


@every
def test_it_answers_by_the_name_of_its_line(name):
    """Tables, folders and the fusion know it by this name."""
    assert fitted(name).name == name


@every
def test_scores_of_candidates_are_those_of_the_whole_catalogue(name):
    """Float64 or float32, finite, one row a request."""
    everything = fitted(name).scores(REQUESTS, None)
    lists = [[9, 1], [4, 2], [3, 9]]
    assert everything.shape == (3, 5)
    assert everything.isfinite().all()
    expected = [[everything[row, CATALOGUE.ids.index(i)].item() for i in items] for row, items in enumerate(lists)]
    assert fitted(name).scores(REQUESTS, lists).tolist() == expected


@every
def test_a_catalogue_of_one_item_and_a_history_with_repetitions_are_ranked(name):
    """However little there is to learn."""
    one = Items((7,), {7: "Seven"}, {}, {})
    model, _ = fit(name, one, events_of({1: [7], 2: [7]}), True, PARAMS)
    scores = model.scores([Request(1, ()), Request(None, (7,)), Request(3, (7,) * 300)], None)
    assert scores.shape == (3, 1)
    assert scores.isfinite().all()


@every
def test_a_fitted_recommender_is_read_back_by_its_name(name, tmp_path):
    """And scores as it did; what was tried to choose it is told."""
    model, report = fit(name, CATALOGUE, events_of(LIKES), True, PARAMS)
    model.save(tmp_path)
    assert set(report) >= {"chosen", "tried"}
    assert torch.equal(load_fitted(name, tmp_path, CATALOGUE).scores(REQUESTS, None), model.scores(REQUESTS, None))


@every
def test_a_model_of_another_catalogue_is_refused(name, tmp_path):
    """Its scores would be other items'."""
    fitted(name).save(tmp_path)
    with pytest.raises(RecalignError, match=r"was fitted on another catalogue.*dvc repro baselines"):
        load_fitted(name, tmp_path, Items((1, 2, 3, 4, 5), CATALOGUE.titles, {}, {}))


@every
def test_an_item_outside_of_the_catalogue_is_named(name):
    """In a list."""
    with pytest.raises(RecalignError, match="item 77 is not among the 5 items of the catalogue"):
        fitted(name).scores([Request(1, (1,))], [[1, 77]])
