"""Whoever appears in a prompt or a pair has a profile where params ask for one; what falls short stops the stage."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from flat_project import flat_project
from preference_world import CUTOFFS, Event, PreparedLog, random_log
from resealed import resealed

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet, write_parquet
from recalign.common.errors import RecalignError
from recalign.data.records import Items, read_examples
from recalign.params.load import Params, parse_params
from recalign.preferences.profiles.profiles import profile_texts, read_histories, read_profiles, read_told
from recalign.preferences.profiles.selection import (
    Shares,
    case_shares,
    nobody,
    pair_examples,
    profile_users,
    profiled_views,
    sft_examples,
    shares_sentence,
)
from recalign.stages.pairs import pairs
from recalign.stages.profiles import profiles
from recalign.training.examples import read_listing

SPLITS = (c.TRAIN, c.VALIDATION, c.TEST)
Changed = Callable[..., Params]


@pytest.fixture
def changed(tree: dict[str, Any]) -> Changed:
    """params.yaml with counted profiles of one user a split in any case, and `section__key=value` on top."""

    def make(**changes: Any) -> Params:
        tree["profiles"] |= {"engine": "counting", "users": 1}
        tree["sft"] |= {"examples": 8}
        tree["pairs"] |= {"examples": 20, "negatives": 3}
        tree["evaluate"] |= {"validation_cases": 12, "test_cases": 20, "cold_cases": 20}
        for key, value in changes.items():
            section, _, name = key.partition("__")
            tree[section][name] = value
        return parse_params(tree | {"threads": 1})

    return make


def newcomers(log: list[Event]) -> list[Event]:
    """The log, and forty users who come after training's profile cutoff; nothing can be said of them in training."""
    late = [
        (100 + user, 1 + (7 * user + 3 * n) % 40, CUTOFFS[c.TRAIN] + timedelta(hours=9 * user + 20 * n))
        for user in range(40)
        for n in range(9)
    ]
    return log + late


def make_profiles(params: Params, log: PreparedLog, root: Path) -> Path:
    """The stage over a log; its folder."""
    log.write(root)
    profiles(params, flat_project(root))
    return root / "profiles"


def make_pairs(params: Params, log: PreparedLog, root: Path) -> list[dict[str, Any]]:
    """Both stages over a log; the rows of pairs.parquet."""
    make_profiles(params, log, root)
    pairs(params, flat_project(root))
    return read_parquet(root / "pairs" / "pairs.parquet").to_pylist()


@pytest.mark.parametrize("form", ["history", "candidates"])
def test_whoever_appears_in_a_prompt_or_pair_has_a_profile(changed: Changed, tmp_path: Path, form: str) -> None:
    """Though one user a split is asked for, and most users come after training's cutoff."""
    params = changed(prompt__profile=True, prompt__form=form)
    made = make_pairs(params, PreparedLog(newcomers(random_log())), tmp_path)
    told = read_told(tmp_path / "profiles", "counting")
    for split, count in ((c.TRAIN, 20), (c.VALIDATION, 12)):
        own = [row for row in made if row[c.SPLIT] == split]
        assert len(own) == count
        assert all(row[c.PROFILE] for row in own)
    for split, count in ((c.TRAIN, 8), (c.VALIDATION, 12)):
        read = sft_examples(params, tmp_path / "prepared", split, told)
        assert len(read) == count
        assert all(told(split, example.user_id) for example in read)
    cases = read_examples(tmp_path / "prepared", c.TEST, 20, seed=params.seed)
    known = read_histories(tmp_path / "prepared", c.TEST, 10**6, params.seed).of
    assert {case.user_id for case in cases if case.user_id in known} <= {
        user for split, user in read_profiles(tmp_path / "profiles", "counting") if split == c.TEST
    }


def test_all_stages_pick_the_same_users_whether_they_ask_histories_or_the_file(
    changed: Changed, tmp_path: Path
) -> None:
    """The stage `profiles` knows who can have a profile, the later ones who has: the examples are the same."""
    params = changed(prompt__profile=True)
    make_profiles(params, PreparedLog(newcomers(random_log())), tmp_path)
    known = read_histories(tmp_path / "prepared", c.TRAIN, 10**6, params.seed).of
    told = read_told(tmp_path / "profiles", "counting")
    assert sum(told(c.TRAIN, user) for user in known) < len(known), "not everybody was inferred"
    for select in (sft_examples, pair_examples):
        by_history = select(params, tmp_path / "prepared", c.TRAIN, lambda _, user: user in known)
        assert by_history == select(params, tmp_path / "prepared", c.TRAIN, told)


@pytest.mark.parametrize("profile", [False, True])
def test_pairs_by_profile_draw_all_their_items_by_profile(changed: Changed, tmp_path: Path, profile: bool) -> None:
    """Whether prompts show profiles or not; it fell back to uniform for 95 % of the items."""
    params = changed(pairs__strategy="profile", prompt__profile=profile)
    made = make_pairs(params, PreparedLog(newcomers(random_log())), tmp_path)
    assert len(made) == 32
    assert {strategy for row in made for strategy in row["strategies"]} == {"profile"}


