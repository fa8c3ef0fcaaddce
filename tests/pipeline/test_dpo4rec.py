"""The whole loop of DPO4Rec with a random tiny model on a small log: what it leaves, and when it stops."""

import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from preference_world import PreparedLog, random_log
from project import ROOT

from recalign.common.artifacts import read_json, write_json
from recalign.common.errors import RecalignError
from recalign.evaluation.significance import Interval
from recalign.llm.model.base import fetch_base, load_language_model
from recalign.params.load import parse_params
from recalign.params.profiles import ProfilesParams
from recalign.pipeline import PACKAGE, Source, read_stages
from recalign.preferences.reward import SwapControl
from recalign.project import DPO4REC
from recalign.ranking import rerank as loop_of
from recalign.ranking.rerank import Loop, read_world
from recalign.recommenders.knowledge import KnowledgeReranker, fit_reranker
from recalign.stages import dpo4rec as stage
from recalign.stages.dpo4rec import dpo4rec
from recalign.training.texts import TextAlignment, WrittenPair, align_texts

SHARES = {"recommender": 0.4, "pairs": 0.2, "validation": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A prepared log of 40 users, and the tiny model."""
    root = tmp_path_factory.mktemp("dpo4rec")
    PreparedLog(random_log(users=40)).write(root)
    summary = read_json(root / "prepared" / "summary.json")
    write_json(root / "prepared" / "summary.json", summary | {"data_digest": "d1"})
    return root


@pytest.fixture
def params(tree, place):
    tree["base"] |= {"model": "tiny-random", "compute": "fp32"}
    tree["threads"], tree["evaluate"]["resamples"] = 1, 200
    tree["dpo4rec"] |= {
        "texts": 2, "users": 40, "history": 3, "factors": ["genre"], "max_new_tokens": 16, "shares": SHARES,
        "listed": 30, "epochs": 1, "batch": 4, "learning_rate": 0.01, "first_stage": "popularity",
    }  # fmt: skip
    checked = parse_params(tree)
    if not (place / "base").is_dir():
        fetch_base(checked.base, place / "base")
    return checked


def run(params, place, out):
    dpo4rec(params, place / "prepared", place / "base", out, place / "cache")
    return read_json(out / "report.json")


def changed(params, **values):
    return params.model_copy(update={"dpo4rec": params.dpo4rec.model_copy(update=values)})


def test_users_are_divided_and_texts_are_written_before_what_they_foretell(params, place):
    """Nobody is in two groups; the first stage reads R before its windows alone."""
    world = read_world(params, place / "prepared")
    groups = {group: {window.user_id for window in windows} for group, windows in world.windows.items()}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) > 30
    assert set(world.events["user_id"].to_pylist()) == groups["R"]
    log = pq.read_table(place / "prepared" / "events.parquet").to_pylist()
    for windows in world.windows.values():
        for window in windows:
            own = sorted((row for row in log if row["user_id"] == window.user_id), key=lambda row: row["position"])
            assert window.history == tuple(row["item_id"] for row in own[:-4])
            assert window.targets == {row["item_id"] for row in own[-4:]}
    taught = world.events.to_pylist()
    targets = {(w.user_id, item) for w in world.windows["R"] for item in w.targets}
    assert not targets & {(row["user_id"], row["item_id"]) for row in taught}


def test_lists_of_all_groups_are_as_long_as_the_shortest_one(params, place, caplog):
    """Of forty items each user has met ten: no list holds one of them."""
    world = read_world(params, place / "prepared")
    [window] = world.windows["T"][:1]
    world.windows["T"][0] = replace(window, met=window.met | set(sorted(set(world.items.ids) - window.targets)[:20]))
    loop = Loop.open(changed(params, listed=35), world, None)
    cases = [case for group in loop.cases.values() for case in group]
    assert not [case for case in cases if case.met & set(case.listed)]
    assert {len(case.listed) for case in cases} == {loop.start.listed}
    assert loop.start.listed < 30
    assert f"lists hold {loop.start.listed} items" in caplog.text


def test_texts_that_are_not_read_stop_the_loop_as_a_finding(params, place, tmp_path):
    """A random model's texts tell nothing: the page says so first, and nothing is aligned."""
    told = run(params, place, tmp_path / "out")
    assert told["reads_texts"] is False
    assert told["rounds"] == []
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert page.startswith("reads_texts: false. The recommender does not read the texts: texts swapped between")
    assert page.splitlines()[0].endswith("nothing was aligned.")
    assert [arm["name"] for arm in told["arms"]] == ["unreranked", "no text", "counted text", "unaligned text"]
    assert not (tmp_path / "out" / "adapters").exists()
    texts = pq.read_table(tmp_path / "out" / "texts.parquet")
    assert texts.num_rows == told["writer"]["texts"] > 0
    wrote = told["writer"]
    users = sum(told["protocol"]["users"].values())
    assert wrote["users_without"] == users - len(set(texts["user_id"].to_pylist()))
    assert wrote["read_tokens"] > wrote["tokens"] > 0
    assert f"{wrote['tokens']:,} tokens written and {wrote['read_tokens']:,} read, by the engine local" in page
    loaded = KnowledgeReranker.load(tmp_path / "out" / "reranker", read_world(params, place / "prepared").items)
    assert loaded.listed == 30


def read_loudly(start, cases, texts, validation, learning, seed):
    """A reranker that orders by likeness of text and item: whatever texts differ, lists differ."""
    reranker, told = fit_reranker(start, cases, texts, validation, learning, seed)
    with torch.no_grad():
        reranker.model.weights.copy_(torch.tensor([0.0, 5.0]))
    return reranker, told


def test_forced_the_loop_pairs_aligns_writes_again_and_refits(params, place, tmp_path, monkeypatch):
    """Two rounds, through the project's own trainer; a second run trains nothing and leaves the same bytes."""
    monkeypatch.setattr(loop_of, "fit_reranker", read_loudly)
    told = run(changed(params, force=True), place, tmp_path / "out")
    assert [row["round"] for row in told["rounds"]] == [1, 2]
    for row in told["rounds"]:
        assert row["pairs"]["P"] > 0
        assert row["pairs"]["V"] > 0
        assert 0 <= row["skipped"]["P"] < 1
        assert row["best_validation_loss"] <= row["start_validation_loss"] == pytest.approx(0.693147, abs=1e-5)
        assert 0 <= row["well_formed"]["after"] <= 1
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert page.splitlines()[0].count("aligned all the same (dpo4rec.force), and aligned texts are ") == 1
    assert "| MRR | NDCG@10 minus that of unaligned text |" in page
    names = [arm["name"] for arm in told["arms"]]
    assert names[4:] == [f"aligned text, round {n}{e}" for n in (1, 2) for e in ("", ", reranker refitted")]
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in pairs)
    assert {row["group"] for row in pairs} == {"P", "V"}
    assert (tmp_path / "out" / "adapters" / "round-2" / "adapter_model.safetensors").is_file()
    monkeypatch.setattr("recalign.training.texts.train", lambda *_, **__: pytest.fail("trained again"))
    again = run(changed(params, force=True), place, tmp_path / "again")
    assert again == told


