"""Prompts of pairs and their answers as token ids: what is trained is what is evaluated and served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moltc.answers import NAMES, Answers, number_said
from moltc.chemistry import description
from moltc.params import PromptParams
from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER, DESCRIBE = "Answer:", "Describe both."
END = "\n"


@dataclass(frozen=True)
class PairPrompts:
    """The prompts of one tokenizer over a list of molecules.

    Each molecule is a line: its name by place, its SMILES, its graph tokens (`graph_ids` of its number, none for text
    alone). A pair may be asked in both orders; `swapped` shows the second molecule first, and closed answers then name
    the molecules the other way round, so that both orders ask the same.
    """

    tokenizer: "PreTrainedTokenizerBase"
    molecules: Sequence[str]
    answers: Answers
    params: PromptParams
    graph_ids: Callable[[int], list[int]]

    def __post_init__(self) -> None:
        if len(self.answers) and (self.params.first_name, self.params.second_name) != NAMES:
            raise RecalignError(
                f"prompt.first_name is {self.params.first_name!r} and second_name {self.params.second_name!r}; "
                f"sentences of types name molecules {NAMES[0]!r} and {NAMES[1]!r}: other names are for numbers"
            )

    @property
    def digest(self) -> str:
        """Of all that the ids depend on, the molecules aside."""
        return digest_of([self.params.model_dump(), vars(self.answers), self.graph_ids(0), self.ids("C1=CC=CC=C1")])

    def ids(self, text: str) -> list[int]:
        """Ids of a text, none of them special."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def prompt(self, first: int, second: int, *, swapped: bool = False) -> list[int]:
        """Ids that end where the answer begins."""
        return self._asked(first, second, self.params.question, swapped=swapped)

    def thought(self, first: int, second: int, *, swapped: bool = False) -> list[int]:
        """RDKit's properties of both molecules, the first step of the answer; empty where prompt.thought is false."""
        if not self.params.thought:
            return []
        return self.ids(f" {self._described(first, second, swapped)}{END}{ANSWER}")

    def to_describe(self, first: int, second: int) -> tuple[list[int], list[int]]:
        """Prompt and answer of stage 1: describe both molecules."""
        return self._asked(first, second, DESCRIBE, swapped=False), self.ids(
            f" {self._described(first, second, swapped=False)}{END}")  # fmt: skip

    def responses(self, *, swapped: bool = False) -> list[list[int]]:
        """Each closed answer, in the order of the answers."""
        return [self.ids(f" {sentence}{END}") for sentence in self.answers.said(swapped=swapped)]

    def number(self, value: float) -> list[int]:
        """A number in words."""
        return self.ids(f" {number_said(value)}{END}")

    def _names(self) -> tuple[str, str]:
        return self.params.first_name, self.params.second_name

    def _asked(self, first: int, second: int, question: str, *, swapped: bool) -> list[int]:
        shown = (second, first) if swapped else (first, second)
        ids = self._opening()
        for name, molecule in zip(self._names(), shown, strict=True):
            smiles = self.ids(f" {self.molecules[molecule]}")[: self.params.max_smiles_tokens]
            ids += self.ids(f"{name}:") + smiles + self.graph_ids(molecule) + self.ids(END)
        return ids + self.ids(f"{question}{END}{ANSWER}")

    def _described(self, first: int, second: int, swapped: bool) -> str:
        shown = (second, first) if swapped else (first, second)
        told = [f"{n}: {description(self.molecules[m])}." for n, m in zip(self._names(), shown, strict=True)]
        return " ".join(told)

    def _opening(self) -> list[int]:
        """[BOS] where the tokenizer begins a text with it by itself."""
        first = self.tokenizer.encode("a")[:1]
        return list(first) if first == [self.tokenizer.bos_token_id] else []
