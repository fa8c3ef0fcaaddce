"""The promises of the pairs, each held against a small random log and the real stages."""

import math
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from flat_project import flat_project
from preference_world import CUTOFFS, START, Event, PreparedLog, random_log

from recalign.common import columns as c
from recalign.common.artifacts import MANIFEST, read_parquet, verify, write_parquet
from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items, hashed_batches, read_examples, read_taken
from recalign.params.load import Params, parse_params
from recalign.recommenders.item_knn import ItemKNN
from recalign.recommenders.recommender import Request
from recalign.stages.pairs import pairs
from recalign.stages.profiles import profiles
from recalign.training.new_items import new_in_epoch, turn_of

Row = dict[str, Any]


@pytest.fixture
def params(tree: dict[str, Any]) -> Params:
    """Mixed negatives of four kinds, profiles by counting alone."""
    tree["pairs"] |= {"examples": 60, "negatives": 6, "strategy": "mixed", "hard_pool": 5}
    tree["pairs"]["shares"] = {"uniform": 0.25, "popularity": 0.25, "hard": 0.25, "profile": 0.25}
    tree["profiles"] |= {"engine": "counting", "users": 100}
    return parse_params(tree)


def with_pairs(params: Params, **changes: Any) -> Params:
    return params.model_copy(update={"pairs": params.pairs.model_copy(update=changes)})


def run(params: Params, log: PreparedLog, root: Path) -> Path:
    """Both stages over a log; the path of pairs.parquet."""
    log.write(root)
    profiles(params, flat_project(root))
    pairs(params, flat_project(root))
    verify(root / "pairs")
    return root / "pairs" / "pairs.parquet"


def rows(path: Path, split: str | None = None) -> list[Row]:
    return [row for row in read_parquet(path).to_pylist() if split in (None, row[c.SPLIT])]


def test_no_rejected_item_is_of_the_history_the_target_or_any_training_event_of_the_user(
    params: Params, tmp_path: Path
) -> None:
    log = PreparedLog(random_log())
    train: dict[int, set[int]] = {}
    for event in log.rows():
        if event[c.SPLIT] == c.TRAIN:
            train.setdefault(event[c.USER], set()).add(event[c.ITEM])
    made = rows(run(params, log, tmp_path))
    later = [row for row in made if train[row[c.USER]] - {*row[c.HISTORY], row[c.CHOSEN]}]
    assert later, "the log has examples with later training events"
    for row in made:
        assert not {*row[c.HISTORY], row[c.CHOSEN], *train[row[c.USER]]} & set(row[c.REJECTED])
        assert len(set(row[c.REJECTED])) == len(row[c.REJECTED]) == len(row["strategies"]) == 6


def test_events_of_the_test_split_change_no_byte_of_the_pairs(params: Params, tmp_path: Path) -> None:
    """Test events are swapped between users; the validation examples' own history and target are what they were."""
    log = random_log()
    late = [event for event in log if event[2] >= CUTOFFS[c.TEST]]
    moved = [(user, 1 + item % 40, time + timedelta(minutes=7)) for user, item, time in late]
    kept = {(user, item) for user, item, time in log if time < CUTOFFS[c.TEST]}
    changed = [event for event in log if event[2] < CUTOFFS[c.TEST]] + [e for e in moved if e[:2] not in kept]
    first = run(params, PreparedLog(log), tmp_path / "a")
    second = run(params, PreparedLog(changed), tmp_path / "b")
    assert read_parquet(tmp_path / "a/prepared/events.parquet") != read_parquet(tmp_path / "b/prepared/events.parquet")
    assert first.read_bytes() == second.read_bytes()


def test_the_validation_events_of_others_change_no_byte_of_the_training_pairs(params: Params, tmp_path: Path) -> None:
    log = random_log()
    early = [event for event in log if event[2] < CUTOFFS[c.VALIDATION]]
    full, cut = run(params, PreparedLog(log), tmp_path / "a"), run(params, PreparedLog(early), tmp_path / "b")
    assert rows(full, c.VALIDATION)
    assert rows(full, c.TRAIN) == rows(cut, c.TRAIN)


