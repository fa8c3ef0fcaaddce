"""The model of pairs: graph network, queries, graph tokens in prompts, training, scores in both orders, baselines."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit", reason="the molecules project needs RDKit: pip install -e '.[molecules]'")

from molecule_world import PROJECT, params
from rdkit import Chem
from safetensors.torch import load_file

from moltc import baselines, project, stages, training
from moltc.answers import Answers
from moltc.baselines import BASELINES, Fitting, fitted
from moltc.chemistry import read_molecule
from moltc.examples import answer_examples, number_examples, preference_examples
from moltc.gin import Gin
from moltc.graphs import Graphs, graph_of, joined, molecule_graph
from moltc.params import Params, parse_params
from moltc.predictions import answer_scores, predict, with_shuffled_graphs
from moltc.prepared import PairSet
from moltc.prompts import ANSWER
from moltc.report import GRAPHS, KNOWN, PREFERRED, SHUFFLED, TEXT
from moltc.resampler import Resampler
from moltc.serving import PairService, register, write_package
from moltc.training import Opened, last_hidden, open_model
from moltc.vectors import WEIGHTS
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.llm.generation import generate_texts
from recalign.llm.model.base import fetch_base
from recalign.llm.scoring.logprobs import response_logprobs

SMILES = ("CC(=O)O", "CCN", "CCO", "O", "c1ccccc1", "CCCCCC")
TYPES = Answers(("a", "a", "b"), ("{drug_1} melts {drug_2}.", "{drug_2} melts {drug_1}.", "Both mix."), (1, 0, 2))
SMALL = {"graph__width": 16, "graph__layers": 2, "graph__query_layers": 1, "graph__heads": 2}


def pair_set(kind: str = "types", molecules: tuple[str, ...] = SMILES) -> PairSet:
    first, second = np.array([0, 1, 2, 4]), np.array([1, 2, 3, 4])
    labels = np.array([0.0, 2, 1, 2]) if kind != "number" else np.array([-1.0, -3.27, 2.0, 0.5])
    answers = TYPES if kind != "number" else Answers((), (), ())
    views = np.array(["train", "train", "validation", "random"], dtype=object)
    return PairSet(kind, molecules, answers, first, second, labels, np.full(4, np.nan), views, "digest")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model as its base."""
    place = tmp_path_factory.mktemp("molecules")
    fetch_base(params().base, place / project.BASE)
    return place


@pytest.fixture(scope="module")
def opened(root: Path) -> Opened:
    return open_model(params(**SMALL), pair_set(), root / project.BASE, None)


# graphs and the graph network


def test_a_graph_holds_each_bond_twice():
    graph = graph_of("CCO")
    assert graph.atoms[:, 0].tolist() == [6, 6, 8]
    assert graph.atoms[:, 3].tolist() == [3, 2, 1]  # hydrogens
    assert graph.ends.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert graph.bonds.tolist() == [[0, 0, 0]] * 4


def test_a_single_atom_and_a_thousand_are_encoded():
    gin = Gin(8, 3)
    for smiles in ("O", "C" * 1000):
        graphs = joined([graph_of(smiles)])
        atoms = gin(graphs)
        vectors = Resampler(8, 3, 1, 2)(atoms, graphs.owner, gin.pooled(atoms, graphs))
        assert vectors.shape == (1, 3, 8)
        assert vectors.isfinite().all()


def test_gin_by_hand_on_ethanol():
    """Width 2, one layer: C is (1, 0), O is (0, 2), a single bond (1, 1); ε is 0.5 and the MLP does nothing."""
    gin = Gin(2, 1)
    layer = gin.layers[0]
    with torch.no_grad():
        for table in [*gin.atoms.tables, *layer.bonds.tables]:
            table.weight.zero_()
        gin.atoms.tables[0].weight[6] = torch.tensor([1.0, 0.0])
        gin.atoms.tables[0].weight[8] = torch.tensor([0.0, 2.0])
        layer.bonds.tables[0].weight[0] = torch.tensor([1.0, 1.0])
        layer.epsilon.fill_(0.5)
        for linear, weight in ((layer.mlp[0], torch.eye(4, 2)), (layer.mlp[2], torch.eye(2, 4))):
            linear.weight.copy_(weight)
            linear.bias.zero_()
    layer.norm = torch.nn.Identity()
    # C1: 1.5 (1, 0) + (1, 0) + (1, 1); C2: 1.5 (1, 0) + (1, 0) + (0, 2) + 2 (1, 1); O: 1.5 (0, 2) + (1, 0) + (1, 1)
    expected = [[3.5, 1.0], [4.5, 4.0], [2.0, 4.0]]
    graphs = joined([graph_of("CCO"), graph_of("O")])
    vectors = gin(graphs)
    assert vectors.tolist() == [*expected, [0.0, 3.0]]
    assert gin.pooled(vectors, graphs).tolist() == [[pytest.approx(10 / 3), pytest.approx(3.0)], [0.0, 3.0]]


