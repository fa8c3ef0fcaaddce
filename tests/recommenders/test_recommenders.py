"""ID recommenders: the seam, hand-computed scores, what tuning may look at, and the bar on real data."""

import functools
import itertools
import json
import math
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from flat_project import flat_project
from neural_fit import fit_dreamrec, fit_mcrl, fit_next_item
from rounding import rounding
from scipy import sparse
from validated_log import random_log, small_params, write_log

from recalign.common import columns as c
from recalign.common.artifacts import file_digest, folder, read_json, verify
from recalign.common.errors import RecalignError
from recalign.data.case_file import read_catalogue
from recalign.data.records import Items
from recalign.data.simulator import days_since_start, load_catalogue, next_item_log_probs, simulate
from recalign.evaluation.metrics import draw_lots, metric_values, target_places, target_ranks
from recalign.params.load import load_params
from recalign.params.recommenders import RecommenderName
from recalign.project import Project
from recalign.recommenders import ease, item_knn, markov, recent_popularity
from recalign.recommenders.content import chosen_content, chosen_prior
from recalign.recommenders.ease import EASE, item_weights
from recalign.recommenders.item_knn import GRID, ItemKNN, Settings, fitter, nth_largest, strongest
from recalign.recommenders.markov import Markov
from recalign.recommenders.neural.encoders import EncoderName
from recalign.recommenders.oracle import Oracle
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recommender import Fitting, Recommender, Request, Tuning, top
from recalign.recommenders.roster import ROSTER, fit, load_fitted
from recalign.recommenders.store import save_state
from recalign.recommenders.train_log import TrainLog
from recalign.recommenders.tuning import HeldOut, held_out, whole_users
from recalign.stages.baselines import baselines
from recalign.stages.prepare import prepare

CATALOGUE = Items((1, 2, 3, 4, 9), {i: f"Item {i}" for i in (1, 2, 3, 4, 9)}, {}, {})
PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
LIKES = {10: [1, 2, 3], 11: [1, 2], 12: [2, 9]}  # item 4 was never taken


def events_of(likes: dict[int, list[int]]) -> pa.Table:
    """A train log; each user's likes in order, one a day."""
    rows = [(user, item, place) for user, items in likes.items() for place, item in enumerate(items)]
    days = [datetime(2024, 1, 1 + place) for _, _, place in rows]
    return pa.table(
        {
            c.USER: [row[0] for row in rows],
            c.ITEM: [row[1] for row in rows],
            c.TIMESTAMP: pa.array(days, pa.timestamp("us")),
            c.POSITION: [row[2] for row in rows],
        }
    )


QUICK = PARAMS.recommenders.next_item.model_copy(update={"dimension": 8, "epochs": 3, "max_history": 4})
QUICK_PARAMS = PARAMS.model_copy(update={"recommenders": PARAMS.recommenders.model_copy(update={"next_item": QUICK})})
COUNTS_ONLY = Settings(damping=0.0, context_damping=0.0, user_damping=0.0)
LOG = events_of(LIKES)
FITS: dict[str, Callable[[], Recommender]] = {
    "popularity": lambda: Popularity.fit(CATALOGUE, LOG),
    "item_knn of sets": lambda: ItemKNN.fit(CATALOGUE, LOG, Settings()),
    "item_knn with a clock": lambda: ItemKNN.fit(CATALOGUE, LOG, Settings(distance=2.0, recency=3.0)),
    "recent_popularity": lambda: recent_popularity.fitter(CATALOGUE, LOG)(recent_popularity.Settings(2.0)),
    "ease": lambda: EASE.fit(CATALOGUE, LOG, ease.Settings(ridge=1.0)),
    "markov": lambda: Markov.fit(CATALOGUE, LOG, markov.Settings()),
    "mcrl": lambda: fit_mcrl(CATALOGUE, LOG, True, 1, QUICK_PARAMS.recommenders)[0],
    "dreamrec": lambda: fit_dreamrec(CATALOGUE, LOG, True, 1, QUICK_PARAMS.recommenders)[0],
    **{
        name: lambda name=name: fit_next_item(name, CATALOGUE, LOG, True, 1, QUICK)[0] for name in get_args(EncoderName)
    },
    "content": lambda: chosen_content(Fitting("content", CATALOGUE, LOG, True, 1, 1, PARAMS.recommenders))[0],
    "content_prior": lambda: chosen_prior(Fitting("content_prior", CATALOGUE, LOG, True, 1, 1, PARAMS.recommenders))[0],
}


