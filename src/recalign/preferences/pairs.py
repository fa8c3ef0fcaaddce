"""Preference examples: the item a user took after a history (chosen) beside K items they did not take (rejected)."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from recalign import columns as c
from recalign.data.records import Example, Items
from recalign.errors import RecalignError
from recalign.params import PairsParams
from recalign.preferences.negatives import STRATEGIES, Negative, Pool, draw_negatives, hard_items, strategy_shares
from recalign.preferences.profiles import Profile
from recalign.recommenders.seam import Recommender

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        (c.EXAMPLE, pa.string()),
        (c.USER, pa.int64()),
        (c.SPLIT, pa.string()),
        (c.HISTORY, pa.list_(pa.int64())),
        (c.CHOSEN, pa.int64()),
        (c.REJECTED, pa.list_(pa.int64())),
        ("strategies", pa.list_(pa.string())),
        (c.PROFILE, pa.string()),
    ]
)


@dataclass(frozen=True)
class Pair:
    """One chosen item and the rejected ones (as many strategies as rejected items); profile is text or None."""

    example_id: str
    user_id: int
    split: str
    history: tuple[int, ...]
    chosen: int
    rejected: tuple[int, ...]
    strategies: tuple[str, ...]
    profile: str | None


def taken_items(events: pa.Table, examples: Sequence[Example]) -> list[set[int]]:
    """For each example, the items that may not be rejected: its history, its target and the user's train events.

    Events of later splits are not consulted. Without a clock users are split, not times, and a user's own split holds
    their whole set, which has no later part: there the events of the example's split count.
    """
    consulted = sorted({_consulted(example) for example in examples})
    users = pa.array({example.user_id for example in examples}, pa.int64())
    known = events.filter(
        pc.and_(pc.is_in(events[c.SPLIT], pa.array(consulted, pa.string())), pc.is_in(events[c.USER], users))
    )
    owned: dict[tuple[str, int], set[int]] = defaultdict(set)
    for split, user, item in zip(*(known[name].to_pylist() for name in (c.SPLIT, c.USER, c.ITEM)), strict=True):
        owned[split, user].add(item)
    return [
        owned[_consulted(example), example.user_id].union(example.history, (example.target,)) for example in examples
    ]


def _consulted(example: Example) -> str:
    """The split whose events of the user are looked at."""
    return example.split if example.cutoff is None else c.TRAIN


def build_pairs(
    examples: Sequence[Example],
    items: Items,
    events: pa.Table,
    params: PairsParams,
    seed: int,
    *,
    item_knn: Recommender | None = None,
    profiles: Mapping[tuple[str, int], Profile] | None = None,
    plausible: Mapping[tuple[str, int], Mapping[int, int]] | None = None,
) -> list[Pair]:
    """Make a pair of every example, in the order given; examples with nothing to reject are left out, with a warning.

    events: data/prepared/events.parquet. item_knn (fitted on train) serves `hard`; profiles and plausible, by (split,
    user), serve the profile column and the `profile` strategy.
    Raises RecalignError when the params draw `hard` negatives and there is no item_knn, or have bad shares.
    """
    taken = taken_items(events, examples)
    pool = Pool.of(items, params.popularity_alpha)
    pairs = []
    for example, excluded, hard in zip(
        examples, taken, _hard_lists(examples, taken, items, params, item_knn), strict=True
    ):
        owner = (example.split, example.user_id)
        claimed = (plausible or {}).get(owner, {})
        negatives = draw_negatives(example, excluded, pool, params, seed, hard=hard, plausible=claimed)
        profile = (profiles or {}).get(owner)
        if negatives:
            pairs.append(_pair(example, negatives, profile.text if profile and profile.text else None))
    _report(pairs, len(examples), params)
    return pairs


def _hard_lists(
    examples: Sequence[Example],
    taken: Sequence[set[int]],
    items: Items,
    params: PairsParams,
    item_knn: Recommender | None,
) -> Iterator[tuple[int, ...]]:
    if strategy_shares(params)[STRATEGIES.index("hard")] == 0:
        return (() for _ in examples)
    if item_knn is None:
        raise RecalignError(f"pairs.strategy {params.strategy!r} needs the item_knn baseline; 'dvc repro' makes it")
    return hard_items(item_knn, items, examples, taken, params.hard_pool)


def _pair(example: Example, negatives: Sequence[Negative], profile: str | None) -> Pair:
    return Pair(
        example.example_id,
        example.user_id,
        example.split,
        example.history,
        example.target,
        tuple(negative.item_id for negative in negatives),
        tuple(negative.strategy for negative in negatives),
        profile,
    )


def _report(pairs: Sequence[Pair], examples: int, params: PairsParams) -> None:
    drawn = Counter(strategy for pair in pairs for strategy in pair.strategies)
    log.info("rejected items by strategy: %s", ", ".join(f"{name} {n}" for name, n in sorted(drawn.items())) or "none")
    if empty := examples - len(pairs):
        log.warning("%d of %d examples left out: their users took every item of the catalogue", empty, examples)
    if ragged := sum(len(pair.rejected) < params.negatives for pair in pairs):
        log.info("%d pairs have fewer than %d rejected items: the catalogue has no more", ragged, params.negatives)


def pairs_table(pairs: Sequence[Pair]) -> pa.Table:
    """The pairs as data/pairs/pairs.parquet holds them, rows in the order given."""
    return pa.Table.from_pylist([vars(pair) for pair in pairs], schema=SCHEMA)
