"""`content`: the ridge in closed form, a planted world, its history-blind prior, text encoders, and bad input."""

import random
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from flat_project import flat_project
from safetensors.numpy import load_file, save_file
from scipy import sparse
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from validated_log import small_params, write_log

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.llm import text_vectors as module
from recalign.llm.text_vectors import open_encoder, text_reader, text_vectors
from recalign.params.load import Params, load_params, parse_params
from recalign.params.recommenders import ContentParams
from recalign.recommenders.content import (
    Content,
    Fitter,
    PriorSettings,
    Settings,
    chosen_content,
    chosen_prior,
    hidden_cases,
    history_weights,
    ridge_map,
)
from recalign.recommenders.item_text import (
    Attributes,
    Description,
    TextReader,
    TfIdf,
    fit_description,
    grams,
    leading,
    text_of,
)
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recommender import Fitting, Request
from recalign.recommenders.roster import load_fitted
from recalign.recommenders.store import on_catalogue
from recalign.recommenders.tuning import HeldOut, held_out_items
from recalign.stages.baselines import baselines
from recalign.stages.prepare import prepare

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
OWN = PARAMS.recommenders.content
START = datetime(2024, 1, 1)


def films(count: int, **attributes: Any) -> Items:
    """A catalogue of so many items; attributes: name -> function of the item."""
    ids = tuple(range(1, count + 1))
    told = {item: {name: of(item) for name, of in attributes.items()} for item in ids}
    return Items(ids, {item: f"Film {item}" for item in ids}, told, {})


def fitting(
    catalogue: Items,
    events: pa.Table,
    params: ContentParams = OWN,
    *,
    clock: bool = True,
    hidden: HeldOut | None = None,
) -> Fitting:
    """What `content` is fitted on, by these settings of its own."""
    settings = PARAMS.recommenders.model_copy(update={"content": params})
    return Fitting("content", catalogue, events, clock, 1, 1, settings, hidden=hidden)


def log_of(likes: dict[int, list[int]]) -> pa.Table:
    """A train log; each user's likes in order, one an hour."""
    rows = [(user, item, place) for user, items in likes.items() for place, item in enumerate(items)]
    return pa.table(
        {
            c.USER: [row[0] for row in rows],
            c.ITEM: [row[1] for row in rows],
            c.TIMESTAMP: pa.array([START + timedelta(hours=row[2]) for row in rows], pa.timestamp("us")),
            c.POSITION: [row[2] for row in rows],
        }
    )


def test_the_ridge_of_one_feature_is_that_of_the_textbook() -> None:
    """Two items of weight 1 at −1 and 1, targets 0 and 4: slope Σfy / (Σf² + λ) = 4 / (2 + 2), the constant free."""
    weights, constant = ridge_map(np.array([[-1.0], [1.0]]), np.array([[0.0], [4.0]]), np.ones(2), 2.0)

    assert weights.tolist() == [[1.0]]
    assert constant.tolist() == [2.0]


def test_a_weight_counts_an_item_so_many_times() -> None:
    """Items at 0, 0 and 3 with weights 1, 1 and 1 and one at 0 with weight 2 are the same regression."""
    one = ridge_map(np.array([[0.0], [0.0], [3.0]]), np.array([[1.0], [1.0], [7.0]]), np.ones(3), 6.0)
    other = ridge_map(np.array([[0.0], [3.0]]), np.array([[1.0], [7.0]]), np.array([2.0, 1.0]), 6.0)

    assert one[0][0, 0] == pytest.approx(1.0)  # Σ(f − 1)(y − 3) = 12 over Σ(f − 1)² + λ = 6 + 6
    assert one[1][0] == pytest.approx(2.0)
    assert (other[0][0, 0], other[1][0]) == (pytest.approx(1.0), pytest.approx(2.0))