@functools.cache
def fitted(kind: str) -> Recommender:
    """A recommender of this kind, fitted once for all tests that ask for it."""
    return FITS[kind]()


@pytest.fixture(params=FITS)
def recommender(request: pytest.FixtureRequest) -> Recommender:
    """Each recommender that is fitted on events."""
    return fitted(request.param)


REQUESTS = [Request(10, (1, 2)), Request(None, (9,)), Request(11, ())]


def test_scores_of_candidates_are_those_of_the_whole_catalogue(recommender: Recommender) -> None:
    everything = recommender.scores(REQUESTS, None)
    lists = [[9, 1], [4, 2], [3, 9]]

    assert everything.shape == (3, 5)
    assert not everything.isnan().any()
    expected = [[everything[row, CATALOGUE.ids.index(i)].item() for i in items] for row, items in enumerate(lists)]
    assert recommender.scores(REQUESTS, lists).tolist() == expected


def test_a_request_scores_the_same_alone_and_in_a_batch(recommender: Recommender) -> None:
    together = recommender.scores(REQUESTS, None)
    alone = torch.cat([recommender.scores([request], None) for request in REQUESTS])
    # in float32 a batch of another shape adds up in another order; sums of 8 terms (the width) or fewer, through two
    # blocks of five sums each, and through the denoiser's three of 24 terms at each step of the sampler
    if recommender.name in (*get_args(EncoderName), "mcrl", "dreamrec", "content"):
        steps = QUICK_PARAMS.recommenders.dreamrec.sampler_steps if recommender.name == "dreamrec" else 0
        allowed = rounding(2 * 5 * 8 + steps * 3 * 24, size=float(together.abs().max().clamp(min=1.0)))
        assert torch.allclose(together, alone, rtol=0, atol=allowed)
    else:
        assert torch.equal(together, alone)


def test_what_is_saved_scores_alike_and_two_saves_have_equal_bytes(recommender: Recommender, tmp_path: Path) -> None:
    for name in ("a", "b"):
        recommender.save(tmp_path / name)
    assert file_digest(tmp_path / "a" / "model.safetensors") == file_digest(tmp_path / "b" / "model.safetensors")
    loaded = load_fitted(recommender.name, tmp_path / "a", CATALOGUE)
    assert torch.equal(loaded.scores(REQUESTS, None), recommender.scores(REQUESTS, None))


