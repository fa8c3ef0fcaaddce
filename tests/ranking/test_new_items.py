"""The fusion that knows what is new: weights of their own for items without train events, wherever it ranks."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fusion_world import HISTORY, ITEMS, cases, item_knn, judged, ndcg, tiny_llm
from validated_log import small_params, write_log

from recalign.common import columns as c
from recalign.common.artifacts import write_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.evaluation.metrics import Floats, metric_values, target_ranks
from recalign.evaluation.systems import UNTRAINED
from recalign.llm.model.base import fetch_base
from recalign.params.load import Params
from recalign.project import Project
from recalign.ranking import fused as under_test
from recalign.ranking.adapters import measure_language_model
from recalign.ranking.fused import FusedRecommender
from recalign.ranking.fusion import FITTED, FittedFusion, Fusion, Part, read_fusion, standardised
from recalign.ranking.language_model import Asked, LanguageModelRecommender
from recalign.ranking.measured import Measured, read_measured, write_measured
from recalign.ranking.recommenders import fuse_systems, measure_recommender, open_recommender
from recalign.ranking.trial import Trials, digests_of, kind_of, read_trials
from recalign.recommenders.popularity import Popularity
from recalign.recommenders.recommender import Request
from recalign.stages.baselines import baselines
from recalign.stages.prepare import prepare

IDS = ("popularity", "item_knn", "content", "content_prior")
NEW = tuple(range(151, 201))  # of the 200 titles
BEFORE = {  # as fusion.json was written before there were weights for new items
    "parts": {"item_knn": {"weight": 1.5, "digest": "a"}, "llm-sft": {"weight": 0.25, "digest": "c"}},
    "language_model": "llm-sft",
    "manifest": "uniform",
    "manifest_digest": "d",
    "cases": 64,
    "recommender_cases": 900,
}


def test_each_kind_gets_the_weights_of_its_own_cases() -> None:
    """Planted: co-occurrence knows known items and gives all new ones one score, content knows both, new ones best."""
    known, targets = cases({"item_knn": 1.5, "content": 1.0})
    new, new_targets = cases({"item_knn": 0.0, "content": 1.5}, seed=1)
    fitted = Fusion.fit({"content": new["content"]}, judged(new_targets))
    fusion = Fusion(Fusion.fit(known, judged(targets)).weights, Fusion({"item_knn": 0.0, **fitted.weights}))
    later, answers = cases({"item_knn": 0.0, "content": 1.5}, seed=2)
    later["item_knn"] = np.zeros((400, 10))

    # of normal noise the best weight is the planted strength; these are the fits on 400 cases, in steps of the factors
    assert fusion.weights["content"] == pytest.approx(0.5 * fusion.weights["item_knn"])
    assert fusion.weights["item_knn"] == pytest.approx(1.5, abs=0.25)
    assert fusion.new is not None
    assert fusion.new.weights == pytest.approx({"item_knn": 0.0, "content": 1.5248}, abs=1e-3)
    everywhere = np.ones((400, 10), dtype=bool)
    assert ndcg(fusion.scores(later, everywhere), answers) == ndcg(later["content"], answers)
    assert fusion.sentence == "0.67 item_knn + 0.33 content; new items: 1.00 content"
    assert fusion.read_by == "content"


def test_a_list_of_one_kind_is_ranked_by_one_set_of_weights() -> None:
    scores = {"knn": np.array([[1.0, 2.0, 4.0]]), "content": np.array([[3.0, 1.0, 2.0]])}
    fusion = Fusion({"knn": 1.0, "content": 0.0}, Fusion({"knn": 0.0, "content": 2.0}))
    none, every = np.zeros((1, 3), dtype=bool), np.ones((1, 3), dtype=bool)

    assert fusion.scores(scores, none).tolist() == Fusion({"knn": 1.0}).scores(scores).tolist()
    assert fusion.scores(scores).tolist() == fusion.scores(scores, none).tolist()
    assert fusion.scores(scores, every).tolist() == Fusion({"content": 2.0}).scores(scores).tolist()


@pytest.mark.parametrize(("offset", "expected"), [(None, [-1.0, 1.0, -2.0, -4.0]), (0.5, [-1.0, 1.0, 1.5, -0.5])])
def test_where_both_kinds_meet_new_items_stand_below_unless_an_offset_says_otherwise(
    offset: float | None, expected: list[float]
) -> None:
    """Two known and two new items, each kind at −1 and 1 among its own."""
    scores = {"knn": np.array([[1.0, 2.0, 9.0, 9.0]]), "content": np.array([[7.0, 7.0, 3.0, 1.0]])}
    fusion = Fusion({"knn": 1.0, "content": 0.0}, Fusion({"knn": 0.0, "content": 1.0}), offset)
    new = np.array([[False, False, True, True]])

    assert fusion.scores(scores, new)[0].tolist() == pytest.approx(expected)


def test_new_items_that_nothing_is_known_of_are_alike_and_no_part_is_missed() -> None:
    fusion = Fusion({"knn": 1.0, "llm": 0.0}, Fusion({"knn": 0.0, "llm": 0.0}))
    new = np.array([[False, True, True]])

    assert fusion.scores({"knn": np.array([[2.0, 5.0, 1.0]])}, new).tolist() == [[0.0, -1.0, -1.0]]


def fused(language_model: LanguageModelRecommender, known: float, new: float, offset: float | None) -> FusedRecommender:
    """Item-kNN and a language model with its weights among known and new items; popularity knows a new item's place."""
    parts = {"item_knn": item_knn(ITEMS), "popularity": Popularity(ITEMS, np.arange(200))}
    weights = Fusion({"item_knn": 1.0, "popularity": 0.0, "llm-tiny": known})
    among_new = Fusion({"item_knn": 0.0, "popularity": 0.5, "llm-tiny": new})
    return FusedRecommender(replace(weights, new=among_new, offset=offset), parts, ITEMS, language_model, NEW)