def test_a_molecule_does_not_depend_on_its_batch(opened):
    alone = opened.vectors.molecule_tokens(["CCO"])
    among = opened.vectors.molecule_tokens(["c1ccccc1", "CCO", "O"])
    torch.testing.assert_close(among[1:2], alone, rtol=1e-5, atol=1e-6)


def test_the_order_of_atoms_changes_nothing(opened):
    """The same molecule with its atoms renumbered."""
    molecule = Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O")
    turned = Chem.RenumberAtoms(molecule, list(reversed(range(molecule.GetNumAtoms()))))

    def tokens(graph: Graphs) -> torch.Tensor:
        graphs, own = joined([graph]), opened.vectors
        atoms = own.gin(graphs)
        return own.resampler(atoms, graphs.owner, own.gin.pooled(atoms, graphs))

    one, other = molecule_graph(molecule), molecule_graph(turned)
    assert one.atoms.tolist() != other.atoms.tolist()
    torch.testing.assert_close(tokens(one), tokens(other), rtol=1e-5, atol=1e-6)


# graph tokens in prompts


def test_each_molecule_has_eight_places_and_eight_vectors(opened):
    prompt = opened.prompts.prompt(0, 1)
    places = [token for token in prompt if token < 0]
    assert places == [-1 - n for n in range(16)]
    turned = [token for token in opened.prompts.prompt(0, 1, swapped=True) if token < 0]
    assert turned == places[8:] + places[:8]
    vectors = opened.vectors(torch.arange(16))
    assert vectors.shape == (16, 64)
    torch.testing.assert_close(vectors[8:], opened.vectors.molecule_tokens(["CCN"])[0])
    assert len(torch.unique(vectors.detach(), dim=0)) == 16


def test_a_vector_that_no_molecule_has_is_refused(opened):
    """Six molecules of eight tokens: number 48 is nobody's."""
    with pytest.raises(RecalignError, match="asks for vector 48"):
        response_logprobs(opened.lm.model, [[5, -49]], [[[7]]])


@pytest.mark.parametrize("frozen", [True, False])
def test_both_molecules_reach_the_answer(root, opened, frozen):
    """The released code gives the second molecule the first one's graph where the graph network is frozen."""
    before = opened.vectors.training
    opened.vectors.gin.requires_grad_(not frozen)
    answer = opened.prompts.responses()[:1]
    scores = []
    for shown in ((0, 1), (0, 5), (4, 1)):
        graphs = dict(zip((0, 1), shown, strict=True))  # the text stays, the graph changes
        prompts = replace(opened.prompts, graph_ids=lambda m, graphs=graphs: opened.vectors.ids(graphs.get(m, m)))
        found = response_logprobs(opened.lm.model, [prompts.prompt(0, 1)], [answer])
        scores.append(float(found.sums[0, 0]))
    assert len(set(scores)) == 3
    opened.vectors.gin.requires_grad_(True)
    assert opened.vectors.training is before


def test_gradients_reach_the_graph_network_from_the_second_molecule(opened):
    """Only the second molecule's graph is shown."""
    prompts = replace(opened.prompts, graph_ids=lambda m: opened.vectors.ids(m) if m == 1 else [])
    response_logprobs(opened.lm.model, [prompts.prompt(0, 1)], [prompts.responses()[:1]]).sums.sum().backward()
    gradients = [weight.grad for weight in opened.vectors.gin.atoms.parameters()]
    assert gradients[0][7].abs().sum() > 0  # nitrogen
    assert gradients[0][8].abs().sum() == 0  # no oxygen is in CCN
    opened.lm.model.zero_grad()


