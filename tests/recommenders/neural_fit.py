"""The neural recommenders fitted on small logs: on one thread, by their own section of the params."""

from typing import Any

import pyarrow as pa

from recalign.data.records import Items
from recalign.params.load import params_or_shipped
from recalign.params.recommenders import NextItemParams, RecommendersParams
from recalign.recommenders.neural import dreamrec, mcrl, next_item
from recalign.recommenders.neural.dreamrec import DreamRec
from recalign.recommenders.neural.mcrl import MCRL
from recalign.recommenders.neural.sequential import Sequential
from recalign.recommenders.recommender import Fitting


def fit_next_item(
    name: str, catalogue: Items, events: pa.Table, clock: bool, seed: int, params: NextItemParams
) -> tuple[Sequential, dict[str, Any]]:
    """What `fit` gives where `next_item` is `params`."""
    sections = params_or_shipped().recommenders.model_copy(update={"next_item": params})
    return next_item.fit(Fitting(name, catalogue, events, clock, seed, 1, sections))


def fit_dreamrec(
    catalogue: Items, events: pa.Table, clock: bool, seed: int, params: RecommendersParams
) -> tuple[DreamRec, dict[str, Any]]:
    """What DreamRec's `fit` gives."""
    return dreamrec.fit(Fitting("dreamrec", catalogue, events, clock, seed, 1, params))


def fit_mcrl(
    catalogue: Items, events: pa.Table, clock: bool, seed: int, params: RecommendersParams
) -> tuple[MCRL, dict[str, Any]]:
    """What MCRL's `fit` gives."""
    return mcrl.fit(Fitting("mcrl", catalogue, events, clock, seed, 1, params))