@pytest.mark.parametrize(("rows", "features"), [(40, 6), (6, 40)])
def test_the_ridge_solves_the_augmented_least_squares(rows: int, features: int) -> None:
    """Whichever side is the smaller one, √λ·I below the weighted features gives the same by plain least squares."""
    draw = np.random.default_rng(rows)
    f, y, w = draw.normal(size=(rows, features)), draw.normal(size=(rows, 3)), draw.random(rows) + 0.5
    weights, constant = ridge_map(f, y, w, 2.5)
    root, share = np.sqrt(w)[:, None], w / w.sum()
    stacked = np.vstack([(f - share @ f) * root, np.sqrt(2.5) * np.eye(features)])
    expected, *_ = np.linalg.lstsq(stacked, np.vstack([(y - share @ y) * root, np.zeros((features, 3))]), rcond=None)

    np.testing.assert_allclose(weights, expected, atol=1e-12)
    np.testing.assert_allclose(constant, share @ y - share @ f @ expected, atol=1e-12)


def test_products_of_factors_are_cosines_of_co_occurrence() -> None:
    likes = {1: [1, 2], 2: [1, 2], 3: [1, 3], 4: [1]}
    factors = Fitter(films(3), log_of(likes), 8, TextReader()).factors
    products = factors @ factors.T

    assert products[0] == pytest.approx([1.0, 2 / np.sqrt(4 * 2), 1 / np.sqrt(4 * 1)])  # together / √(likes · likes)
    assert products[1, 2] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (90, 80)])
def test_the_leading_vectors_are_those_of_the_dense_decomposition(shape: tuple[int, int]) -> None:
    """Above and below the size from which a partial decomposition pays; signs are fixed."""
    matrix = sparse.random_array(shape, density=0.3, rng=np.random.default_rng(0), format="csr")
    values, vectors = leading(matrix, 7)
    expected = np.linalg.svd(matrix.toarray(), compute_uv=False)[:7]

    np.testing.assert_allclose(values, expected, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(matrix @ vectors, axis=0), values, rtol=1e-9)
    assert all(column[np.abs(column).argmax()] > 0 for column in vectors.T)


def test_a_number_is_standardised_and_a_name_gets_a_column() -> None:
    genre = {1: ["Drama"], 2: ["Drama", "War"], 3: [], 4: ["War"], 5: ["Crime"]}
    year = {1: ["1990"], 2: ["1992"], 3: ["1994"], 4: ["1996"], 5: ["1998"]}
    catalogue = films(7, genre=lambda item: genre.get(item, ["Unheard of"]), year=lambda item: year.get(item, []))
    block = Attributes.fit(catalogue, [1, 2, 3, 4, 5])

    assert block.values == (("genre", "Drama"), ("genre", "War"), ("genre", "Crime"))
    assert block.numbers == (("year", 1994.0, pytest.approx(np.sqrt(8))),)
    assert block.vectors(catalogue, [2])[0].tolist() == pytest.approx([1, 1, 0, -2 / np.sqrt(8), 4 / 8, 0])
    assert block.vectors(catalogue, [7])[0].tolist() == [0, 0, 0, 0, 0, 1]  # a new name, and no year


@pytest.mark.parametrize("values", [["1990", "nan"], ["1990", "1991|2"], ["1", "2", "1", "2"], ["inf", "1", "2", "3"]])
def test_what_is_no_quantity_is_read_as_names(values: list[str]) -> None:
    given = [[*values, "5", "6", "7", "8"][:4][item % 4] for item in range(12)]
    catalogue = films(12, shelf=lambda item: [given[item - 1]])
    assert Attributes.fit(catalogue, catalogue.ids).numbers == ()


def test_n_grams_are_words_pairs_of_words_and_parts_of_words() -> None:
    assert sorted(grams("Up, Ça")) == sorted(
        ["w up", "w ça", "w up ça", "c up", "cup ", "c up ", "c ça", "cça ", "c ça "]
    )  # fmt: skip


def test_texts_are_weighted_by_tf_idf() -> None:
    catalogue = Items((1, 2, 3), {1: "a b", 2: "a a", 3: "a"}, {}, {})
    block = TfIdf.fit(catalogue, [1, 2, 3])
    row = block.weighted(catalogue, [2]).toarray()[0]
    weight = dict(zip(block.terms, row, strict=True))

    # "a" stands in all three (idf 1), twice in this text, as does " a "; the pair "a a" in one: ln(4 / 2) + 1
    told = np.array([1 + np.log(2), 1 + np.log(2), np.log(4 / 2) + 1])
    assert [weight["w a"], weight["c a "], weight["w a a"]] == pytest.approx(told / np.linalg.norm(told))
    assert weight["w b"] == 0.0


