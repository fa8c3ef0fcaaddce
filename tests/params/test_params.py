"""params.yaml is checked whole, and says what is wrong in one line."""

import pytest
from pydantic import ValidationError

from recalign.common.errors import RecalignError
from recalign.params.load import load_params, parse_params


def test_the_budget_fills_what_is_null(tree):
    """budget: demo gives the counts that budgets.demo lists."""
    params = parse_params(tree)
    assert params.sft.examples == tree["budgets"]["demo"]["sft_examples"]
    assert params.pairs.negatives == tree["budgets"]["demo"]["negatives"]
    assert params.base.model == "smollm2-135m-instruct"


def test_a_value_beside_the_budget_wins(tree):
    """sft.examples: 7 stands against the budget's count."""
    tree["sft"]["examples"] = 7
    assert parse_params(tree).sft.examples == 7


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [
        ("sft", "learnig_rate", "sft.learning_rate"),
        (None, "sead", "seed"),
        ("prepare", "corre", "prepare.core"),
        ("prepare", "max_rejected", "validate.max_rejected"),
        (None, "schedule_", "schedule"),
    ],
)
def test_a_typo_names_the_nearest_key(tree, section, wrong, right):
    """An unknown key is refused with the key that was probably meant."""
    (tree[section] if section else tree)[wrong] = 1
    with pytest.raises(RecalignError, match=f"the nearest valid key is '{right}'"):
        parse_params(tree)


@pytest.mark.parametrize(
    ("section", "key", "wrong"),
    [
        ("sft", "learning_rate", "lr_rate"),
        ("sft", "learning_rate", "learning-rate"),
        ("prepare", "min_history", "minimum_history"),
        ("registry", "min_users", "min_user"),
        (None, "schedule", "scheduling"),
    ],
)
def test_a_renamed_key_is_named_by_what_stands_there_and_by_what_is_right(tree, section, key, wrong):
    """Not as missing: the person looks for the line to change."""
    part = tree[section] if section else tree
    part[wrong] = part.pop(key)
    found, right = (f"{section}.{name}" if section else name for name in (wrong, key))
    with pytest.raises(RecalignError, match=f"unknown key '{found}'; the nearest valid key is '{right}'"):
        parse_params(tree)


@pytest.mark.parametrize(
    ("section", "key", "wrong", "right"),
    [
        (None, "source", "tabel", "table"),
        (None, "budget", "Demo", "demo"),
        (None, "budget", "demoo", "demo"),
        ("prepare", "split", "times", "time"),
        ("base", "quantisation", "nf8", "nf4"),
        ("registry", "metric", "ndcg@10", "ndcg_at_10"),
    ],
)
def test_a_wrong_value_names_the_nearest_valid_one(tree, section, key, wrong, right):
    """Wherever a key allows a few values."""
    (tree[section] if section else tree)[key] = wrong
    with pytest.raises(RecalignError, match=rf"input should be .* \(did you mean {right}\?\)$"):
        parse_params(tree)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "greater than or equal to 0"), (86401, "less than or equal to 86400"), (float("nan"), ""), ("a", "valid")],
)
def test_the_interval_between_checkpoints_is_from_nothing_to_a_day(tree, seconds, said):
    """A params.yaml of before there was such a key has a minute."""
    tree["checkpoint_seconds"] = seconds
    with pytest.raises(RecalignError, match=f"checkpoint_seconds is .*{said}"):
        parse_params(tree)
    del tree["checkpoint_seconds"]
    assert parse_params(tree).checkpoint_seconds == 60.0


def test_an_unknown_source_lists_the_allowed_ones(tree):
    """The message names key, value and what is allowed."""
    tree["source"] = "netflix"
    with pytest.raises(RecalignError, match=r"source is 'netflix'; input should be 'simulated', 'movielens-100k'"):
        parse_params(tree)


def test_an_unknown_objective_lists_the_allowed_ones(tree):
    """align.objectives takes the names of align.settings only."""
    tree["align"]["objectives"] = ["sdop"]
    message = r"align.objectives is \['sdop'\]; 'sdop' is not in align.settings; allowed are dpo,.* mean sdpo\?"
    with pytest.raises(RecalignError, match=message):
        parse_params(tree)