def test_a_model_of_another_catalogue_is_refused(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save(tmp_path / "model")
    other = Items((1, 2, 3, 4, 5), CATALOGUE.titles, {}, {})
    with pytest.raises(RecalignError, match=r"was fitted on another catalogue.*dvc repro baselines"):
        load_fitted(recommender.name, tmp_path / "model", other)


def test_another_recommenders_folder_is_refused(tmp_path: Path) -> None:
    fitted("popularity").save(tmp_path / "model")
    with pytest.raises(RecalignError, match="holds the recommender 'popularity', not 'item_knn'"):
        ItemKNN.load(tmp_path / "model", CATALOGUE)


def test_an_item_outside_of_the_catalogue_is_named(recommender: Recommender) -> None:
    with pytest.raises(RecalignError, match="item 77 is not among the 5 items of the catalogue"):
        recommender.scores([Request(1, (1,))], [[1, 77]])


def test_an_unknown_item_in_a_history_is_named() -> None:
    with pytest.raises(RecalignError, match="item 77 is not among"):
        fitted("item_knn of sets").scores([Request(1, (1, 77))], None)


def test_the_top_items_leave_out_the_history(recommender: Recommender) -> None:
    best = top(recommender, CATALOGUE, [Request(11, (1, 2))], 3)[0]
    assert {scored.item_id for scored in best} == {3, 4, 9}
    assert [scored.score for scored in best] == sorted((scored.score for scored in best), reverse=True)


def test_what_nobody_liked_comes_last_for_a_user_without_history() -> None:
    for name in ("popularity", "item_knn of sets", "recent_popularity", "markov"):
        assert top(fitted(name), CATALOGUE, [Request(None, ())], 5)[0][-1].item_id == 4


@pytest.mark.parametrize("name", [name for name, entry in ROSTER.items() if entry.clock])
def test_a_log_without_a_clock_is_refused_where_time_is_what_counts(name: RecommenderName) -> None:
    events = events_of(LIKES).set_column(2, c.TIMESTAMP, pa.nulls(6 + 1, pa.timestamp("us")))
    with pytest.raises(RecalignError, match=f"{name} needs a clock, and the log has none"):
        fit(name, CATALOGUE, events, False, PARAMS)


def test_no_request_yields_no_row(recommender: Recommender) -> None:
    assert len(recommender.scores([], None)) == 0


def test_popularity_counts_events() -> None:
    assert fitted("popularity").scores([Request(1, ())], None).tolist() == [[2.0, 3.0, 1.0, 0.0, 1.0]]


def test_recent_popularity_halves_an_event_a_half_life_older() -> None:
    scores = fitted("recent_popularity").scores([Request(1, ())], None)[0].tolist()
    today, yesterday, before = 1.0, 0.5**0.5, 0.5  # half-life 2 days; the newest event is of day 2
    assert scores == pytest.approx([2 * before, 2 * yesterday + before, today, 0.0, yesterday], abs=1e-12)


def test_ease_solves_its_constrained_least_squares() -> None:
    likes = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1.0]])
    weights = item_weights(likes.T @ likes, 2.0)
    gradient = likes.T @ (likes @ weights - likes) + 2.0 * weights

    assert np.diag(weights).tolist() == [0.0] * 4
    np.fill_diagonal(gradient, 0.0)  # where the constraint holds the weight, its multiplier takes the gradient
    assert np.abs(gradient).max() < 1e-12


def test_ease_of_more_items_than_are_mirrored_at_once_is_the_inverse_of_the_paper() -> None:
    likes = (np.random.default_rng(0).random((60, 1100)) < 0.1).astype(np.float64)
    together = likes.T @ likes
    inverse = np.linalg.inv(together + 50.0 * np.eye(1100))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)

    assert np.abs(item_weights(together, 50.0) - expected).max() < 1e-12
    assert (together == likes.T @ likes).all()  # each ridge that is tried starts from it


def test_ease_of_two_items_is_the_ridge_regression_of_one_on_the_other() -> None:
    catalogue = Items((1, 2), {1: "One", 2: "Two"}, {}, {})
    model = EASE.fit(catalogue, events_of({1: [1, 2], 2: [1, 2], 3: [1]}), ease.Settings(ridge=1.0))
    scores = model.scores([Request(None, (1,)), Request(None, (2, 2))], None).tolist()

    assert scores[0] == pytest.approx([0.0, float(Fraction(2, 3 + 1))], abs=1e-7)  # together / (likes of 1 + λ)
    assert scores[1] == pytest.approx([float(Fraction(2, 2 + 1)), 0.0], abs=1e-7)


def test_ease_names_the_bound_on_its_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MOST_ITEMS", 4)
    with pytest.raises(RecalignError, match=r"training knows 5 items \(at most 4\)"):
        EASE.fit(CATALOGUE, events_of(LIKES), ease.Settings())


def test_markov_counts_what_follows_and_backs_off_to_popularity() -> None:
    settings = markov.Settings(distance=1e9, recency=1e9, smoothing=1.0, damping=0.0)
    model = Markov.fit(CATALOGUE, events_of(LIKES), settings)
    scores = model.scores([Request(1, (1,)), Request(1, (3,)), Request(1, (1, 2))], None)
    share = [Fraction(n, 7) for n in (2, 3, 1, 0, 1)]
    after_1 = [Fraction(n + s, 3 + 1) for n, s in zip((0, 2, 1, 0, 0), share, strict=True)]
    after_2 = [Fraction(n + s, 2 + 1) for n, s in zip((0, 0, 1, 0, 1), share, strict=True)]

    assert scores[0].tolist() == pytest.approx([float(p) for p in after_1], abs=1e-8)
    assert scores[1].tolist() == pytest.approx([float(p) for p in share], abs=1e-8)  # nothing ever followed item 3
    assert scores[2].tolist() == pytest.approx([float(p + q) for p, q in zip(after_1, after_2, strict=True)], abs=1e-8)