def test_no_block_outweighs_another_and_one_that_says_nothing_is_left_out() -> None:
    catalogue = films(30, year=lambda item: [str(1900 + 3 * item)], noun=lambda item: ["film"])
    both = fit_description("attributes+tfidf", catalogue, catalogue.ids, TextReader()).vectors(catalogue, catalogue.ids)
    one = fit_description("attributes", catalogue, catalogue.ids, TextReader()).vectors(catalogue, catalogue.ids)
    same = Items(catalogue.ids, dict.fromkeys(catalogue.ids, "Film"), {}, {})

    assert both.mean(axis=0) == pytest.approx(np.zeros(both.shape[1]), abs=1e-9)
    assert (one**2).sum(axis=1).mean() == pytest.approx(1.0)
    assert (both**2).sum(axis=1).mean() == pytest.approx(2.0)
    assert fit_description("attributes+tfidf", same, same.ids, TextReader()).blocks == ()


TASTES, ITEMS = 4, 240


def planted(seed: int = 0) -> tuple[Items, pa.Table, HeldOut]:
    """Users of one taste like the items of its colour and year; a third of the items is in nobody's train events.

    All items are liked equally often, so popularity can tell nothing; cases ask for the new ones.
    """
    draw = random.Random(seed)
    taste = {item: item % TASTES for item in range(1, ITEMS + 1)}
    catalogue = films(ITEMS, colour=lambda item: [f"colour {taste[item]}"])
    new = [item for item in catalogue.ids if item % 3 == 0]
    old = [item for item in catalogue.ids if item % 3]
    likes, requests, lists, places = {}, [], [], []
    for user in range(200):
        mine = [item for item in old if taste[item] == user % TASTES]
        likes[user] = draw.sample(mine, 12)
        target = draw.choice([item for item in new if taste[item] == user % TASTES])
        wrong = draw.sample([item for item in new if taste[item] != user % TASTES], 19)
        place = draw.randrange(20)
        lists.append([*wrong[:place], target, *wrong[place:]])
        places.append(place)
        requests.append(Request(user, tuple(likes[user][:6])))
    events = log_of(likes)
    return catalogue, events, HeldOut(events, requests, lists, np.array(places))


def shuffled(catalogue: Items, seed: int = 0) -> Items:
    """The same titles and attributes, each on another item."""
    others = list(catalogue.ids)
    random.Random(seed).shuffle(others)
    moved = dict(zip(catalogue.ids, others, strict=True))
    return replace(catalogue, attributes={item: catalogue.attributes[moved[item]] for item in catalogue.ids})


def test_new_items_are_ranked_where_their_attributes_say_what_they_are() -> None:
    """NDCG@10 of 20 candidates is 0.227 by chance, 1 where every target comes first."""
    catalogue, events, cases = planted()
    settings = Settings("attributes", 8, 1.0)
    content = Fitter(catalogue, events, 8, TextReader()).content(settings)
    prior = Fitter(catalogue, events, 8, TextReader()).prior(PriorSettings("attributes", 1.0))
    mixed_up = Fitter(shuffled(catalogue), events, 8, TextReader()).content(settings)

    assert cases.value(content) > 0.99
    assert cases.value(prior) < 0.35
    assert cases.value(Popularity.fit(catalogue, events)) < 0.35
    assert cases.value(mixed_up) < 0.35


def test_the_prior_reads_off_a_description_how_often_items_like_it_are_liked() -> None:
    """Long films are liked by all, short ones by few: so will the new ones be, whoever asks."""
    catalogue = films(60, length=lambda item: ["long"] if item % 2 else ["short"])
    likes = {user: [item for item in range(1, 41) if item % 2 or user < 3] for user in range(20)}
    prior = Fitter(catalogue, log_of(likes), 4, TextReader()).prior(PriorSettings("attributes", 0.001))
    one, other = prior.scores([Request(1, (1, 3)), Request(None, ())], None).tolist()

    assert one == other
    assert one[:2] == pytest.approx([np.log(21), np.log(4)])  # known items: their own counts
    assert one[40:42] == pytest.approx([np.log(21), np.log(4)], abs=0.01)


