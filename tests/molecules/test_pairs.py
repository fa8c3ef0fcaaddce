"""Files of pairs: what is read, what goes to quarantine and why, how pairs are split, what the audit finds."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit", reason="the molecules project needs RDKit: pip install -e '.[molecules]'")

from molecule_world import PROJECT, own_files, params

from moltc import project, stages
from moltc.answers import Answers, number_read, number_said
from moltc.audit import audit_pairs, given_split
from moltc.chemistry import BadMoleculeError, descriptors, morgan_counts, read_molecule, tanimoto
from moltc.evaluation import Cases, accuracy, auroc, macro_f1, mae, rmse
from moltc.prepared import PairSet
from moltc.simulator import energy, interaction, write_simulated
from moltc.splits import BOTH_NEW, ONE_NEW, RANDOM, fraction, split_views
from moltc.validation import Clean, read_pairs
from recalign.common.artifacts import read_json, read_parquet
from recalign.common.errors import RecalignError

ETHANOL, AMINE, ACID = "CCO", "CCN", "CC(=O)O"


def read(root: Path, rows: str, **changes: object) -> Clean:
    own = own_files(root, rows, **changes)
    return read_pairs(own.data, root, root / "spill")


def reasons(clean: Clean) -> dict[str, str]:
    """Line → rule of the quarantine."""
    return dict(zip(clean.quarantine["line"].to_pylist(), clean.quarantine["rule"].to_pylist(), strict=True))


def test_two_spellings_are_one_molecule():
    assert read_molecule("OCC") == read_molecule("C(C)O")
    assert read_molecule("OCC").smiles == "CCO"


def test_of_a_salt_the_largest_part_is_read():
    acetate = read_molecule("[Na+].CC(=O)[O-]")
    assert (acetate.smiles, acetate.fragments, acetate.atoms) == ("CC(=O)[O-]", 2, 4)
    assert read_molecule("O.CCO.C").smiles == "CCO"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CC(=O)[O-].[Na+]", "CC(=O)O"),
        ("C[NH3+].[Cl-]", "CN"),
        ("[2H]C([2H])([2H])O", "CO"),
        ("[H]/N=C(/C)N", "CC(=N)N"),
    ],
)
def test_an_acid_and_its_salt_share_a_skeleton(one, other):
    """So do isotopes, and hydrogens that are written out."""
    assert read_molecule(one).skeleton == read_molecule(other).skeleton
    assert read_molecule("C[N+](C)(C)C").skeleton == "C[N+](C)(C)C"  # no proton would make it neutral
    assert read_molecule("[2H][2H]").skeleton == "[H][H]"


def test_atoms_numbered_in_a_reaction_are_the_same_molecule():
    assert read_molecule("[CH3:1][OH:2]") == read_molecule("CO")


def test_mirror_images_share_a_skeleton():
    left, right = read_molecule("C[C@H](N)C(=O)O"), read_molecule("C[C@@H](N)C(=O)O")
    assert left.smiles != right.smiles
    assert left.skeleton == right.skeleton


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, "no SMILES"), ("  ", "no SMILES"), ("C1CC", "unparsable SMILES"), ("ethanol", "unparsable SMILES"),
        ("C" * 2001, "SMILES too long"), ("CCO ethanol", "unparsable SMILES"), ("C C O", "unparsable SMILES"),
    ],
)  # fmt: skip
def test_what_is_no_molecule(text, rule):
    with pytest.raises(BadMoleculeError, match=rule):
        read_molecule(text)


def test_a_single_atom_and_a_thousand_are_molecules():
    """What is too large for a data set is a rule of its params."""
    assert read_molecule("O").atoms == 1
    assert read_molecule("[Na+].[Cl-]").atoms == 1
    assert read_molecule("C" * 1000).atoms == 1000


def test_descriptors_and_fingerprints_of_ethanol():
    logp, surface, donors, acceptors, rotatable, rings, aromatic, weight = descriptors("CCO")
    assert (donors, acceptors, rotatable, rings, aromatic) == (1, 1, 0, 0, 0)
    assert (round(logp, 4), round(surface, 2), round(weight, 3)) == (-0.0014, 20.23, 46.042)
    assert morgan_counts(["CCO", "CCCC"]).sum(axis=1).tolist() == [6, 9]  # atoms, their neighbours; of butane its whole
    similar = tanimoto(["CCO", "CCO", "CCCO"])
    assert similar[0].tolist() == [1.0, 1.0, similar[0, 2]]
    assert 0 < similar[0, 2] < 1


def test_bad_rows_go_to_quarantine_with_their_reasons(tmp_path):
    rows = [
        "CCO,CCN,salt", "C1CC,CCO,mix", "CCO,,mix", "CCO,OCC,mix", "CCO,CCC,explode", f"{'C' * 1000},CCO,mix",
        "NCC,CCO,salt", "CCC,CCCC,mix", "CCCC,CCC,over", "CO,CS,over", "CS,CO,over", "CO,CN,over",
    ]  # fmt: skip
    clean = read(tmp_path, "\n".join(rows) + "\n")
    assert reasons(clean) == {
        3: "unparsable SMILES (first)", 4: "no SMILES (second)", 5: "same molecule twice", 6: "unknown label",
        7: "too many atoms (first)", 8: "exact copy", 9: "contradictory labels", 10: "contradictory labels",
        11: "contradictory labels", 12: "contradictory labels",  # a directed type cannot hold both ways
    }  # fmt: skip
    assert len(clean.first) == 2
    assert clean.summary()["pairs"] == {"read": 12, "kept": 2, "quarantined": 10}


def test_a_line_with_too_many_columns_is_kept_as_text(tmp_path):
    clean = read(tmp_path, "CCO,CCN,salt\nCCO,CCC,mix,extra\n")
    assert clean.quarantine.to_pylist()[0]["row"] == '{"text":"CCO,CCC,mix,extra"}'
    assert clean.quarantine["line"].to_pylist() == [3]


def test_mixtures_are_counted(tmp_path):
    clean = read(tmp_path, "CC(=O)[O-].[Na+],CCN,salt\nCCO.O,CCC,mix\nCCO,CCN,salt\n")
    warned = {outcome.rule.name: outcome.failed for outcome in clean.outcomes if outcome.rule.level == "warning"}
    assert warned == {"salt or mixture": 2}
    assert len(clean.first) == 3


def test_numbers_go_by_the_order_and_the_first_is_kept(tmp_path):
    header, rows = "smiles_1,smiles_2,type", "CCO,O,-5.0\nO,CCO,-4.0\nCCO,O,-5.2\nO,O,-6.3\nCCO,CCN,inf\nC,CC,much\n"
    changes = {"data__kind": "number", "data__allow_self": True}
    own = own_files(tmp_path, rows, header, **changes)
    clean = read_pairs(own.data, tmp_path, tmp_path / "spill")
    assert clean.labels.tolist() == [-5.0, -4.0, -6.3]
    assert reasons(clean) == {4: "contradictory labels", 6: "unknown label", 7: "unknown label"}


def test_ids_are_looked_up_in_the_file_of_molecules(tmp_path):
    (tmp_path / "drugs.csv").write_text("drug_id,smiles\nD1,CCO\nD2,CCN\nD3,C1\n", encoding="utf-8")
    clean = read(tmp_path, "D1,D2,salt\nD1,D9,mix\nD3,D1,mix\n", data__molecules="drugs.csv")
    assert reasons(clean) == {3: "unknown molecule id (second)", 4: "unparsable SMILES (first)"}
    assert [molecule.smiles for molecule in clean.molecules] == ["CCN", "CCO"]


def test_the_order_of_a_pair_says_nothing(tmp_path):
    """Either spelling is stored alike; a directed type's roles are in its answer, of which there are two."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    for code in ("salt", "over"):
        here, there = read(one, f"CCO,CCN,{code}\n"), read(other, f"CCN,CCO,{code}\n")
        assert here.first.tolist() == there.first.tolist()
        said = [own.answers.said(swapped=False)[int(own.labels[0])] for own in (here, there)]
        assert (said[0] == said[1]) is (code == "salt")
        assert here.truth.tolist() == there.truth.tolist() == [here.answers.types.index(code)]
    ends = {f"Molecule {n}": here.molecules[side[0]].smiles for n, side in ((1, here.first), (2, here.second))}
    assert [ends[name] for name in said[0].split(" lies above ")[:1]] == ["CCO"]
    assert said[0].endswith(f"{next(name for name, smiles in ends.items() if smiles == 'CCN')}.")


