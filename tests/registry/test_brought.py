"""An adapter from elsewhere, as PEFT writes it, is registered and answers like one of the project's own."""

import shutil
from pathlib import Path

import pytest
from pages import ROOT
from registry_project import empty_registry, made_by, small_params, write_adapter, write_project, write_ranks

import recalign
from recalign import project as layout
from recalign.commands.register import register
from recalign.common.artifacts import read_json, write_json
from recalign.common.errors import RecalignError
from recalign.llm.model.adapters import adapter_digest
from recalign.params.load import Params
from recalign.ranking.measured import language_model_artifacts
from recalign.registry.promotion import download_adapter

BROUGHT = layout.OTHER / "trl-dpo"


@pytest.fixture(scope="module")
def params() -> Params:
    return small_params()


@pytest.fixture
def project(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which the adapter trl-dpo was evaluated: it ranks every target first."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    write_project(params, ROOT / "params.yaml", tmp_path)
    shutil.copy(empty_registry(), tmp_path / "mlflow.db")
    write_adapter(params, tmp_path, tmp_path / BROUGHT, seed=7)
    for path in (tmp_path / BROUGHT).iterdir():
        if path.name not in ("adapter_config.json", "adapter_model.safetensors"):
            path.unlink()  # PEFT writes these two alone
    write_ranks(tmp_path, {"popularity": [3], "llm-sdpo": [2], "llm-trl-dpo": [1]})
    file = tmp_path / layout.RANKS / "systems.json"
    systems = read_json(file)
    made = language_model_artifacts(tmp_path / layout.BASE, tmp_path / BROUGHT)
    about = systems["llm-trl-dpo"] | {"kind": "transferred", "artifacts": made}
    write_json(file, {name: told | {"artifacts": made_by(tmp_path, name)} for name, told in systems.items()}
               | {"llm-trl-dpo": about})  # fmt: skip
    return tmp_path


def test_it_is_registered_by_its_name_judged_and_answers(params, project):
    """Its files are the version's; without a name the project's own best adapter is registered."""
    assert register(params, "trl-dpo").startswith("recalign: version 1 (trl-dpo) is champion")
    assert adapter_digest(download_adapter("models:/recalign/1")) == adapter_digest(project / BROUGHT)
    assert len(recalign.load("models:/recalign@champion").recommend(titles=["Heat"], k=3)) == 3
    assert register(params).startswith("recalign: version 2 (sdpo)")


def test_it_may_lie_in_a_folder_as_a_registered_version_is_downloaded(params, project):
    """One level down, beside its settings."""
    (project / BROUGHT).rename(project / "adapter")
    (project / BROUGHT).mkdir()
    (project / "adapter").rename(project / BROUGHT / "adapter")
    assert "is champion" in register(params, "trl-dpo")


def test_one_that_did_not_make_its_ranks_is_refused(params, project):
    write_adapter(params, project, project / BROUGHT, seed=8)
    with pytest.raises(RecalignError, match="the adapter in data/models/other/trl-dpo has digest"):
        register(params, "trl-dpo")


def test_one_that_was_not_evaluated_is_refused_with_both_places_to_name_it(params, project):
    with pytest.raises(
        RecalignError, match=r"holds no llm-other.*; .* in align\.objectives or, .* in evaluate\.adapters"
    ):
        register(params, "other")