def test_without_profiles_in_prompts_and_pairs_only_the_users_in_params_are_inferred(
    changed: Changed, tmp_path: Path
) -> None:
    """As cheap as before: one a split, the first in the order of examples."""
    params = changed()
    folder = make_profiles(params, PreparedLog(newcomers(random_log())), tmp_path)
    made = read_profiles(folder, "counting")
    assert sorted(split for split, _ in made) == sorted(SPLITS)
    assert profile_users(params, tmp_path / "prepared", nobody) == {split: [] for split in SPLITS}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft__examples": 60}, r"3\d of the 60 train examples that SFT reads .* set sft\.examples to 2\d, .*_share"),
        ({"pairs__examples": 400}, r"of the \d+ train examples that become pairs .* set pairs\.examples to \d+"),
        ({"pairs__examples": 400, "prompt__profile": False, "pairs__strategy": "profile"}, r"that become pairs"),
    ],
)
def test_too_few_users_with_a_profile_stop_the_first_stage_that_can_know(
    changed: Changed, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """One line that names the number to set."""
    params = changed(**{"prompt__profile": True} | changes)
    with pytest.raises(RecalignError, match=said):
        make_profiles(params, PreparedLog(newcomers(random_log())), tmp_path)
    assert not (tmp_path / "profiles").exists()


def test_without_a_clock_no_target_of_any_view_is_in_a_profile(changed: Changed, tmp_path: Path) -> None:
    """Warm or cold: here half of the cases are called cold."""
    params = changed(prompt__profile=True, profiles__users=100, sft__examples=3, pairs__examples=6)
    log = PreparedLog(random_log(), clock=False)
    log.write(tmp_path)
    path = tmp_path / "prepared" / "examples.parquet"
    rows = read_parquet(path).to_pylist()
    for place, row in enumerate(rows):
        row[c.VIEW] = row[c.VIEW] and (c.NATURAL if place % 2 else c.WARM)
    table = pa.Table.from_pylist(rows, schema=read_parquet(path).schema)
    with resealed(path.parent) as out:
        write_parquet(out / path.name, table)
    targets = {(row[c.USER], row[c.TARGET]) for row in rows}
    for split in SPLITS:
        of = read_histories(tmp_path / "prepared", split, 100, params.seed).of
        assert of
        assert not {(user, item) for user, history in of.items() for item in history} & targets


def test_an_engine_whose_profiles_are_not_there_is_named(changed: Changed, tmp_path: Path) -> None:
    """A champion that was measured with another engine would be ranked without its profiles, in silence."""
    folder = make_profiles(changed(), PreparedLog(random_log()), tmp_path)
    with pytest.raises(RecalignError, match=r"holds profiles by counting and none by 'statements'.*profiles\.engine"):
        profile_texts(folder, "statements", c.TEST)


def test_the_shares_say_why_a_case_shows_no_profile(changed: Changed, tmp_path: Path) -> None:
    """Of newcomers nothing may be said; whoever was there is counted as silent, or stops the stage as missing."""
    params = changed(profiles__users=3)
    folder = make_profiles(params, PreparedLog(newcomers(random_log())), tmp_path)
    known = read_histories(tmp_path / "prepared", c.TEST, 10**6, params.seed).of
    made = [user for split, user in read_profiles(folder, "counting") if split == c.TEST]
    cases = [(made[0], "Likes war films."), (made[1], ""), (10**6, None)]
    shares = case_shares(params, tmp_path / "prepared", folder, c.TEST, {c.WARM: cases})
    assert shares == {c.WARM: {"prompts": 3, "shown": 1, "newcomers": 1, "silent": 1, "missing": 0}}
    assert (
        shares_sentence("counting", shares)
        == "by counting, shown in warm 1 of 3 (1 of users who came after the cutoff, 1 with nothing to show)"
    )
    other = next(user for user in known if user not in made)
    with pytest.raises(RecalignError, match=r"no profile of 1 of the 4 warm test cases' users.*dvc repro profiles"):
        case_shares(params, tmp_path / "prepared", folder, c.TEST, {c.WARM: [*cases, (other, None)]})


def test_without_a_clock_the_user_cold_cases_show_no_profile(changed: Changed, tmp_path: Path) -> None:
    """Theirs are well-known users with their history cut, which a profile made of all of it would undo."""
    params = changed(prompt__profile=True, sft__examples=3, pairs__examples=6)
    log = PreparedLog(random_log(), clock=False)
    folder = make_profiles(params, log, tmp_path)
    assert c.USER_COLD not in profiled_views(tmp_path / "prepared")
    cases = {c.USER_COLD: [(5, None)], c.WARM: [(5, profile_texts(folder, "counting", c.TEST)[5])]}
    shares = case_shares(params, tmp_path / "prepared", folder, c.TEST, cases)
    assert [(own["shown"], own["silent"], own["missing"]) for own in shares.values()] == [(0, 1, 0), (1, 0, 0)]


def test_shares_of_everything_need_no_reason() -> None:
    """As it should be."""
    assert Shares(prompts=20, shown=20).sentence == "20 of 20"


def test_no_prompt_lists_a_met_item_as_a_wrong_one(changed: Changed, tmp_path: Path) -> None:
    """Each user disliked all of the first thirty items that they never liked; a prompt lists none of them."""
    params = changed(prompt__form="candidates", prepare__candidates=20)
    log = random_log()
    liked = {(user, item) for user, item, _ in log}
    day = CUTOFFS[c.TRAIN] - timedelta(days=30)
    disliked = [(u, i, day) for u in range(1, 25) for i in range(1, 31) if (u, i) not in liked]
    PreparedLog(log, disliked=disliked).write(tmp_path)
    prepared = tmp_path / "prepared"
    shown = {split: read_examples(prepared, split, 30, seed=params.seed) for split in (c.TRAIN, c.VALIDATION)}
    names = {split: [example.example_id for example in examples] for split, examples in shown.items()}
    listing = read_listing(params, prepared, Items.read(prepared), names)
    assert listing is not None
    asked = [example for examples in shown.values() for example in examples if example.user_id < 25]
    assert len(asked) > 10
    for example in asked:
        others = set(listing.items(example.example_id, example.target)) - {example.target}
        assert others
        assert not {(example.user_id, item) for item in others} & {event[:2] for event in disliked}
