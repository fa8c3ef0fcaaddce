"""Stage pairs: one chosen item and K rejected ones for the first training and validation examples."""

import logging
from pathlib import Path

from recalign import columns as c
from recalign.artifacts import folder, read_json, read_parquet, write_parquet
from recalign.data.records import Items, read_examples, unread_first
from recalign.layout import BASELINES, PAIRS, PREPARED, PROFILES
from recalign.params import Params
from recalign.preferences.histories import read_histories
from recalign.preferences.negatives import STRATEGIES, strategy_shares
from recalign.preferences.pairs import Pair, build_pairs, pairs_table
from recalign.preferences.profiles import Profile, read_profiles
from recalign.preferences.statements import closed_statements, plausible_items

log = logging.getLogger(__name__)


def pairs(
    params: Params,
    prepared: Path = PREPARED,
    baselines: Path = BASELINES,
    profiles: Path = PROFILES,
    out: Path = PAIRS,
) -> None:
    """Write `out`/pairs.parquet: params.pairs.examples training pairs, then validation_cases validation pairs.

    Training pairs come from users whose histories SFT does not read, as long as there are such users.
    Raises RecalignError when an input is missing or pairs.shares do not sum to 1.
    """
    items = Items.read(prepared)
    events = read_parquet(prepared / "events.parquet")
    shares = dict(zip(STRATEGIES, strategy_shares(params.pairs), strict=True))
    item_knn = None
    if shares["hard"] > 0:
        from recalign.recommenders.item_knn import ItemKNN
        from recalign.recommenders.transplanted import on_catalogue

        item_knn = on_catalogue(ItemKNN.load(baselines / "item_knn", items.trained), items.trained, items)
    known = read_profiles(profiles, params.profiles.engine)
    plausible = _plausible(params, prepared, items, known) if shares["profile"] > 0 else {}
    built: list[Pair] = []
    train = unread_first(read_examples(prepared, c.TRAIN, seed=params.seed), params.sft.examples, params.seed)
    validation = read_examples(prepared, c.VALIDATION, params.evaluate.validation_cases, seed=params.seed)
    for examples in (train[: params.pairs.examples], validation):
        built += build_pairs(
            examples, items, events, params.pairs, params.seed, item_knn=item_knn, profiles=known, plausible=plausible
        )
    with folder(out) as partial:
        write_parquet(partial / "pairs.parquet", pairs_table(built))
    counts = {split: sum(pair.split == split for pair in built) for split in (c.TRAIN, c.VALIDATION)}
    shown = sum(pair.profile is not None for pair in built)
    log.info("pairs: %d train, %d validation; %d carry a profile", counts[c.TRAIN], counts[c.VALIDATION], shown)


def _plausible(
    params: Params, prepared: Path, items: Items, profiles: dict[tuple[str, int], Profile]
) -> dict[tuple[str, int], dict[int, int]]:
    noun = read_json(prepared / "summary.json")["noun"]
    plausible = {}
    for split in (c.TRAIN, c.VALIDATION):
        counts = read_histories(prepared, split, 0, params.seed).counts
        statements = {(s.attribute, s.value): s for s in closed_statements(items, counts, noun)}
        for (owner_split, user), profile in profiles.items():
            if owner_split == split:
                claimed = [statements[claim.attribute, claim.value] for claim in profile.claims]
                plausible[split, user] = plausible_items(claimed)
    return plausible