def test_missing_files_and_columns_are_named(tmp_path):
    own = own_files(tmp_path, "CCO,CCN,salt\n", header="smiles_1,partner,type")
    with pytest.raises(RecalignError, match=r"no column 'smiles_2' \(data.second\)"):
        read_pairs(own.data, tmp_path, tmp_path / "spill")
    (tmp_path / "pairs.csv").unlink()
    with pytest.raises(RecalignError, match=r"pairs\.csv is missing"):
        read_pairs(own.data, tmp_path, tmp_path / "spill")


def test_a_directed_type_has_to_name_both_molecules():
    with pytest.raises(RecalignError, match="does not name both"):
        Answers.of_rows([{"type": "1", "sentence": "They mix.", "symmetric": "0"}], "types.csv")


def test_too_many_bad_rows_stop_the_stage_and_are_shown(tmp_path, capsys):
    own = own_files(tmp_path, "CCO,CCN,salt\nC1,CCO,mix\n")
    with pytest.raises(RecalignError, match=r"1 of 2 rows \(50.0%\).*'unparsable SMILES \(first\)'"):
        stages.prepare(own, tmp_path)
    assert read_parquet(tmp_path / "reports" / "quarantine.parquet")["line"].to_pylist() == [3]
    assert not (tmp_path / "data" / "prepared").exists()


