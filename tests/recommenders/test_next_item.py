"""Sequence encoders and their training: losses by hand, what a state may see, and that the models learn."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from neural_fit import fit_next_item
from rounding import rounding

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.params.load import load_params, params_or_shipped
from recalign.params.recommenders import NextItemParams
from recalign.recommenders.item_text import TextReader
from recalign.recommenders.neural import losses as item_losses
from recalign.recommenders.neural import next_item
from recalign.recommenders.neural.encoders import (
    Block,
    Caser,
    Dropout,
    EncoderName,
    GRU4Rec,
    SASRec,
    TextEmbedding,
    whitening,
)
from recalign.recommenders.neural.next_item import NO_TARGET, Histories, batch_loss
from recalign.recommenders.neural.sequential import Sequential, Settings, build_encoder
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recommender import Fitting, Request, top
from recalign.recommenders.roster import load_fitted
from recalign.recommenders.store import ReadsItems, on_catalogue
from recalign.recommenders.tuning import held_out

ENCODERS = get_args(EncoderName)
DEFAULT = load_params(Path(__file__).parents[2] / "params.yaml").recommenders.next_item
SMALL = Settings(dimension=8, dropout=0.5, length=6, window=3)
TWELVE = Items(tuple(range(100, 112)), {}, {}, {})
FORTY = Items(tuple(range(100, 140)), {}, {}, {})
SUMS = 2 * 5 * 8  # terms that are added up on the way to a state: five sums a block over a width of 8, in two blocks


def quick(**changes: object) -> NextItemParams:
    return DEFAULT.model_copy(update={"dimension": 16, "max_history": 8, "batch": 64, "dropout": 0.1} | changes)


def chain_log(users: int = 80, each: int = 9, items: int = 12, *, clock: bool = True) -> pa.Table:
    """Users who walk along a ring of items, each from a place of their own; a like an hour."""
    rows = [(user, (user * 7 + step) % items, step) for user in range(users) for step in range(each)]
    times = [datetime(2024, 1, 1) + timedelta(hours=24 * row[0] + row[2]) if clock else None for row in rows]
    return pa.table(
        {
            c.USER: [row[0] for row in rows],
            c.ITEM: [100 + row[1] for row in rows],
            c.TIMESTAMP: pa.array(times, pa.timestamp("us")),
            c.POSITION: [row[2] for row in rows],
        }
    )


def new(name: EncoderName, settings: Settings = SMALL) -> Sequential:
    torch.manual_seed(0)
    return Sequential(TWELVE, name, build_encoder(name, 12, settings), settings)


def test_the_full_loss_is_the_cross_entropy_over_the_catalogue() -> None:
    loss = item_losses.full(torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.24131129665715703, abs=1e-15)


def test_the_sampled_loss_leaves_out_what_the_user_likes() -> None:
    positive = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)
    negative = torch.tensor([[0.5, -1.0]] * 3, dtype=torch.float64)
    allowed = torch.tensor([[True, True], [True, False], [False, False]])
    loss = item_losses.sampled(positive, negative, allowed).tolist()

    assert loss == pytest.approx([0.24131129665715703, np.log1p(np.exp(-1.5)), 0.0], abs=1e-15)


def test_the_binary_loss_averages_over_the_allowed_negatives() -> None:
    positive = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)
    negative = torch.tensor([[0.5, -1.0]] * 3, dtype=torch.float64)
    allowed = torch.tensor([[True, True], [True, False], [False, False]])
    loss = item_losses.binary(positive, negative, allowed).tolist()
    own, first, second = (np.log1p(np.exp(score)) for score in (-2.0, 0.5, -1.0))

    assert loss == pytest.approx([own + (first + second) / 2, own + first, own], abs=1e-15)


@pytest.mark.parametrize("loss", ["sampled", "binary"])
def test_gradients_stay_finite_at_large_scores(loss: str) -> None:
    positive, negative = torch.tensor([-1e3], requires_grad=True), torch.tensor([[1e3, -1e3]], requires_grad=True)
    getattr(item_losses, loss)(positive, negative, torch.tensor([[True, False]])).sum().backward()
    assert positive.grad is not None
    assert negative.grad is not None
    assert positive.grad.isfinite().all()
    assert negative.grad.tolist() == [[1.0, 0.0]]


def test_attention_is_the_causal_softmax_of_scaled_products() -> None:
    torch.manual_seed(1)
    block = Block(4, 1, 0.0).double()
    inputs = torch.randn(1, 3, 4, dtype=torch.float64)
    out = block(inputs)
    normal = block.before_attention(inputs)[0]
    query, (key, value) = block.query(normal), block.key_value(normal).chunk(2, dim=-1)
    for place in range(3):
        weights = torch.softmax(key[: place + 1] @ query[place] / 2.0, dim=0)  # 2: the root of the width
        attended = inputs[0, place] + block.out(weights @ value[: place + 1])
        expected = attended + block.network(block.before_network(attended))
        assert torch.allclose(out[0, place], expected, atol=1e-12)


def test_dropout_keeps_the_mean_while_training_and_does_nothing_after_it() -> None:
    torch.manual_seed(1)
    dropout, values = Dropout(0.2), torch.full((400, 500), 3.0)
    dropped = dropout(values)

    assert set(dropped.unique().tolist()) == {0.0, 3.75}
    assert (dropped == 0).double().mean().item() == pytest.approx(0.2, abs=0.005)
    assert torch.equal(dropout.eval()(values), values)


def test_gru4rec_is_the_recurrence_of_its_equations() -> None:
    torch.manual_seed(1)
    model = GRU4Rec(5, 3, 0.0)
    weights = dict(model.recurrent.named_parameters())
    state = torch.zeros(3)
    for place, item in enumerate((0, 4, 2)):
        x, h = model.embedding.weight[item], state
        from_input = weights["weight_ih_l0"] @ x + weights["bias_ih_l0"]
        from_state = weights["weight_hh_l0"] @ h + weights["bias_hh_l0"]
        (r_x, z_x, n_x), (r_h, z_h, n_h) = from_input.chunk(3), from_state.chunk(3)
        reset, update = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        state = (1 - update) * torch.tanh(n_x + reset * n_h) + update * h
        assert torch.allclose(model(torch.tensor([[0, 4, 2]]))[0, place], state, atol=rounding(SUMS))


def test_caser_pools_horizontal_filters_and_weighs_the_window_vertically() -> None:
    torch.manual_seed(1)
    model = Caser(5, 3, 0.0, window=2)
    state = model(torch.tensor([[0, 4, 2]]))[0, 2]
    window = model.embedding.weight[[4, 2]]
    features = []
    for height, filters in zip((1, 2), model.horizontal, strict=True):
        spans = [window[first : first + height] for first in range(3 - height)]
        answers = torch.stack([(filters.weight.mT * span).sum((1, 2)) + filters.bias for span in spans])
        features.append(answers.relu().amax(0))
    vertical = window.T @ model.vertical.weight.T + model.vertical.bias
    features.append(vertical.flatten())
    assert torch.allclose(state, model.dense(torch.cat(features)).relu(), atol=rounding(SUMS))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_state_sees_neither_what_comes_later_nor_the_filling(name: EncoderName) -> None:
    model = new(name)
    long, lengths = model.states([(100, 101, 102, 103), (105,)])
    short, _ = model.states([(100, 101)])

    assert lengths.tolist() == [5, 2]
    assert torch.allclose(long[0, :3], short[0], atol=rounding(SUMS))
    assert torch.allclose(model.last([(105,)])[0], long[1, 1], atol=rounding(SUMS))


@pytest.mark.parametrize("name", ENCODERS)
def test_only_the_latest_items_of_a_long_history_are_read(name: EncoderName) -> None:
    model = new(name)
    latest = (103, 104, 105, 106, 107, 108)
    assert torch.equal(model.last([(100, 101, *latest)]), model.last([(111, *latest)]))
    assert not torch.allclose(model.last([latest[:-1]]), model.last([latest]))


@pytest.mark.parametrize("name", ENCODERS)
def test_an_untrained_encoder_has_no_dropout_when_it_ranks_and_leaves_the_random_numbers_alone(
    name: EncoderName,
) -> None:
    model = new(name)
    before = torch.get_rng_state()
    scores = [model.scores([Request(1, (100, 101))], None) for _ in range(2)]

    assert torch.equal(*scores)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_filling_is_never_ranked_and_scores_are_products_with_item_embeddings(name: EncoderName) -> None:
    model = new(name)
    torch.nn.init.normal_(model.encoder.bias)
    everything = model.scores([Request(1, (100, 105))], None)
    embedding = model.item_embedding([100, 111])

    assert everything.shape == (1, 12)
    assert embedding.shape == (2, 8)
    by_hand = embedding @ model.last([(100, 105)])[0] + model.encoder.bias[[0, 11]]
    assert torch.allclose(everything[0, [0, 11]].float(), by_hand, atol=rounding(SUMS))
    with pytest.raises(RecalignError, match="item 99 is not among the 12 items"):
        model.item_embedding([100, 99])


@pytest.mark.parametrize("name", ENCODERS)
def test_an_unknown_item_in_a_history_is_named(name: EncoderName) -> None:
    with pytest.raises(RecalignError, match="item 99 is not among the 12 items"):
        new(name).scores([Request(1, (100, 99))], None)


@pytest.mark.parametrize("name", ENCODERS)
def test_who_asks_does_not_matter_and_a_repeated_item_is_read_each_time(name: EncoderName) -> None:
    model = new(name)
    asked = [Request(user, (100, 101)) for user in (1, 10**12, None)]
    scores = model.scores([*asked, Request(1, (100, 101, 101))], None)

    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])
    assert scores[3].isfinite().all()
    assert model.states([(100, 101, 101)])[1].tolist() == [4]


def test_without_a_clock_sasrec_reads_the_items_before_the_last_as_a_set() -> None:
    model = new("sasrec", Settings(dimension=8, length=6, ordered=False))
    block = model.encoder.blocks[0]  # with one block no state but the last one reads the order
    model.encoder.blocks = torch.nn.ModuleList([block])
    assert torch.allclose(model.last([(100, 101, 102, 105)]), model.last([(102, 100, 101, 105)]), atol=rounding(SUMS))


def test_histories_become_rows_in_which_each_item_is_a_target_once() -> None:
    histories = Histories(TWELVE, chain_log(users=3, each=5))
    batches = list(histories.batches(2, Settings(length=3), np.random.default_rng(0)))
    rows = sorted(
        (int(user), inputs.tolist(), targets.tolist(), bool(ended))
        for batch in batches
        for inputs, targets, user, ended in zip(*batch, strict=True)
    )

    assert [len(batch.users) for batch in batches] == [2, 2, 2]
    assert [row for row in rows if row[0] == 0] == [
        (0, [1, 2, 3], [2, 3, 4], True),
        (0, [12, 0], [0, 1], False) if len(rows[1][1]) == 2 else (0, [12, 0, 12], [0, 1, NO_TARGET], False),
    ]


def test_the_last_incomplete_batch_is_learned_too() -> None:
    histories = Histories(TWELVE, chain_log(users=5, each=4))
    sizes = [len(batch.users) for batch in histories.batches(2, SMALL, np.random.default_rng(0))]
    assert sizes == [2, 2, 1]


def test_a_set_is_shuffled_anew_each_epoch_and_a_sequence_is_not() -> None:
    histories = Histories(TWELVE, chain_log(users=1, each=9))
    draw = np.random.default_rng(0)

    def epoch(ordered: bool) -> list[int]:
        (batch,) = histories.batches(2, Settings(length=9, ordered=ordered), draw)
        return batch.targets[0].tolist()

    assert epoch(True) == epoch(True) == list(range(9))
    assert sorted(epoch(False)) == list(range(9))
    assert epoch(False) != epoch(False)


def test_what_a_user_likes_is_no_negative() -> None:
    histories = Histories(TWELVE, chain_log(users=2, each=4))  # items 0 … 3 and 7 … 10
    allowed = histories.allowed(torch.tensor([1, 0]), torch.tensor([0, 7, 11, 3]))
    assert allowed.tolist() == [[True, False, True, True], [False, True, True, False]]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("loss", ["full", "sampled", "binary"])
def test_one_row_is_a_batch_and_its_loss_has_gradients(name: EncoderName, loss: str) -> None:
    histories = Histories(TWELVE, chain_log(users=1, each=4))
    encoder = build_encoder(name, 12, SMALL)
    (batch,) = histories.batches(8, SMALL, np.random.default_rng(0))
    states = encoder(batch.inputs)
    value = batch_loss(encoder, states, batch, histories, quick(loss=loss), np.random.default_rng(0))
    value.backward()

    assert value.shape == ()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_filling_adds_nothing_to_the_loss() -> None:
    histories = Histories(TWELVE, chain_log(users=2, each=4))
    encoder = SASRec(12, 8, 0.0, 6, ordered=True)
    batch, *_ = histories.batches(2, SMALL, np.random.default_rng(0))
    fillings = ((batch.inputs, 12), (batch.targets, NO_TARGET))
    wider = [torch.nn.functional.pad(block, (0, 2), value=value) for block, value in fillings]
    losses = [
        batch_loss(encoder, encoder(rows.inputs), rows, histories, quick(loss=loss), np.random.default_rng(0)).item()
        for loss in ("full", "sampled", "binary")
        for rows in (batch, batch._replace(inputs=wider[0], targets=wider[1]))
    ]
    assert losses[::2] == pytest.approx(losses[1::2], rel=1e-6)


@pytest.mark.parametrize(("name", "loss"), [("sasrec", "binary"), ("gru4rec", "full"), ("caser", "sampled")])
def test_training_finds_the_order_of_a_ring_of_items(name: EncoderName, loss: str) -> None:
    params = quick(loss=loss, learning_rate=2e-2, epochs=12, patience=12, batch=16, dropout=0.0)
    model, report = fit_next_item(name, FORTY, chain_log(100, each=8, items=40), True, 1, params)
    best = top(model, FORTY, [Request(None, (135, 136, 137, 138, 139))], 4)

    assert 100 in [scored.item_id for scored in best[0]]
    assert len(report["tried"]) == 12
    assert report["tried"][report["chosen"]["epochs"] - 1]["ndcg_at_10"] > 0.9


def test_training_repeats_byte_for_byte_and_moves_nobody_elses_random_numbers() -> None:
    params = quick(epochs=3)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    events = chain_log()
    one, _ = fit_next_item("sasrec", TWELVE, events, True, 1, params)
    shuffled = events.take(np.random.default_rng(1).permutation(len(events)))
    again, _ = fit_next_item("sasrec", TWELVE, shuffled, True, 1, params)
    other, _ = fit_next_item("sasrec", TWELVE, events, True, 2, params)

    weights = [model.encoder.state_dict()["embedding.weight"] for model in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_training_stops_when_patience_ends_and_keeps_the_best_epoch() -> None:
    params = quick(learning_rate=1e-2, epochs=60, patience=2)
    _, report = fit_next_item("gru4rec", FORTY, chain_log(60, items=40), True, 1, params)
    values = [row["ndcg_at_10"] for row in report["tried"]]

    assert len(values) < 60
    assert report["chosen"]["epochs"] == values.index(max(values)) + 1 == len(values) - 2


def test_sets_are_learned_as_sets() -> None:
    """Users like the items of one half of the catalogue; the held-out users' other items are found among the rest."""
    rng = np.random.default_rng(0)
    rows = [(user, 100 + 20 * (user % 2) + item) for user in range(60) for item in rng.permutation(20)[:8]]
    events = pa.table(
        {
            c.USER: [row[0] for row in rows],
            c.ITEM: [row[1] for row in rows],
            c.TIMESTAMP: pa.nulls(len(rows), pa.timestamp("us")),
            c.POSITION: list(range(8)) * 60,
        }
    )
    params = quick(learning_rate=1e-2, epochs=15, patience=15)
    model, report = fit_next_item("sasrec", FORTY, events, False, 1, params)

    assert not model.settings.ordered
    cases = held_out(FORTY, events, False, 1)
    popularity = cases.value(Popularity.fit(FORTY, cases.events))
    assert max(row["ndcg_at_10"] for row in report["tried"]) > popularity + 0.1