def test_a_known_item_keeps_its_own_factors_and_a_new_one_has_those_of_its_text() -> None:
    catalogue, events, _ = planted()
    fitter = Fitter(catalogue, events, 8, TextReader())
    content = fitter.content(Settings("attributes", 8, 1.0))
    known = np.array([item % 3 != 0 for item in catalogue.ids])

    np.testing.assert_array_equal(content.factors[known], fitter.factors.astype(np.float32))
    made = content.text_map.of(catalogue, [item for item in catalogue.ids if item % 3 == 0])
    np.testing.assert_allclose(content.factors[~known], made, rtol=1e-6)


def test_an_empty_history_is_the_mean_user_and_a_new_item_in_a_history_counts_as_a_middling_one() -> None:
    catalogue, events, _ = planted()
    content = Fitter(catalogue, events, 8, TextReader()).content(Settings("attributes", 8, 1.0))

    np.testing.assert_array_equal(content.users([()])[0], content.mean_user)
    assert history_weights(np.array([0, 4, 16, 64])).tolist() == [1 / 4, 1 / 2, 1 / 4, 1 / 8]
    assert content.scores([Request(1, (3,))], [[6, 15]])[0].diff().item() > 0  # 3 and 15 are of one colour, all new


def test_settings_are_chosen_on_hidden_validation_items_and_test_is_not_looked_at() -> None:
    catalogue, events, cases = planted()
    params = OWN.model_copy(update={"encoders": ("attributes",), "dimensions": (1, 8), "ridges": (1.0, 1e4)})
    content, report = chosen_content(fitting(catalogue, events, params, hidden=cases))
    prior, told = chosen_prior(fitting(catalogue, events, params, hidden=cases))

    assert report["chosen_on"] == told["chosen_on"] == "hidden validation items"
    assert report["chosen"]["dimension"] == 8  # one number cannot tell four tastes
    assert (len(report["tried"]), len(told["tried"])) == (4, 2)
    best = max(report["tried"], key=lambda row: row["ndcg_at_10"])
    assert cases.value(content) == pytest.approx(best["ndcg_at_10"], abs=1e-9)
    assert cases.value(prior) == pytest.approx(max(row["ndcg_at_10"] for row in told["tried"]), abs=1e-9)


def test_what_is_tried_is_what_the_chosen_one_does_where_histories_hold_new_items_too() -> None:
    """A new item in a history is read by the encoder that is tried, not by the first one."""
    catalogue, events, cases = planted()
    told = [
        replace(request, history=(*(3 + 3 * ((row + step) % 9) for step in range(5)), *request.history[:1]))
        for row, request in enumerate(cases.requests)
    ]
    cases = replace(cases, requests=told)
    params = OWN.model_copy(update={"encoders": ("tfidf", "attributes"), "dimensions": (8,), "ridges": (1.0, 1e4)})
    _, report = chosen_content(fitting(catalogue, events, params, hidden=cases))
    fitter = Fitter(catalogue, events, 8, TextReader())

    for row in report["tried"]:
        settings = Settings(row["encoder"], row["dimension"], row["ridge"])
        assert cases.value(fitter.content(settings)) == pytest.approx(row["ndcg_at_10"], abs=1e-9)


@pytest.mark.parametrize("clock", [True, False])
def test_without_hidden_items_a_fifth_of_the_trained_ones_stands_for_new_ones(clock: bool) -> None:
    catalogue, events, _ = planted()
    cases = held_out_items(catalogue, events, clock, 1)
    new = {item for row in cases.candidates for item in row}
    shares = len(new) / 160

    assert 0.1 < shares < 0.3
    assert not new & set(cases.events[c.ITEM].to_pylist())
    assert not any(new & set(request.history) for request in cases.requests)
    for request, items, place in zip(cases.requests, cases.candidates, cases.target_index, strict=True):
        liked = events.filter(pa.compute.equal(events[c.USER], request.user_id))[c.ITEM].to_pylist()
        assert set(items) & set(liked) == {items[place]}
        if clock:
            assert all(liked.index(item) < liked.index(items[place]) for item in request.history)
    few = OWN.model_copy(update={"encoders": ("attributes",), "dimensions": (8,), "ridges": (1.0,)})
    _, report = chosen_content(fitting(catalogue, events, few, clock=clock))
    assert report["chosen_on"] == "a fifth of the trained items"


