"""Every ID recommender by its name, once: where it lies, what ranks it in words, and what it needs.

A new one is a file beside this one with `fit(log: Fitting)` and `load(name, path, catalogue)`, and a line of ROSTER.
Modules are imported when they are asked for: reading the names imports no torch.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.errors import RecalignError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

    from recalign.data.records import Items
    from recalign.params.load import Params
    from recalign.recommenders.recommender import Recommender, Tuning
    from recalign.recommenders.tuning import HeldOut


@dataclass(frozen=True)
class Entry:
    """module: with `fit` and `load`; ranked_by: what orders items, in words; clock: it needs one.

    reads_new: it knows items without train events too, so it is fitted on the whole catalogue; may_read_text: it does
    where recommenders.next_item.text says so.
    """

    module: str
    ranked_by: str
    clock: bool = False
    reads_new: bool = False
    may_read_text: bool = False


ROSTER = {
    "popularity": Entry("recalign.recommenders.popularity", "train events"),
    "recent_popularity": Entry("recalign.recommenders.recent_popularity", "train events, newest first", clock=True),
    "item_knn": Entry("recalign.recommenders.item_knn", "co-occurrence"),
    "ease": Entry("recalign.recommenders.ease", "linear item weights"),
    "markov": Entry("recalign.recommenders.markov", "transitions", clock=True),
    "sasrec": Entry("recalign.recommenders.neural.next_item", "self-attention", may_read_text=True),
    "gru4rec": Entry("recalign.recommenders.neural.next_item", "recurrent states", may_read_text=True),
    "caser": Entry("recalign.recommenders.neural.next_item", "convolutions"),
    "mcrl": Entry("recalign.recommenders.neural.mcrl", "supervised head"),
    "dreamrec": Entry("recalign.recommenders.neural.dreamrec", "generated embedding"),
    "content": Entry("recalign.recommenders.content", "text and attributes", reads_new=True),
    "content_prior": Entry(
        "recalign.recommenders.content", "train events, of new items read off their text", reads_new=True
    ),
}
REFUSED = "refused.json"  # in the folder of one that could not be fitted or ranked: why


def known(name: str, key: str) -> Entry:
    """The entry of a recommender. Raises RecalignError, which names `key`, where the roster has none of that name."""
    if name not in ROSTER:
        allowed = ", ".join(f"'{own}'" for own in ROSTER)
        raise RecalignError(f"{key} is '{name}'; input should be one of {allowed}{did_you_mean(name, ROSTER)}")
    return ROSTER[name]


def check_systems(systems: Sequence[str]) -> None:
    """Raise RecalignError for the first name of recommenders.systems that the roster does not have."""
    for place, name in enumerate(systems):
        known(name, f"recommenders.systems.{place}")


def fit(
    name: str,
    catalogue: "Items",
    events: "pa.Table",
    clock: bool,
    params: "Params",
    met: "pa.Table | None" = None,
    hidden: "HeldOut | None" = None,
) -> tuple["Recommender", "Tuning"]:
    """Fit a recommender on train events (user_id, item_id, timestamp, position); also what was tried to choose it.

    It learns the items that train knows, and answers for the whole catalogue (`transplanted`).
    met: (user_id, item_id) of what users met in training's time, liked or not: no wrong item where it is tuned.
    hidden: validation cases on items that the run hides, on which content is chosen; None: it hides some of its own.
    Raises RecalignError for an unknown name, or where the recommender needs a clock that the log lacks, or a smaller
    catalogue.
    """
    from recalign.recommenders.recommender import Fitting
    from recalign.recommenders.store import on_catalogue

    entry = known(name, "the recommender")
    by_text = entry.may_read_text and params.recommenders.next_item.text != "none"
    own = catalogue if entry.reads_new or by_text else catalogue.trained
    log = Fitting(name, own, events, clock, params.seed, params.threads, params.recommenders, met, hidden)
    recommender, tuning = importlib.import_module(entry.module).fit(log)
    return on_catalogue(recommender, own, catalogue), tuning


def write_refusal(folder: Path, why: str) -> None:
    """Write why a system could not be fitted or ranked into the existing `folder`, in place of what it would leave."""
    from recalign.common.artifacts import write_json

    write_json(folder / REFUSED, {"why": why})


def refusal(folder: Path) -> str | None:
    """Why the system of a folder was not fitted or ranked; None where it was."""
    from recalign.common.artifacts import read_json

    return str(read_json(folder / REFUSED)["why"]) if (folder / REFUSED).is_file() else None


def load_fitted(name: str, path: Path, catalogue: "Items") -> "Recommender":
    """Read what the recommender's `save` wrote into the folder `path`; it answers for the whole catalogue.

    Raises RecalignError for an unknown name, or when the folder holds another recommender, or one fitted on other items
    than those with train events (content: than those of the catalogue).
    """
    from recalign.recommenders.store import on_catalogue

    own = fitted_on(name, path, catalogue)
    return on_catalogue(importlib.import_module(ROSTER[name].module).load(name, path, own), own, catalogue)


def fitted_on(name: str, path: Path, catalogue: "Items") -> "Items":
    """The part of a catalogue that the recommender in the folder `path` knows: all of it where it reads text.

    Raises RecalignError for an unknown name.
    """
    from recalign.recommenders.store import settings_of

    entry = known(name, "the recommender")
    by_text = entry.may_read_text and "text" in settings_of(path)
    return catalogue if entry.reads_new or by_text else catalogue.trained