def whitened(catalogue: Items, encoder: str, width: int) -> torch.Tensor:
    """[items, width] of what is read of a catalogue's items."""
    return torch.from_numpy(whitening(catalogue, encoder, width, TextReader()).of(catalogue, catalogue.ids)).float()


def described(popular: int = 30) -> Items:
    """Forty items in five genres; the last ten are new: no train event counts for them."""
    ids = FORTY.ids
    genres = {item: {"genre": [f"genre {item % 5}"], "year": [str(1950 + item)]} for item in ids}
    return replace(FORTY, attributes=genres, popularity={item: int(place < popular) for place, item in enumerate(ids)})


def text_params(text: str, **more: object) -> NextItemParams:
    asked: dict[str, object] = {
        "epochs": 3,
        "patience": 1,
        "dimension": 16,
        "text_encoder": "attributes",
        "text": text,
        **more,
    }
    return quick(**asked)


def known_log() -> pa.Table:
    """Walks among the first thirty items."""
    return chain_log(80, each=8, items=30)


def test_without_text_weights_and_settings_are_those_of_before(tmp_path: Path) -> None:
    """Bit for bit, whatever else the text parameters say; the settings file has no word of text."""
    plain, _ = fit_next_item("sasrec", FORTY, known_log(), True, 1, quick(epochs=2))
    told: dict[str, object] = {"epochs": 2, "text_encoder": "tfidf", "text_share": 0.3, "text_bound": 2.0}
    other, _ = fit_next_item("sasrec", FORTY, known_log(), True, 1, quick(**told))
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.encoder.state_dict().values(), other.encoder.state_dict().values(), strict=True)
    )
    plain.save(tmp_path)
    assert "text" not in (tmp_path / "settings.json").read_text(encoding="utf-8")