def test_equal_rewards_and_a_single_text_give_no_pairs_and_say_so(params, place, tmp_path, monkeypatch):
    """N = 1; and a reranker that hears nothing."""
    monkeypatch.setattr(loop_of, "fit_reranker", read_loudly)
    alone = run(changed(params, force=True, texts=1), place, tmp_path / "alone")
    assert alone["rounds"] == []
    assert "no pair of texts in group P and V" in alone["stopped"]
    monkeypatch.setattr(loop_of, "fit_reranker", lambda start, *_: (start, {}))
    deaf = run(changed(params, force=True), place, tmp_path / "deaf")
    assert deaf["rounds"] == []
    assert "all texts of a user are worth the same" in deaf["stopped"]
    assert "least_gap" not in deaf["stopped"]
    strict = run(changed(params, force=True, least_gap=1.0), place, tmp_path / "strict")
    assert strict["stopped"].endswith("dpo4rec.temperature, or lower dpo4rec.least_gap, which is 1")


def test_an_endpoint_cannot_be_aligned_from_here(params):
    """Its texts are measured all the same."""
    read = SwapControl(Interval(0.4, 0.2, 0.6), 20)
    assert "cannot be trained" in stage._why_not(changed(params, engine="endpoint"), read)
    assert stage._why_not(params, read) is None


def test_too_few_users_with_texts_are_no_finding_about_the_reader(params):
    """The verdict says so, and what to raise."""
    drop = Interval(0.4, 0.2, 0.6)
    assert "raise dpo4rec.users" in stage._why_not(params, SwapControl(drop, 3))
    assert stage._why_not(changed(params, force=True), SwapControl(drop, 3)) is None
    said = stage.verdict({"reads_texts": False, "swap_control": {"users": 3, "drop": drop.as_dict()}, "rounds": []})
    assert said.startswith("reads_texts: not shown. Texts of 3 users cannot show that the reward reads them, 6 are")
    assert said.endswith("nothing was aligned.")