def test_scores_do_not_depend_on_the_order_of_asking(opened):
    """A directed type holds from drug_1 to drug_2, whichever the prompt shows first."""
    pairs = pair_set()
    turned = replace(pairs, first=pairs.second, second=pairs.first)
    scores, other = answer_scores(opened, pairs), answer_scores(opened, turned)
    np.testing.assert_allclose(scores, other[:, list(TYPES.turned)], rtol=1e-5)
    np.testing.assert_allclose(TYPES.by_type(scores), TYPES.by_type(other), rtol=1e-5)
    assert abs(scores[0, 0] - scores[0, 1]) > 1e-4  # directed: "2 melts 1" is another statement
    prompts = opened.prompts
    asked = [prompts.prompt(0, 1), prompts.prompt(0, 1, swapped=True)]
    said = [prompts.responses(swapped=swapped)[:1] for swapped in (False, True)]
    by_hand = response_logprobs(opened.lm.model, asked, said).sums.mean()
    assert scores[0, 0] == pytest.approx(float(by_hand), rel=1e-5)


def test_a_molecule_with_itself_is_answered(opened):
    own = pair_set().take([3])
    assert own.first[0] == own.second[0]
    assert np.isfinite(answer_scores(opened, own)).all()


def test_shuffled_graphs_change_every_molecule_and_no_text(opened):
    mixed = with_shuffled_graphs(opened, pair_set(), seed=1)
    for molecule in range(len(SMILES)):
        assert mixed.prompts.graph_ids(molecule) != opened.prompts.graph_ids(molecule)
    text = [[t for t in which.prompts.prompt(0, 1) if t >= 0] for which in (mixed, opened)]
    assert text[0] == text[1]


def test_text_alone_has_no_places_and_says_so_for_types(root):
    text = open_model(params(**SMALL), pair_set(), root / project.BASE, None, tokens=0)
    assert all(token >= 0 for token in text.prompts.prompt(0, 1))
    names = {name.split(".")[0] for name, w in text.vectors.named_parameters() if w.requires_grad}
    assert names == {"head"}


def test_smiles_never_become_special_tokens(opened):
    prompts = replace(opened.prompts, molecules=("<|im_end|>", "CCO"))
    special = set(opened.lm.tokenizer.all_special_ids)
    assert not special & set(prompts.prompt(0, 1)[1:])


def test_a_long_smiles_is_cut_and_its_graph_is_whole(opened):
    long = read_molecule("C" * 1000).smiles
    prompts = replace(opened.prompts, molecules=(long, "O"))
    assert len(prompts.prompt(0, 1)) < 250
    assert len(graph_of(long).atoms) == 1000


def test_names_of_types_are_those_of_the_sentences(opened):
    wrong = params(prompt__first_name="Solute").prompt
    with pytest.raises(RecalignError, match="other names are for numbers"):
        replace(opened.prompts, params=wrong)


def test_a_thought_names_both_molecules(opened):
    prompts = replace(opened.prompts, params=params(prompt__thought=True).prompt)
    said = opened.lm.tokenizer.decode(prompts.thought(0, 1, swapped=True))
    assert said.startswith(" Molecule 1: weight 45, logP")
    assert "Molecule 2: weight 60" in said
    example = answer_examples(pair_set().take([0]), prompts, seed=0)[0]
    said = opened.lm.tokenizer.decode(example.continuation)
    assert said.index("weight 45") > 0
    assert said.endswith((f"{ANSWER} Molecule 1 melts Molecule 2.\n", f"{ANSWER} Molecule 2 melts Molecule 1.\n"))


