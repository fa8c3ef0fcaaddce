"""A trained model as a package that answers pairs of SMILES, and its registration in MLflow."""

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moltc import project
from moltc.answers import Answers
from moltc.chemistry import BadMoleculeError, Molecule, read_molecule
from moltc.params import Params, parse_params
from moltc.predictions import answer_scores, predict
from moltc.prepared import ANSWERS, PairSet
from moltc.training import Opened, open_model
from moltc.vectors import WEIGHTS
from recalign.common.artifacts import digest_of, folder, folder_digest, read_json, verify_once, write_json
from recalign.common.errors import RecalignError
from recalign.llm.model.base import IDENTITY

MODEL = "molecules"  # its name in the registry
SETTINGS, MODEL_FILES = "settings.json", (WEIGHTS, "adapter_model.safetensors", "adapter_config.json", "recalign.json")
BASE_VARIABLE = "RECALIGN_BASE"  # the folder of the base model where a package is served
FIELDS = ("smiles_1", "smiles_2")


def write_package(params: Params, root: Path, out: Path) -> None:
    """Write what answers pairs into `out`: weights of the last stage that trained, answers, settings and the base's
    identity, never the base itself."""
    trained = root / project.PREFERRED
    if not (trained / WEIGHTS).is_file():  # numbers have no preference training
        trained = root / project.INTERACTING
    if not (trained / WEIGHTS).is_file():
        raise RecalignError(f"{trained} holds no model; run 'dvc repro', or 'python -m moltc interact', first")
    pairs = PairSet.read(root / project.PREPARED)
    if read_json(trained / "training.json")["data_digest"] != pairs.digest:
        raise RecalignError(f"{trained} learned other pairs than those in {root / project.PREPARED}; train it anew")
    with folder(out) as partial:
        for name in MODEL_FILES:
            shutil.copyfile(trained / name, partial / name)
        shutil.copyfile(root / project.PREPARED / ANSWERS, partial / ANSWERS)
        base = read_json(root / project.BASE / IDENTITY)
        settings = {"params": params.model_dump(mode="json"), "base": base}
        write_json(partial / SETTINGS, settings | {"data_digest": pairs.digest})