def test_a_log_too_small_to_hide_items_keeps_the_first_settings() -> None:
    catalogue = films(5, colour=lambda item: [f"colour {item % 2}"])
    content, report = chosen_content(fitting(catalogue, log_of({1: [1, 2], 2: [2, 3], 3: [4]})))

    assert report["chosen"] == {"encoder": "attributes+tfidf", "dimension": 64, "ridge": 10.0}
    assert report["tried"] == []
    assert content.scores([Request(1, (1,))], None).isfinite().all()


def test_on_another_catalogue_titles_are_met_and_new_items_are_read() -> None:
    """Renumbered items keep their factors, and a film that nobody has seen is ranked by its colour, not last."""
    catalogue, events, _ = planted()
    content = Fitter(catalogue, events, 8, TextReader()).content(Settings("attributes", 8, 1.0))
    titles = {1: "Film 2", 2: "Film 1", 5: "Brand new", 6: "Also new"}
    colours = {1: ["colour 2"], 2: ["colour 1"], 5: ["colour 1"], 6: ["colour 3"]}
    newer = Items((1, 2, 5, 6), titles, {item: {"colour": colour} for item, colour in colours.items()}, {})
    moved = on_catalogue(content, catalogue, newer)

    assert isinstance(moved, Content)
    np.testing.assert_array_equal(moved.factors[0], content.factors[1])
    np.testing.assert_array_equal(moved.factors[1], content.factors[0])
    (scores,) = moved.scores([Request(1, (2,))], None).tolist()  # likes Film 1, of colour 1
    assert scores[2] > max(scores[0], scores[3])


def test_hidden_items_are_known_to_content_and_the_stage_chooses_on_those_of_validation(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    draw = random.Random(3)
    rows = []
    for user in range(1, 121):
        mine = [item for item in range(1, 121) if item % 4 == user % 4]
        rows += [(user, item, draw.randrange(400), None) for item in draw.sample(mine, 16)]
    years = {item: str(1900 + 30 * (item % 4)) for item in range(1, 121)}
    tree["recommenders"]["content"] |= {"encoders": ["attributes"], "dimensions": [8], "ridges": [1.0, 10.0]}
    params = small_params(tree, hidden_items=0.4)
    write_log(tmp_path / "validated", rows, years=years)
    prepare(params, flat_project(tmp_path))
    for system in ("content", "content_prior", "popularity"):
        baselines(params, system, flat_project(tmp_path))
    items = Items.read(tmp_path / "prepared")
    told = read_json(tmp_path / "baselines" / "content" / "tuning.json")
    content = load_fitted("content", tmp_path / "baselines" / "content", items)
    (scores,) = content.scores([Request(1, items.trained.ids[:3])], None).tolist()
    new = [score for item, score in zip(items.ids, scores, strict=True) if item in items.hidden]

    assert told["chosen_on"] == "hidden validation items"
    assert len(set(new)) > 1
    assert max(new) > min(scores)  # not below everything


@pytest.mark.parametrize(
    "catalogue",
    [
        Items((1, 2, 3), {}, {}, {}),
        Items((1, 2, 3), {1: "", 2: "", 3: ""}, {1: {}, 2: {"year": []}, 3: {}}, {}),
        Items((1, 2, 3), dict.fromkeys((1, 2, 3), "Same"), {item: {"year": ["1999"]} for item in (1, 2, 3)}, {}),
    ],
    ids=["neither text nor attributes", "empty texts", "identical texts"],
)
def test_items_that_nothing_tells_apart_are_refused_in_a_line(catalogue: Items) -> None:
    for choose in (chosen_content, chosen_prior):
        with pytest.raises(RecalignError, match=r"none tells the 3 trained items apart.*take content") as told:
            choose(fitting(catalogue, log_of({1: [1, 2], 2: [2, 3]})))
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoders": ["attributs"]}, r"'attributs' in 'attributs' is none of .*did you mean attributes"),
        ({"encoders": ["tfidf+tfidf"]}, r"'tfidf\+tfidf' names a block twice"),
        ({"encoders": []}, r"recommenders.content.encoders"),
        ({"ridges": [0.0]}, r"recommenders.content.ridges"),
        ({"dimensions": [0]}, r"recommenders.content.dimensions"),
    ],
)
def test_a_wrong_setting_is_named(tree: dict[str, Any], change: dict[str, Any], said: str) -> None:
    tree["recommenders"]["content"] |= change
    with pytest.raises(RecalignError, match=said):
        parse_params(tree)