def test_the_order_of_rows_changes_no_byte(params: Params, tmp_path: Path) -> None:
    log = random_log()
    first = run(params, PreparedLog(log), tmp_path / "a")
    second = run(params, PreparedLog(log, shuffle=random.Random(1)), tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_draws_other_items(params: Params, tmp_path: Path) -> None:
    log = PreparedLog(random_log())
    first = rows(run(params, log, tmp_path / "a"))
    other = rows(run(params.model_copy(update={"seed": 5}), log, tmp_path / "b"))
    drawn = {row[c.EXAMPLE]: row[c.REJECTED] for row in first}
    assert any(drawn.get(row[c.EXAMPLE], row[c.REJECTED]) != row[c.REJECTED] for row in other)


def test_training_pairs_show_no_item_that_is_new_in_their_turn(params: Params, tmp_path: Path) -> None:
    """The histories alone change, of training alone; nothing that a whole history holds is rejected."""
    log = PreparedLog(random_log())
    asked = params.model_copy(update={"sft": params.sft.model_copy(update={"new_items": 0.5})})
    plain = {row[c.EXAMPLE]: row for row in rows(run(params, log, tmp_path / "a"))}
    made = rows(run(asked, log, tmp_path / "b"))
    shortened = 0
    for row in made:
        before = plain[row[c.EXAMPLE]]
        assert row[c.CHOSEN] == before[c.CHOSEN]
        assert not {*before[c.HISTORY], row[c.CHOSEN]} & set(row[c.REJECTED])
        if row[c.SPLIT] != c.TRAIN:
            assert row == before
            continue
        example = Example(row[c.EXAMPLE], row[c.USER], c.TRAIN, None, tuple(before[c.HISTORY]), row[c.CHOSEN])
        new = new_in_epoch(range(1, 200), 0.5, turn_of(example, 0.5, params.seed), params.seed)
        known = [item for item in before[c.HISTORY] if item not in new]
        assert row[c.HISTORY] == (known or before[c.HISTORY])
        shortened += row[c.HISTORY] != before[c.HISTORY]
    assert shortened > 5


def test_pairs_follow_the_order_of_examples_so_that_more_of_them_begin_with_fewer(
    params: Params, tmp_path: Path
) -> None:
    log = PreparedLog(random_log())
    few = rows(run(with_pairs(params, examples=10), log, tmp_path / "few"), c.TRAIN)
    many = rows(run(params, log, tmp_path / "many"), c.TRAIN)
    examples = read_examples(tmp_path / "many" / "prepared", c.TRAIN, 60, seed=params.seed)
    assert [row[c.EXAMPLE] for row in many] == [example.example_id for example in examples]
    assert many[:10] == few
    assert [tuple(row[c.HISTORY]) for row in many] == [example.history for example in examples]
    assert [row[c.CHOSEN] for row in many] == [example.target for example in examples]


def test_hard_items_are_the_wrong_items_that_item_knn_ranks_highest(params: Params, tmp_path: Path) -> None:
    log = PreparedLog(random_log())
    made = rows(run(with_pairs(params, strategy="hard", negatives=5), log, tmp_path))
    catalogue = Items.read(tmp_path / "prepared")
    knn = ItemKNN.load(tmp_path / "baselines" / "item_knn", catalogue)
    train = {(event[c.USER], event[c.ITEM]) for event in log.rows() if event[c.SPLIT] == c.TRAIN}
    for row in made:
        scores = knn.scores([Request(row[c.USER], tuple(row[c.HISTORY]))], None)[0].tolist()
        wrong = [
            (-score, item)
            for item, score in zip(catalogue.ids, scores, strict=True)
            if item not in (*row[c.HISTORY], row[c.CHOSEN]) and (row[c.USER], item) not in train
        ]
        assert set(row[c.REJECTED]) == {item for _, item in sorted(wrong)[:5]}
    assert Counter(name for row in made for name in row["strategies"]) == {"hard": 5 * len(made)}


def test_profile_items_are_ones_that_a_claim_of_the_users_profile_holds_for(params: Params, tmp_path: Path) -> None:
    made = rows(run(params, PreparedLog(random_log()), tmp_path))
    items = Items.read(tmp_path / "prepared")
    claims = {
        (row[c.SPLIT], row[c.USER]): row[c.CLAIMS]
        for row in read_parquet(tmp_path / "profiles" / "profiles.parquet").to_pylist()
    }
    drawn = 0
    for row in made:
        for item, strategy in zip(row[c.REJECTED], row["strategies"], strict=True):
            if strategy == "profile":
                values = [value for group in items.attributes[item].values() for value in group]
                held = [
                    claim["value"] in values
                    or claim["value"] == f"{values[-1][:3]}0s"
                    or claim["attribute"] == "popularity"
                    for claim in claims[row[c.SPLIT], row[c.USER]]
                ]
                assert any(held)
                drawn += 1
    assert drawn > 50


def test_a_pair_carries_the_profile_of_its_own_split(params: Params, tmp_path: Path) -> None:
    made = rows(run(params, PreparedLog(random_log()), tmp_path))
    texts = {
        (row[c.SPLIT], row[c.USER]): row[c.TEXT] or None
        for row in read_parquet(tmp_path / "profiles" / "profiles.parquet").to_pylist()
    }
    assert [row[c.PROFILE] for row in made] == [texts.get((row[c.SPLIT], row[c.USER])) for row in made]
    assert sum(row[c.PROFILE] is not None for row in made) > 20


def test_a_catalogue_with_too_few_items_gives_shorter_lists(
    params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    log = PreparedLog(random_log(users=6, items=16, events_a_user=13), items=16)
    made = rows(run(params, log, tmp_path))
    assert made
    assert all(1 <= len(row[c.REJECTED]) <= 6 for row in made)
    assert any(len(row[c.REJECTED]) < 6 for row in made)
    assert "fewer than 6 rejected items" in caplog.text


def test_without_a_clock_nothing_of_the_users_own_set_is_rejected(params: Params, tmp_path: Path) -> None:
    log = PreparedLog(random_log(), clock=False)
    made = rows(run(params, log, tmp_path))
    own: dict[int, set[int]] = {}
    for event in log.rows():
        own.setdefault(event[c.USER], set()).add(event[c.ITEM])
    assert {row[c.SPLIT] for row in made} == {c.TRAIN, c.VALIDATION}
    for row in made:
        assert not own[row[c.USER]] & set(row[c.REJECTED])


def test_without_the_item_knn_hard_negatives_stop_with_the_missing_file(params: Params, tmp_path: Path) -> None:
    PreparedLog(random_log()).write(tmp_path)
    project = flat_project(tmp_path).moved(baselines=tmp_path / "nowhere")
    profiles(params, project)
    with pytest.raises(RecalignError, match=r"nowhere.*item_knn.*missing"):
        pairs(params, project)
    assert not (tmp_path / "pairs").exists()
    uniform = with_pairs(params, strategy="uniform")
    pairs(uniform, project)
    assert (tmp_path / "pairs" / "pairs.parquet").is_file()


@pytest.mark.parametrize("clock", [True, False])
def test_further_liked_items_are_the_next_ones_of_the_same_split_and_never_rejected(
    params: Params, tmp_path: Path, clock: bool
) -> None:
    log = PreparedLog(random_log(), clock=clock)
    made = rows(run(with_pairs(params, positives=3), log, tmp_path))
    times = {(row[c.USER], row[c.ITEM]): (row[c.SPLIT], row[c.TIMESTAMP]) for row in log.rows()}
    trained = {row[c.ITEM] for row in log.rows() if row[c.SPLIT] == c.TRAIN}
    assert {len(row[c.ALSO]) for row in made} == ({0, 1, 2} if clock else {0, 2})
    for row in made:
        user, also, known = row[c.USER], row[c.ALSO], {*row[c.HISTORY], row[c.CHOSEN]}
        assert not {*also} & ({*row[c.REJECTED]} | known)
        assert {times[user, item][0] for item in also} <= {row[c.SPLIT]}
        if clock:
            since = times[user, row[c.CHOSEN]][1]
            own = [(time, item) for (who, item), (split, time) in times.items() if (who, split) == (user, row[c.SPLIT])]
            later = [item for time, item in sorted(own) if time >= since and item not in known and item in trained]
            assert also == later[:2]


def in_batches(params: Params, size: int, **changes: Any) -> Params:
    asked = with_pairs(params, strategy="in_batch", **changes)
    return asked.model_copy(update={"align": asked.align.model_copy(update={"batch": size})})


@pytest.mark.parametrize("positives", [1, 3])
def test_pairs_in_batches_reject_what_others_of_the_batch_chose_and_nobody_met(
    params: Params, tmp_path: Path, positives: int
) -> None:
    """The batches are the training loop's; log q is the share of each item among the chosen items of the split."""
    log = PreparedLog(random_log())
    made = rows(run(in_batches(params, 12, negatives=4, positives=positives), log, tmp_path))
    train = {(event[c.USER], event[c.ITEM]) for event in log.rows() if event[c.SPLIT] == c.TRAIN}
    for split in (c.TRAIN, c.VALIDATION):
        own = {row[c.EXAMPLE]: row for row in made if row[c.SPLIT] == split}
        counts = Counter(row[c.CHOSEN] for row in own.values())
        assert len(own) > 12
        assert max(counts.values()) > 1
        for names in hashed_batches(own, 12, params.seed, 0):
            offered = {own[name][c.CHOSEN] for name in names}
            for row in (own[name] for name in names):
                assert {*row[c.REJECTED]} <= offered - {row[c.CHOSEN], *row[c.HISTORY], *(row.get(c.ALSO) or [])}
                assert not {(row[c.USER], item) for item in row[c.REJECTED]} & train
                assert {*row["strategies"]} == {"in_batch"}
                shown = [row[c.CHOSEN], *(row.get(c.ALSO) or []), *row[c.REJECTED]]
                expected = [math.log(max(1, counts[item]) / len(own)) for item in shown]
                assert row[c.LOG_Q] == pytest.approx(expected)


def test_in_a_batch_of_one_nobody_else_chose_anything(params: Params, tmp_path: Path) -> None:
    with pytest.raises(
        RecalignError, match=r"'in_batch', which rejects .* align\.batch is 1; set align\.batch to 2 or"
    ):
        run(in_batches(params, 1), PreparedLog(random_log()), tmp_path)
    assert not (tmp_path / "pairs").exists()


def test_other_strategies_say_nothing_of_how_often_an_item_is_offered(params: Params, tmp_path: Path) -> None:
    assert c.LOG_Q not in read_parquet(run(params, PreparedLog(random_log()), tmp_path)).column_names


def test_one_liked_item_leaves_the_file_as_it_was(params: Params, tmp_path: Path) -> None:
    assert c.ALSO not in read_parquet(run(params, PreparedLog(random_log()), tmp_path)).column_names


def disliking(log: list[Event], per_user: int = 8) -> list[Event]:
    """Items that each user of the log disliked in the first days, none of which the user ever likes."""
    liked = {event[:2] for event in log}
    return [
        (user, item, START + timedelta(minutes=item))
        for user in range(1, 25)
        for item in [i for i in range(1, 41) if (user, i) not in liked][:per_user]
    ]


@pytest.mark.parametrize("clock", [True, False])
def test_what_was_met_and_disliked_is_never_drawn_as_unseen(params: Params, tmp_path: Path, clock: bool) -> None:
    """By no strategy, in training nor in validation."""
    disliked = disliking(random_log())
    made = rows(run(params, PreparedLog(random_log(), clock=clock, disliked=disliked), tmp_path))
    assert {row[c.SPLIT] for row in made} == {c.TRAIN, c.VALIDATION}
    assert {name for row in made for name in row["strategies"]} == {"uniform", "popularity", "hard", "profile"}
    met = {event[:2] for event in disliked}
    assert not {(row[c.USER], item) for row in made for item in row[c.REJECTED]} & met


@pytest.mark.parametrize("clock", [True, False])
def test_pairs_by_dislikes_reject_what_the_user_disliked_before_the_case(
    params: Params, tmp_path: Path, clock: bool
) -> None:
    """All of them: users with enough dislikes come first. What is disliked after a case is no part of it."""
    log = random_log()
    early = disliking(log)
    late = [(user, item, CUTOFFS[c.TEST] + timedelta(days=9)) for user, item, _ in disliking(log, 12)]
    late = [event for event in late if event[:2] not in {own[:2] for own in early}] if clock else []
    asked = with_pairs(params, strategy="disliked", examples=30, negatives=4)
    made = rows(run(asked, PreparedLog(log, clock=clock, disliked=early + late), tmp_path))
    assert len(made) > 30
    assert {(row[c.USER], item) for row in made for item in row[c.REJECTED]} <= {event[:2] for event in early}
    assert {name for row in made for name in row["strategies"]} == {"disliked"}


def test_an_item_is_disliked_until_it_is_liked(params: Params, tmp_path: Path) -> None:
    """Whoever leaves out what is liked one day tells training the future: test events change no byte of the pairs."""
    log = random_log()
    early = disliking(log)
    user, item = early[0][:2]
    changed = [*log, (user, item, CUTOFFS[c.TEST] + timedelta(days=1))]
    asked = with_pairs(params, strategy="disliked", examples=30, negatives=4)
    first = run(asked, PreparedLog(log, disliked=early), tmp_path / "a")
    second = run(asked, PreparedLog(changed, disliked=early[1:], met_before=early[:1]), tmp_path / "b")
    assert (user, item) in {(row[c.USER], one) for row in rows(first) for one in row[c.REJECTED]}
    assert first.read_bytes() == second.read_bytes()


def test_too_few_dislikes_stop_the_stage_and_mixed_counts_them(
    params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One dislike a user where a pair takes four: three of four rejected items would be drawn by uniform."""
    caplog.set_level("INFO")
    log = PreparedLog(random_log(), disliked=disliking(random_log(), 1))
    strict = with_pairs(params, strategy="disliked", negatives=4)
    said = r"'disliked', but \d+ of \d+ rejected items of the train .* 'uniform' \(7\d%, at most 5%.*pairs\.negatives"
    with pytest.raises(RecalignError, match=said):
        run(strict, log, tmp_path / "strict")
    assert not (tmp_path / "strict" / "pairs").exists()
    shares = {"disliked": 0.5, "popularity": 0.5}
    made = rows(run(with_pairs(params, strategy="mixed", shares=shares, negatives=4), log, tmp_path / "mixed"))
    drawn = Counter(name for row in made for name in row["strategies"])
    assert set(drawn) == {"disliked", "popularity"}
    assert "rejected items asked of 'disliked', which had nothing left, were drawn by 'popularity'" in caplog.text


def test_dislikes_of_a_log_without_ratings_stop_with_the_reason(params: Params, tmp_path: Path) -> None:
    with pytest.raises(RecalignError, match=r"everything is liked: .*no ratings, or prepare\.min_rating is null"):
        run(with_pairs(params, strategy="disliked"), PreparedLog(random_log()), tmp_path)


def test_what_is_outside_the_core_is_taken_too(params: Params, tmp_path: Path) -> None:
    """Likes that the k-core keeps from training were liked all the same."""
    log = PreparedLog(random_log())
    log.write(tmp_path)
    path = tmp_path / "prepared" / "events.parquet"
    events = read_parquet(path).to_pylist()
    outside = {(row[c.USER], row[c.ITEM]) for row in events if row[c.SPLIT] == c.TRAIN and row[c.USER] % 2}
    for row in events:
        if (row[c.USER], row[c.ITEM]) in outside:
            row[c.SPLIT] = c.OUTSIDE
    (path.parent / MANIFEST).unlink()  # it lists the events as they were
    write_parquet(path, pa.Table.from_pylist(events, schema=read_parquet(path).schema))
    examples = read_examples(tmp_path / "prepared", c.TRAIN)
    assert {example.user_id for example in examples} & {user for user, _ in outside}
    for example, taken in zip(examples, read_taken(tmp_path / "prepared", examples), strict=True):
        own = {item for user, item in outside if user == example.user_id}
        assert own <= taken.items
        assert taken.disliked == ()
