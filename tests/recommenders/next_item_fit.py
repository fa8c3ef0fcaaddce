"""The sequence models fitted on small logs, by their own section of the params."""

from typing import Any

import pyarrow as pa

from recalign.data.records import Items
from recalign.params.load import params_or_shipped
from recalign.params.recommenders import NextItemParams
from recalign.recommenders.neural.next_item import fit
from recalign.recommenders.neural.sequential import Sequential
from recalign.recommenders.recommender import Fitting


def fit_next_item(
    name: str, catalogue: Items, events: pa.Table, clock: bool, seed: int, params: NextItemParams
) -> tuple[Sequential, dict[str, Any]]:
    """What `fit` gives on one thread where `next_item` is `params`."""
    sections = params_or_shipped().recommenders.model_copy(update={"next_item": params})
    return fit(Fitting(name, catalogue, events, clock, seed, 1, sections))
