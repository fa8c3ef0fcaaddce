"""Token ids to learn from, built by the one prompt builder, so that what is trained is what is evaluated and served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import Params
from recalign.training.listing import Listing, read_listing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextExample:
    """A prompt and one continuation to be learned token by token."""

    example_id: str
    prompt: list[int]
    continuation: list[int]

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
    """A prompt and 1+K responses, the chosen one first."""

    example_id: str
    prompt: list[int]
    responses: list[list[int]]

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
) -> list[TextExample]:
    """Each example's target after its history; with `whole_history`, all titles but the first few too.

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
        built.append(TextExample(example.example_id, prompt, continuation))
    return built


def read_preference_examples(
    params: Params, prepared: Path, pairs: Path, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, list[PreferenceExample]]:
    """The pairs of training and validation (data/pairs/pairs.parquet) as token ids, by split, in the file's order.

    Raises RecalignError naming the split that has no pairs.
    """
    items, summary = Items.read(prepared), read_json(prepared / "summary.json")
    builder = PromptBuilder(tokenizer, items, params.prompt, summary["noun"], clock=summary["clock"])
    built: dict[str, list[PreferenceExample]] = {c.TRAIN: [], c.VALIDATION: []}
    rows = read_parquet(pairs / "pairs.parquet").to_pylist()
    names = {split: [row[c.EXAMPLE] for row in rows if row[c.SPLIT] == split] for split in built}
    listing = read_listing(params, prepared, items, names)
    for row in rows:
        shown = [row[c.CHOSEN], *row[c.REJECTED]]
        listed = listing.items(row[c.EXAMPLE], shown[0], shown[1:]) if listing else None
        profile = row[c.PROFILE] if params.prompt.profile else None
        prompt = builder.prompt(row[c.HISTORY], profile=profile, candidates=listed)
        responses = [builder.response(i) for i in shown]
        built[row[c.SPLIT]].append(PreferenceExample(row[c.EXAMPLE], prompt, responses))
    for split, examples in built.items():
        if not examples:
            raise RecalignError(
                f"{pairs / 'pairs.parquet'} holds no {split} pairs; preference training needs some: "
                "look at pairs.examples and data/prepared/summary.json, then run 'dvc repro pairs'"
            )
    return built