@pytest.mark.parametrize(
    ("rows", "changes", "told"),
    [
        ("CCO,CCN,yes\nCCC,CCN,no\n", {"data__kind": "yes-no", "data__types": None},
         r"no pair .* 'unknown label' \(every label is 0 or 1; line 2: 'yes'\)"),
        ("CCO,CCN,salt\nCCC,CCN,boom\n", {}, r"1 of 2 .*every label is a type of types\.csv; line 3: 'boom'"),
        ("CCO,CCN,salt\nCCC,CCN\nCCC\nC1,CCN,salt\n", {},
         r"3 of 4 .* 'unparsable line' \(every line can be read; line 3: '"),
    ],
)  # fmt: skip
def test_a_refused_file_is_told_what_most_rows_lack_and_where(tmp_path, rows, changes, told):
    own = own_files(tmp_path, rows, **changes)
    with pytest.raises(RecalignError, match=told):
        stages.prepare(own, tmp_path)


def test_a_split_column_without_train_and_test_is_refused():
    with pytest.raises(RecalignError, match=r"data\.split: .* says 'training', 'valid'; null"):
        given_split(["training", "valid", "training"])


def test_a_type_sentence_follows_the_order_of_the_prompt():
    rows = [{"type": "over", "sentence": "{drug_1} lies above {drug_2}.", "symmetric": "0"},
            {"type": "mix", "sentence": "Both mix.", "symmetric": "1"}]  # fmt: skip
    answers = Answers.of_rows(rows, "types.csv")
    said = ["Molecule 1 lies above Molecule 2.", "Molecule 2 lies above Molecule 1.", "Both mix."]
    assert answers.said(swapped=False) == said
    assert answers.said(swapped=True) == [said[place] for place in answers.turned] == [said[1], said[0], said[2]]
    assert answers.types == ("over", "mix")
    assert answers.type_of.tolist() == [0, 0, 1]
    shares = answers.by_type(np.log(np.array([[0.25, 0.25, 0.5], [0.1, 0.8, 0.1]])))
    np.testing.assert_allclose(np.exp(shares), [[0.5, 0.5], [0.9, 0.1]])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-3.27, "-3.5 and -3.0, so it is -3.27"), (0.26, "0.0 and 0.5, so it is 0.26"),
        (2.0, "2.0 and 2.0, so it is 2.00"), (-0.001, "0.0 and 0.0, so it is 0.00"),
        (-33.7, "-34.0 and -33.5, so it is -33.70"), (1.999, "2.0 and 2.0, so it is 2.00"),
    ],
)  # fmt: skip
def test_numbers_in_words(value, said):
    """The paper's form, at multiples of a half too; what is said is read again."""
    assert number_said(value) == f"The value lies between {said}."
    assert number_read(number_said(value)) == round(value, 2)