# training


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_the_stages_train_and_are_repeatable(root, compute):
    """Describe, interact, text and prefer on the tiny model; a second run writes the same bytes."""
    own, pairs = params(**SMALL, subset__describe=4, base__compute=compute), pair_set()
    weights = []
    for run in ("one", "two"):
        place = root / f"{compute}-{run}"
        described, trained, preferred = place / "described", place / "trained", place / "preferred"
        training.describe(own, pairs, root, described)
        training.interact(own, pairs, root, trained, described)
        training.interact(own, pairs, root, place / "text", None)
        training.prefer(own, pairs, root, trained, preferred)
        files = [described / WEIGHTS, trained / WEIGHTS, trained / "adapter_model.safetensors",
                 place / "text" / "adapter_model.safetensors", preferred / "adapter_model.safetensors"]  # fmt: skip
        weights.append([file.read_bytes() for file in files])
    assert weights[0] == weights[1]
    one = root / f"{compute}-one"
    facts = read_json(one / "preferred" / "training.json")
    bound = {"fp32": 1e-4, "bf16": 5e-2}[compute]  # of the number format
    start = facts["start_validation_loss"]
    assert start == pytest.approx(np.log(3), abs=bound)  # two wrong sentences, policy = reference
    assert facts["step_0_difference"] < bound
    again = open_model(own, pairs, root / project.BASE, one / "trained")
    assert np.isfinite(answer_scores(again, pairs)).all()


def test_a_frozen_graph_network_stays_as_it_was_described(root, tmp_path):
    """Queries and adapter go on learning; frozen or not, it learns to describe."""
    own, pairs = params(**SMALL, subset__describe=4, graph__tuned=False), pair_set()
    places = [tmp_path / stage for stage in ("described", "trained", "preferred")]
    training.describe(own, pairs, root, places[0])
    training.interact(own, pairs, root, places[1], places[0])
    training.prefer(own, pairs, root, places[1], places[2])
    new = dict(open_model(own, pairs, root / project.BASE, None).vectors.state_dict())
    described, trained, preferred = (load_file(place / WEIGHTS) for place in places)
    gin = [name for name in described if name.startswith("gin.")]
    assert gin
    assert any(not torch.equal(new[name], described[name]) for name in gin)
    for name in gin:
        assert torch.equal(described[name], trained[name])
        assert torch.equal(described[name], preferred[name])
    for part in ("resampler.", "adapter."):
        assert any(not torch.equal(described[name], trained[name]) for name in described if name.startswith(part))