def test_content_is_never_listed_without_its_prior(tree: dict[str, Any]) -> None:
    tree["recommenders"]["systems"] = ["popularity", "item_knn", "content"]
    with pytest.raises(RecalignError, match="content is listed without content_prior"):
        parse_params(tree)


def small_encoder(folder: Path, width: int = 16, seed: int = 0) -> Path:
    """A BERT of one layer with random weights and a tokenizer of words: a real text encoder, a few kB large."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", *(f"{number}" for number in range(60)), "film", "red", "green", "colour"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words), hidden_size=width, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_a_text_is_the_mean_of_its_tokens_states_alone_and_beside_longer_ones(tmp_path: Path) -> None:
    folder = small_encoder(tmp_path / "bert")
    encoder = open_encoder("model", str(folder))
    texts = ["film 1", "red green film 12 13", "", "film"]
    together = text_vectors(encoder, texts, cache=tmp_path / "cache")
    alone = np.concatenate([text_vectors(encoder, [text], cache=tmp_path / "other") for text in texts])
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        states = model(**tokenizer("film 1", return_tensors="pt")).last_hidden_state[0]
    mean = states.mean(dim=0).numpy()

    np.testing.assert_allclose(together[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together[2].tolist() == [0.0] * 16


def test_base_reads_a_middle_layer(tmp_path: Path) -> None:
    encoder = open_encoder("base", base=small_encoder(tmp_path / "bert"))
    found = text_vectors(encoder, ["film 1"], cache=tmp_path / "cache")[0]
    model = BertModel.from_pretrained(tmp_path / "bert").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "bert")
    with torch.inference_mode():
        states = model(**tokenizer("film 1", return_tensors="pt"), output_hidden_states=True).hidden_states
    mean = states[2][0].mean(dim=0).numpy()  # two thirds of three layers

    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)


def test_vectors_are_computed_once_and_read_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder("model", str(small_encoder(tmp_path / "bert")))
    first = text_vectors(encoder, ["film 1", "film 2"], cache=tmp_path)

    other = open_encoder("model", str(small_encoder(tmp_path / "other", seed=1)))

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "_computed", never)
    np.testing.assert_array_equal(text_vectors(encoder, ["film 1", "film 2"], cache=tmp_path), first)
    # other texts, and another encoder, have files of their own
    with pytest.raises(AssertionError, match="computed again"):
        text_vectors(encoder, ["film 1", "film 3"], cache=tmp_path)
    with pytest.raises(AssertionError, match="computed again"):
        text_vectors(other, ["film 1", "film 2"], cache=tmp_path)


@pytest.mark.parametrize("damage", ["narrow", "short", "not finite", "cut"])
def test_a_cache_of_another_size_than_the_encoder_is_refused(tmp_path: Path, damage: str) -> None:
    encoder = open_encoder("model", str(small_encoder(tmp_path / "bert")))
    text_vectors(encoder, ["film 1", "film 2"], cache=tmp_path)
    (kept,) = (tmp_path / "text_vectors").iterdir()
    vectors = load_file(kept)["vectors"]
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-9])
    else:
        wrong = {"narrow": vectors[:, :8], "short": vectors[:1], "not finite": vectors * np.nan}[damage]
        save_file({"vectors": np.ascontiguousarray(wrong)}, kept)
    with pytest.raises(RecalignError, match=r"delete it, and it is computed again"):
        text_vectors(encoder, ["film 1", "film 2"], cache=tmp_path)


def test_a_fitted_model_refuses_another_encoder_than_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue that it was fitted on needs no encoder any more; a new item does, and it must be the same one."""
    monkeypatch.chdir(tmp_path)
    small_encoder(tmp_path / "bert")
    catalogue, events, _ = planted()
    settings = Settings("attributes+model", 8, 1.0)
    Fitter(catalogue, events, 8, TextReader("bert")).content(settings).save(tmp_path / "content")
    newer = replace(catalogue, titles=catalogue.titles | {3: "Film red"})
    same = Content.load(tmp_path / "content", catalogue).on(newer)
    assert np.isfinite(same.factors).all()

    small_encoder(tmp_path / "bert", width=32)
    kept = Content.load(tmp_path / "content", catalogue)
    assert kept.scores([Request(1, (1,))], None).isfinite().all()
    with pytest.raises(
        RecalignError,
        match=r"the text encoder 'model' is another one .* by 'dvc repro -sf baselines@content baselines@content_prior",
    ):
        kept.on(newer)