def test_a_text_without_a_number_is_none():
    for text in ("", "The value lies between -3.5 and", "so it is -3.27", "between -3.5 and -3.0, so it is high."):
        assert number_read(text) is None


def test_views_go_by_the_molecules_that_are_held_out(tmp_path):
    """Whatever the file's order; mirror images go together."""
    write_simulated(tmp_path / "data" / "simulated")
    clean = read_pairs(params().data, tmp_path, tmp_path / "spill")
    views = split_views(clean, params().split)
    held = [fraction(f"hold|{molecule.skeleton}") < 0.2 for molecule in clean.molecules]
    for view, first, second in zip(views, clean.first, clean.second, strict=True):
        expected = {0: {"train", "validation", RANDOM}, 1: {ONE_NEW}, 2: {BOTH_NEW}}[held[first] + held[second]]
        assert view in expected
    counts = Counter(views.tolist())
    assert counts["train"] > 700
    assert min(counts[view] for view in (RANDOM, ONE_NEW, BOTH_NEW, "validation")) > 80


def test_the_bundled_pairs_are_what_the_script_writes(tmp_path):
    write_simulated(tmp_path)
    for name in ("pairs.csv", "types.csv"):
        assert (tmp_path / name).read_bytes() == (PROJECT / "data" / "simulated" / name).read_bytes()


def test_the_rules_of_the_simulated_world():
    assert interaction(ACID, AMINE) == interaction(AMINE, ACID) == ("salt", False)
    assert interaction(ACID, ETHANOL) == ("ester", False)
    assert interaction(ETHANOL, ACID) == ("ester", True)
    assert interaction("CCC", "CCCC") == ("mix", False)
    assert interaction("CCCCCC", "CO") == ("layer", False)
    assert interaction("CO", "CCCCCC") == ("layer", True)
    assert energy("CCCCCC", "CCCCCC") == pytest.approx(-0.02 * 86.11, abs=1e-3)  # no bond, no ring, no distance


def test_prepare_writes_the_contract_and_the_same_bytes_again(tmp_path, capsys):
    write_simulated(tmp_path / "data" / "simulated")
    own = params()
    stages.prepare(own, tmp_path)
    folder = tmp_path / "data" / "prepared"
    first = read_json(folder / "manifest.json")
    pairs = PairSet.read(folder)
    assert len(pairs) == read_json(folder / "summary.json")["pairs"]["kept"] == 1801
    subset = pairs.of("train", 20, seed=1)
    assert set(subset.views) == {"train"}
    assert [subset.pair_id(n) for n in range(3)] == [pairs.of("train", 40, seed=1).pair_id(n) for n in range(3)]
    stages.prepare(own, tmp_path)
    assert read_json(folder / "manifest.json") == first
    assert "audit, molecules alone: warning" in capsys.readouterr().out


# the audit


def yes_no(tmp_path: Path, rows: list[str]) -> Clean:
    own = own_files(tmp_path, "\n".join(rows) + "\n", data__kind="yes-no", data__types=None)
    return read_pairs(own.data, tmp_path, tmp_path / "spill")


def alkanes(count: int) -> list[str]:
    return ["C" * (n + 1) for n in range(count)]


def test_the_audit_finds_molecules_that_give_the_label_away(tmp_path):
    """Positives among half of the molecules, negatives among the others, as the published ChCh-Miner nearly has it."""
    chains = alkanes(24)
    halves = {1: chains[:12], 0: chains[12:]}
    rows = [f"{a},{b},{label}" for label, own in halves.items() for a in own for b in own if a < b]
    clean = yes_no(tmp_path, rows)
    train = np.array([fraction(f"{n}") < 0.7 for n in range(len(rows))])
    alone, order, met = audit_pairs(clean, "yes-no", train, ~train)
    assert (alone.verdict, round(alone.figure.value, 2)) == ("leak", 1.0)
    assert order.verdict == "clean"  # both labels are written in the same order
    assert met.verdict == "warning"


