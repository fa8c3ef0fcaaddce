"""The adapter that a command names, found and loaded as it was measured: its prompts, its rule, its base."""

import logging
from pathlib import Path

from recalign.data.records import Items
from recalign.errors import RecalignError
from recalign.layout import BASE, CACHE, SFT
from recalign.params import Params
from recalign.recommenders.language_model import open_recommender
from recalign.registry.package import SETTINGS, Settings, read_settings, settings_of
from recalign.registry.serving import Registered, find_base, load_recommender

log = logging.getLogger(__name__)
STORE = CACHE / "logprobs"  # a rule with priors takes every title's once, not at every call
REGISTRY_SCHEME = "models:/"


def open_adapter(params: Params, adapter: str, catalogue: Items) -> tuple[Settings, Registered]:
    """Load an adapter on a catalogue: a models:/ URI, a folder from the registry, or one that this project trained.

    A folder of this project ranks by the rule that systems.json records for it. Raises RecalignError when there is no
    such folder or version, when it was not evaluated, or when its base is not at hand.
    """
    batch = params.evaluate.batch
    package = _package(adapter)
    if package is not None:
        settings = read_settings(package)
        return settings, load_recommender(package, find_base(settings), catalogue, batch=batch, store=STORE)
    folder = Path(adapter)
    settings = settings_of(params, folder.name, Path())
    reference = SFT if settings.ranked_by == "reward" else None
    recommender = open_recommender(
        settings.system, BASE, folder, settings.setting, catalogue, reference=reference, batch=batch, store=STORE
    )
    return settings, recommender


def _package(adapter: str) -> Path | None:
    """The package that an adapter lies in; None for a folder of this project."""
    if adapter.startswith(REGISTRY_SCHEME):
        from recalign.registry.promotion import download_package

        return download_package(adapter)
    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise RecalignError(
            f"--adapter is {adapter}, where no adapter lies (no adapter_config.json); "
            "give a folder such as data/models/align/sdpo, or models:/recalign@champion"
        )
    return folder.parent if (folder.parent / SETTINGS).is_file() else None