def test_an_encoder_that_is_not_there_is_named_with_the_fix(tmp_path: Path) -> None:
    said = {
        "base": r"the text encoder 'base' is the project's language model, and .* holds no model; run 'dvc repro base'",
        "model": r"recommenders.content.model is null; set it to a folder or to a Hub name",
    }
    for name, expected in said.items():
        with pytest.raises(RecalignError, match=expected):
            open_encoder(name, base=tmp_path / "base", cache=tmp_path)
    with pytest.raises(RecalignError, match=r"'no such/folder/here', which is no folder"):
        open_encoder("model", "no such/folder/here", cache=tmp_path)
    with pytest.raises(RecalignError, match=r"content.model is 'owner/name': no such folder here.*revision"):
        open_encoder("model", "owner/name", cache=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecalignError, match="holds no text encoder in safetensors"):
        open_encoder("model", str(tmp_path / "empty"), cache=tmp_path)


def test_a_text_is_read_once_whatever_list_it_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    computed = module._computed

    def counted(encoder: Any, texts: list[str], *rest: int) -> Any:
        asked.extend(texts)
        return computed(encoder, texts, *rest)

    monkeypatch.setattr(module, "_computed", counted)
    read = text_reader(str(small_encoder(tmp_path / "bert")), None, 1, cache=tmp_path)
    one, _ = read("model", ["film 2", "film 1"])
    other, _ = read("model", ["film 1", "film 3", "film 1"])

    assert sorted(asked) == ["film 1", "film 2", "film 3"]
    np.testing.assert_array_equal(one[1], other[0])
    np.testing.assert_array_equal(other[0], other[2])
    assert other.shape == (3, 16)


def test_a_description_is_read_back_as_it_was() -> None:
    catalogue = films(30, year=lambda item: [str(1900 + item)], colour=lambda item: [f"colour {item % 3}"])
    description = fit_description("attributes+tfidf", catalogue, catalogue.ids[:20], TextReader())
    again = Description.of_state(*description.state())

    np.testing.assert_array_equal(
        again.vectors(catalogue, catalogue.ids), description.vectors(catalogue, catalogue.ids)
    )
    assert text_of(catalogue, 4) == "Film 4; colour: colour 1; year: 1904"


@pytest.mark.slow
def test_minilm_of_the_package_index_is_the_pinned_one(tmp_path: Path) -> None:
    """Cosines as published for these weights: Godfather and its second part 0.848, Godfather and Toy Story 0.216."""
    encoder = open_encoder("minilm", cache=tmp_path)
    titles = ["The Godfather (1972)", "The Godfather: Part II (1974)", "Toy Story (1995)"]
    vectors = text_vectors(encoder, titles, cache=tmp_path)

    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] == pytest.approx(0.848, abs=0.002)
    assert vectors[0] @ vectors[2] == pytest.approx(0.216, abs=0.002)


def test_params_as_shipped_need_no_download() -> None:
    assert isinstance(PARAMS, Params)
    assert isinstance(OWN, ContentParams)
    assert {block for encoder in OWN.encoders for block in encoder.split("+")} == {"attributes", "tfidf"}
    assert not {"content", "content_prior"} & set(PARAMS.recommenders.systems)


def test_a_log_without_hidden_items_has_no_hidden_cases(tmp_path: Path, tree: dict[str, Any]) -> None:
    rows = [(user, item, user + item, None) for user in range(1, 31) for item in range(1, 21) if (user + item) % 3]
    params = small_params(tree)
    write_log(tmp_path / "validated", rows)
    prepare(params, flat_project(tmp_path))
    assert hidden_cases(tmp_path / "prepared", log_of({1: [1]}), 1) is None