def test_a_file_of_one_class_is_prepared(tmp_path):
    rows = "".join(f"{'C' * a}O,{'C' * b}N,1\n" for a in range(1, 11) for b in range(1, 11))
    own = own_files(tmp_path, rows, data__kind="yes-no", data__types=None)
    stages.prepare(own, tmp_path)
    audit = read_json(tmp_path / project.PREPARED / "audit.json")
    assert [finding["verdict"] for finding in audit[:2]] == ["not applicable"] * 2


def test_the_audit_finds_an_order_that_tells_the_label(tmp_path):
    chains = alkanes(24)
    rows = []
    for i, a in enumerate(chains):
        for b in chains[i + 1 :]:
            label = fraction(f"{a}{b}") < 0.5
            rows.append(f"{a},{b},1" if label else f"{b},{a},0")
    clean = yes_no(tmp_path, rows)
    train = np.arange(len(rows)) % 3 > 0
    alone, order, _ = audit_pairs(clean, "yes-no", train, ~train)
    assert order.verdict == "leak"
    assert order.figure.value == 1.0
    assert alone.verdict != "leak"


def real_files(name: str) -> Path:
    """A folder of the real files, which are not ours to hand on."""
    folder = os.environ.get("RECALIGN_MOLECULES")
    if not folder:
        pytest.skip(f"RECALIGN_MOLECULES does not name the folder with {name}")
    return Path(folder) / name


OF_DRUGS = {"data__best": None, "data__molecules": "drugs.csv", "data__first": "drug_1", "data__second": "drug_2"}


@pytest.mark.slow
def test_the_published_chch_miner_leaks_and_the_clean_one_does_not(tmp_path):
    """AUC 0.999 without chemistry; the real files where RECALIGN_MOLECULES names their folder."""
    folder, verdicts = real_files("ddi-chchminer"), {}
    for name, split in (("pairs.csv", None), ("pairs_published.csv", "published_split")):
        own = params(**OF_DRUGS, data__kind="yes-no", data__types=None, data__label="label", data__pairs=name,
                     data__split=split)  # fmt: skip
        clean = read_pairs(own.data, folder, tmp_path / "spill")
        views = split_views(clean, own.split)
        train, test = given_split(clean.given) if split else (views == "train", views == RANDOM)
        verdicts[name] = {finding.probe: finding for finding in audit_pairs(clean, "yes-no", train, test)}
    leaking = verdicts["pairs_published.csv"]
    assert leaking["molecules alone"].figure.value == pytest.approx(0.999, abs=0.001)
    assert [leaking[probe].verdict for probe in ("molecules alone", "order of ids")] == ["leak", "leak"]
    assert [verdicts["pairs.csv"][probe].verdict for probe in ("molecules alone", "order of ids")] == ["clean"] * 2


@pytest.mark.slow
def test_the_real_interaction_types_are_read(tmp_path):
    """Every SMILES parses; salts of one drug make copies and contradictions of rows that ids tell apart."""
    clean = read_pairs(params(**OF_DRUGS, data__pairs="pairs.csv", data__types="types.csv").data,
                       real_files("ddi-types"), tmp_path / "spill")  # fmt: skip
    assert len(clean.first) + len(clean.quarantine) == 42_108
    assert Counter(clean.quarantine["rule"].to_pylist()) == {
        "exact copy": 132, "too many atoms (second)": 26, "contradictory labels": 22, "too many atoms (first)": 5,
        "same molecule twice": 1,
    }  # fmt: skip
    assert len(np.unique(clean.truth)) == 72


