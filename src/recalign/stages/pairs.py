"""Stage pairs: one chosen item and K rejected ones for the first training and validation examples."""

import logging
from pathlib import Path

import pyarrow.compute as pc

from recalign.common import columns as c
from recalign.common.artifacts import folder, read_parquet, write_parquet
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Example, Items, read_taken
from recalign.params.load import Params
from recalign.preferences.pairs.negatives import IN_BATCH, STRATEGIES, strategy_shares
from recalign.preferences.pairs.pairs import Pair, build_pairs, pairs_table
from recalign.preferences.profiles.profiles import (
    Profile,
    closed_statements,
    plausible_items,
    read_known,
    read_profiles,
    read_told,
)
from recalign.preferences.profiles.selection import pair_examples
from recalign.project import Project
from recalign.recommenders.recommender import Recommender
from recalign.training.new_items import known_history, new_in_epoch, turn_of

log = logging.getLogger(__name__)


def pairs(params: Params, project: Project = Project()) -> None:
    """Write data/pairs/pairs.parquet: params.pairs.examples training pairs, then validation_cases validation pairs.

    Training pairs come from users whose histories SFT does not read, as long as there are such users; `pair_examples`
    says who comes first where profiles or dislikes are asked for.
    Raises RecalignError when an input is missing, pairs.shares do not sum to 1, a batch has one example, or too many
    pairs would do without the profile or the kind of rejected items that params ask for.
    """
    items = Items.read(project.prepared)
    shares = dict(zip(STRATEGIES, strategy_shares(params.pairs), strict=True))
    drawn_from: Recommender | int | None = params.align.batch if params.pairs.strategy == IN_BATCH else None
    if shares["hard"] > 0:
        from recalign.recommenders.item_knn import ItemKNN
        from recalign.recommenders.store import on_catalogue

        drawn_from = on_catalogue(ItemKNN.load(project.baselines / "item_knn", items.trained), items.trained, items)
    known = read_profiles(project.profiles, params.profiles.engine)
    told = read_told(project.profiles, params.profiles.engine)
    plausible = _plausible(params, project.prepared, items, known) if shares["profile"] > 0 else {}
    if params.pairs.strategy == "disliked":
        _check_dislikes(project.prepared)
    built: list[Pair] = []
    for split in (c.TRAIN, c.VALIDATION):
        examples = pair_examples(params, project.prepared, split, told)
        # of whole histories: what was liked is never drawn as unseen
        taken = read_taken(project.prepared, examples, later=params.pairs.positives > 1)
        asked = _shown(examples, items, params) if split == c.TRAIN else examples
        built += build_pairs(
            asked, items, taken, params.pairs, params.seed, drawn_from=drawn_from, profiles=known, plausible=plausible
        )
    with folder(project.pairs) as partial:
        write_parquet(partial / "pairs.parquet", pairs_table(built))
    counts = {split: sum(pair.split == split for pair in built) for split in (c.TRAIN, c.VALIDATION)}
    shown = sum(pair.profile is not None for pair in built)
    log.info("pairs: %d train, %d validation; %d carry a profile", counts[c.TRAIN], counts[c.VALIDATION], shown)


def _shown(examples: list[Example], items: Items, params: Params) -> list[Example]:
    """The examples with the histories that pairs show: without the items that are new in each one's turn."""
    share = params.sft.new_items
    if not share:
        return examples
    epochs = [new_in_epoch(items.trained.ids, share, epoch, params.seed) for epoch in range(max(1, round(1 / share)))]
    return [known_history(own, epochs[turn_of(own, share, params.seed)]) for own in examples]


def _check_dislikes(prepared: Path) -> None:
    if pc.all(read_parquet(prepared / "met.parquet", [c.LIKED])[c.LIKED]).as_py():
        raise RecalignError(
            f"pairs.strategy is 'disliked', but in {prepared / 'met.parquet'} everything is liked: the log has no "
            "ratings, or prepare.min_rating is null; set prepare.min_rating, or pairs.strategy to uniform"
        )


def _plausible(
    params: Params, prepared: Path, items: Items, profiles: dict[tuple[str, int], Profile]
) -> dict[tuple[str, int], dict[int, int]]:
    noun = Prepared(prepared).noun
    plausible = {}
    for split in (c.TRAIN, c.VALIDATION):
        counts = read_known(prepared, split, params.seed).counts
        statements = {(s.attribute, s.value): s for s in closed_statements(items.shown, counts, noun)}
        for (owner_split, user), profile in profiles.items():
            if owner_split == split:
                claimed = [statements[claim.attribute, claim.value] for claim in profile.claims]
                plausible[split, user] = plausible_items(claimed)
    return plausible