def test_markov_fades_with_distance_and_recency_and_divides_by_popularity() -> None:
    likes = {1: [1, 2, 3], 2: [3]}
    model = Markov.fit(CATALOGUE, events_of(likes), markov.Settings(2.0, 4.0, smoothing=1e-9, damping=1.0))
    scores = model.scores([Request(1, (1,)), Request(1, (1, 4))], None)
    third = math.exp(-1 / 2) / (1 + math.exp(-1 / 2))

    assert scores[0, 1].item() == pytest.approx(1 - third, abs=1e-8)
    assert scores[0, 2].item() == pytest.approx(third / 2, abs=1e-8)
    assert scores[1, 1].item() == pytest.approx((1 - third) * math.exp(-1 / 4) + 1 / 4, abs=1e-8)  # 4: all back-off


def test_item_knn_of_sets_sums_co_occurrences_over_damped_popularities() -> None:
    model = ItemKNN.fit(CATALOGUE, events_of(LIKES), Settings(damping=1.0, context_damping=1.0))
    scores = model.scores([Request(1, (1, 3))], None)[0].tolist()

    # item 2 (3 likes): twice with item 1 (2 likes), once with item 3 (1 like)
    assert scores[1] == pytest.approx(float(Fraction(2, 2 * 3) + Fraction(1, 1 * 3)), abs=1e-6)
    assert scores[0] == pytest.approx(float(Fraction(1, 1 * 2)), abs=1e-6)
    assert scores[3] == pytest.approx(0.0, abs=1e-6)


def test_long_histories_weigh_less_by_the_user_damping() -> None:
    model = ItemKNN.fit(CATALOGUE, events_of(LIKES), Settings(0.0, 0.0, user_damping=1.0))
    scores = model.scores([Request(1, (2,))], None)[0].tolist()

    assert scores[0] == pytest.approx(float(Fraction(1, 3) + Fraction(1, 2)), abs=1e-6)
    assert scores[4] == pytest.approx(1 / 2, abs=1e-6)


def test_co_occurrence_fades_with_the_distance_in_the_users_order() -> None:
    settings = Settings(0.0, 0.0, 0.0, distance=2.0)
    model = ItemKNN.fit(CATALOGUE, events_of({1: [1, 2, 3, 4], 2: [3, 9]}), settings)
    scores = model.scores([Request(1, (1,))], None)[0].tolist()

    assert scores[1:4] == pytest.approx([math.exp(-1 / 2), math.exp(-2 / 2), math.exp(-3 / 2)], abs=1e-6)
    assert scores[4] == pytest.approx(0.0, abs=1e-6)  # another user's like is no neighbour


def test_the_latest_likes_of_a_history_weigh_most() -> None:
    likes = {1: [1, 2], 2: [3, 4]}
    model = ItemKNN.fit(CATALOGUE, events_of(likes), Settings(0.0, 0.0, 0.0, recency=2.0))
    scores = model.scores([Request(1, (1, 3))], None)[0].tolist()

    assert scores[3] == pytest.approx(1.0, abs=1e-6)
    assert scores[1] == pytest.approx(math.exp(-1 / 2), abs=1e-6)


def test_without_a_clock_neither_order_of_history_nor_of_events_matters() -> None:
    backwards = {user: items[::-1] for user, items in reversed(LIKES.items())}
    one, other = (ItemKNN.fit(CATALOGUE, events_of(likes), Settings()) for likes in (LIKES, backwards))
    scores = [model.scores([Request(1, h)], None) for model in (one, other) for h in ((1, 2, 9), (9, 1, 2))]

    assert all(torch.allclose(scores[0], other, rtol=1e-12) for other in scores[1:])