def test_whitened_columns_are_alike_in_length_and_at_right_angles() -> None:
    catalogue = described()
    vectors = whitened(catalogue, "attributes", 4)
    known = vectors[: len(catalogue.trained.ids)].double()
    moments = known.T @ known / len(known)
    assert torch.allclose(moments, torch.eye(4, dtype=torch.float64) / 4, atol=1e-5)
    assert known.mean(dim=0).abs().max() < 1e-6
    wide = whitened(catalogue, "attributes", 32)
    assert (wide[:, 20:] == 0).all(), "beyond the rank there is nothing"
    assert wide[-1].norm() > 0.3, "a new item is read too"


def test_items_that_are_described_alike_are_refused() -> None:
    bare = replace(FORTY, attributes={item: {} for item in FORTY.ids})
    with pytest.raises(RecalignError, match=r"next_item\.text reads 'attributes', which says the same of all items"):
        whitened(bare, "attributes", 4)


def test_the_encoder_model_is_the_one_that_content_names() -> None:
    """The encoder called 'model' is read from recommenders.content.model here too."""
    sections = params_or_shipped().recommenders
    content = sections.content.model_copy(update={"model": "no/folder/here"})
    asked = sections.model_copy(update={"next_item": text_params("split", text_encoder="model"), "content": content})
    with pytest.raises(RecalignError, match=r"recommenders.content.model is 'no/folder/here', which is no folder"):
        next_item.fit(Fitting("sasrec", described(), known_log(), True, 1, 1, asked))


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_frozen_dimensions_have_no_gradient_and_stay(name: EncoderName) -> None:
    catalogue = described()
    model, _ = fit_next_item(name, catalogue, known_log(), True, 1, text_params("split", text_share=0.25))
    table = model.encoder.embedding
    assert isinstance(table, TextEmbedding)
    assert [key for key, _ in table.named_parameters()] == ["own"]
    assert table.weight.shape == (41, 16)
    assert torch.equal(table.weight[:-1, :4], whitened(catalogue, "attributes", 4))
    assert table.own[:30].abs().min() > 0, "known items learn"
    assert (table.own[30:40] == 0).all(), "new ones are read by their text alone"


