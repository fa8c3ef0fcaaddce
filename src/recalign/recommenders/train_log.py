"""Anyone's interactions file (CSV), on which an ID recommender is fitted to rank candidate lists."""

import logging
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.ids import INTEGER, INTEGER_DIGITS, number_in_file
from recalign.data.records import Items, hashed_order
from recalign.params.load import Params
from recalign.params.recommenders import RecommenderName
from recalign.recommenders.recommender import Recommender
from recalign.recommenders.roster import fit

log = logging.getLogger(__name__)
IDS_AS_WRITTEN = csv.ConvertOptions(column_types={c.USER: pa.string(), c.ITEM: pa.string()}, strings_can_be_null=True)
WHOLE_FLOAT = re.compile(r"(?<=[0-9])\.0+$")  # as tables write whole numbers where a value was once missing


@dataclass(frozen=True)
class TrainLog:
    """An interactions file, read once for all that learn from it.

    events (user_id, item_id, timestamp, position) hold a (user, item) once; clock says whether they have times; the
    catalogue counts them, and them alone.
    """

    catalogue: Items
    events: pa.Table
    clock: bool

    @classmethod
    def read(cls, path: Path, catalogue: Items) -> "TrainLog":
        """A CSV with columns user_id, item_id and maybe timestamp: seconds since 1970 or ISO 8601.

        Raises RecalignError for a missing file, column or item, or values that cannot be read.
        """
        events, clock = _read(path, catalogue)
        log.info("%s: %d events, %s", path, len(events), "ordered by timestamp" if clock else "no timestamp: sets")
        found = Counter(events[c.ITEM].to_pylist())
        counts = {item: found[item] for item in catalogue.ids}
        return cls(replace(catalogue, popularity=counts, train_events=counts), events, clock)

    def fit(self, name: RecommenderName, params: Params) -> Recommender:
        """A recommender fitted on the file; settings are chosen on a tenth of it."""
        return fit(name, self.catalogue, self.events, self.clock, params)[0]


def _read(path: Path, catalogue: Items) -> tuple[pa.Table, bool]:
    try:
        written = csv.read_csv(path, convert_options=IDS_AS_WRITTEN)
        table, present = written, written.column_names
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; give --train an interactions file") from None
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise RecalignError(f"{path} is not CSV in UTF-8 with a header: {' '.join(str(error).split())}") from None
    if not len(table):
        raise RecalignError(f"{path} holds no row; an ID recommender learns from at least one interaction")
    for column in (c.USER, c.ITEM):
        if column not in present:
            raise RecalignError(f"{path} has no column '{column}' (it has {', '.join(present)}); add it")
        ids = _numbered(table[column])
        if ids is None:
            raise RecalignError(
                f"{path}: column '{column}' must hold an id in every row, a whole number up to 2^63 - 1 or a text; "
                "fill in what is missing, renumber what is larger"
            )
        table = table.set_column(present.index(column), column, ids)
    _check_known(catalogue, table[c.ITEM].to_numpy(), written[c.ITEM])
    clock = c.TIMESTAMP in present
    times = table[c.TIMESTAMP] if clock else pa.nulls(len(table), pa.timestamp("us"))
    try:
        times = pc.cast(times, pa.timestamp("s")) if pa.types.is_integer(times.type) else times
        times = pc.cast(times, pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise RecalignError(f"{path}: column 'timestamp' must be seconds or ISO 8601: {error}") from None
    firsts = pa.table({c.USER: table[c.USER], c.ITEM: table[c.ITEM], c.TIMESTAMP: times})
    firsts = firsts.group_by([c.USER, c.ITEM]).aggregate([(c.TIMESTAMP, "min")])
    return _in_order(firsts.rename_columns([c.USER, c.ITEM, c.TIMESTAMP])), clock


def _numbered(ids: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Ids as int64 by `number_in_file`, 12.0 being 12; None where one is missing or beyond 64 bits."""
    coded = ids.combine_chunks().dictionary_encode()
    texts = [WHOLE_FLOAT.sub("", text.strip()) for text in coded.dictionary.to_pylist()]
    if coded.null_count or not all(texts) or any(INTEGER.fullmatch(t) and len(t) > INTEGER_DIGITS for t in texts):
        return None
    numbers = [number_in_file(text) for text in texts]
    if not all(-(2**63) <= number < 2**63 for number in numbers):
        return None
    return pa.chunked_array([pa.array(numbers, pa.int64()).take(coded.indices)])


def _check_known(catalogue: Items, items: NDArray[np.int64], written: pa.ChunkedArray) -> None:
    """Raises RecalignError naming the first item, as the file writes it, that the catalogue does not hold."""
    unknown = np.flatnonzero(~np.isin(items, catalogue.ascending))
    if len(unknown):
        raise RecalignError(
            f"item {written[int(unknown[0])]} is not among the {len(catalogue.ids)} items of the catalogue; leave it "
            "out or add it"
        )


def _in_order(events: pa.Table) -> pa.Table:
    """Add position: by time, equal times by a hash of (user, item)."""
    pairs = zip(events[c.USER].to_pylist(), events[c.ITEM].to_pylist(), strict=True)
    events = events.append_column("tie", pa.array([hashed_order(*pair) for pair in pairs], pa.string()))
    events = events.sort_by([(c.USER, "ascending"), (c.TIMESTAMP, "ascending"), ("tie", "ascending")]).drop(["tie"])
    users = events[c.USER].to_numpy()
    _, starts, lengths = np.unique(users, return_index=True, return_counts=True)
    return events.append_column(c.POSITION, pa.array(np.arange(len(users)) - np.repeat(starts, lengths)))
