"""Contextual states in prompts: what they depend on, how they are scored, how they travel, and what is refused."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
import training_world
from hybrid_world import NEW_ITEM, killed_after_steps, lora_model, make_project
from registry_project import write_interactions
from training_world import ITEMS, make_params

from recalign.common.artifacts import digest_of, folder, read_json
from recalign.common.errors import RecalignError
from recalign.data.records import Case, Example, Items
from recalign.evaluation.injection import IN_HISTORY
from recalign.hybrid.llara import read_teacher
from recalign.hybrid.modality import ModalityAdapter, Teacher, averaged, embedding_std, load_modality, shuffled
from recalign.hybrid.prompts import (
    HybridPrompts,
    ProjectedStates,
    _origin,
    attach,
    hybrid_prompts,
    open_start,
    prompt_builder,
    soft_id,
    text_only,
)
from recalign.hybrid.states import States
from recalign.llm.model.adapters import adapter_digest
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.logprobs import naive_logprobs, one_by_one_logprobs, response_logprobs
from recalign.llm.scoring.ways import base_of
from recalign.project import Project
from recalign.ranking.injected import attack, reading_twins
from recalign.ranking.language_model import LanguageModelRecommender, Setting, open_recommender, store_key
from recalign.ranking.measured import language_model_artifacts
from recalign.ranking.package import Identity, Settings, write_package
from recalign.ranking.trial import Trial
from recalign.recommenders.neural.sequential import Sequential, build_encoder
from recalign.recommenders.neural.sequential import Settings as EncoderSettings
from recalign.recommenders.recommender import Asked, Request
from recalign.registry.serving import load_recommender
from recalign.stages.align import align
from recalign.stages.baselines import baselines
from recalign.stages.llara import llara
from recalign.stages.reference import reference
from recalign.training.examples import read_preference_examples
from recalign.training.reference import read_store, response_key

TEACHERS = ("sasrec", "gru4rec", "caser")
LENGTH, WIDTH = 6, 16
SMALL = training_world.TREE["recommenders"]["next_item"] | {"epochs": 2, "dimension": WIDTH, "max_history": LENGTH}
LONG = {
    "sft__epochs": 3, "sft__batch": 4, "recommenders__next_item": SMALL,
    "hybrid": {"teachers": ["sasrec"], "curriculum": "linear", "vectors": "states"},
}  # fmt: skip
ALIGNED = LONG | {
    "align__start": "hybrid/llara-sasrec", "align__objectives": ["sdpo"], "align__batch": 4, "align__epochs": 1,
}  # fmt: skip


def random_recommender(name: str, ids: tuple[int, ...] = (10, 20, 30, 40, 50)) -> Sequential:
    """A sequence model with weights large enough that every history has a state of its own."""
    settings = EncoderSettings(dimension=WIDTH, dropout=0.5, length=LENGTH, window=3)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        encoder = build_encoder(name, len(ids), settings)
        torch.nn.init.normal_(encoder.embedding.weight)
    catalogue = Items(ids, {item: f"Title {item}" for item in ids}, {}, {})
    return Sequential(catalogue, name, encoder.eval(), settings)


def reading(states: States, family: str = "llama") -> torch.nn.Module:
    """A tiny model under a LoRA with non-zero factors that reads states."""
    model = lora_model(family)
    width = model.get_input_embeddings().weight.shape[-1]
    attach(model, ProjectedStates(states, ModalityAdapter(WIDTH, width, std=embedding_std(model))))
    return model


def case(states: States) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts that begin alike but for a state, or end in one, and a continuation that holds some itself."""
    histories = ((10,), (10, 20), (10, 20, 30), (50, 10, 20, 30))
    a, b, c, d = (soft_id(states.number(history)) for history in histories)
    prompts = [[40, 41, a, 42, 43, b], [40, 41, a, 42, 43, c], [40, 41, 50], [60, d]]
    titles = [[70, 71, 72], [70, 75], [80]]
    return prompts, [titles, titles[:2], titles, [[70, 71, a, 72, 90, c, 91]]]


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_values_and_gradients_equal_scoring_one_by_one(name, family):
    states = States(random_recommender(name))
    model, (prompts, responses) = reading(states, family), case(states)
    before = {key: value.clone() for key, value in states.recommender.encoder.state_dict().items()}
    with torch.no_grad():
        shared, alone = response_logprobs(model, prompts, responses), one_by_one_logprobs(model, prompts, responses)
        padded = naive_logprobs(model, prompts, responses)
        torch.testing.assert_close(shared.sums, alone.sums, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(padded.sums, alone.sums, rtol=1e-5, atol=1e-4)
        assert shared.lengths.tolist() == alone.lengths.tolist() == [[3, 2, 1], [3, 2, 0], [3, 2, 1], [5, 0, 0]]
        for row, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
            single = response_logprobs(model, [prompt], [group]).sums[0]
            torch.testing.assert_close(shared.sums[row, : len(group)], single, rtol=1e-5, atol=1e-4)

    def slopes(score) -> torch.Tensor:
        model.zero_grad()
        result = score(model, prompts, responses)
        (result.sums * torch.tensor([1.0, -1.0, 2.0])).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])

    own, other = slopes(response_logprobs), slopes(one_by_one_logprobs)
    assert own.norm() > 1e-3
    assert (own - other).norm() / other.norm() < 1e-4
    assert all(float(p.grad.norm()) > 0 for p in base_of(model).get_input_embeddings().vectors.adapter.parameters())
    assert all(p.grad is None for p in states.recommender.encoder.parameters())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in states.recommender.encoder.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in states.recommender.encoder.state_dict().items())


