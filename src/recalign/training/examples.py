"""Token ids to learn from, built by the one prompt builder, so that what is trained is what is evaluated and served."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Example, Items
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import Params
from recalign.training.listing import Listing, read_listing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextExample:
    """A prompt and one continuation to be learned token by token.

    weights: of each target in the continuation, with its tokens; empty where all tokens weigh alike.
    """

    example_id: str
    prompt: list[int]
    continuation: list[int]
    weights: tuple[tuple[float, int], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that the model reads; nobody asks what follows the last one."""
        return len(self.prompt) + len(self.continuation) - 1

    @property
    def learned(self) -> int:
        """Tokens that are learned: of the continuation those that are no vector's."""
        return sum(token >= 0 for token in self.continuation)


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt and its responses: the chosen one, others that were liked as well, the rejected ones.

    liked: how many of them were liked, the chosen one among them.
    """

    example_id: str
    prompt: list[int]
    responses: list[list[int]]
    liked: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and of each response without its last."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


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
        if weigh:
            _, learned = builder.learned(example.history, example.target, whole=whole_history)
            sizes = [*(len(builder.item_line(item)) for item in learned[:-1]), len(builder.response(learned[-1]))]
            weights = list(zip(weigh(learned), sizes, strict=True))
        built.append(TextExample(example.example_id, prompt, continuation, tuple(weights)))
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
        built[row[c.SPLIT]].append(PreferenceExample(row[c.EXAMPLE], prompt, responses, 1 + len(also)))
    for split, examples in built.items():
        if not examples:
            raise RecalignError(
                f"{pairs / 'pairs.parquet'} holds no {split} pairs; preference training needs some: "
                "look at pairs.examples and data/prepared/summary.json, then run 'dvc repro pairs'"
            )
    return built
