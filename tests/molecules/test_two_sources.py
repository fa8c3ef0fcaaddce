"""Pairs of a second file as a test view, one model for two projects, and the learning curve."""

import csv
from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit", reason="the molecules project needs RDKit: pip install -e '.[molecules]'")

from molecule_world import own_files, params
from ruamel.yaml import YAML

from moltc import project, stages, training
from moltc.curve import write_curve
from moltc.examples import answer_examples, number_examples
from moltc.joint import JointTraining, Side, both_sides, opened_jointly
from moltc.params import Params
from moltc.prepared import PairSet
from moltc.report import GRAPHS, JOINTLY
from moltc.simulator import write_simulated
from recalign.common.artifacts import read_json, read_parquet
from recalign.common.errors import RecalignError
from recalign.training.sft import LanguageModelling

SMALL = {"graph__width": 16, "graph__layers": 2, "graph__query_layers": 1, "graph__heads": 2}
FEW = {"subset__train": 12, "subset__validation": 4, "subset__test": 6, "subset__describe": 4,
       "evaluate__resamples": 100}  # fmt: skip
ALCOHOLS = ["C" * n + "O" for n in range(1, 13)]
ENERGIES = "solute,solvent,energy\n" + "".join(
    f"{one},{other},{-0.5 * len(one) - 0.1 * len(other)}\n" for one in ALCOHOLS for other in ALCOHOLS
)
OF_NUMBERS = {
    "data__pairs": "data/simulated/energies.csv", "data__types": None, "data__first": "solute",
    "data__second": "solvent",
    "data__label": "energy", "data__best": None, "data__kind": "number",
    "data__allow_self": True, "prompt__first_name": "Solute", "prompt__second_name": "Solvent",
}  # fmt: skip


# a second file


def test_a_second_file_is_a_view_of_its_own_without_the_pairs_of_the_first(tmp_path, capsys):
    """A pair that the first file has in the other order is left out, and bad rows go to quarantine as ever."""
    own = own_files(
        tmp_path, "".join(f"{a},{b},mix\n" for a in ALCOHOLS for b in ALCOHOLS if a < b),
        data__across="other.csv", data__across_label="kind", data__max_rejected=0.5,
    )  # fmt: skip
    rows = ["CCO,CO,mix", "CCN,CCO,salt", "C1CC,CCO,mix", "CCCN,CO,unheard", "CCN,CCCC,mix"]
    (tmp_path / "other.csv").write_text("smiles_1,smiles_2,kind\n" + "\n".join(rows) + "\n", encoding="utf-8")
    strict = own.model_copy(update={"data": own.data.model_copy(update={"max_rejected": 0.02})})
    with pytest.raises(RecalignError, match=r"data\.across, other\.csv: 2 of 4 rows .* 'unparsable SMILES \(first\)'"):
        stages.prepare(strict, tmp_path)
    assert len(read_parquet(tmp_path / "reports" / "quarantine.parquet")) == 3
    stages.prepare(own, tmp_path)
    pairs = PairSet.read(tmp_path / project.PREPARED)
    across = pairs.of("across")
    found = {frozenset(across.pair_id(n).split("|")) for n in range(len(across))}
    assert found == {frozenset(["CCN", "CCO"]), frozenset(["CCN", "CCCC"])}
    assert {pairs.answers.codes[int(label)] for label in across.labels} == {"salt", "mix"}
    assert not {"across"} & set(pairs.views[:-2])
    quarantine = read_parquet(tmp_path / project.PREPARED / "quarantine.parquet").to_pylist()
    assert {row["rule"] for row in quarantine} == {
        "pair of the first file", "unparsable SMILES (first)", "unknown label",
    }  # fmt: skip
    summary = read_json(tmp_path / project.PREPARED / "summary.json")
    assert {"pairs.csv", "types.csv", "other.csv"} == set(summary["files"])
    assert "other.csv: pair of the first file" in capsys.readouterr().out


def test_a_second_file_without_a_new_pair_is_refused(tmp_path):
    own = own_files(tmp_path, "CO,CCO,mix\nCO,CCCO,mix\nCCCO,CCO,mix\n", data__across="pairs.csv")
    with pytest.raises(RecalignError, match=r"data\.across, pairs\.csv: no pair .* 'pair of the first file'"):
        stages.prepare(own, tmp_path)


# joint training