@pytest.mark.slow
def test_the_real_solvation_energies_are_read(tmp_path):
    """Every row of the 1,308 solutes and 275 solvents, a liquid in itself too."""
    own = params(data__kind="number", data__types=None, data__best=None, data__allow_self=True, data__first="solute",
                 data__second="solvent", data__label="dgsolv_kcal_mol", data__pairs="combisolv_exp.csv")  # fmt: skip
    clean = read_pairs(own.data, real_files("solvation"), tmp_path / "spill")
    assert (len(clean.first), len(clean.quarantine)) == (8_780, 0)
    assert [len(np.unique(side)) for side in (clean.first, clean.second)] == [1_308, 275]
    assert (clean.labels.min(), clean.labels.max()) == (pytest.approx(-33.7, abs=0.05), pytest.approx(5.9, abs=0.05))


# metrics


def test_metrics_by_hand():
    ones = np.ones(4)
    outputs = np.array([[3.0, 1, 0], [0, 2, 0], [0, 2, 0], [1, 0, 0]])
    truth = np.array([0, 1, 2, 1])
    assert accuracy(truth, outputs, ones) == 2 / 4
    # F1: 2·1/(1 + 2) of answer 0, 2·1/(2 + 2) of 1, 0 of 2
    assert macro_f1(truth, outputs, ones) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    scores = np.array([[0.0, 2], [0, 1], [0, 1], [0, 0]])
    assert auroc(np.array([1, 0, 1, 0]), scores, ones) == pytest.approx(3.5 / 4)
    assert np.isnan(auroc(np.array([1, 1, 1, 1]), scores, ones))
    numbers = np.array([[1.0], [2], [3], [6]])
    assert mae(np.array([1.0, 1, 3, 3]), numbers, ones) == 1.0
    assert rmse(np.array([1.0, 1, 3, 3]), numbers, ones) == pytest.approx(np.sqrt(10 / 4))
    assert accuracy(truth, outputs, np.array([1.0, 1, 0, 0])) == 1.0  # a weight of zero leaves a pair out


def test_a_metric_that_pairs_do_not_have_is_left_out():
    """AUC where all are of one class; the others stay, and all right is no certainty."""
    cases = Cases("yes-no", np.arange(8), np.arange(8, 16), np.ones(8, dtype=int))
    outputs = np.tile([0.0, 1.0], (8, 1))
    figures = cases.figures(outputs, 100, 0)
    assert list(figures) == ["accuracy"]
    assert figures["accuracy"].value == figures["accuracy"].high == 1.0
    assert 0.6 < figures["accuracy"].low < 0.7  # Wilson's, of eight pairs that share no molecule
    assert cases.badness(outputs) == float("inf")
    assert cases.gains(outputs, outputs, 100, 0)["accuracy"].value == 0.0


def test_weights_follow_both_molecules():
    cases = Cases("types", np.array([0, 0, 2]), np.array([1, 2, 2]), np.array([0, 1, 0]))
    for weights in cases.weights(20, seed=0):
        draws = {(a, b, c) for a in range(4) for b in range(4) for c in range(4) if a + b + c == 3}
        assert any(weights.tolist() == [a * b, a * c, c] for a, b, c in draws)


def test_an_interval_is_wider_where_pairs_of_a_molecule_are_alike():
    """400 pairs of 20 first molecules, each right in all of its pairs or in none: they say as much as 20 pairs."""
    generator = np.random.default_rng(0)
    first, second = np.arange(400) % 20, 20 + np.arange(400)
    hit = first < 10
    truth = np.ones(400)
    alike = Cases("types", first, second, truth).figures(np.eye(2)[hit.astype(int)], 300, 0)["accuracy"]
    mixed = Cases("types", first, second, truth).figures(np.eye(2)[generator.permutation(hit).astype(int)], 300, 0)
    assert alike.low < alike.value == 0.5 < alike.high
    assert alike.high - alike.low > 0.35  # 20 independent pairs: 0.44; 400: 0.10
    assert mixed["accuracy"].high - mixed["accuracy"].low < 0.2


def test_outputs_that_are_nan_or_too_few_are_refused():
    cases = Cases("number", np.array([0, 1]), np.array([1, 2]), np.array([1.0, 2.0]))
    with pytest.raises(RecalignError, match="output of pair 1 is NaN"):
        cases.figures(np.array([[1.0], [np.nan]]), 100, 0)
    with pytest.raises(RecalignError, match="1 outputs for 2 pairs"):
        cases.figures(np.array([[1.0]]), 100, 0)
