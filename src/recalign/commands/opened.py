"""The adapter that a command names, found and loaded as it was measured: its prompts, its rule, its base."""

import logging
from pathlib import Path

from recalign.commands.arguments import check_adapter_named
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.evaluation.systems import SYSTEMS, llara_name, system_of
from recalign.llm.model.adapters import check_adapter
from recalign.llm.model.files import IDENTITY
from recalign.params.load import Params
from recalign.project import BASE, CACHE, OTHER, RANKS, REGISTRY_SCHEME, SFT
from recalign.ranking.language_model import open_recommender
from recalign.ranking.package import SETTINGS, Settings, read_settings, settings_of
from recalign.registry.serving import AnyRecommender, find_base, load_recommender

log = logging.getLogger(__name__)
STORE = CACHE / "logprobs"  # a rule with priors takes every title's once, not at every call


def open_adapter(params: Params, adapter: str, catalogue: Items) -> tuple[Settings, AnyRecommender]:
    """Load an adapter on a catalogue: a models:/ URI, a folder from the registry, or one that this project trained.

    A folder of this project ranks by the rule that systems.json records for it. Raises RecalignError when there is no
    such folder or version, when it is damaged, of another base or not evaluated here, or when its base is not at hand.
    """
    batch = params.evaluate.batch
    package = _package(adapter)
    if package is not None:
        settings = read_settings(package)
        return settings, load_recommender(package, find_base(settings), catalogue, batch=batch, store=STORE)
    folder = Path(adapter)
    check_adapter(folder, read_json(BASE / IDENTITY))
    _check_known(params, folder)
    settings = settings_of(params, folder.resolve().name, Path(), folder)
    reference = SFT if settings.ranked_by == "reward" else None
    recommender = open_recommender(
        settings.system, BASE, folder, settings.setting, catalogue, reference=reference, batch=batch, store=STORE
    )
    return settings, recommender


def _check_known(params: Params, folder: Path) -> None:
    """Refuse an adapter from elsewhere: what ranks by it was never chosen on this project's validation cases."""
    name, systems = folder.resolve().name, RANKS / SYSTEMS
    ours = {SFT.name, *params.align.settings, *map(llara_name, params.hybrid.teachers)}
    if name not in ours and (not systems.is_file() or system_of(name) not in read_json(systems)):
        raise RecalignError(
            f"--adapter is {folder}, which this project neither trained nor evaluated, so what ranks by it is not "
            f"known; copy it to {OTHER / name}, set evaluate.adapters to [{name}] and run 'dvc repro': docs/transfer.md"
        )


def _package(adapter: str) -> Path | None:
    """The package that an adapter lies in; None for a folder of this project."""
    if adapter.startswith(REGISTRY_SCHEME):
        from recalign.registry.promotion import download_package

        return download_package(adapter)
    check_adapter_named(adapter)
    folder = Path(adapter)
    return folder.parent if (folder.parent / SETTINGS).is_file() else None