@pytest.mark.parametrize("name", TEACHERS)
def test_what_stands_in_a_prompt_is_the_state_after_the_history(name):
    states = States(random_recommender(name))
    model = reading(states)
    embedding = base_of(model).get_input_embeddings()
    prompt = [40, soft_id(states.number((10, 20))), 41, soft_id(states.number((30,)))]
    with torch.no_grad():
        found = embedding(torch.tensor([prompt]))[0, [1, 3]]
        expected = embedding.vectors.adapter(
            torch.cat([states.recommender.last([(10, 20)]), states.recommender.last([(30,)])])
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_number_is_the_hash_of_the_latest_items_that_are_read():
    """In whatever process, and whatever was asked before; fewer than 2^60, so that −1 − n is an id of 64 bits."""
    states = States(random_recommender("gru4rec"))
    expected = int(hashlib.sha256(b"[10,20]").hexdigest()[:15], 16)
    assert states.number((10, 20)) == expected < 2**60
    assert states.number((20, 10)) != expected
    assert States(random_recommender("sasrec")).number([10, 20]) == expected
    latest = (20, 30, 40, 50, 10, 20)
    assert len(latest) == LENGTH
    assert states.number((30, *latest)) == states.number((10, 10, *latest)) == states.number(latest)
    assert states.number((30, *latest[1:])) != states.number(latest)


def test_a_number_that_nobody_registered_is_refused():
    states = States(random_recommender("sasrec"))
    model = reading(states)
    with pytest.raises(RecalignError, match="a state of 'sasrec' that no history of this process has"):
        response_logprobs(model, [[40, soft_id(3)]], [[[50]]])


def test_the_latest_histories_are_remembered_up_to_a_bound():
    states = States(random_recommender("sasrec"), most=2)
    first, second = states.number((10,)), states.number((20,))
    states.number((10,))  # the latest now
    third = states.number((30,))
    assert states.of([first, third]).shape == (2, WIDTH)
    with pytest.raises(RecalignError, match="2 later ones have displaced"):
        states.of([second])


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project with SASRec and EASE fitted on it."""
    project = make_project(tmp_path_factory.mktemp("states"))
    for name in ("sasrec", "ease"):
        baselines(make_params(**LONG), name, project)
    return project


@pytest.fixture(scope="module")
def items(project) -> Items:
    return Items.read(project.prepared)


@pytest.fixture
def teacher(project, items) -> Teacher:
    return read_teacher("sasrec", project.baselines, items, states=True)


@pytest.fixture(scope="module")
def lm(project) -> LanguageModel:
    return load_language_model(project.base, make_params().base)


@pytest.fixture(scope="module")
def trained(project) -> Path:
    llara(make_params(**LONG), "sasrec", project)
    return project.hybrid / "llara-sasrec"


def soft(ids: list[int]) -> list[int]:
    """The vectors of a prompt."""
    return [token for token in ids if token < 0]


def built(lm: LanguageModel, teacher: Teacher, items: Items, **changes) -> HybridPrompts:
    """Prompts with states; `history=2` sets prompt.history."""
    params = make_params(**{f"prompt__{key}": value for key, value in changes.items()}).prompt
    return hybrid_prompts(lm, teacher, items, params, "films", clock=False)


def test_a_state_follows_each_title_that_the_teacher_knows(lm, teacher, items):
    """What it does not know it does not read."""
    prompts = built(lm, teacher, items)
    text = PromptBuilder(lm.tokenizer, items, make_params().prompt, "films", clock=False)
    history = [3, NEW_ITEM, "A title of no catalogue", 7]
    prompt = prompts.prompt(history)
    assert text_only(prompt) == text.prompt(history)
    expected = [soft_id(teacher.states.number(read)) for read in ((3,), (3, 7))]
    assert soft(prompt) == expected
    assert prompt[-1] == expected[-1]
    assert prompts.response(7) == text.response(7)
    assert prompts.neutral() == text.neutral()
    assert prompts.digest not in (text.digest, digest_of([text.digest, sorted(prompts.numbers.items())]))


def test_a_state_depends_on_the_history_that_is_not_shown(project, trained, lm, teacher, items):
    """Equal titles, other ids, other scores, other keys of stored log-probs."""
    recommender = opened(project, trained, history=2)
    one, other = (recommender.builder.prompt(history) for history in ([1, 2, 3, 7], [9, 2, 3, 7]))
    assert text_only(one) == text_only(other)
    assert not set(soft(one)) & set(soft(other))
    scores = recommender.scores([Request(1, (1, 2, 3, 7)), Request(1, (9, 2, 3, 7))], [[5, 6], [5, 6]])
    assert float((scores[0] - scores[1]).abs().min()) > 1e-6
    digest, response = recommender.language_model.digest, [[recommender.builder.response(5)]]
    assert store_key(digest, [one], response) != store_key(digest, [other], response)


def test_training_and_ranking_show_the_same_states(lm, teacher, items):
    """At each title that of the items up to it, never of a later one: what is asked for is not in what is read."""
    prompts, history = built(lm, teacher, items, training_history=4, history=2), [1, 5, 2, 3, 9]
    opening, continuation = prompts.sequence(history, 7)
    shown = soft([*opening, *continuation])
    assert shown == [soft_id(teacher.states.number(history[:end])) for end in (2, 3, 4, 5)]
    assert shown[-2:] == soft(prompts.prompt(history))
    assert continuation[-1] >= 0
    assert shown == soft([token for part in prompts.sequence(history, 8) for token in part])


def test_static_prompts_and_teachers_are_as_they_were(project, lm, items):
    """Digests by their formulas of before there were states."""
    static = read_teacher("sasrec", project.baselines, items)
    prompts = built(lm, static, items)
    text = PromptBuilder(lm.tokenizer, items, make_params().prompt, "films", clock=False)
    assert prompts.digest == digest_of([text.digest, sorted(prompts.numbers.items())])
    assert static.digest == digest_of([static.name, static.fitted, static.vectors.numpy().tobytes().hex()])
    assert soft(prompts.prompt([1, 3, 7])) == [soft_id(prompts.numbers[item]) for item in (1, 3, 7)]
    assert make_params(hybrid={"teachers": [], "curriculum": "none"}).hybrid.vectors == "static"


def test_training_writes_the_teacher_beside_the_adapter(project, trained):
    fitted = project.baselines / "sasrec"
    for name in ("model.safetensors", "settings.json"):
        assert (trained / "teacher" / name).read_bytes() == (fitted / name).read_bytes()
    told = read_json(trained / "training.json")["teacher"]
    assert (told["vectors"], told["items"], told["width"]) == ("states", len(ITEMS) - 1, WIDTH)
    names = read_json(trained / "manifest.json")["sha256"]
    assert {"teacher/model.safetensors", "teacher/settings.json", "teacher.parquet"} <= names.keys()


def bytes_of(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_a_kill_changes_no_byte(project, trained, monkeypatch):
    before = bytes_of(trained)
    left = killed_after_steps(monkeypatch)
    wanted = make_params(**LONG, checkpoint_seconds=0)
    for steps in (7, 9):
        left[0] = steps
        with pytest.raises(KeyboardInterrupt):
            llara(wanted, "sasrec", project)
    left[0] = 24 - 7 - 9
    llara(wanted, "sasrec", project)
    assert left == [0]
    assert bytes_of(trained) == before


def opened(project: Project, adapter: Path, catalogue: Items | None = None, **changes) -> LanguageModelRecommender:
    """As evaluation, commands and serving open an adapter."""
    params = make_params(**{f"prompt__{key}": value for key, value in changes.items()})
    setting = Setting(params.base, params.prompt, "films", clock=False, seed=1, threads=1)
    return open_recommender(
        "llm-llara-sasrec", project.base, adapter, setting, catalogue or Items.read(project.prepared)
    )


def test_a_case_alone_and_in_a_batch_is_ranked_alike(project, trained):
    own = opened(project, trained)
    requests = [Request(1, (1, 2, 3)), Request(2, (9, 2, 3, 4, 5, 6, 7, 8)), Request(3, (NEW_ITEM,)), Request(4, ())]
    together = own.scores(requests, [[5, 11, NEW_ITEM]] * 4)
    for row, request in enumerate(requests):
        alone = own.scores([request], [[5, 11, NEW_ITEM]])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-4)


def test_a_search_over_the_catalogue_gives_what_scoring_it_gives(project, trained):
    own = opened(project, trained)
    best = own.rank_items([3, 7, 9], None, 4)
    scores = own.scores([Request(1, (3, 7, 9))], None)[0]
    ranked = sorted(zip((-scores).tolist(), own.catalogue.ids, strict=True))
    assert [scored.item_id for scored in best] == [item for _, item in ranked if item not in (3, 7, 9)][:4]


def test_a_registered_version_answers_without_the_project(project, trained, items, tmp_path):
    """Package and back; a changed teacher in it is refused."""
    params = make_params(**LONG)
    write_interactions(project.root, {item: str(item) for item in items.ids})
    settings = Settings(
        system="llm-llara-sasrec", source="simulated", noun="films", clock=False, ranked_by="logprob",
        prior_weight=0.0, prompt=params.prompt, base=params.base, profile_engine="statements",
        identity=Identity(**read_json(project.base / "base.json")),
        artifacts=language_model_artifacts(project.base, trained),
    )  # fmt: skip
    package = tmp_path / "package"
    write_package(settings, project.root, package)
    shutil.copytree(project.base, tmp_path / "base")
    served = load_recommender(package, tmp_path / "base", Items.read(package))
    own = opened(project, trained)
    asked = [Asked([1, 3, "A title of no catalogue", NEW_ITEM, 7], None, 5), Asked([2, 9], [5, 6, 11], 3)]
    assert served.rank_many(asked) == own.rank_many(asked)
    assert min(served.builder.prompt([3])) < 0
    with (package / "adapter" / "teacher" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(RecalignError, match=r"teacher/model\.safetensors was changed"):
        load_recommender(package, tmp_path / "base", Items.read(package))


def test_on_a_newer_catalogue_items_are_met_by_title(project, trained, items):
    """Other numbers, one title more: the same states."""
    moved = {item + 100: title for item, title in items.titles.items()} | {500: "A New Film"}
    newer = Items(tuple(sorted(moved)), moved, {item: {} for item in moved}, dict.fromkeys(moved, 1))
    own, other = opened(project, trained), opened(project, trained, newer)
    assert own.builder.prompt([3, 7]) == other.builder.prompt([103, 107])
    assert soft(other.builder.prompt([103, 500, 107])) == soft(own.builder.prompt([3, 7]))
    assert other.rank_items([103, 107], [101, 500], 1)


def test_a_twin_of_a_title_leaves_the_state_as_it_is(project, trained, items):
    """A text in the last title of a history changes the text alone."""
    own = opened(project, trained)
    example = Example("1-5", 1, "test", None, (1, 3, 7), 5)
    clean = Trial("uniform", "digest", (Case(example, (5, 6, 9), 0),), (Request(1, (1, 3, 7)),))
    attacked = attack(clean, items, seed=1)
    reader = reading_twins(own, attacked, make_params().prompt, "films", clock=False)
    (told,) = attacked.poisoned[IN_HISTORY].requests
    assert soft(reader.builder.prompt(told.history)) == soft(own.builder.prompt((1, 3, 7)))
    assert reader.builder.prompt(told.history) != own.builder.prompt((1, 3, 7))


def test_the_digest_of_an_adapter_covers_its_teacher(project, trained, tmp_path):
    other = tmp_path / "llara-sasrec"
    shutil.copytree(trained, other)
    assert adapter_digest(other) == adapter_digest(trained)
    seen = {adapter_digest(trained)}
    for name in ("model.safetensors", "settings.json"):
        (other / "teacher" / name).write_bytes((other / "teacher" / name).read_bytes() + b" ")
        seen.add(adapter_digest(other))
    assert len(seen) == 3


def refit(project: Project, items: Items, teacher: Teacher) -> Teacher:
    """The same recommender, one weight of which is another."""
    states = States.read("sasrec", project.baselines / "sasrec", items.trained)
    with torch.no_grad():
        states.recommender.encoder.last.bias[0] += 0.5
    return Teacher(teacher.name, teacher.ids, teacher.titles, teacher.vectors, teacher.fitted, states)


def test_a_teacher_of_another_fit_or_catalogue_is_refused(project, trained, teacher, items, tmp_path):
    other = refit(project, items, teacher)
    assert other.digest != teacher.digest
    assert other.order_digest == teacher.order_digest
    mixed = tmp_path / "mixed"
    shutil.copytree(trained, mixed)
    (mixed / "manifest.json").unlink()
    other.states.write(mixed / "teacher")
    model = load_language_model(project.base, make_params().base)
    with pytest.raises(RecalignError, match="another fit of 'sasrec'"):
        prompt_builder(model, mixed, items, make_params().prompt, "films", clock=False)
    random_recommender("sasrec").save(mixed / "teacher")
    with pytest.raises(RecalignError, match="fitted on another catalogue"):
        Teacher.read(mixed)
    random_recommender("gru4rec", teacher.ids).save(mixed / "teacher")
    with pytest.raises(RecalignError, match="holds the recommender 'gru4rec', not 'sasrec'"):
        Teacher.read(mixed)
    shutil.rmtree(mixed / "teacher")
    with pytest.raises(RecalignError, match=r"teacher/settings\.json is missing"):
        Teacher.read(mixed)
    foreign = Items(items.ids, {item: f"Another {item}" for item in items.ids}, items.attributes, items.popularity)
    with pytest.raises(RecalignError, match="none of them is among the 24 of this catalogue"):
        prompt_builder(model, trained, foreign, make_params().prompt, "films", clock=False)


def test_a_damaged_teacher_is_one_line(trained, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(trained, mixed)
    (mixed / "manifest.json").unlink()
    told = (mixed / "teacher" / "settings.json").read_text()
    for wrong in (told.replace('"dimension": 16', '"dimension": 8'), told.replace('"dropout"', '"drop"')):
        assert wrong != told
        (mixed / "teacher" / "settings.json").write_text(wrong)
        with pytest.raises(RecalignError, match="holds no whole 'sasrec'"):
            Teacher.read(mixed)


def test_static_vectors_are_no_stand_in_for_states(project, trained, items, tmp_path):
    """Their teacher has another digest."""
    static = read_teacher("sasrec", project.baselines, items)
    with folder(tmp_path / "mixed") as mixed:
        shutil.copytree(trained, mixed, dirs_exist_ok=True)
        static.write(mixed)
    with pytest.raises(RecalignError, match="another fit of 'sasrec'"):
        load_modality(tmp_path / "mixed", _origin(static, tmp_path / "mixed"))


@pytest.mark.parametrize("name", ["ease", "content"])
def test_teachers_without_states_are_refused(project, items, name):
    told = rf"hybrid\.vectors is 'states', but hybrid\.teachers names '{name}'.*sasrec, gru4rec, caser.*'static'"
    with pytest.raises(RecalignError, match=told):
        read_teacher(name, project.baselines, items, states=True)
    if name == "ease":
        with pytest.raises(RecalignError, match=told):
            llara(make_params(**LONG), name, project)


def test_lists_of_candidates_and_unknown_kinds_are_refused(lm, teacher, items):
    with pytest.raises(
        RecalignError, match=r"prompt\.form is 'candidates', but hybrid\.vectors is 'states'.*'history'"
    ):
        built(lm, teacher, items, form="candidates")
    with pytest.raises(RecalignError, match=r"hybrid\.vectors is 'state'.*did you mean states"):
        make_params(hybrid__vectors="state")


def test_controls_of_static_vectors_are_refused(teacher):
    for control in (averaged, lambda own: shuffled(own, 1)):
        with pytest.raises(RecalignError, match=r"shows states.*hybrid\.vectors to 'static'"):
            control(teacher)


def test_alignment_goes_on_from_an_adapter_with_states(project, trained, tmp_path):
    """References of prompts with states, step 0 agrees, and the teacher travels on."""
    pairs = project.root / "made" / "pairs"
    own = project.moved(pairs=pairs, reference=tmp_path / "reference", align=tmp_path / "align")
    reference(make_params(**ALIGNED), own)
    align(make_params(**ALIGNED), "sdpo", own)
    aligned = own.align / "sdpo"
    assert read_json(aligned / "training.json")["step_0_difference"] < 1e-4
    assert bytes_of(aligned / "teacher") == bytes_of(trained / "teacher")
    model, builder = open_start(make_params(**ALIGNED), own)
    assert builder.states.most is None
    examples = read_preference_examples(make_params(**ALIGNED), own.prepared, own.pairs, builder)
    example = examples["train"][0]
    with torch.no_grad():
        sums = response_logprobs(model.model, [example.prompt], [example.responses]).sums[0]
    key = response_key(model.digest, example.prompt, example.responses[0])
    assert read_store(own.reference)[key].sum == pytest.approx(float(sums[0]), abs=1e-3)
    ranking = opened(own, aligned)
    assert ranking.builder.states.most is not None
    assert len(ranking.rank_items([3, 7, 9], None, 4)) == 4