def test_items_without_a_vote_follow_by_popularity() -> None:
    model = fitted("item_knn of sets")
    assert [s.item_id for s in top(model, CATALOGUE, [Request(1, (4,))], 2)[0]] == [2, 1]


def test_only_the_strongest_neighbours_are_kept() -> None:
    votes = sparse.csr_array(np.array([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 5.0, 5.0], [0.0, 0.0, 0.0, 1.0]]))
    kept = [[0.0, 3.0, 0.0, 2.0], [5.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    assert strongest(votes, 2).toarray().tolist() == kept


def brute_force(likes: dict[int, list[int]], size: int, settings: Settings) -> np.ndarray:
    """Votes [items, items], pair by pair, by the equation in the module's docstring."""
    together, popularity = np.zeros((size, size)), np.zeros(size)
    for items in likes.values():
        popularity[items] += 1
        for here, there in itertools.permutations(range(len(items)), 2):
            apart = abs(here - there)
            if settings.distance is None:
                together[items[here], items[there]] += len(items) ** -settings.user_damping
            elif apart <= int(3 * settings.distance):
                faded = math.exp(-apart / settings.distance)
                together[items[here], items[there]] += len(items) ** -settings.user_damping * faded
    count = np.maximum(popularity, 1)
    votes = together * count[:, None] ** -settings.context_damping * count**-settings.damping
    for row in votes:
        row[np.argsort(-row, kind="stable")[settings.neighbours :]] = 0.0
    return votes


@pytest.mark.parametrize("pairs", [1, 300, 2**21])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(0.5, 0.25), Settings(0.3, 0.5, 0.4, neighbours=3), Settings(0.75, 0.5, 0.7, distance=1.3),
        Settings(0.25, 0.0, 0.3, distance=4.0, neighbours=2), Settings(distance=0.2),
    ],
)  # fmt: skip
def test_item_knn_counts_in_blocks_what_brute_force_counts_pair_by_pair(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, pairs: int
) -> None:
    """Whatever the size of a block; items that nobody liked stand first, last and between."""
    monkeypatch.setattr("recalign.recommenders.item_knn.PAIRS", pairs)
    draw = np.random.default_rng(0)
    liked = draw.permutation(np.arange(2, 58, 2))
    chances = draw.dirichlet(np.ones(len(liked)))
    likes = {user: draw.choice(liked, draw.integers(1, 20), replace=False, p=chances).tolist() for user in range(9, 60)}
    votes = ItemKNN.fit(Items(tuple(range(60)), {}, {}, {}), events_of(likes), settings).votes
    expected = brute_force(likes, 60, settings)

    assert votes.nnz == np.count_nonzero(expected)
    assert votes.has_sorted_indices
    np.testing.assert_allclose(votes.toarray(), expected.astype(np.float32), rtol=1e-9)


def test_of_equal_votes_the_first_columns_are_kept_in_whatever_order_they_come() -> None:
    votes = sparse.csr_array(([1.0, 5.0, 5.0, 5.0, 7.0], [0, 4, 1, 3, 2], [0, 5]), shape=(1, 5))
    assert strongest(votes, 3).toarray().tolist() == [[0.0, 5.0, 7.0, 5.0, 0.0]]


@pytest.mark.parametrize("count", [7, 56, 57, 400])
def test_the_nth_largest_is_that_of_the_sorted_values(count: int) -> None:
    """With ties, and above and below the number from which groups bound it first."""
    draw = np.random.default_rng(count)
    for values in (draw.random(count), draw.integers(0, 4, count).astype(float), np.arange(count)[::-1] / 2):
        assert nth_largest(values, 7) == np.sort(values)[::-1][6]


def test_settings_that_differ_in_recency_alone_share_their_votes() -> None:
    fit = fitter(CATALOGUE, events_of(LIKES))
    near, far = (fit(Settings(distance=2.0, recency=recency)) for recency in (1.0, 9.0))
    other = fit(Settings(distance=2.0, recency=9.0, damping=0.0))

    assert near.votes is far.votes
    assert (near.settings.recency, far.settings.recency) == (1.0, 9.0)
    assert not np.array_equal(far.votes.data, other.votes.data)