@pytest.mark.parametrize("bound", [0.01, 0.5])
def test_what_delta_learns_is_bounded(bound: float) -> None:
    catalogue = described()
    model, _ = fit_next_item(
        "sasrec", catalogue, known_log(), True, 1, text_params("delta", text_bound=bound, learning_rate=0.1)
    )
    table = model.encoder.embedding
    assert isinstance(table, TextEmbedding)
    moved = (table.weight - table.text)[:-1].norm(dim=1)
    most = bound * table.text[:-1].norm(dim=1).mean()
    assert moved.max() <= most * (1 + 1e-5)
    assert table.own[:30].norm(dim=1).max() > most, "the bound was needed"
    assert (moved[30:] == 0).all()


@pytest.mark.parametrize("text", ["split", "delta"])
@pytest.mark.parametrize("loss", ["sampled", "full"])
def test_an_encoder_with_text_comes_back_and_tells_new_items_apart(tmp_path: Path, text: str, loss: str) -> None:
    catalogue = described()
    model, _ = fit_next_item("sasrec", catalogue, known_log(), True, 1, text_params(text, loss=loss))
    model.save(tmp_path)
    again = load_fitted("sasrec", tmp_path, catalogue)
    asked = [Request(1, (catalogue.ids[0], catalogue.ids[5]))]
    scores = model.scores(asked, None)
    assert torch.equal(scores, again.scores(asked, None))
    assert scores.shape == (1, 40), "new items are ranked, not put last"
    assert scores[0, 30:].unique().numel() == 10
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
@pytest.mark.parametrize("text", ["split", "delta"])
def test_on_another_catalogue_known_items_score_as_before_and_new_ones_by_their_text(
    tmp_path: Path, name: EncoderName, text: str
) -> None:
    """Renumbered, with a twin of item 131 and an item of a year far from all others beside them."""
    own = replace(described(), titles={item: f"Title {item}" for item in FORTY.ids})
    fitted, _ = fit_next_item(name, own, known_log(), True, 1, text_params(text, text_bound=0.05, learning_rate=0.1))
    fitted.save(tmp_path)
    titles = {item + 1000: title for item, title in own.titles.items()} | {2000: "Twin", 2001: "Far"}
    told = {item + 1000: values for item, values in own.attributes.items()}
    told |= {2000: own.attributes[131], 2001: {"genre": ["genre 1"], "year": ["2300"]}}
    ids = tuple(sorted(titles))
    newer = Items(ids, titles, told, dict.fromkeys(ids, 0))
    moved = on_catalogue(load_fitted(name, tmp_path, own), own, newer)
    before = fitted.scores([Request(1, (100, 105))], None)[0]
    after = moved.scores([Request(1, (1100, 1105))], None)[0]
    assert torch.allclose(after[:40], before, atol=1e-5)
    assert after[40] == pytest.approx(before[31].item(), abs=1e-5)
    assert after[41] != after[40]
    assert isinstance(moved, ReadsItems)
    assert not isinstance(new(name), ReadsItems), "without text another catalogue has nothing to say"


def test_new_items_are_nobodys_wrong_answers() -> None:
    histories = Histories(described(), known_log())
    drawn = histories.drawn(5000, np.random.default_rng(0))
    assert set(drawn.tolist()) == set(range(30))
    every = Histories(FORTY, known_log()).drawn(9, np.random.default_rng(4))
    assert every.tolist() == np.random.default_rng(4).integers(40, size=9).tolist(), "as before there was text"
