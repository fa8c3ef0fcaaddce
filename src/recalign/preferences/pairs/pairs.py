"""Preference examples: the item a user took after a history (chosen) beside K items they did not take (rejected)."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items, Taken
from recalign.params.pairs import PairsParams, Strategy
from recalign.preferences.pairs.negatives import (
    FALLBACK,
    IN_BATCH,
    STRATEGIES,
    Negative,
    Pool,
    batch_mates,
    draw_negatives,
    hard_items,
    log_shares,
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
    "in_batch": "raise align.batch above pairs.negatives",
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

    also: up to pairs.positives − 1 items that the user liked from then on, the next ones first. log_q: of strategy
    `in_batch` alone, `log_shares` of the chosen item, of `also` (as if chosen once, where nobody chose it) and of the
    rejected ones.
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
    log_q: tuple[float, ...] = ()


def build_pairs(
    examples: Sequence[Example],
    items: Items,
    taken: Sequence[Taken],
    params: PairsParams,
    seed: int,
    *,
    drawn_from: Recommender | int | None = None,
    profiles: Mapping[tuple[str, int], Profile] | None = None,
    plausible: Mapping[tuple[str, int], Mapping[int, int]] | None = None,
) -> list[Pair]:
    """Make a pair of every example, in the order given; examples with nothing to reject are left out, with a warning.

    taken: of each example, as `read_taken` reads it. drawn_from: item_knn (fitted on train) for `hard`, the number of
    examples in a batch for `in_batch`; profiles and plausible, by (split, user), serve the profile column and the
    `profile` strategy.
    Raises RecalignError when the params draw `hard` negatives and there is no item_knn, or have bad shares, when
    more than MOST_WITHOUT of the rejected items could not be drawn as asked, or when a batch has one example.
    """
    pool = Pool.of(items, params.popularity_alpha)
    pairs = []
    counts: Counter[tuple[Strategy, Strategy]] = Counter()
    further = [tuple(item for item in own.later if item in pool.known)[: params.positives - 1] for own in taken]
    # a validation case's later likes are looked at for this alone
    owned = [replace(own, items=own.items | {*also}) for own, also in zip(taken, further, strict=True)]
    if params.strategy == IN_BATCH:
        lists: Iterable[Sequence[int]] = _batch_lists(examples, owned, pool, drawn_from, seed)
    else:
        lists = _hard_lists(examples, owned, items, params, drawn_from)
    for example, own, also, listed in zip(examples, owned, further, lists, strict=True):
        owner = (example.split, example.user_id)
        claimed = (plausible or {}).get(owner, {})
        negatives = draw_negatives(example, own, pool, params, seed, listed=listed, plausible=claimed)
        counts.update((negative.asked, negative.strategy) for negative in negatives)
        profile = (profiles or {}).get(owner)
        if negatives:
            pairs.append(_pair(example, negatives, profile.text if profile and profile.text else None, also))
    _report(pairs, len(examples), params, counts)
    return _with_log_q(pairs) if params.strategy == IN_BATCH else pairs


def _hard_lists(
    examples: Sequence[Example],
    taken: Sequence[Taken],
    items: Items,
    params: PairsParams,
    item_knn: Recommender | int | None,
) -> Iterator[tuple[int, ...]]:
    if strategy_shares(params)[STRATEGIES.index("hard")] == 0:
        return (() for _ in examples)
    if item_knn is None or isinstance(item_knn, int):
        raise RecalignError(f"pairs.strategy {params.strategy!r} needs the item_knn baseline; 'dvc repro' makes it")
    return hard_items(item_knn, items, examples, taken, params.hard_pool)


def _batch_lists(
    examples: Sequence[Example], taken: Sequence[Taken], pool: Pool, size: Recommender | int | None, seed: int
) -> list[tuple[int, ...]]:
    if not isinstance(size, int) or size < 2:
        raise RecalignError(
            f"pairs.strategy is '{IN_BATCH}', which rejects what the other examples of a batch chose, and align.batch "
            f"is {size}; set align.batch to 2 or more, and above pairs.negatives"
        )
    return batch_mates(examples, taken, pool, size, seed)


def _with_log_q(pairs: Sequence[Pair]) -> list[Pair]:
    logs = log_shares([pair.chosen for pair in pairs])
    once = -math.log(len(pairs)) if pairs else 0.0
    shown = [(pair.chosen, *pair.also, *pair.rejected) for pair in pairs]
    told = [tuple(logs.get(item, once) for item in own) for own in shown]
    return [replace(pair, log_q=own) for pair, own in zip(pairs, told, strict=True)]


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
        of = "the others of their batch chose" if params.strategy == IN_BATCH else "of the catalogue"
        log.warning("%d of %d examples left out: their users took every item %s", empty, examples, of)
    if ragged := sum(len(pair.rejected) < params.negatives for pair in pairs):
        of = "batch" if params.strategy == IN_BATCH else "catalogue"
        log.info("%d pairs have fewer than %d rejected items: the %s has no more", ragged, params.negatives, of)


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
    """The pairs as data/pairs/pairs.parquet holds them, in the order given; `also` and `log_q` where any has them."""
    further = {c.ALSO: pa.int64(), c.LOG_Q: pa.float64()}
    there = [pa.field(name, pa.list_(kind)) for name, kind in further.items() if any(getattr(p, name) for p in pairs)]
    return pa.Table.from_pylist([vars(pair) for pair in pairs], schema=pa.schema([*SCHEMA, *there]))
