"""What a person typed, checked before anything heavy is loaded: a refusal takes a second, not half a minute.

And the adapter that a command names, found and loaded as it was measured: its prompts, its rule, its base.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.errors import RecalignError
from recalign.project import BASE, CACHE, OTHER, RANKS, REGISTRY_SCHEME, SFT

STORE = CACHE / "logprobs"  # a rule with priors takes every title's once, not at every call
SHOWN = 3  # titles named where nothing that was typed is found

if TYPE_CHECKING:
    from recalign.data.ids import RawIds
    from recalign.data.records import Items
    from recalign.params.load import Params
    from recalign.ranking.package import Settings
    from recalign.registry.serving import AnyRecommender


def check_adapter_named(adapter: str) -> None:
    """Raise RecalignError where an adapter is neither a registry's URI nor a folder that holds one."""
    if not adapter.startswith(REGISTRY_SCHEME) and not (Path(adapter) / "adapter_config.json").is_file():
        raise RecalignError(
            f"--adapter is {adapter}, where no adapter lies (no adapter_config.json); "
            "give a folder such as data/models/align/sdpo, or models:/recalign@champion"
        )


def check_file(option: str, path: Path) -> None:
    """Raise RecalignError where the file of an option is missing."""
    if not path.is_file():
        raise RecalignError(f"{option} is {path}, which is no file; give one that exists")


def read_titles(typed: Sequence[str], catalogue: "Items", raw: "RawIds") -> tuple[list[int | str], list[str]]:
    """What typed titles (or the log's own ids) stand for, in their order, and what is to be said of it.

    A title that nothing matches stays as it is, for a language model reads it, as long as another one is found.
    Raises RecalignError with the nearest titles where none is found, or where several items have a title.
    """
    from recalign.data.titles import TitleSearch

    search = TitleSearch({item: catalogue.titles[item] for item in catalogue.ids})
    read: list[int | str] = []
    said, unknown = [], []
    for text in typed:
        number, by_title = raw.number(text), search.exact(text)
        by_id = number if number in search.titles else None
        if by_id is not None and by_title is not None and by_id != by_title:
            raise RecalignError(
                f"--titles has {text!r}, which is the id of {search.titles[by_id]!r} and the title of item "
                f"{raw.shown(by_title)!r}; give that item's id, or a longer title"
            )
        if by_id is not None:
            read.append(by_id)
            continue
        found = search.find(text)
        near = " or ".join(repr(search.titles[item]) for item in found.near)
        if found.tied:
            raise RecalignError(f"--titles has {text!r}, which {len(found.near)} items are called: {near}; say which")
        if found.item is None:
            unknown.append(f"{text!r}" + (f" (did you mean {near}?)" if near else ""))
            read.append(text)
            continue
        if by_title is None:
            said.append(f"{text!r} is read as {search.titles[found.item]!r}")
        read.append(found.item)
    if len(unknown) == len(typed):
        raise RecalignError(
            f"--titles has {', '.join(unknown)}: none is in the catalogue of {len(search.titles)} titles, so there is "
            f"no history to start from; at least one must be a title (case, year and a slip aside) or an id of it, "
            f"such as {_examples(catalogue, raw)}"
        )
    return read, said + [f"{text} is not in the catalogue" for text in unknown]


def _examples(catalogue: "Items", raw: "RawIds") -> str:
    """The titles that most people know, with the id of the first one."""
    known = sorted(catalogue.ids, key=lambda item: (-catalogue.popularity[item], item))[:SHOWN]
    titles = [repr(catalogue.titles[item]) for item in known]
    return " or ".join([f"{titles[0]} (id {raw.shown(known[0])})", *titles[1:]])


def open_adapter(params: "Params", adapter: str, catalogue: "Items") -> tuple["Settings", "AnyRecommender"]:
    """Load an adapter on a catalogue: a models:/ URI, a folder from the registry, or one that this project trained.

    A folder of this project ranks by the rule that systems.json records for it. Raises RecalignError when there is no
    such folder or version, when it is damaged, of another base or not evaluated here, or when its base is not at hand.
    """
    from recalign.common.artifacts import read_json
    from recalign.llm.model.adapters import check_adapter
    from recalign.llm.model.files import IDENTITY
    from recalign.ranking.language_model import open_recommender
    from recalign.ranking.package import read_settings, settings_of
    from recalign.registry.serving import find_base, load_recommender

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


def _check_known(params: "Params", folder: Path) -> None:
    """Refuse an adapter from elsewhere: what ranks by it was never chosen on this project's validation cases."""
    from recalign.common.artifacts import read_json
    from recalign.evaluation.systems import SYSTEMS, llara_name, system_of

    name, systems = folder.resolve().name, RANKS / SYSTEMS
    ours = {SFT.name, *params.align.settings, *map(llara_name, params.hybrid.teachers)}
    if name not in ours and (not systems.is_file() or system_of(name) not in read_json(systems)):
        raise RecalignError(
            f"--adapter is {folder}, which this project neither trained nor evaluated, so what ranks by it is not "
            f"known; copy it to {OTHER / name}, set evaluate.adapters to [{name}] and run 'dvc repro': docs/transfer.md"
        )


def _package(adapter: str) -> Path | None:
    """The package that an adapter lies in; None for a folder of this project."""
    from recalign.ranking.package import SETTINGS

    if adapter.startswith(REGISTRY_SCHEME):
        from recalign.registry.promotion import download_package

        return download_package(adapter)
    check_adapter_named(adapter)
    folder = Path(adapter)
    return folder.parent if (folder.parent / SETTINGS).is_file() else None