def log_events(clock: bool) -> tuple[Items, pa.Table]:
    """A random log in which neighbours in id are liked by the same users, and its catalogue."""
    rng = np.random.default_rng(0)
    likes = {user: (user * 7 + rng.permutation(12)).tolist() for user in range(60)}
    likes = {user: [item % 40 for item in items] for user, items in likes.items()}
    events = events_of(likes)
    if not clock:
        events = events.set_column(2, c.TIMESTAMP, pa.nulls(len(events), pa.timestamp("us")))
    return Items(tuple(range(40)), {}, {}, {}), events


def tuned_item_knn(catalogue: Items, events: pa.Table, clock: bool) -> tuple[ItemKNN, Tuning]:
    return item_knn.fit(Fitting("item_knn", catalogue, events, clock, 1, 1, PARAMS.recommenders))


@pytest.mark.parametrize("clock", [True, False])
def test_tuning_takes_the_best_that_it_tried_whatever_the_order_of_rows(clock: bool) -> None:
    catalogue, events = log_events(clock)
    model, report = tuned_item_knn(catalogue, events, clock)
    shuffled = events.take(np.random.default_rng(1).permutation(len(events)))
    again, report_again = tuned_item_knn(catalogue, shuffled, clock)

    chosen = [row for row in report["tried"] if row | report["chosen"] == row]
    assert [row["ndcg_at_10"] for row in chosen] == [max(row["ndcg_at_10"] for row in report["tried"])]
    assert len(report["tried"]) >= (10 if clock else 6)
    assert report == report_again
    assert torch.equal(model.scores([Request(1, (3, 4))], None), again.scores([Request(1, (3, 4))], None))


def test_tuning_on_sets_never_gives_weight_to_order() -> None:
    catalogue, events = log_events(clock=False)
    _, report = tuned_item_knn(catalogue, events, clock=False)

    assert {(row["distance"], row["recency"]) for row in report["tried"]} == {(None, None)}
    assert {row["damping"] for row in report["tried"]} == set(GRID["damping"])


