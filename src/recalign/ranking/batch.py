"""The best k items for everyone, in blocks of users × items: memory does not grow with their number.

Users are ranked for in ascending number, their likes and what they have met read in ranges. Equal scores stand by
ascending item id, as in serving. A person whose likes the system does not know gets the popular items.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet, replacing
from recalign.common.errors import RecalignError
from recalign.data.database import write_rows
from recalign.data.ids import RawIds
from recalign.data.records import Items, hashed_order
from recalign.evaluation.metrics import Floats
from recalign.ranking.item_filters import Bools
from recalign.ranking.reasons import COLD, POPULAR, Explain
from recalign.ranking.trial import Ranker, scores_of
from recalign.recommenders.recommender import Request
from recalign.recommenders.store import columns_of

Ids = NDArray[np.int64]
PEOPLE = 8192  # users whose likes are in memory at once
CELLS = 2**20  # users × items scored at once: 8 MiB, which stay in the processor's cache and off fresh pages
GROUPS = 4  # times k: of scores whose maxima bound the k best
USERS_AT_ONCE = 2048  # of whom rows are written at once
SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class FirstStage:
    """What ranks everyone: a system with its version, the items that it `knows`, and what gives its reasons.

    popularity [items]: what ranks for people whose likes it does not know.
    """

    ranker: Ranker
    version: str
    knows: frozenset[int]
    explain: Explain
    popularity: Floats


@dataclass(frozen=True)
class TopItems:
    """A user's list, best first, by the numbers that stages count with; cold: by popularity, for want of likes."""

    user: int
    history: tuple[int, ...]
    items: list[int]
    scores: list[float]
    reasons: list[str]
    version: str
    cold: bool = False


@dataclass(frozen=True)
class SecondStage:
    """Reranks the first `depth` items of some users: lists of these in, lists of k out."""

    users: frozenset[int]
    depth: int
    rerank: Callable[[list[TopItems], int], list[TopItems]]


@dataclass(frozen=True)
class People:
    """Users [n] ascending, each one's likes (oldest first), and all that each has met."""

    users: list[int]
    histories: list[tuple[int, ...]]
    met: list[Ids]

    def part(self, start: int, stop: int) -> "People":
        """Those from one place to before another."""
        return People(self.users[start:stop], self.histories[start:stop], self.met[start:stop])


def shard(users: Sequence[int], raw: RawIds, number: int, count: int) -> list[int]:
    """The users of shard `number` (1 … count): by a hash of their own ids, so that no user moves another."""
    return [user for user in users if int(hashed_order(raw.shown(user)), 16) % count == number - 1]


