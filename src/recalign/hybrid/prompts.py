"""Prompts that show a recommender's vector of an item after the line of its title."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from recalign.common.artifacts import digest_of
from recalign.data.records import Items
from recalign.hybrid.soft_tokens import soft_id
from recalign.llm.prompts import PromptBuilder
from recalign.params.prompt import PromptParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HybridPrompts(PromptBuilder):
    """As `PromptBuilder`, with a vector after each line of the history (form `candidates`: of the candidates, too).

    The paper (arXiv 2312.02445) puts the token next to the title within its line. Here it follows the line's end: a
    response is then the same title and newline as in text, and the last vector of a history is what the model reads
    right before it answers. An item that has no vector, or a title that is in no catalogue, is shown as text alone.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        items: Items,
        params: PromptParams,
        noun: str,
        *,
        numbers: Mapping[int, int],
        clock: bool = True,
    ) -> None:
        """numbers: item → number of its vector."""
        super().__init__(tokenizer, items, params, noun, clock=clock)
        self.numbers = numbers
        self.digest = digest_of([self.digest, sorted(numbers.items())])

    def sequence(
        self,
        history: Sequence[int],
        target: int,
        *,
        profile: str | None = None,
        candidates: Sequence[int] | None = None,
    ) -> tuple[list[int], list[int]]:
        """As in text; the target's vector is left out, for nothing follows it."""
        prompt, continuation = super().sequence(history, target, profile=profile, candidates=candidates)
        return prompt, continuation[:-1] if continuation[-1] < 0 else continuation

    def _lines(self, items: Sequence[int | str]) -> list[int]:
        ids: list[int] = []
        for item in items:
            ids += super()._lines([item])
            if isinstance(item, int) and item in self.numbers:
                ids.append(soft_id(self.numbers[item]))
        return ids