class PairService:
    """A package that is loaded, and answers pairs."""

    def __init__(self, package: Path, base: Path | None = None) -> None:
        """base: the base model's folder; None: RECALIGN_BASE, or data/base of the working directory.

        Raises RecalignError where the package was changed, or the base is missing or another one.
        """
        verify_once(package)
        settings = read_json(package / SETTINGS)
        place = base or Path(os.environ.get(BASE_VARIABLE) or project.BASE)
        found = read_json(place / IDENTITY)["sha256"] if (place / IDENTITY).is_file() else None
        if found != settings["base"]["sha256"]:
            raise RecalignError(
                f"{place} holds {'no base.json' if found is None else f'a base with sha256 {found[:12]}'}; the model "
                f"belongs to {settings['base']['id']} (sha256 {settings['base']['sha256'][:12]}): name its folder in "
                f"{BASE_VARIABLE}"
            )
        self._params = parse_params(settings["params"], str(package / SETTINGS))
        self._answers = Answers.read(package / ANSWERS)
        some = self._pairs([("C", "C")])
        self._opened: Opened = open_model(self._params, some, place, package)
        self._one_request = threading.Lock()  # each shows its own molecules to the one graph side

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """For each row (smiles_1, smiles_2) the answer and its score: of closed answers the likeliest type, in the
        likelier of its directions, with the type's probability among all; of numbers the number, whose score is null.
        A text without a number is answered by null.

        Raises RecalignError naming the row and the field that is no molecule, or what training did not allow: a larger
        molecule, or the same one twice.
        """
        ends = [self._ends(row, n) for n, row in enumerate(rows)]
        if not ends:
            return []
        pairs = self._pairs([(first.smiles, second.smiles) for first, second in ends])
        number = not len(self._answers)
        with self._one_request:
            self._opened.vectors.show(pairs.molecules)
            opened = replace(self._opened, prompts=replace(self._opened.prompts, molecules=pairs.molecules))
            values = predict(self._params, opened, pairs, np.nan).values if number else answer_scores(opened, pairs)
        told = self._number if number else self._said
        return [told(own) | dict(zip(FIELDS, (a.smiles, b.smiles), strict=True)) for own, (a, b) in zip(
            values, ends, strict=True)]  # fmt: skip

    def _number(self, values: np.ndarray) -> dict[str, Any]:
        value = float(values[0])
        none = np.isnan(value)  # a generated text that states none
        return {"answer": None if none else f"{value:.2f}", "value": None if none else value, "score": None}

    def _said(self, scores: np.ndarray) -> dict[str, Any]:
        types = self._answers.by_type(scores[None])[0]
        best = int(types.argmax())
        place = int(np.where(self._answers.type_of == best, scores, -np.inf).argmax())
        share = np.exp(types - types.max())
        said = self._answers.said(swapped=False)[place]
        return {"answer": said, "value": None, "score": float(share[best] / share.sum())}

    def _ends(self, row: Mapping[str, Any], number: int) -> tuple[Molecule, Molecule]:
        one, other = (self._read(row, number, field) for field in FIELDS)
        if one.smiles == other.smiles and not self._params.data.allow_self:
            raise RecalignError(
                f"row {number}: both molecules are {one.smiles}; the model was trained on pairs of two different ones "
                "(data.allow_self)"
            )
        return one, other

    def _read(self, row: Mapping[str, Any], number: int, field: str) -> Molecule:
        text = row.get(field)
        try:
            if not isinstance(text, str):
                raise BadMoleculeError("no SMILES")
            molecule = read_molecule(text)
        except BadMoleculeError as error:
            told = f"row {number}: {field} is {text!r:.80}: {error.rule}"
            raise RecalignError(f"{told}; give one SMILES such as CCO") from None
        if molecule.atoms > self._params.data.max_atoms:
            raise RecalignError(
                f"row {number}: {field} has {molecule.atoms} atoms; the model was trained on molecules of at most "
                f"{self._params.data.max_atoms} (data.max_atoms)"
            )
        return molecule

    def _pairs(self, ends: Sequence[tuple[str, str]]) -> PairSet:
        molecules = sorted({smiles for pair in ends for smiles in pair})
        number = {smiles: place for place, smiles in enumerate(molecules)}
        places = np.array([[number[one], number[other]] for one, other in ends])
        blank = np.zeros(len(ends))
        views = np.full(len(ends), "served", dtype=object)
        kind = self._params.data.kind
        return PairSet(kind, tuple(molecules), self._answers, places[:, 0], places[:, 1], blank, blank, views, "served")


def register(params: Params, root: Path = Path()) -> str:
    """Register the package in MLflow; the version. The same weights and answers are one version, however often.

    Raises RecalignError where the registry does not answer.
    """
    import mlflow
    from mlflow.models import Model

    from moltc import served_pairs
    from recalign.registry.log import DIGEST, Untried
    from recalign.registry.tracking import connect, experiment, reached

    client = connect(root)
    with tempfile.TemporaryDirectory() as temporary, reached(root):
        package = Path(temporary) / "package"
        write_package(params, root, package)
        digest = digest_of([folder_digest(package)])
        known = client.search_model_versions(f"name = '{MODEL}' and tag.{DIGEST} = '{digest}'")
        if known:
            return max((str(version.version) for version in known), key=int)
        with mlflow.start_run(experiment_id=experiment(client, MODEL).experiment_id):
            for report in (root / project.REPORTS / "metrics.json", root / project.REPORTS / "report.md"):
                if report.is_file():
                    mlflow.log_artifact(str(report))
            info = Model.log(
                artifact_path=None, flavor=Untried, name="pairs", python_model=served_pairs.__file__,
                artifacts={"package": str(package)}, signature=served_pairs.SIGNATURE,
                code_paths=[str(Path(__file__).parent)], validate_serving_input=False,
                pip_requirements=["recalign", "rdkit"],
            )  # fmt: skip
            return str(mlflow.register_model(info.model_uri, MODEL, tags={DIGEST: digest}).version)