@pytest.mark.parametrize(
    ("reads", "gain", "said"),
    [
        (True, (0.02, 0.01, 0.03), "aligned texts are better: NDCG@5 +0.020 [+0.010, +0.030] against unaligned ones."),
        (True, (-0.02, -0.03, -0.01), "; aligned texts are worse: NDCG@5 −0.020 "),
        (True, (0.02, -0.01, 0.05), "; aligned texts are no better by the interval: "),
        (True, None, "; nothing was aligned: no pairs."),
        (False, None, "; nothing was aligned."),
        (
            False,
            (0.02, 0.01, 0.03),
            "; aligned all the same (dpo4rec.force), and aligned texts are better: NDCG@5 +0.020 ",
        ),
    ],
)
def test_the_first_line_says_whether_texts_are_read_and_whether_aligned_ones_are_better(reads, gain, said):
    """Also of a forced run, whose gain is else far below."""
    drop = Interval(0.04, 0.02, 0.06) if reads else Interval(0.0, -0.02, 0.02)
    rounds = [{"reward_gain": Interval(*gain).as_dict()}] if gain else []
    line = stage.verdict({
        "reads_texts": reads, "swap_control": {"users": 20, "drop": drop.as_dict()}, "rounds": rounds,
        "stopped": None if gain else "no pairs",
    })  # fmt: skip
    assert line.startswith(f"reads_texts: {'true' if reads else 'false'}. The recommender ")
    assert said in line


def test_too_few_users_are_named(params, place):
    """By the keys that help."""
    with pytest.raises(RecalignError, match=r"dpo4rec: group \w has \d users .* raise dpo4rec\.users"):
        read_world(changed(params, users=8), place / "prepared")


def test_shares_must_add_up(tree):
    """And none may be empty."""
    tree["dpo4rec"]["shares"] = SHARES | {"test": 0.3}
    with pytest.raises(RecalignError, match="the four shares must be above 0 and add up to 1"):
        parse_params(tree)


def test_aligning_makes_the_chosen_text_likelier_than_the_rejected_one(params, place, tmp_path):
    """On the pairs that it learned from: DPO's own reward, from the policy and the reference."""
    pairs = [WrittenPair(f"text-{n}", f"Films {n}\n\nLikes:", " dark films", " light songs") for n in range(4)]
    strong = changed(params, epochs=8, beta=0.1)
    work = TextAlignment(1, pairs, pairs[:2])
    adapter = align_texts(strong, work, None, base=place / "base", prepared=place / "prepared", cache=tmp_path)
    training = read_json(adapter / "training.json")
    assert training["best_step"] > 0
    assert training["best_validation_loss"] < 0.6 < training["start_validation_loss"]
    assert training["step_0_difference"] < 1e-4
    lm = load_language_model(place / "base", strong.base, adapter=adapter, threads=1)
    assert align_texts(strong, work, None, base=place / "base", prepared=place / "prepared", cache=tmp_path) == adapter
    assert lm.digest != load_language_model(place / "base", strong.base, threads=1).digest


def test_the_stage_apart_depends_on_all_that_it_imports_and_the_default_run_has_none_of_it():
    """optional/dvc.yaml by hand, against the imports."""
    listed = read_stages((ROOT / "optional/dvc.yaml").read_text(encoding="utf-8"))["dpo4rec"]
    source = Source(ROOT)
    imported = {path.relative_to(ROOT) for path in source.closure(ROOT / PACKAGE / "stages/dpo4rec.py")}
    lacking = [str(path) for path in imported if not any(path.is_relative_to(dep) for dep in listed.deps)]
    assert sorted(lacking) == []
    assert [dep for dep in listed.deps if dep.startswith("src/") and not (ROOT / dep).exists()] == []
    assert listed.outs == (str(DPO4REC),)
    own = [ROOT / PACKAGE / name for name in ("stages/dpo4rec.py", "ranking/rerank.py", "preferences/tastes/writer.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in own)
    read = {f"profiles.{name}" for name in ProfilesParams.model_fields if re.search(rf"\bprofiles\.{name}\b", text)}
    assert "profiles.batch" in read
    assert read <= set(listed.params)
    assert "dpo4rec" not in read_stages((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