def two_projects(place: Path) -> tuple[Params, Params]:
    """Interactions in place/types, numbers in place/numbers, both prepared, the first one described."""
    names = {}
    for name, changes in (("types", {"joint": "../numbers"}), ("numbers", OF_NUMBERS)):
        root = place / name
        write_simulated(root / "data" / "simulated")
        (root / "data/simulated/energies.csv").write_text(ENERGIES, encoding="utf-8")
        own = params(**SMALL, **FEW, **changes)
        with (root / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(own.model_dump(mode="json"), file)
        stages.prepare(own, root)
        stages.base(own, root)
        stages.describe(own, root)
        names[name] = own
    return names["types"], names["numbers"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    two_projects(folder)
    return folder


def sides(place: Path) -> tuple[Side, Side]:
    return both_sides(params(**SMALL, **FEW, joint="../numbers"), place / "types")


def test_a_joint_batch_weighs_each_kind_by_its_share(place):
    """A batch of three answers and one number: 3/4 of the mean over the answers' tokens, 1/4 of the number's error."""
    own, other = opened_jointly(sides(place), place / "types" / project.DESCRIBED)
    one, two = sides(place)
    texts = answer_examples(training.subset(one.params, one.pairs, "train").take([0, 1, 2]), own.prompts, 0)
    numbers = number_examples(training.subset(two.params, two.pairs, "train").take([0]), other.prompts)
    words = LanguageModelling(own.lm.model, texts, 4096)
    heads = training.NumberTraining(own.lm.model, own.vectors, numbers, 4096)
    joint = JointTraining(heads, words)
    with torch.no_grad():
        expected = 0.75 * words.validate()["validation_loss"] + 0.25 * heads.validate()["validation_loss"]
        for parts in ([[*texts, *numbers]], [texts[:1], [*numbers, texts[1]], texts[2:]], [numbers, texts]):
            found = list(joint.losses(parts))
            assert len({each.part for each in found}) == len(found)
            assert float(sum(each.loss for each in found)) == pytest.approx(expected, rel=1e-5)


def test_both_projects_ask_by_their_own_names_and_show_their_own_molecules(place):
    own, other = opened_jointly(sides(place), place / "types" / project.DESCRIBED)
    one, two = sides(place)
    molecule = two.pairs.molecules[3]
    vectors = [-1 - each for each in other.prompts.graph_ids(3)]
    assert {own.vectors.smiles[own.vectors.table[each]] for each in vectors} == {molecule}
    said = own.lm.tokenizer.decode([each for each in other.prompts.prompt(3, 4) if each >= 0])
    assert "Solute:" in said
    assert "Molecule 1" in own.lm.tokenizer.decode([each for each in own.prompts.prompt(0, 1) if each >= 0])
    assert len(own.vectors.smiles) == len(set(one.pairs.molecules) | set(two.pairs.molecules))


def test_joint_training_is_evaluated_on_both_projects(place, capsys):
    own, numbers = params(**SMALL, **FEW, joint="../numbers"), params(**SMALL, **FEW, **OF_NUMBERS)
    root = place / "types"
    stages.interact(own, root)
    stages.interact(numbers, place / "numbers")
    stages.joint(own, root)
    weights = (root / project.JOINT / "adapter_model.safetensors").read_bytes()
    stages.joint(own, root)
    assert (root / project.JOINT / "adapter_model.safetensors").read_bytes() == weights
    facts = read_json(root / project.JOINT / "training.json")
    assert facts["examples"] == 24
    assert facts["best_validation_loss"] < facts["start_validation_loss"]
    stages.baselines(own, root)
    stages.evaluate(own, root)
    metrics = read_json(root / "reports" / "metrics.json")
    assert {GRAPHS, JOINTLY} <= metrics["views"]["random"]["systems"].keys()
    assert set(metrics["joint"]["random"]["systems"]) == {GRAPHS, JOINTLY}
    assert f"{JOINTLY} − {GRAPHS}" in metrics["joint"]["random"]["gains"]
    assert "## ../numbers, random:" in capsys.readouterr().out
    facts = root / project.JOINT / "training.json"
    facts.write_text(facts.read_text().replace('"with": "', '"with": "0'), encoding="utf-8")  # of other pairs
    stages.evaluate(own, root)
    metrics = read_json(root / "reports" / "metrics.json")
    assert JOINTLY not in metrics["views"]["random"]["systems"]
    assert metrics["joint"] == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"joint": None}, "joint is null"),
        ({"joint": "../nowhere"}, "is not prepared"),
        ({"joint": "../numbers", "graph__width": 32}, "graph is .* joint training needs one model"),
        ({"joint": "../numbers", **OF_NUMBERS}, "both projects ask the head for numbers"),
    ],
)
def test_projects_that_do_not_go_together_are_refused(place, changes, told):
    root = place / ("numbers" if "data__kind" in changes else "types")
    with pytest.raises(RecalignError, match=told):
        both_sides(params(**SMALL | FEW | changes), root)


# the curve


def test_the_curve_has_a_row_a_size_system_and_view(place):
    root, own = place / "types", params(**SMALL, **FEW)
    rows = write_curve(own, [12, 6], root)
    with (root / "reports" / "curve.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows) == 2 * 9 * 3 * 2  # sizes, systems, views, metrics
    assert {row["pairs"] for row in read} == {"6", "12"}
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in read)
    kept = sorted((root / project.CACHE / "curve").iterdir())
    assert write_curve(own, [6, 12], root) == rows  # nothing is trained twice
    assert sorted((root / project.CACHE / "curve").iterdir()) == kept
    with pytest.raises(RecalignError, match=r"curve: 1 pairs were asked for; training has 2 to \d+"):
        write_curve(own, [1], root)


def test_a_model_of_the_curve_is_that_of_the_stage(place):
    """At the size of the subset the curve trains what `interact` trains."""
    root, own = place / "types", params(**SMALL, **FEW)
    stages.interact(own, root)
    write_curve(own, [FEW["subset__train"]], root)
    weights = (root / project.INTERACTING / "adapter_model.safetensors").read_bytes()
    found = [folder / "adapter_model.safetensors" for folder in (root / project.CACHE / "curve").iterdir()]
    assert weights in [path.read_bytes() for path in found]