def top_for_everyone(
    stage: FirstStage,
    prepared: Path,
    catalogue: Items,
    users: Sequence[int],
    allowed: Bools,
    k: int,
    second: SecondStage | None = None,
) -> Iterator[TopItems]:
    """The k best allowed items of each user that the user has not met; fewer where fewer are left.

    Raises RecalignError for scores that are not finite.
    """
    for people in read_people(prepared, users):
        depths = [second.depth if second and user in second.users else k for user in people.users]
        step = max(1, CELLS // len(catalogue.ids))
        for start in range(0, len(people.users), step):
            block = people.part(start, start + step)
            lists = _ranked(stage, catalogue, block, allowed, depths[start : start + step])
            yield from _reranked(lists, second, k) if second else lists


def read_people(prepared: Path, users: Sequence[int]) -> Iterator[People]:
    """PEOPLE users at a time, in ascending order; of a user whom the prepared log does not hold nothing is known."""
    ordered = sorted(set(users))
    for start in range(0, len(ordered), PEOPLE):
        block = ordered[start : start + PEOPLE]
        likes = _by_user(prepared / "events.parquet", block)
        yield People(block, [tuple(own.tolist()) for own in likes], _by_user(prepared / "met.parquet", block))


def _by_user(path: Path, users: list[int]) -> list[Ids]:
    """The items of each user in the order of the file, which holds users in ascending order."""
    user = pc.field(c.USER)
    within = (user >= users[0]) & (user <= users[-1])  # whole row groups are skipped by it
    table = read_parquet(path, [c.USER, c.ITEM], within & user.isin(pa.array(users, pa.int64())))
    who, items = table[c.USER].to_numpy(), table[c.ITEM].to_numpy()
    starts, ends = (np.searchsorted(who, users, side) for side in ("left", "right"))
    return [items[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _ranked(
    stage: FirstStage, catalogue: Items, people: People, allowed: Bools, depths: Sequence[int]
) -> list[TopItems]:
    """The first stage's lists, each of its own depth."""
    cold = np.array([stage.knows.isdisjoint(history) for history in people.histories])
    scores = np.empty((len(people.users), len(catalogue.ids)))
    scores[cold] = stage.popularity
    warm = np.flatnonzero(~cold)
    if len(warm):
        requests = [
            Request(people.users[row], people.histories[row], excluded=frozenset(people.met[row].tolist()))
            for row in warm.tolist()
        ]
        scores[warm] = scores_of(stage.ranker, requests, None)
    rows = np.repeat(np.arange(len(people.users)), [len(met) for met in people.met])
    scores[rows, columns_of(catalogue, np.concatenate(people.met))] = -np.inf
    scores[:, ~allowed] = -np.inf
    best = best_columns(scores, max(depths))
    items = [
        [catalogue.ids[column] for column in own[:depth].tolist()] for own, depth in zip(best, depths, strict=True)
    ]
    reasons = [[COLD if stage.ranker.name != "popularity" else POPULAR] * len(own) for own in items]
    told = stage.explain([people.histories[row] for row in warm.tolist()], [items[row] for row in warm.tolist()])
    for row, own in zip(warm.tolist(), told, strict=True):
        reasons[row] = own
    return [
        TopItems(user, history, own, scores[row, best[row][: len(own)]].tolist(), why, stage.version, bool(cold[row]))
        for row, (user, history, own, why) in enumerate(
            zip(people.users, people.histories, items, reasons, strict=True)
        )
    ]


def best_columns(scores: Floats, k: int) -> list[Ids]:
    """The columns of the k best of each row of [B, items], best first, equals in ascending order; −inf never."""
    width = scores.shape[1]
    bound = np.maximum(kth_largest_or_less(scores, k), np.finfo(np.float64).min)  # above −inf
    rows, columns = np.divmod(np.flatnonzero(scores >= bound), width)
    order = np.lexsort((columns, -scores[rows, columns], rows))
    ends = np.searchsorted(rows, np.arange(1, len(scores)))  # rows are ascending, and stay so when sorted
    return [own[:k] for own in np.split(columns[order], ends)]


def kth_largest_or_less(scores: Floats, k: int) -> Floats:
    """[B, 1] a bound that at least k scores of each row of [B, items] reach, and few more: the k-th largest of the
    maxima of GROUPS · k groups, or of all scores where these are few."""
    width, groups = scores.shape[1], GROUPS * k
    if k >= width:
        return np.full((len(scores), 1), -np.inf)
    if width >= 2 * groups:
        scores = scores[:, : width // groups * groups].reshape(len(scores), -1, groups).max(axis=1)
    place = scores.shape[1] - k
    bound: Floats = np.partition(scores, place, axis=1)[:, [place]]
    return bound


def _reranked(lists: list[TopItems], second: SecondStage, k: int) -> list[TopItems]:
    asked = [own for own in lists if own.user in second.users and own.items]
    found = {own.user: own for own in second.rerank(asked, k)} if asked else {}
    return [found.get(own.user, own) for own in lists]


@dataclass(frozen=True)
class Rows:
    """What makes the rows of the file, with the ids of the log: whole numbers where the log's all are, else text."""

    schema: pa.Schema
    users: RawIds
    ids: Ids  # of the catalogue, ascending; then what is shown of each
    items: pa.Array
    titles: pa.Array
    made_at: datetime

    @classmethod
    def of(
        cls, users: Sequence[int], raw_users: RawIds, catalogue: Items, raw_items: RawIds, made_at: datetime
    ) -> "Rows":
        """users: all of the log, so that every shard has columns of the same types."""
        items = [raw_items.shown(item) for item in catalogue.ids]
        titles = pa.array([catalogue.titles[item] for item in catalogue.ids], pa.string())
        columns = [
            ("user", _id_type([raw_users.shown(user) for user in users])),
            ("rank", pa.int64()),
            ("item", _id_type(items)),
            ("title", pa.string()),
            ("score", pa.float64()),
            ("reason", pa.string()),
            ("version", pa.string()),
            ("made_at", pa.timestamp("us")),
        ]
        schema = pa.schema(columns)
        ids = catalogue.ascending
        return cls(schema, raw_users, ids, _id_array(items, schema.field("item").type), titles, made_at)

    def table(self, lists: Sequence[TopItems]) -> pa.Table:
        """A row an item of each list, in their order."""
        lengths = [len(own.items) for own in lists]
        owner = pa.array(np.repeat(np.arange(len(lists)), lengths))
        places = pa.array(np.searchsorted(self.ids, [item for own in lists for item in own.items]))
        users = _id_array([self.users.shown(own.user) for own in lists], self.schema.field("user").type)
        values = [
            users.take(owner),
            pa.array([rank for length in lengths for rank in range(1, length + 1)], pa.int64()),
            self.items.take(places),
            self.titles.take(places),
            pa.array([score for own in lists for score in own.scores], pa.float64()),
            pa.array([reason for own in lists for reason in own.reasons], pa.string()),
            pa.array([own.version for own in lists], pa.string()).take(owner),
            pa.array([self.made_at] * sum(lengths), pa.timestamp("us")),
        ]
        return pa.Table.from_arrays(values, schema=self.schema)


def _id_type(shown: Sequence[int | str]) -> pa.DataType:
    return pa.int64() if all(isinstance(own, int) for own in shown) else pa.string()


def _id_array(shown: Sequence[int | str], kind: pa.DataType) -> pa.Array:
    return pa.array(shown if pa.types.is_integer(kind) else [str(own) for own in shown], kind)


def check_out(out: Path) -> None:
    """Refuse, before anything is ranked, a file that could not be written in the end.

    Raises RecalignError naming --out.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise RecalignError(f"--out is {out}; a name that ends in {' or '.join(SUFFIXES)} is needed")
    if out.is_dir():
        raise RecalignError(f"--out is {out}, which is a folder; name a file in it")
    try:
        with replacing(out.with_name(f".{out.name}.trial")) as trial:
            trial.touch()
        out.with_name(f".{out.name}.trial").unlink()
    except OSError as error:
        why = error.strerror or error
        raise RecalignError(f"--out is {out}, which cannot be written ({why}); name another place") from None


def write_lists(out: Path, rows: Rows, lists: Iterable[TopItems]) -> None:
    """Stream lists into one file, Parquet or CSV by its suffix; it takes its place when it is whole."""
    waiting = iter(lists)
    tables = (rows.table(some) for some in iter(lambda: list(islice(waiting, USERS_AT_ONCE)), []))
    with replacing(out) as partial:
        if out.suffix.lower() == SUFFIXES[0]:
            write_rows(partial, rows.schema, tables)
            return
        with csv.CSVWriter(partial, rows.schema) as writer:
            for table in tables:
                writer.write_table(table)
