"""Preference examples: the item a user took after a history (chosen) beside K items they did not take (rejected)."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items, Taken
from recalign.params.pairs import PairsParams, Strategy
from recalign.preferences.pairs.negatives import (
    FALLBACK,
    STRATEGIES,
    Negative,
    Pool,
    draw_negatives,
    hard_items,
    strategy_shares,
)
from recalign.preferences.profiles.profiles import Profile
from recalign.preferences.profiles.selection import MOST_WITHOUT
from recalign.recommenders.recommender import Recommender

log = logging.getLogger(__name__)

REMEDIES: dict[Strategy, str] = {  # what gives a strategy more to draw
    "uniform": "lower pairs.negatives",
    "popularity": "lower pairs.negatives",
    "hard": "raise pairs.hard_pool above pairs.negatives",
    "profile": "lower pairs.examples or pairs.negatives, or raise profiles.claims",
    "disliked": "lower pairs.examples or pairs.negatives (users must have rated so many items below prepare.min_rating "
    "before a case)",
    "alike": "raise pairs.hard_pool above pairs.negatives",
}
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
    """One chosen item and the rejected ones (as many strategies as rejected items); profile is text or None.

    also: up to pairs.positives − 1 items that the user liked from then on, the next ones first.
    """

    example_id: str
    user_id: int
    split: str
    history: tuple[int, ...]
    chosen: int
    rejected: tuple[int, ...]
    strategies: tuple[str, ...]
    profile: str | None
    also: tuple[int, ...] = ()


def build_pairs(
    examples: Sequence[Example],
    items: Items,
    taken: Sequence[Taken],
    params: PairsParams,
    seed: int,
    *,
    item_knn: Recommender | None = None,
    profiles: Mapping[tuple[str, int], Profile] | None = None,
    plausible: Mapping[tuple[str, int], Mapping[int, int]] | None = None,
) -> list[Pair]:
    """Make a pair of every example, in the order given; examples with nothing to reject are left out, with a warning.

    taken: of each example, as `read_taken` reads it. item_knn (fitted on train) serves `hard`; profiles and plausible,
    by (split, user), serve the profile column and the `profile` strategy.
    Raises RecalignError when the params draw `hard` negatives and there is no item_knn, or have bad shares, or when
    more than MOST_WITHOUT of the rejected items could not be drawn as asked.
    """
    pool = Pool.of(items, params.popularity_alpha)
    pairs = []
    counts: Counter[tuple[Strategy, Strategy]] = Counter()
    for example, own, hard in zip(examples, taken, _hard_lists(examples, taken, items, params, item_knn), strict=True):
        owner = (example.split, example.user_id)
        claimed = (plausible or {}).get(owner, {})
        also = tuple(item for item in own.later if item in pool.known)[: params.positives - 1]
        if also:  # a validation case's later likes are looked at for this alone
            own = replace(own, items=own.items | {*also})
        negatives = draw_negatives(example, own, pool, params, seed, hard=hard, plausible=claimed)
        counts.update((negative.asked, negative.strategy) for negative in negatives)
        profile = (profiles or {}).get(owner)
        if negatives:
            pairs.append(_pair(example, negatives, profile.text if profile and profile.text else None, also))
    _report(pairs, len(examples), params, counts)
    return pairs


def _hard_lists(
    examples: Sequence[Example],
    taken: Sequence[Taken],
    items: Items,
    params: PairsParams,
    item_knn: Recommender | None,
) -> Iterator[tuple[int, ...]]:
    if strategy_shares(params)[STRATEGIES.index("hard")] == 0:
        return (() for _ in examples)
    if item_knn is None:
        raise RecalignError(f"pairs.strategy {params.strategy!r} needs the item_knn baseline; 'dvc repro' makes it")
    return hard_items(item_knn, items, examples, taken, params.hard_pool)


def _pair(example: Example, negatives: Sequence[Negative], profile: str | None, also: tuple[int, ...]) -> Pair:
    return Pair(
        example.example_id,
        example.user_id,
        example.split,
        example.history,
        example.target,
        tuple(negative.item_id for negative in negatives),
        tuple(negative.strategy for negative in negatives),
        profile,
        also,
    )


def _report(
    pairs: Sequence[Pair], examples: int, params: PairsParams, counts: Mapping[tuple[Strategy, Strategy], int]
) -> None:
    drawn = Counter(strategy for pair in pairs for strategy in pair.strategies)
    log.info("rejected items by strategy: %s", ", ".join(f"{name} {n}" for name, n in sorted(drawn.items())) or "none")
    for (asked, strategy), n in sorted(counts.items()):
        if asked != strategy:
            log.info("%d rejected items asked of '%s', which had nothing left, were drawn by '%s'", n, asked, strategy)
    _check_fallback(params, counts, pairs[0].split if pairs else c.TRAIN)
    if empty := examples - len(pairs):
        log.warning("%d of %d examples left out: their users took every item of the catalogue", empty, examples)
    if ragged := sum(len(pair.rejected) < params.negatives for pair in pairs):
        log.info("%d pairs have fewer than %d rejected items: the catalogue has no more", ragged, params.negatives)


def _check_fallback(params: PairsParams, counts: Mapping[tuple[Strategy, Strategy], int], split: str) -> None:
    """Stop where too many items were drawn by a strategy that the params do not have: `mixed` has several."""
    shares = dict(zip(STRATEGIES, strategy_shares(params), strict=True))
    other = sum(n for (_, strategy), n in counts.items() if not shares[strategy])
    total = sum(counts.values())
    if other > MOST_WITHOUT * total:
        wanted = [name for name in STRATEGIES if shares[name] > 0]
        raise RecalignError(
            f"pairs.strategy is '{params.strategy}', but {other} of {total} rejected items of the {split} pairs had to "
            f"be drawn by '{FALLBACK}' ({other / total:.0%}, at most {MOST_WITHOUT:.0%} may); "
            f"{'; '.join(REMEDIES[name] for name in wanted)}; or set pairs.strategy to mixed with a share of {FALLBACK}"
        )


def pairs_table(pairs: Sequence[Pair]) -> pa.Table:
    """The pairs as data/pairs/pairs.parquet holds them, rows in the order given; the column `also` where any has it."""
    several = [pa.field(c.ALSO, pa.list_(pa.int64()))] if any(pair.also for pair in pairs) else []
    return pa.Table.from_pylist([vars(pair) for pair in pairs], schema=pa.schema([*SCHEMA, *several]))