@pytest.mark.parametrize("clock", [True, False])
def test_a_large_log_is_tuned_on_whole_users_up_to_a_bound_and_then_fitted_on_all(
    clock: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """720 events of 60 users: 300 are those of 25 users, whatever the order of the rows; the log says so beforehand."""
    caplog.set_level("INFO")
    catalogue, events = log_events(clock)
    shuffled = events.take(np.random.default_rng(1).permutation(len(events)))
    monkeypatch.setattr(item_knn, "KNN_EVENTS", 305)
    model, report = tuned_item_knn(catalogue, events, clock)
    _, again = tuned_item_knn(catalogue, shuffled, clock)

    sample = whole_users(events, 305)
    assert len(sample) == report["events"] == 300
    assert set(np.unique(sample[c.USER].to_numpy(), return_counts=True)[1]) == {12}
    assert report == again
    assert model.popularity.sum() == 720
    settings = 38 if clock else 18
    told = f"item-kNN: 720 train events, 40 items; tuning tries at most {settings} settings on 300 events"
    assert told in caplog.text
    assert 1 < len(report["tried"]) <= settings


def test_a_log_within_the_bound_is_tuned_on_as_it_is() -> None:
    catalogue, events = log_events(clock=True)
    _, report = tuned_item_knn(catalogue, events, True)
    assert "events" not in report
    assert whole_users(events, 720) is events
    assert len(whole_users(events, 1)) == 12  # one user at least


def test_a_log_too_small_to_split_keeps_the_default_settings() -> None:
    model, report = tuned_item_knn(CATALOGUE, events_of(LIKES), clock=True)
    assert report["tried"] == []
    assert model.settings == Settings(distance=10.0, recency=10.0)


def test_the_stage_writes_each_model_and_what_was_tried(tmp_path: Path, tree: dict[str, Any]) -> None:
    params = small_params(tree)
    write_log(tmp_path / "validated", random_log())
    project = flat_project(tmp_path)
    prepare(params, project)
    for name in ("one", "two"):
        for system in params.recommenders.systems:
            baselines(params, system, project.moved(baselines=tmp_path / name))

    for system in params.recommenders.systems:
        verify(tmp_path / "one" / system)
        manifests = [read_json(tmp_path / name / system / "manifest.json") for name in ("one", "two")]
        assert manifests[0] == manifests[1]
    catalogue = Items.read(tmp_path / "prepared")
    popularity = Popularity.load(tmp_path / "one" / "popularity", catalogue)
    assert dict(zip(catalogue.ids, popularity.counts.tolist(), strict=True)) == catalogue.popularity
    assert ItemKNN.load(tmp_path / "one" / "item_knn", catalogue).settings == Settings(
        **read_json(tmp_path / "one" / "item_knn" / "tuning.json")["chosen"]
    )


def test_an_unknown_system_lists_the_known_ones(tmp_path: Path, tree: dict[str, Any]) -> None:
    message = "system is 'svd'; input should be one of 'popularity', 'recent_popularity', 'item_knn'"
    with pytest.raises(RecalignError, match=message):
        baselines(small_params(tree), "svd", Project(tmp_path))


def test_the_oracle_gives_the_simulators_own_probabilities(tmp_path: Path) -> None:
    world = load_catalogue()
    tastes, events = simulate(users=20, days=400, seed=5)
    catalogue = Items(world.ids, {}, {}, {})
    oracle = Oracle(catalogue, {taste.user_id: taste for taste in tastes})
    user = events[0][0]
    history = [item for who, item, _ in events if who == user]
    request = Request(user, tuple(history[:5]), datetime(2024, 6, 1))
    scores = oracle.scores([request], None)

    assert torch.logsumexp(scores, 1).item() == pytest.approx(0.0, abs=1e-9)
    assert scores[0, catalogue.ids.index(history[0])] == -math.inf
    day = days_since_start(datetime(2024, 6, 1))
    expected = next_item_log_probs(oracle.tastes[user], history[:5], day, world)
    assert scores[0].tolist() == expected.tolist()
    with pytest.raises(RecalignError, match="not user 999"):
        oracle.scores([Request(999, (), datetime(2024, 6, 1))], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing; give --train"),
        (b"user_id,item\n1,2\n", "has no column 'item_id' \\(it has user_id, item\\)"),
        (b"user_id,item_id\n1,x\n", "item x is not among the"),
        (b"user_id,item_id\n1,\n2,9\n", "column 'item_id' must hold an id in every row"),
        (b"user_id,item_id\n99999999999999999999,9\n", "column 'user_id' must hold an id .*, renumber what is larger"),
        (b"user_id,item_id\n", "holds no row"),
        (b"user_id,item_id\n1,77\n", "item 77 is not among"),
        (b"user_id,item_id,timestamp\n1,2,yesterday\n", "'timestamp' must be seconds or ISO 8601"),
        (b"\xff\xfe\x00user_id,item_id\n", "is not CSV in UTF-8 with a header"),
        (b"", "is not CSV in UTF-8 with a header"),
    ],
)
def test_a_bad_train_file_is_one_line(tmp_path: Path, text: bytes | None, message: str) -> None:
    path = tmp_path / "train.csv"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(RecalignError, match=message) as caught:
        TrainLog.read(path, CATALOGUE)
    assert "\n" not in str(caught.value)


