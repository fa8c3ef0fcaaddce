"""The candidates that a training prompt lists, where prompts list candidates (prompt.form: candidates)."""

import random
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from recalign.data.records import Items, hashed_order, later_items, read_named, read_taken
from recalign.params.load import Params


@dataclass(frozen=True)
class Listing:
    """Draws the items that a prompt lists, as many as an evaluated case has.

    catalogue: ids of the items that may be listed, those with `prepare.cold_events` train events, as in an evaluated
    case; count: items listed; taken: example id → items that must not be listed as wrong ones; seed: of the run. The
    draw depends on the seed and the example's id only.
    """

    catalogue: tuple[int, ...]
    count: int
    taken: Mapping[str, Set[int]]
    seed: int

    def items(self, example_id: str, target: int, rejected: Sequence[int] = ()) -> list[int]:
        """The target, the rejected items and uniform others, shuffled; shorter where the catalogue is used up."""
        generator = random.Random(int(hashed_order(self.seed, "listing", example_id), 16))
        listed = dict.fromkeys([target, *rejected])
        barred = self.taken[example_id]
        draws = generator.sample(self.catalogue, min(len(self.catalogue), self.count + len(barred)))
        others = [item for item in draws if item not in barred and item not in listed]
        shown = [*listed, *others[: max(0, self.count - len(listed))]]
        generator.shuffle(shown)
        return shown


def read_listing(
    params: Params, prepared: Path, catalogue: Items, examples: Mapping[str, Iterable[str]]
) -> Listing | None:
    """The listing of some examples (ids by split); None where prompts list no candidates.

    As for pairs, what a user has met is never listed as a wrong item, and no later event is consulted.
    """
    if params.prompt.form == "history":
        return None
    listed = [example for split, names in examples.items() for example in read_named(prepared, split, [*names])]
    taken = {
        example.example_id: own.items | later_items(catalogue, example)
        for example, own in zip(listed, read_taken(prepared, listed), strict=True)
    }
    counts = catalogue.train_events or catalogue.popularity
    warm = tuple(item for item in catalogue.ids if counts[item] >= params.prepare.cold_events)
    return Listing(warm, params.prepare.candidates, taken, params.seed)