def test_an_objectives_own_settings_win_over_those_of_all(tree):
    """align.beta counts where nothing is said beside the name."""
    tree["align"] |= {"beta": 0.3, "rho": 0.1}
    tree["align"]["settings"] = {"sdpo": {}, "mild": {"like": "sdpo", "beta": 0.05}}
    params = parse_params(tree)
    assert params.align.of("sdpo") == {"beta": 0.3, "rho": 0.1}
    assert params.align.of("mild") == {"like": "sdpo", "beta": 0.05, "rho": 0.1}
    with pytest.raises(RecalignError, match=r"objective is 'mlid'; .*allowed are sdpo, mild \(did you mean mild\?\)"):
        params.align.of("mlid")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mine": {"beta": 1.0}}, r"align.settings: 'mine' needs 'like: ' and one of dpo,"),
        ({"sdpo": {"betta": 1.0}}, r"the nearest valid key is 'align.settings.sdpo.beta'"),
        ({"sdpo": {"drop": 1.5}}, r"align.settings.sdpo.drop is 1.5; input should be less than 1"),
        ({"sft": {"like": "sdpo"}}, r"align.settings: 'sft' names another system"),
        ({"../up": {"like": "sdpo"}}, r"align.settings.*string should match pattern"),
    ],
)
def test_wrong_settings_of_an_objective_are_named(tree, settings, message):
    """Before any stage runs."""
    tree["align"]["settings"] = {"sdpo": {}} | settings
    with pytest.raises(RecalignError, match=message):
        parse_params(tree)


def test_a_missing_key_is_named(tree):
    """Leaving a key out is an error that names it."""
    del tree["pairs"]["strategy"]
    with pytest.raises(RecalignError, match=r"key 'pairs.strategy' is missing"):
        parse_params(tree)


def test_params_are_frozen(tree):
    """No stage can change what another one read."""
    params = parse_params(tree)
    with pytest.raises(ValidationError, match="frozen"):
        params.seed = 1


def test_broken_yaml_is_one_line(tmp_path):
    """A syntax error is reported in one line with its place."""
    path = tmp_path / "params.yaml"
    path.write_text("source: [simulated\nbudget: demo\n", encoding="utf-8")
    with pytest.raises(RecalignError, match="is not readable YAML") as error:
        load_params(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("systems", "said"),
    [
        (["popularity", "ease"], r"\['popularity', 'ease'\]; item_knn is missing, which hard negatives read"),
        (["popularity", "item_knn", "item_knn"], "a system is listed twice"),
    ],
)
def test_the_list_of_recommenders_holds_what_other_stages_read(tree, systems, said):
    """popularity and item_knn cannot be left out, and none is listed twice."""
    tree["recommenders"]["systems"] = systems
    with pytest.raises(RecalignError, match=said):
        parse_params(tree)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("prepare", "hidden_items", 1.0, r"prepare\.hidden_items is 1\.0; input should be less than 1"),
        (
            "prepare",
            "hidden_items",
            -0.1,
            r"prepare\.hidden_items is -0\.1; input should be greater than or equal to 0",
        ),
        ("sft", "strength", 1.5, r"sft\.strength is 1\.5; input should be less than or equal to 1"),
        ("sft", "new_items", 0.6, r"sft\.new_items is 0\.6; input should be less than or equal to 0\.5"),
    ],
)
def test_shares_leave_something(tree, section, key, value, said):
    """Something has to be known, for a run and for each epoch."""
    tree[section][key] = value
    with pytest.raises(RecalignError, match=said):
        parse_params(tree)


def test_the_text_of_sequence_encoders_is_one_that_there_is(tree):
    """A typo names the nearest block."""
    tree["recommenders"]["next_item"] |= {"text": "split", "text_encoder": "atributes+tfidf"}
    with pytest.raises(RecalignError, match=r"'atributes' in 'atributes\+tfidf' is none of attributes, .*attributes"):
        parse_params(tree)


def test_responses_show_no_attributes_where_none_is_named(tree):
    """The key alone would change nothing, and nobody would know."""
    tree["prompt"]["response_attributes"] = True
    with pytest.raises(
        RecalignError, match=r"prompt.response_attributes is True; prompt.attributes is empty; name some"
    ):
        parse_params(tree)
    tree["prompt"]["attributes"] = ["genre"]
    assert parse_params(tree).prompt.response_attributes


def test_params_of_before_lack_what_is_off_by_default(tree):
    """An older params.yaml still loads, and says the same."""
    for section, keys in (("sft", ["new_items", "strength"]), ("prompt", ["attributes", "response_attributes"])):
        for key in keys:
            del tree[section][key]
    for key in ("text", "text_encoder", "text_share", "text_bound"):
        del tree["recommenders"]["next_item"][key]
    params = parse_params(tree)
    assert (params.sft.new_items, params.prompt.attributes, params.recommenders.next_item.text) == (0.0, (), "none")