def test_a_train_file_is_ordered_by_its_clock_and_counts_a_repetition_once(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("user_id,item_id,timestamp\n1,9,300\n1,2,100\n2,1,50\n1,9,200\n1,3,400\n")
    log = TrainLog.read(path, CATALOGUE)

    assert log.clock
    assert log.catalogue.popularity == {item: int(item in (1, 2, 3, 9)) for item in CATALOGUE.ids}
    assert log.events.select([c.USER, c.ITEM, c.POSITION]).to_pylist() == [
        {"user_id": 1, "item_id": 2, "position": 0},
        {"user_id": 1, "item_id": 9, "position": 1},
        {"user_id": 1, "item_id": 3, "position": 2},
        {"user_id": 2, "item_id": 1, "position": 0},
    ]
    assert log.fit("popularity", PARAMS).scores([Request(1, ())], [[9, 4]]).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("name", ["ease", "item_knn"])
def test_items_that_a_train_file_lacks_stand_below_all_others(tmp_path: Path, name: RecommenderName) -> None:
    """And are no part of a history; 4 and 9 are lacked, and 9 has the title of 2, which stays what 2 is."""
    path = tmp_path / "train.csv"
    path.write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u in range(6) for i in (1, 2, 3) if i != 1 + u % 3))
    catalogue = Items(CATALOGUE.ids, CATALOGUE.titles | {9: "Item 2"}, {}, {})
    model = TrainLog.read(path, catalogue).fit(name, PARAMS)
    (scores,) = model.scores([Request(None, (1, 4))], None).tolist()

    assert max(scores[3:]) < min(scores[:3])
    assert scores[3] == scores[4]
    assert model.scores([Request(None, (1,))], None).tolist() == [scores]
    assert model.scores([Request(None, (1, 9))], None).tolist() == [scores]


@pytest.mark.parametrize("clock", [True, False])
def test_settings_are_chosen_among_items_that_the_user_never_met(clock: bool) -> None:
    """Each of sixty users likes eight of forty items and met eight others; the wrong candidates are of the other 24."""
    ids = tuple(range(1, 41))
    catalogue = Items(ids, {i: str(i) for i in ids}, {i: {} for i in ids}, dict.fromkeys(ids, 1))
    likes = [(user, 1 + (user + 5 * n) % 40, n) for user in range(60) for n in range(8)]
    events = pa.table({
        "user_id": [user for user, _, _ in likes],
        "item_id": [item for _, item, _ in likes],
        "timestamp": pa.array([datetime(2020, 1, 1 + n) if clock else None for _, _, n in likes], pa.timestamp("us")),
        "position": [n for _, _, n in likes],
    })  # fmt: skip
    met = [(user, 1 + (user + 5 * n + 1) % 40) for user in range(60) for n in range(8)] + [(99, 1), (3, 1000)]
    table = pa.table({"user_id": [user for user, _ in met], "item_id": [item for _, item in met]})
    before, cases = held_out(catalogue, events, clock, 1), held_out(catalogue, events, clock, 1, table)
    known = set(met)

    def met_ones(made: HeldOut) -> int:
        pairs = zip(made.requests, made.candidates, strict=True)
        return sum((request.user_id, item) in known for request, items in pairs for item in items)

    assert len(cases.requests) == len(before.requests) > 0
    assert met_ones(before) > 0
    assert met_ones(cases) == 0


def test_item_knn_tuned_on_lastfms_train_users_hits_half_of_the_cases(shared_data: Path) -> None:
    folder = shared_data / "lastfm"
    catalogue = read_catalogue(folder / "items.csv")
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    model = TrainLog.read(folder / "train_interactions.csv", catalogue).fit("item_knn", PARAMS)

    lists = [case["candidates"] for case in cases]
    scores = model.scores([Request(case["user_id"], tuple(case["history"])) for case in cases], lists)
    lots = draw_lots([str(row) for row in range(len(cases))], lists)
    ranks = target_ranks(scores.numpy(), target_places(lists, [case["target"] for case in cases]), lots)
    assert len(cases) == 1211
    assert metric_values("hr_at_1", ranks).mean() >= 0.49


@pytest.mark.parametrize("kind", FITS)
def test_a_recommender_whose_files_were_changed_or_are_not_finite_is_refused(kind, tmp_path):
    """A flipped bit beside its manifest, then numbers that diverged, saved or loaded."""
    name = fitted(kind).name
    with folder(tmp_path / name) as partial:
        fitted(kind).save(partial)
    file = tmp_path / name / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 64
    file.write_bytes(bytes(whole))
    with pytest.raises(RecalignError, match=r"model\.safetensors was changed after it was written"):
        load_fitted(name, tmp_path / name, CATALOGUE)
    with pytest.raises(RecalignError, match=f"the recommender '{name}' holds values that are not finite"):
        save_state(tmp_path / "bad", name, CATALOGUE, {"weights": np.array([1.0, np.nan])}, {})
