"""What a person typed, checked before anything heavy is loaded: a refusal takes a second, not half a minute."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.errors import RecalignError
from recalign.project import REGISTRY_SCHEME

SHOWN = 3  # titles named where nothing that was typed is found

if TYPE_CHECKING:
    from recalign.data.ids import RawIds
    from recalign.data.records import Items


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
