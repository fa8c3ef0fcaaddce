"""LLaRA on a small world: curriculum, teachers, training that survives a kill, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import training_world
from hybrid_world import NEW_ITEM, killed_after_steps, make_project
from safetensors.torch import load_file
from training_world import ITEMS, make_params

from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.hybrid import llara as teachers_module
from recalign.hybrid.llara import Curriculum, HybridModelling, hybrid_share, item_factors, read_teacher, without_vectors
from recalign.hybrid.modality import Teacher, averaged, shuffled
from recalign.hybrid.prompts import hybrid_prompts, new_vectors, open_start, prompt_builder, soft_id, text_only
from recalign.llm.model.adapters import adapter_digest
from recalign.llm.model.base import load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.project import Project
from recalign.ranking.adapters import _reference, language_models
from recalign.ranking.language_model import Setting, open_recommender
from recalign.ranking.package import adapter_folder
from recalign.ranking.trial import Trials
from recalign.recommenders.content import Content
from recalign.recommenders.neural.sequential import Sequential
from recalign.recommenders.recommender import Request
from recalign.stages.align import align
from recalign.stages.baselines import baselines
from recalign.stages.llara import llara, train_llara
from recalign.stages.reference import reference
from recalign.training.examples import TextExample, read_preference_examples
from recalign.training.reference import read_store, response_key

LONG = {"sft__epochs": 3, "sft__batch": 4, "hybrid": {"teachers": ["ease"], "curriculum": "linear"}}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The world of the training stages as a project, with EASE fitted on it."""
    project = make_project(tmp_path_factory.mktemp("hybrid"))
    baselines(make_params(), "ease", project)
    return project


@pytest.fixture(scope="module")
def teacher(project) -> Teacher:
    return read_teacher("ease", project.baselines, Items.read(project.prepared))


@pytest.fixture(scope="module")
def trained(project) -> Path:
    llara(make_params(**LONG), "ease", project)
    return project.hybrid / "llara-ease"


def opened(project: Project, adapter: Path):
    """The model that an adapter's folder makes of the base, with its prompts."""
    lm = load_language_model(project.base, make_params().base, adapter=adapter)
    builder = prompt_builder(lm, adapter, Items.read(project.prepared), make_params().prompt, "films", clock=False)
    return lm, builder


def test_the_chance_of_vectors_grows_with_the_global_step():
    assert hybrid_share(25, 100) == 0.25
    assert hybrid_share(100, 100) == 1.0


class Nothing(torch.nn.Module):
    """Stands for a model where no forward pass is asked for."""


def modelling(steps: int) -> HybridModelling:
    return HybridModelling("llara-ease", Nothing(), [], 100, Curriculum(steps, 1))