def test_a_stage_refuses_weights_of_another_size_or_damaged(root, tmp_path):
    training.describe(params(**SMALL, subset__describe=2), pair_set(), root, tmp_path / "described")
    with pytest.raises(RecalignError, match="was trained with"):
        open_model(params(), pair_set(), root / project.BASE, tmp_path / "described")
    (tmp_path / "described" / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(RecalignError, match="is damaged"):
        open_model(params(**SMALL), pair_set(), root / project.BASE, tmp_path / "described")


def test_wrong_sentences_are_wrong_and_occur_in_training(opened):
    pairs = pair_set()
    found = preference_examples(pairs, opened.prompts, 3, pairs.labels, seed=0)
    assert [len(example.responses) for example in found] == [3] * 4  # the other direction is wrong too
    for example, place in zip(found, range(4), strict=True):
        said = [opened.prompts.responses(swapped=turn) for turn in (False, True)]
        right = int(pairs.labels[place])
        shown = next(own for own in said if example.responses[0] == own[right])
        assert sorted(example.responses[1:]) == sorted(each for place, each in enumerate(shown) if place != right)
    with pytest.raises(RecalignError, match="only 1 type"):
        preference_examples(pairs, opened.prompts, 3, np.array([1.0]), seed=0)


def test_the_head_learns_numbers(root, tmp_path):
    """On two pairs the loss falls far below that of the mean (1 in units of the spread)."""
    names = {"prompt__first_name": "Solute", "prompt__second_name": "Solvent", "prompt__number": "head"}
    own = params(**SMALL, **names, data__kind="number", interact__epochs=60)
    pairs = pair_set("number")
    training.describe(own, pairs, root, tmp_path / "described")
    training.interact(own, replace(pairs, views=np.array(["train", "train", "validation", "validation"])), root,
                      tmp_path / "trained", tmp_path / "described")  # fmt: skip
    opened = open_model(own, pairs, root / project.BASE, tmp_path / "trained")
    assert opened.vectors.scale.tolist() == pytest.approx([-2.135, 1.135])
    losses = [float(row.split(",")[2]) for row in (tmp_path / "trained" / "curve.csv").read_text().split("\n")[2:-1]]
    assert losses[-1] < 0.2 < losses[0]
    training.prefer(own, pairs, root, tmp_path / "trained", tmp_path / "preferred")
    assert "skipped" in read_json(tmp_path / "preferred" / "training.json")


def test_the_last_state_does_not_depend_on_padding(root):
    pairs = pair_set("number")
    own = params(**SMALL, prompt__first_name="Solute", prompt__second_name="Solvent")
    opened = open_model(own, pairs, root / project.BASE, None)
    prompts = [example.prompt for example in number_examples(pairs, opened.prompts)]
    together = last_hidden(opened.lm.model, prompts)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(
            together[row : row + 1], last_hidden(opened.lm.model, [prompt]), rtol=1e-4, atol=1e-5
        )


def test_numbers_as_text_are_counted_where_they_cannot_be_read(root):
    """An untrained model says no number; the training mean stands for it."""
    own = params(**SMALL, prompt__number="text", data__kind="number")
    opened = open_model(own, pair_set("number"), root / project.BASE, None)
    found = predict(own, opened, pair_set("number"), mean=-2.5)
    assert found.unparsed == 4
    assert found.values[:, 0].tolist() == [-2.5] * 4


def test_generation_reads_graph_tokens(opened):
    """What is generated first is what the model thinks likeliest after text and graphs, also next to another prompt."""
    mixed = with_shuffled_graphs(opened, pair_set(), seed=1)
    prompts = [opened.prompts.prompt(0, 1), mixed.prompts.prompt(2, 3)]
    texts = generate_texts(opened.lm, prompts, 1, stop="\n")
    for text, prompt in zip(texts, prompts, strict=True):
        with torch.no_grad():
            likeliest = opened.lm.model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax()
        assert text == opened.lm.tokenizer.decode([int(likeliest)])


# baselines and the whole chain


@pytest.mark.parametrize("kind", ["types", "number"])
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_answer_every_pair(name, kind, monkeypatch):
    monkeypatch.setattr(baselines, "GIN_EPOCHS", 150)  # four pairs make one step an epoch
    pairs = pair_set(kind)
    many = pairs.take([0, 1, 2, 3] * 6)
    predict_pairs = fitted(name, Fitting(many, pairs, 8, 2, seed=0))
    out = predict_pairs(pairs)
    assert out.shape == (4, 1 if kind == "number" else 2)
    assert np.isfinite(out).all()
    if name not in ("most frequent", "ids only") and kind == "types":
        assert out.argmax(axis=1).tolist() == [0, 1, 0, 1]  # they have seen these very pairs
    if kind == "types":
        np.testing.assert_allclose(predict_pairs(pairs.turned()), out, rtol=1e-6)  # the order of a file says nothing


def test_baselines_of_one_class_say_it():
    """Nothing can be told apart; no traceback of a library."""
    pairs = pair_set().take([1, 1, 3, 3])
    for name in BASELINES:
        out = fitted(name, Fitting(pairs, pairs, 8, 2, seed=0))(pair_set())
        assert np.isfinite(out).all()
        if name not in ("GIN alone", "Tanimoto kNN"):  # nothing is similar to water: a tie
            assert out.argmax(axis=1).tolist() == [1, 1, 1, 1]


def test_the_whole_chain_on_the_bundled_pairs(tmp_path, capsys, caplog, monkeypatch):
    """prepare … evaluate with the tiny model: every system on the same pairs, with the known best answer."""
    shutil.copytree(PROJECT / "data" / "simulated", tmp_path / "data" / "simulated")
    own = params(**SMALL, subset__train=24, subset__validation=8, subset__test=12, subset__describe=4,
                 evaluate__resamples=100)  # fmt: skip
    for stage in ("prepare", "base", "baselines", "describe", "interact", "text", "prefer", "evaluate"):
        getattr(stages, stage)(own, tmp_path)
    metrics = read_json(tmp_path / "reports" / "metrics.json")
    assert set(metrics["views"]) == {"random", "one-new", "both-new"}
    for view in metrics["views"].values():
        assert {GRAPHS, TEXT, SHUFFLED, PREFERRED, KNOWN, "ids only", "GIN alone, all pairs"} <= set(view["systems"])
        assert view["pairs"] == 12
        best = view["systems"][KNOWN]["accuracy"]["value"]
        assert best >= 0.75
        assert f"{GRAPHS} − {TEXT}" in view["gains"]
    assert "## both-new: 12 pairs" in capsys.readouterr().out
    check_registered(own, tmp_path, monkeypatch)
    check_other_pairs(own, tmp_path, caplog)


def check_other_pairs(own: Params, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What answered or learned other pairs is in no table and in no registry, whoever forgot to train it again."""
    stages.evaluate(own.model_copy(update={"seed": own.seed + 1}), root)
    there = read_json(root / "reports" / "metrics.json")["views"]["random"]["systems"]
    assert set(there) == {GRAPHS, TEXT, SHUFFLED, PREFERRED, KNOWN}
    assert "the baselines were fitted for other pairs" in caplog.text
    other = own.model_copy(update={"split": own.split.model_copy(update={"pairs": 0.3})})
    stages.prepare(other, root)
    stages.evaluate(other, root)
    assert set(read_json(root / "reports" / "metrics.json")["views"]["random"]["systems"]) == {KNOWN}
    assert f"{TEXT} learned other pairs" in caplog.text
    with pytest.raises(RecalignError, match="preferred learned other pairs"):
        packaged(other, root)


def check_registered(own: Params, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain's model in a real registry: registered once, loaded by its address, answering pairs of SMILES."""
    import mlflow
    import pandas as pd
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("RECALIGN_BASE", str(root / project.BASE))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    version = register(own, root)
    assert register(own, root) == version == "1"
    model = mlflow.pyfunc.load_model(f"models:/molecules/{version}")
    rows = pd.DataFrame([{"smiles_1": "OC(C)=O", "smiles_2": "NCC"}, {"smiles_1": "O", "smiles_2": "[Na+].[Cl-]"}])
    first, second = model.predict(rows)
    assert first["smiles_1"] == "CC(=O)O"
    assert first["answer"] in Answers.read(root / project.PREPARED / "answers.parquet").said(swapped=False)
    assert 0 < first["score"] <= 1
    assert (second["smiles_1"], second["smiles_2"]) == ("O", "[Cl-]")  # single atoms; of a mixture a part
    alone = model.predict(rows.iloc[:1])[0]
    assert alone["score"] == pytest.approx(first["score"], rel=1e-4)
    for bad, told in (
        ("C1CC", "row 0: smiles_1 is 'C1CC': unparsable SMILES"), ("C" * 1000, "has 1000 atoms"),
        (None, "row 0: smiles_1 is None: no SMILES"), ("OCC", "row 0: both molecules are CCO; .* two different"),
    ):  # fmt: skip
        with pytest.raises(MlflowException, match=told):
            model.predict(pd.DataFrame([{"smiles_1": bad, "smiles_2": "CCO"}]))
    check_two_at_once(PairService(packaged(own, root)))
    monkeypatch.setenv("RECALIGN_BASE", str(root))
    with pytest.raises(RecalignError, match=r"holds no base\.json"):
        PairService(root / "package")


def check_two_at_once(service: PairService) -> None:
    """MLflow's server answers each request in a thread of its own: none reads the molecules of another."""
    asked = [[{"smiles_1": "C" * n, "smiles_2": "O" + "C" * (n % 3)}] for n in range(1, 13)]
    alone = [service.answer(rows) for rows in asked]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(service.answer, asked)) == alone


def packaged(own: Params, root: Path) -> Path:
    write_package(own, root, root / "package")
    return root / "package"


def test_params_name_what_is_wrong():
    tree = params().model_dump()
    for key, value, told in (
        ("kind", "text", "data.kind is 'text'"),
        ("max_atoms", 0, "data.max_atoms is 0"),
        ("atoms", 3, "data.atoms is no key"),
        ("types", None, "data.types is null but data.kind is types"),
    ):
        with pytest.raises(RecalignError, match=told.replace(".", r"\.")):
            parse_params({**tree, "data": {**tree["data"], key: value}})
    without = {key: value for key, value in tree["data"].items() if key != "pairs"}
    with pytest.raises(RecalignError, match=r"params: key data\.pairs is missing; add it"):
        parse_params({**tree, "data": without})
