"""Token ids to learn from, built by the one prompt builder, so that what is trained is what is evaluated and served.

The candidates that a training prompt lists, where prompts list candidates (prompt.form: candidates).
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Example, Items, hashed_order, later_items, read_named, read_taken
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


@dataclass(frozen=True)
class TextExample:
    """A prompt and one continuation to be learned token by token.

    weights: of each target in the continuation, with its tokens; empty where all tokens weigh alike. unlearned: places
    in the continuation, vectors not counted, of tokens that are read alone.
    """

    example_id: str
    prompt: list[int]
    continuation: list[int]
    weights: tuple[tuple[float, int], ...] = ()
    unlearned: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that the model reads; nobody asks what follows the last one."""
        return len(self.prompt) + len(self.continuation) - 1

    @property
    def learned(self) -> int:
        """Tokens that are learned: of the continuation those that are no vector's, and not read alone."""
        return sum(token >= 0 for token in self.continuation) - len(self.unlearned)

    @property
    def mask(self) -> list[float]:
        """1 for each token of the continuation that is learned, else 0."""
        text = accumulate(token >= 0 for token in self.continuation)
        left_out = frozenset(self.unlearned)
        return [
            float(token >= 0 and read - 1 not in left_out) for token, read in zip(self.continuation, text, strict=True)
        ]


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt and its responses: the chosen one, others that were liked as well, the rejected ones.

    liked: how many of them were liked, the chosen one among them. log_q: of each, the log of its chance to be offered
    as a rejected one; empty where pairs do not say it.
    """

    example_id: str
    prompt: list[int]
    responses: list[list[int]]
    liked: int = 1
    log_q: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and of each response without its last."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


def in_epoch_order(example: Example, epoch: int, seed: int) -> Example:
    """The example as an epoch, counted from 0, reads it: a history without times is a set, in another order each time.

    The first epoch reads it as it is prepared; a history in order of time never changes. The target stays.
    """
    if example.cutoff is not None or not epoch:
        return example
    drawn = sorted(example.history, key=lambda item: hashed_order(seed, "order", epoch, example.example_id, item))
    return replace(example, history=tuple(drawn))


def text_examples(
    examples: Sequence[Example],
    builder: PromptBuilder,
    *,
    profiles: Mapping[int, str] | None = None,
    listing: Listing | None = None,
    whole_history: bool = False,
    weigh: Callable[[Sequence[int]], Sequence[float]] | None = None,
) -> list[TextExample]:
    """Each example's target after its history; with `whole_history`, all titles but the first few too.

    weigh: the weights of items as targets (`Weights.of`); None: all tokens weigh alike.

    profiles: user → text shown in the prompt. listing: for prompts that list candidates; those learn the target alone.
    """
    built = []
    for example in examples:
        profile = (profiles or {}).get(example.user_id)
        shown = listing.items(example.example_id, example.target) if listing else None
        if whole_history:
            prompt, continuation = builder.sequence(example.history, example.target, profile=profile, candidates=shown)
        else:
            prompt = builder.prompt(example.history, profile=profile, candidates=shown)
            continuation = builder.response(example.target)
        weights: list[tuple[float, int]] = []
        _, learned = builder.learned(example.history, example.target, whole=whole_history)
        if weigh:
            sizes = [*(len(builder.item_line(item)) for item in learned[:-1]), len(builder.response(learned[-1]))]
            weights = list(zip(weigh(learned), sizes, strict=True))
        unlearned = builder.unlearned(learned)
        built.append(TextExample(example.example_id, prompt, continuation, tuple(weights), unlearned))
    return built


def text_prompts(params: Params, prepared: Path, tokenizer: "PreTrainedTokenizerBase") -> PromptBuilder:
    """The prompts of a prepared log that are text alone."""
    summary = Prepared(prepared)
    return PromptBuilder(tokenizer, Items.read(prepared), params.prompt, summary.noun, clock=summary.clock)


def read_preference_examples(
    params: Params, prepared: Path, pairs: Path, builder: PromptBuilder
) -> dict[str, list[PreferenceExample]]:
    """The pairs of training and validation (data/pairs/pairs.parquet) as token ids, by split, in the file's order.

    builder: `text_prompts`, or the prompts of an adapter that reads vectors.
    Raises RecalignError naming the split that has no pairs.
    """
    built: dict[str, list[PreferenceExample]] = {c.TRAIN: [], c.VALIDATION: []}
    rows = read_parquet(pairs / "pairs.parquet").to_pylist()
    names = {split: [row[c.EXAMPLE] for row in rows if row[c.SPLIT] == split] for split in built}
    listing = read_listing(params, prepared, Items.read(prepared), names)
    for row in rows:
        also = row.get(c.ALSO) or []
        shown = [row[c.CHOSEN], *also, *row[c.REJECTED]]
        listed = listing.items(row[c.EXAMPLE], shown[0], shown[1:]) if listing else None
        profile = row[c.PROFILE] if params.prompt.profile else None
        prompt = builder.prompt(row[c.HISTORY], profile=profile, candidates=listed)
        responses = [builder.response(i) for i in shown]
        log_q = tuple(row.get(c.LOG_Q) or ())
        built[row[c.SPLIT]].append(PreferenceExample(row[c.EXAMPLE], prompt, responses, 1 + len(also), log_q))
    for split, examples in built.items():
        if not examples:
            raise RecalignError(
                f"{pairs / 'pairs.parquet'} holds no {split} pairs; preference training needs some: "
                "look at pairs.examples and data/prepared/summary.json, then run 'dvc repro pairs'"
            )
    return built