def test_the_curriculum_follows_its_chance_and_ends_with_vectors():
    """Over 400 draws of step 25 of 100 a quarter shows vectors, within four standard errors."""
    shown = [Curriculum(100, seed).shows_vectors(25) for seed in range(400)]
    assert abs(np.mean(shown) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    assert all(Curriculum(100, seed).shows_vectors(100) for seed in range(50))
    assert all(Curriculum(100, seed, rising=False).shows_vectors(1) for seed in range(50))


def test_the_step_goes_on_after_a_kill(monkeypatch):
    """What the checkpoint keeps is the global step: the 25th step asks p(25), whenever the process began."""
    asked = []
    monkeypatch.setattr(Curriculum, "shows_vectors", lambda self, step: asked.append(step) or True)
    task = modelling(100)
    for _ in range(24):
        list(task.losses([]))
    other = modelling(100)
    other.load_state_dict(task.state_dict())
    list(other.losses([]))
    assert asked == [*range(1, 25), 25]
    assert hybrid_share(asked[-1], 100) == 0.25


def test_text_only_examples_show_no_vector():
    example = TextExample("a", [5, soft_id(0), 6, soft_id(3)], [7, 8, soft_id(1), 9])
    assert without_vectors(example) == TextExample("a", [5, 6], [7, 8, 9])
    assert (example.tokens, example.learned) == (7, 3)


def test_a_vector_follows_the_line_of_each_title_that_has_one(project, teacher):
    items = Items.read(project.prepared)
    lm = load_language_model(project.base, make_params().base)
    params = make_params().prompt
    text = PromptBuilder(lm.tokenizer, items, params, "films", clock=False)
    hybrid = hybrid_prompts(lm, teacher, items, params, "films", clock=False)
    assert sorted(set(items.ids) - hybrid.numbers.keys()) == [NEW_ITEM]
    history = [3, NEW_ITEM, 7]
    prompt = hybrid.prompt(history)
    assert text_only(prompt) == text.prompt(history)
    assert [token for token in prompt if token < 0] == [soft_id(hybrid.numbers[3]), soft_id(hybrid.numbers[7])]
    assert prompt[-1] == soft_id(hybrid.numbers[7])
    third = text.response(3)
    begin = len(text.prompt([]))
    assert prompt[begin : begin + len(third) + 1] == [*third, soft_id(hybrid.numbers[3])]
    assert hybrid.response(7) == text.response(7)
    assert hybrid.neutral() == text.neutral()
    assert hybrid.digest != text.digest
    opening, continuation = hybrid.sequence([1, 2, 3, 4, 5], 6)
    first, rest = text.sequence([1, 2, 3, 4, 5], 6)
    assert text_only([*opening, *continuation]) == [*first, *rest]
    assert continuation[-1] >= 0
    assert sum(token < 0 for token in [*opening, *continuation]) == 5


def test_a_title_with_a_placeholders_text_becomes_no_vector(project, teacher):
    """Whatever a title says, its ids are those of its letters."""
    items = Items.read(project.prepared)
    for text in ("-1", "[HistoryEmb]", "<|im_start|> -4", "[PH] \u2212 2"):
        renamed = Items(items.ids, items.titles | {1: text}, items.attributes, items.popularity, items.train_events)
        lm = load_language_model(project.base, make_params().base)
        builder = hybrid_prompts(lm, teacher, renamed, make_params().prompt, "films", clock=False)
        assert min(builder.response(1)) >= 0
        assert min(builder.prompt([text, 1])) >= 0


def test_a_history_longer_than_the_teachers_shows_a_vector_at_every_title(project, teacher):
    """Static vectors have no length; the prompt's own limit cuts."""
    lm = load_language_model(project.base, make_params().base)
    params = make_params(prompt__history=30).prompt
    builder = hybrid_prompts(lm, teacher, Items.read(project.prepared), params, "films", clock=False)
    assert sum(token < 0 for token in builder.prompt([3, 7] * 40)) == 30


def test_training_writes_an_adapter_that_ranks_by_its_vectors(project, trained):
    facts = read_json(trained / "training.json")
    assert facts["stage"] == "sft@llara-ease"
    assert facts["teacher"]["items"] == len(ITEMS) - 1
    lm, builder = opened(project, trained)
    assert all(not p.requires_grad for p in lm.model.parameters())
    with torch.no_grad():
        asked = [builder.prompt([3, 7, 9]), text_only(builder.prompt([3, 7, 9]))]
        sums = response_logprobs(lm.model, asked, [[builder.response(5)]] * 2).sums
    assert abs(float(sums[0] - sums[1])) > 1e-4


def test_training_twice_gives_the_same_bytes(project, trained):
    before = {file.name: file.read_bytes() for file in trained.iterdir()}
    llara(make_params(**LONG), "ease", project)
    assert {file.name: file.read_bytes() for file in trained.iterdir()} == before


def test_a_kill_among_text_only_steps_changes_no_byte(project, trained, monkeypatch):
    """At a checkpoint before the first hybrid batch the modality adapter has no optimiser state yet."""
    before = {file.name: file.read_bytes() for file in trained.iterdir() if file.name != "manifest.json"}
    wanted = make_params(**LONG, checkpoint_seconds=0)
    assert not Curriculum(24, wanted.seed).shows_vectors(1)
    left = killed_after_steps(monkeypatch)
    for steps in (1, 3, 12):
        left[0] = steps
        with pytest.raises(KeyboardInterrupt):
            llara(wanted, "ease", project)
    left[0] = 24 - 1 - 3 - 12  # no more are left to take: each run went on where the one before was killed
    llara(wanted, "ease", project)
    assert left == [0]
    assert {file.name: file.read_bytes() for file in trained.iterdir() if file.name != "manifest.json"} == before


def test_controls_are_other_teachers(teacher):
    moved, mean = shuffled(teacher, 1), averaged(teacher)
    assert torch.equal(torch.sort(moved.vectors[:, 0]).values, torch.sort(teacher.vectors[:, 0]).values)
    assert not any(torch.equal(a, b) for a, b in zip(moved.vectors, teacher.vectors, strict=True))
    torch.testing.assert_close(mean.vectors[3], teacher.vectors.mean(0))
    assert len({teacher.digest, moved.digest, mean.digest, shuffled(teacher, 2).digest}) == 4
    assert moved.order_digest == teacher.order_digest


def test_a_teacher_travels_in_a_file(teacher, tmp_path):
    teacher.write(tmp_path)
    read = Teacher.read(tmp_path)
    assert torch.equal(read.vectors, teacher.vectors)
    assert (read.digest, read.order_digest, read.name) == (teacher.digest, teacher.order_digest, "ease")


def test_factors_rebuild_what_ease_says_of_an_item():
    """U·√S of a matrix of rank 2 spans its rows: products of U·√S and the right side give it back."""
    draw = np.random.default_rng(0)
    weights = (draw.normal(size=(12, 2)) @ draw.normal(size=(2, 12))).astype(np.float32)
    factors = item_factors(weights, 2)
    assert factors.shape == (12, 2)
    rebuilt = factors @ np.linalg.lstsq(factors, weights, rcond=None)[0]
    np.testing.assert_allclose(rebuilt, weights, atol=1e-4)
    assert item_factors(weights, 64).shape == (12, 11)
    np.testing.assert_array_equal(item_factors(weights, 2), factors)


@pytest.fixture(scope="module")
def reading(project, tmp_path_factory) -> Project:
    """The same project with teachers that read titles: `content`, and SASRec on frozen text."""
    own = project.moved(baselines=tmp_path_factory.mktemp("reading"))
    asked = training_world.TREE["recommenders"]["next_item"] | {"text": "delta", "epochs": 2}
    for name in ("content", "sasrec"):
        baselines(make_params(recommenders__next_item=asked), name, own)
    return own


def test_a_new_item_has_the_vector_that_content_makes_of_its_title(reading):
    items = Items.read(reading.prepared)
    teacher = read_teacher("content", reading.baselines, items)
    made = Content.load(reading.baselines / "content", items).text_map.of(items, [NEW_ITEM])[0]
    own = teacher.vectors[teacher.ids.index(NEW_ITEM)]
    np.testing.assert_allclose(own, made, rtol=1e-5, atol=1e-6)
    assert np.abs(made).max() > 1e-3


def test_a_new_item_has_the_text_that_sasrec_was_given_of_it(reading):
    """What is learned of an item starts at 0 where it has no train events, and nothing moves it."""
    items = Items.read(reading.prepared)
    teacher = read_teacher("sasrec", reading.baselines, items)
    fitted = Sequential.load("sasrec", reading.baselines / "sasrec", items)
    column = items.ids.index(NEW_ITEM)
    assert torch.equal(teacher.vectors[teacher.ids.index(NEW_ITEM)], fitted.encoder.embedding.text[column])
    assert float(fitted.encoder.embedding.text[column].norm()) > 0.1


@pytest.mark.parametrize("name", ["content", "sasrec"])
def test_prompts_show_the_vector_of_a_new_item_and_the_model_reads_it(reading, name):
    items = Items.read(reading.prepared)
    teacher = read_teacher(name, reading.baselines, items)
    lm = load_language_model(reading.base, make_params().base)
    vectors = new_vectors(lm, teacher, 1)
    prompt = hybrid_prompts(lm, teacher, items, make_params().prompt, "films", clock=False).prompt([3, NEW_ITEM])
    assert [token for token in prompt if token < 0][-1] == soft_id(teacher.ids.index(NEW_ITEM))
    embedded = lm.model.get_input_embeddings()(torch.tensor([prompt]))[0, -1]
    with torch.no_grad():
        expected = vectors.adapter(teacher.vectors[teacher.ids.index(NEW_ITEM)][None])[0]
    torch.testing.assert_close(embedded, expected)


def test_the_digest_of_a_teacher_covers_the_vector_of_a_new_item(reading):
    teacher = read_teacher("content", reading.baselines, Items.read(reading.prepared))
    moved = teacher.vectors.clone()
    moved[teacher.ids.index(NEW_ITEM)] += 1e-3
    assert replace(teacher, vectors=moved).digest != teacher.digest


def test_a_new_item_whose_text_says_nothing_is_shown_as_text(reading, monkeypatch):
    """A vector of zeros: whatever SASRec was given of it is the mean of all."""
    items, real = Items.read(reading.prepared), teachers_module._vectors

    def silent(*given):
        vectors = real(*given)
        vectors[items.ids.index(NEW_ITEM)] = 0.0
        return vectors

    monkeypatch.setattr(teachers_module, "_vectors", silent)
    teacher = read_teacher("sasrec", reading.baselines, items)
    assert set(items.ids) - set(teacher.ids) == {NEW_ITEM}
    assert len(teacher.vectors) == len(items.ids) - 1


def test_the_stage_says_how_many_vectors_are_made_of_text(reading, tmp_path):
    items = Items.read(reading.prepared)
    train_llara(make_params(**LONG), read_teacher("content", reading.baselines, items), items, reading, tmp_path / "a")
    told = read_json(tmp_path / "a" / "training.json")["teacher"]
    assert (told["name"], told["items"], told["text_made"]) == ("content", len(ITEMS), 1)


def test_teachers_that_are_not_there_are_named(project):
    items = Items.read(project.prepared)
    with pytest.raises(
        RecalignError, match=r"names 'eaze'; allowed are sasrec, gru4rec, caser, ease, content \(did you mean ease"
    ):
        read_teacher("eaze", project.baselines, items)
    with pytest.raises(RecalignError, match=r"'sasrec', which was not fitted; put it into recommenders\.systems"):
        read_teacher("sasrec", project.baselines, items)
    smaller = Items(items.ids[:5], items.titles, items.attributes, items.popularity, items.train_events)
    with pytest.raises(RecalignError, match="fitted on another catalogue"):
        read_teacher("ease", project.baselines, smaller)


def test_a_teacher_of_another_log_is_refused(project, trained):
    items = Items.read(project.prepared)
    other = Items(items.ids, {item: f"Another {item}" for item in items.ids}, items.attributes, items.popularity)
    lm = load_language_model(project.base, make_params().base, adapter=trained)
    with pytest.raises(RecalignError, match="none of them is among the 24 of this catalogue"):
        prompt_builder(lm, trained, other, make_params().prompt, "films", clock=False)


def test_an_adapter_and_a_lora_of_different_runs_are_refused(project, trained, tmp_path, monkeypatch):
    mixed = tmp_path / "llara-ease"
    shutil.copytree(trained, mixed)
    train_llara(
        make_params(**LONG, seed=5), read_teacher("ease", project.baselines, Items.read(project.prepared)),
        Items.read(project.prepared), project, tmp_path / "other",
    )  # fmt: skip
    shutil.copyfile(tmp_path / "other" / "adapter_model.safetensors", mixed / "adapter_model.safetensors")
    (mixed / "manifest.json").unlink()
    lm = load_language_model(project.base, make_params().base)
    with pytest.raises(RecalignError, match="another run's LoRA adapter"):
        prompt_builder(lm, mixed, Items.read(project.prepared), make_params().prompt, "films", clock=False)
    shuffled(Teacher.read(trained), 3).write(mixed)
    with pytest.raises(RecalignError, match="another fit of 'ease'"):
        prompt_builder(lm, mixed, Items.read(project.prepared), make_params().prompt, "films", clock=False)
    (mixed / "teacher.parquet").unlink()
    with pytest.raises(RecalignError, match=r"holds no teacher\.parquet"):
        prompt_builder(lm, mixed, Items.read(project.prepared), make_params().prompt, "films", clock=False)


def test_the_digest_of_an_adapter_covers_its_vectors(project, trained, tmp_path):
    """So the keys of stored log-probs do, too."""
    other = tmp_path / "llara-ease"
    shutil.copytree(trained, other)
    assert adapter_digest(other) == adapter_digest(trained)
    shuffled(Teacher.read(trained), 3).write(other)
    assert adapter_digest(other) != adapter_digest(trained)
    (other / "manifest.json").unlink()
    prompt, response = [5, soft_id(1)], [6, 7]
    keys = {
        response_key(load_language_model(project.base, make_params().base, adapter=folder).digest, prompt, response)
        for folder in (trained, other)
    }
    assert len(keys) == 2


def recommender(project: Project, adapter: Path, catalogue: Items | None = None):
    """As evaluation, commands and serving open an adapter."""
    setting = Setting(make_params().base, make_params().prompt, "films", clock=False, seed=1, threads=1)
    items = catalogue or Items.read(project.prepared)
    return open_recommender("llm-llara-ease", project.base, adapter, setting, items)


def test_its_adapter_is_a_system_and_answers_the_same_from_a_package(project, trained, tmp_path):
    params = make_params(**LONG)
    assert language_models(params, project)["llm-llara-ease"] == trained
    assert "llm-llara-ease" not in language_models(make_params(), project)
    assert adapter_folder("llm-llara-ease", project.root) == trained
    shutil.copytree(trained, tmp_path / "adapter")
    own, served = recommender(project, trained), recommender(project, tmp_path / "adapter")
    history = [3, 7, "A title of no catalogue", NEW_ITEM]
    assert own.rank_items(history, None, 5) == served.rank_items(history, None, 5)
    listed = own.rank_items(history, [1, 2, NEW_ITEM], 3)
    assert {scored.item_id for scored in listed} == {1, 2, NEW_ITEM}
    assert own.language_model.digest == served.language_model.digest


def test_a_search_over_the_catalogue_gives_what_scoring_it_gives(project, trained):
    own = recommender(project, trained)
    best = own.rank_items([3, 7, 9], None, 4)
    scores = own.scores([Request(1, (3, 7, 9))], None)[0]
    ranked = sorted(zip((-scores).tolist(), own.catalogue.ids, strict=True))
    expected = [item for _, item in ranked if item not in (3, 7, 9)][:4]
    assert [scored.item_id for scored in best] == expected


def test_on_a_newer_catalogue_items_are_met_by_title(project, trained):
    """Other numbers, one title more: the vectors follow the titles."""
    items = Items.read(project.prepared)
    moved = {item + 100: title for item, title in items.titles.items()} | {500: "A New Film"}
    newer = Items(tuple(sorted(moved)), moved, {item: {} for item in moved}, dict.fromkeys(moved, 1))
    own, other = recommender(project, trained), recommender(project, trained, newer)
    assert own.builder.prompt([3, 7]) == other.builder.prompt([103, 107])
    assert other.builder.prompt([500])[-1] >= 0


def test_the_form_candidates_shows_vectors_of_the_candidates_too(project, teacher):
    items, params = Items.read(project.prepared), make_params(prompt__form="candidates").prompt
    lm = load_language_model(project.base, make_params().base)
    builder = hybrid_prompts(lm, teacher, items, params, "films", clock=False)
    prompt = builder.prompt([3, 7], candidates=[5, NEW_ITEM, 6])
    expected = [soft_id(builder.numbers[item]) for item in (3, 7, 5, 6)]
    assert [token for token in prompt if token < 0] == expected
    _, continuation = builder.sequence([3, 7], 5, candidates=[5, 6])
    assert continuation == builder.response(5)


ALIGNED = {"align__start": "hybrid/llara-ease", "align__objectives": ["sdpo"], "align__batch": 4, "align__epochs": 1}


@pytest.fixture(scope="module")
def aligned(project, trained, tmp_path_factory) -> Project:
    """S-DPO on from LLaRA, with references of its own."""
    out = tmp_path_factory.mktemp("aligned")
    pairs = project.root / "made" / "pairs"
    own = project.moved(pairs=pairs, reference=out / "reference", align=out / "align", scores=out / "scores")
    reference(make_params(**ALIGNED), own)
    align(make_params(**ALIGNED), "sdpo", own)
    return own


def test_alignment_starts_at_llara_which_is_its_reference(aligned, trained):
    told = read_json(aligned.align / "sdpo" / "training.json")
    start = load_language_model(aligned.base, make_params().base, adapter=trained)
    assert told["reference"] == start.digest
    assert told["step_0_difference"] < 1e-4
    assert told["params"]["align"]["start"] == "hybrid/llara-ease"
    assert told["steps"] > 10


def test_the_references_are_those_of_prompts_with_vectors(aligned, trained):
    lm, builder = open_start(make_params(**ALIGNED), aligned)
    examples = read_preference_examples(make_params(**ALIGNED), aligned.prepared, aligned.pairs, builder)
    example = examples["train"][0]
    assert sum(token < 0 for token in example.prompt) >= 4
    assert all(min(response) >= 0 for response in example.responses)
    stored = read_store(aligned.reference)
    key = response_key(lm.digest, example.prompt, example.responses[0])
    with torch.no_grad():
        sums = response_logprobs(lm.model, [example.prompt], [example.responses]).sums[0]
    assert stored[key].sum == pytest.approx(float(sums[0]), abs=1e-3)
    assert response_key(lm.digest, text_only(example.prompt), example.responses[0]) not in stored


def test_alignment_trains_lora_alone_and_keeps_the_vectors(aligned, trained):
    own = aligned.align / "sdpo"
    assert (own / "teacher.parquet").read_bytes() == (trained / "teacher.parquet").read_bytes()
    before, after = (load_file(folder / "modality.safetensors") for folder in (trained, own))
    assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (trained, own))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_what_was_aligned_from_llara_is_a_system_that_reads_vectors(aligned):
    assert language_models(make_params(**ALIGNED), aligned)["llm-sdpo"] == aligned.align / "sdpo"
    own = recommender(aligned, aligned.align / "sdpo")
    assert min(own.builder.prompt([3, 7])) < 0
    assert len(own.rank_items([3, 7, 9], None, 4)) == 4


def test_an_aligned_llara_is_never_ranked_by_the_reward_over_text(aligned):
    """The scores of llm-sft are no reference of it."""
    trials = Trials.__new__(Trials)
    assert _reference("llm-sdpo", make_params(**ALIGNED), aligned, trials) is None


def test_a_start_that_is_missing_or_unknown_is_named(project, trained):
    with pytest.raises(RecalignError, match=r"'hybrid/llara-caser', and .* is missing; run 'dvc repro llara@caser'"):
        open_start(make_params(align__start="hybrid/llara-caser"), project)
    with pytest.raises(RecalignError, match=r"align\.start.*'llara-ease'.*sft"):
        make_params(align__start="llara-ease")