@pytest.fixture(scope="module")
def language_model() -> LanguageModelRecommender:
    return tiny_llm(ITEMS)


@pytest.mark.parametrize("offset", [None, 0.0, 4.0])
@pytest.mark.parametrize(("known", "new"), [(0.0, 0.0), (0.3, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_the_best_of_a_catalogue_with_new_items_are_those_of_every_score(
    language_model: LanguageModelRecommender,
    known: float,
    new: float,
    offset: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where fewer known items are open than are asked for."""
    monkeypatch.setattr(under_test, "SAMPLE", 16)
    recommender = fused(language_model, known, new, offset)
    few = frozenset(range(1, 146))  # leaves five known items
    for excluded in (frozenset(HISTORY), few, frozenset(range(1, 151)), frozenset(NEW)):
        (found,) = recommender.rank_many([Asked(HISTORY, None, 9, None, excluded)])
        every = recommender.scores([Request(None, tuple(HISTORY), excluded=excluded)], None)[0].tolist()
        open_to = [item for item in ITEMS.ids if item not in excluded]
        best = sorted(open_to, key=lambda item: (-every[item - 1], item))[:9]
        assert [scored.item_id for scored in found] == best
        assert [scored.score for scored in found] == pytest.approx([every[item - 1] for item in best], abs=1e-4)
        if offset is None:
            kinds = [scored.item_id in NEW for scored in found]
            assert kinds == sorted(kinds)  # known ones first
    assert recommender.read_by(200) == ("llm-tiny + popularity" if new > 0.5 else "popularity")
    assert recommender.read_by(3) is None


class Reader(Popularity):
    """Reads the items of any catalogue."""

    def on(self, catalogue: Items) -> "Reader":
        """Itself."""
        return self


def test_what_weighs_among_new_items_says_whether_their_text_is_read() -> None:
    parts = {"popularity": Popularity(ITEMS, np.arange(200)), "content": Reader(ITEMS, np.arange(200))}
    alone, read = {"popularity": 1.0, "content": 0.0}, {"popularity": 0.0, "content": 1.0}
    for known, new, told in ((alone, None, False), (read, None, True), (read, alone, False), (alone, read, True)):
        fusion = Fusion(known, Fusion(new) if new else None)
        assert FusedRecommender(fusion, parts, ITEMS, None, NEW).reads_text is told  # type: ignore[arg-type]


def test_a_list_is_ranked_as_in_the_evaluation_and_the_language_model_reads_only_where_it_weighs(
    language_model: LanguageModelRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = fused(language_model, 0.0, 1.0, None)
    lists = [[5, 9, 120], [160, 170, 199], [5, 170, 199]]
    expected = [recommender.scores([Request(None, tuple(HISTORY))], [items])[0].tolist() for items in lists]
    read: list[list[int]] = []
    whole = LanguageModelRecommender.rank_many

    def watched(self: LanguageModelRecommender, asked: list[Asked]) -> Any:
        read.extend(list(each.candidates or ()) for each in asked)
        return whole(self, asked)

    monkeypatch.setattr(LanguageModelRecommender, "rank_many", watched)
    found = recommender.rank_many([Asked(HISTORY, items, 3) for items in lists])
    for items, scores, ranked in zip(lists, expected, found, strict=True):
        told = {scored.item_id: scored.score for scored in ranked}
        assert [told[item] for item in items] == pytest.approx(scores, abs=1e-4)
    assert read == lists[1:]


def test_a_fusion_of_before_ranks_all_items_alike_and_keeps_its_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / FITTED, BEFORE)
    old = read_fusion(tmp_path)
    (tmp_path / "again").mkdir()
    old.write(tmp_path / "again")

    assert old.fusion == Fusion({"item_knn": 1.5, "llm-sft": 0.25})
    assert old.new_items(replace(ITEMS, train_events=dict.fromkeys(ITEMS.ids, 0))) == frozenset()
    assert (tmp_path / "again" / FITTED).read_bytes() == (tmp_path / FITTED).read_bytes()
    assert old.model_dump() == BEFORE  # so that a registered package keeps its digest


def test_a_fusion_with_weights_for_new_items_comes_back_from_its_file(tmp_path: Path) -> None:
    parts = {"item_knn": Part(weight=1.5, digest="a", new_weight=0.0),
             "content": Part(weight=0.0, digest="b", new_weight=2.0),
             "llm-sft": Part(weight=0.0, digest="c", new_weight=0.5)}  # fmt: skip
    fitted = FittedFusion(
        parts=parts, language_model="llm-sft", manifest="uniform", manifest_digest="d", cases=64, recommender_cases=900,
        cold_events=2, new_cases=20, new_recommender_cases=300, offset=-1.0,
    )  # fmt: skip
    fitted.write(tmp_path)

    assert read_fusion(tmp_path) == fitted
    assert fitted.recommenders == ["item_knn", "content"]
    assert fitted.active_language_model == "llm-sft"
    assert fitted.fusion.offset == -1.0
    assert fitted.fusion.sentence == "1.00 item_knn + 0 (content, llm-sft); new items: 0.80 content + 0.20 llm-sft"


def test_new_is_what_its_recommenders_were_not_fitted_on() -> None:
    """On its own catalogue by train events; on a newer one by title, whatever happened since."""
    fitted = FittedFusion(**{**BEFORE, "cold_events": 2})
    own = replace(tiny.items(["A", "B", "C"]), train_events={1: 0, 2: 1, 3: 2})
    newer = replace(tiny.items(["New", "C", "B"]), train_events={1: 9, 2: 9, 3: 9})

    assert fitted.new_items(own) == {1, 2}
    assert fitted.new_items(newer, own) == {1, 3}
    assert fitted.new_items(tiny.items(["A"])) == frozenset()  # nobody counted


def world(place: Path, tree: dict[str, Any], hidden: float) -> tuple[Params, Project]:
    """Users like one of four years; content reads the year. Prepared, with the ID recommenders fitted."""
    draw = random.Random(3)
    rows = []
    for user in range(1, 121):
        mine = [item for item in range(1, 121) if item % 4 == user % 4]
        rows += [(user, item, draw.randrange(400), None) for item in draw.sample(mine, 16)]
    years = {item: str(1900 + 30 * (item % 4)) for item in range(1, 121)}
    tree["recommenders"]["content"] |= {"encoders": ["attributes"], "dimensions": [8], "ridges": [1.0]}
    tree["recommenders"]["systems"] = list(IDS)
    tree["evaluate"] |= {"validation_cases": 30, "test_cases": 30, "cold_cases": 12}
    params, project = small_params(tree, hidden_items=hidden), Project(place)
    write_log(project.validated, rows, years=years)
    prepare(params, project)
    for name in IDS:
        baselines(params, name, project)  # type: ignore[arg-type]
    return params, project


def measured(project: Project, trials: Trials) -> dict[str, Measured]:
    return {
        name: measure_recommender(open_recommender(name, project, trials.catalogue), trials, project.baselines)
        for name in IDS
    }


def mean_ndcg(own: Measured, trials: Trials, view: str) -> float:
    (trial,) = (trial for trial in trials.uniform if trial.view == view)
    ranks = target_ranks(own.scores[kind_of(trial)], np.array(trial.target_index), trial.lots)
    return float(metric_values("ndcg_at_10", ranks).mean())


def test_hidden_items_are_ranked_by_what_reads_them_and_known_ones_as_before(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    """Prepared, fitted, ranked and fused for real; the language model, a random one, ranks the few hidden cases too."""
    params, project = world(tmp_path, tree, hidden=0.4)
    trials = read_trials(params, project.prepared, project.profiles)
    fetch_base(params.base.model_copy(update={"model": "tiny-random"}), project.base)
    systems = measured(project, trials)
    systems["llm-random"] = measure_language_model(UNTRAINED, params, project, trials)
    own, fusion = fuse_systems(systems, dict.fromkeys(systems), trials)
    before, alike = fuse_systems(systems, dict.fromkeys(systems), replace(trials, new_weighing=None))

    assert trials.new_weighing
    assert trials.new_validation
    assert len(trials.new_validation.cases) == 12 < len(trials.new_weighing.cases)
    assert {case.example.view for case in trials.new_weighing.cases} == {c.HIDDEN}
    assert systems["llm-random"].new_validation.shape == (12, 5)  # type: ignore[union-attr]
    assert fusion.weights == alike.weights
    assert fusion.new
    assert fusion.new.weights["item_knn"] == fusion.new.weights["popularity"] == 0.0
    assert fusion.new.weights["content"] > 1.0
    assert own.scores[c.WARM, "uniform"].tobytes() == before.scores[c.WARM, "uniform"].tobytes()
    chance = float(np.mean([1 / np.log2(place + 1) for place in range(1, 6)]))
    assert mean_ndcg(own, trials, c.HIDDEN) > chance + 0.1
    assert own.system.new_weights["content"] == round(fusion.new.weights["content"], 6)
    for name in ("content", "llm-random"):
        folder = tmp_path / name
        folder.mkdir()
        write_measured(folder, systems[name])
        again = read_measured(folder, digests_of(trials))
        for part in ("new_validation", "new_weighing"):
            told, read = (
                None if (own := getattr(each, part)) is None else own.tolist() for each in (systems[name], again)
            )
            assert told == read
        assert again.scores.keys() == systems[name].scores.keys()


def test_without_hidden_cases_what_reads_new_items_ranks_them_alike_unless_params_tell_weights(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    params, project = world(tmp_path, tree, hidden=0.0)
    trials = read_trials(params, project.prepared, project.profiles)
    systems = measured(project, trials)

    def fuse(names: tuple[str, ...], told: Mapping[str, float] | None = None) -> Fusion:
        return fuse_systems({name: systems[name] for name in names}, dict.fromkeys(names), trials, told=told)[1]

    assert trials.new_weighing is trials.new_validation is None
    fitted = Fusion.fit(weighing(systems, IDS), trials.weighing.judged)
    assert fuse(IDS).weights == fitted.weights
    assert fuse(IDS).new == Fusion({"popularity": 0.0, "item_knn": 0.0, "content": 1.0, "content_prior": 1.0})
    assert fuse(IDS, {"content": 0.7}).new.weights["content"] == 0.7  # type: ignore[union-attr]
    with pytest.raises(RecalignError, match=r"evaluate\.new_item_weights names 'minilm', .* it has popularity, item_"):
        fuse(IDS, {"minilm": 1.0})
    plain = ("popularity", "item_knn")
    assert fuse(plain) == Fusion(Fusion.fit(weighing(systems, plain), trials.weighing.judged).weights)


def test_new_items_are_judged_by_the_items_asked_for_and_known_ones_by_users(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    params, project = world(tmp_path, tree, hidden=0.4)
    trials = read_trials(params, project.prepared, project.profiles)
    assert trials.new_weighing is not None
    asked = [case.example.target for case in trials.new_weighing.cases]
    assert len(set(asked)) < len(asked)
    assert trials.new_weighing.judged.clusters == asked
    assert trials.weighing.judged.clusters == trials.weighing.users


def weighing(systems: Mapping[str, Measured], names: tuple[str, ...]) -> dict[str, Floats]:
    return {name: own for name in names if (own := systems[name].weighing) is not None}


def test_without_what_reads_new_items_scores_are_those_of_before(tmp_path: Path, tree: dict[str, Any]) -> None:
    """Popularity and item-kNN, no hidden item: every list is standardised as a whole, those of rare items too."""
    params, project = world(tmp_path, tree, hidden=0.0)
    trials = read_trials(params, project.prepared, project.profiles)
    systems = {name: own for name, own in measured(project, trials).items() if not name.startswith("content")}
    own, fusion = fuse_systems(systems, dict.fromkeys(systems), trials)
    weights = Fusion.fit(weighing(systems, tuple(systems)), trials.weighing.judged).weights

    assert (fusion.weights, fusion.new, own.system.new_weights) == (weights, None, {})
    for kind, scores in own.scores.items():
        stacked = np.stack([standardised(systems[name].scores[kind]) for name in fusion.used], axis=2)
        assert scores.tobytes() == (stacked @ np.array(list(fusion.used.values()))).tobytes()
