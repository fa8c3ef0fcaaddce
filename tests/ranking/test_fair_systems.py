"""Every system and the fusion as fair(system), from a prepared log to the page: what stage fuse makes, report shows."""

import random
from pathlib import Path

import pytest
from validated_log import small_params, write_log

from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.evaluation.exposure import shown
from recalign.evaluation.ranks import FULL, SystemRanks
from recalign.evaluation.systems import FAIR, FUSION, UNTRAINED, Choice, Tried, read_system, write_system
from recalign.llm.model.base import fetch_base
from recalign.params.load import Params
from recalign.project import Project
from recalign.ranking.adapters import measure_language_model
from recalign.ranking.exposure import grouping_of
from recalign.ranking.fusion import FittedFusion, Part
from recalign.ranking.measured import Measured
from recalign.ranking.recommenders import fuse_systems, measure_recommender, open_recommender
from recalign.ranking.trial import Trials, read_trials
from recalign.report.fairness import compare_reranked, fairness_section
from recalign.stages.baselines import baselines
from recalign.stages.fuse import fair_systems, fusion_in_whole_catalogue
from recalign.stages.prepare import prepare

IDS = ("popularity", "item_knn")


@pytest.fixture
def made(tree, tmp_path: Path) -> tuple[Params, Project]:
    """80 users of a log in which the first items are liked far more often; two fitted recommenders and a tiny base."""
    rng = random.Random(0)
    rows = []
    for user in range(1, 81):
        liked = dict.fromkeys(1 + min(int(rng.expovariate(0.08)), 39) for _ in range(60))
        rows += [(user, item, rng.randrange(400), None) for item in list(liked)[:14]]
    tree["recommenders"]["systems"] = list(IDS)
    tree["evaluate"] |= {"validation_cases": 20, "test_cases": 20, "cold_cases": 0}
    params, project = small_params(tree), Project(tmp_path)
    write_log(project.validated, rows)
    prepare(params, project)
    for name in IDS:
        baselines(params, name, project)  # type: ignore[arg-type]
    fetch_base(params.base.model_copy(update={"model": "tiny-random"}), project.base)
    return params, project


NOTHING = Tried(gamma=0.0, ndcg=0.1, mgu=0.2, dgu=0.3, difference=0.0, low=0.0, high=0.0)


def asked(params: Params, **evaluate: int) -> Params:
    fairness = params.fairness.model_copy(update={"by": "popularity", "gammas": (0.0, 2.0, 8.0), "tolerance": 0.5})
    told = params.evaluate.model_copy(update={"resamples": 200, **evaluate})
    return params.model_copy(update={"fairness": fairness, "evaluate": told})


def measured(params: Params, project: Project, trials: Trials) -> tuple[dict[str, Measured], FittedFusion]:
    """Two recommenders, the untrained language model, and their fusion, which the language model does not lead."""
    own = {
        name: measure_recommender(open_recommender(name, project, trials.catalogue), trials, project.baselines)
        for name in IDS
    }
    own[FUSION], fusion = fuse_systems(own, dict.fromkeys(own), trials)
    own[UNTRAINED] = measure_language_model(UNTRAINED, params, project, trials)
    parts = {name: Part(weight=weight, digest="d") for name, weight in fusion.weights.items()}
    parts[UNTRAINED] = Part(weight=0.0, digest="d")
    return own, FittedFusion(
        parts=parts, language_model=UNTRAINED, manifest="uniform", manifest_digest="d", cases=1, recommender_cases=1
    )


def of(ranks: list[SystemRanks], manifest: str) -> SystemRanks:
    return next(own for own in ranks if own.manifest == manifest)


def test_each_system_and_the_fusion_is_reranked_and_shown_beside_what_it_was(made) -> None:
    params, project = asked(made[0], full_catalogue_cases=0), made[1]
    trials = read_trials(params, project.prepared, project.profiles)
    own, fusion = measured(params, project, trials)
    own[FUSION].ranks.extend(fusion_in_whole_catalogue(fusion, own, params, project, trials))
    fair, choices = fair_systems(fusion, own, params, project, trials)

    assert list(fair) == [f"fair({name})" for name in (*IDS, FUSION)]  # no whole catalogue is asked of a language model
    assert {told.system.kind for told in fair.values()} == {FAIR}
    assert all(len(told.ranks) == len(trials.sampled) + len(trials.full) for told in fair.values())
    popular = choices["popularity"]
    assert popular.gamma > 0
    assert popular.tried[0].mgu > min(each.mgu for each in popular.tried)
    groups = [
        [ranks for told in (*own.values(), *fair.values()) for ranks in told.ranks if ranks.manifest == "catalogue"]
    ]
    rows = compare_reranked(choices, groups, grouping_of(params, trials.catalogue), 200, 1)
    assert [row.system for row in rows] == [*IDS, FUSION]
    assert [row.gamma for row in rows] == [choices[row.system].gamma for row in rows]
    assert rows[0].cases == len(trials.full[0].cases)
    page = fairness_section(choices, rows)
    assert "Reranked for fairness" in page
    assert "<svg" in page
    assert fairness_section({}, []) == ""
    write_system(project.root / "system.json", fair["fair(fusion)"].system)
    assert read_system(project.root / "system.json") == fair["fair(fusion)"].system


def test_language_models_join_where_they_rank_whole_catalogues(made, caplog) -> None:
    """On as few validation cases as test cases, by every title."""
    params, project = asked(made[0], full_catalogue_cases=4), made[1]
    trials = read_trials(params, project.prepared, project.profiles)
    own, fusion = measured(params, project, trials)
    parts = {name: part.model_copy(update={"weight": 1.0}) for name, part in fusion.parts.items()}
    fair, choices = fair_systems(fusion.model_copy(update={"parts": parts}), own, params, project, trials)
    assert {f"fair({UNTRAINED})", f"fair({FUSION})"} <= set(fair)
    assert choices[UNTRAINED].cases == 4
    assert f"fair({UNTRAINED}): its strength rests on" in caplog.text
    assert {ranks.manifest for ranks in fair[f"fair({FUSION})"].ranks if ranks.protocol == FULL} == {"catalogue-cases"}
    assert choices["popularity"].cases > 4
    assert all(len(top) == shown(FULL) for top in of(fair[f"fair({UNTRAINED})"].ranks, "catalogue-cases").top)


def test_nothing_is_reranked_by_default_and_a_wrong_grouping_is_named(made) -> None:
    params, project = made
    trials = read_trials(params, project.prepared, project.profiles)
    assert fair_systems(None, {}, params, project, trials) == ({}, {})
    wrong = asked(params).model_copy(update={"fairness": params.fairness.model_copy(update={"by": "author"})})
    with pytest.raises(RecalignError, match=r"fairness\.by: no item has the attribute 'author'"):
        grouping_of(wrong, Items.read(project.prepared))


def test_a_choice_of_no_strength_is_said() -> None:
    choice = Choice(system="ease", by="genre", gu={"War": 0.1}, gamma=0.0, tried=(NOTHING,), cases=9, users=8)
    assert "No strength was fairer" in fairness_section({"ease": choice}, [])
