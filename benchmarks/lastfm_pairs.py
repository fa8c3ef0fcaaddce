"""Preference examples for benchmarks: real Last.fm cases where they are at hand, else the films of the simulated world.

A case lists 20 candidates in its prompt, as the papers' prompts do (some 120 to 200 tokens); the chosen response is the
target, the rejected ones are drawn from the other candidates by a hash of the case.
"""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from recalign.data.case_file import FileCase, read_catalogue, read_file_cases
from recalign.data.records import Items, hashed_order
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import load_params
from recalign.params.prompt import PromptParams
from recalign.training.examples import PreferenceExample

CANDIDATES = 20


def read_cases(folder: Path | None) -> tuple[Items, list[FileCase], str]:
    """(catalogue, cases, noun) of a folder with items.csv and cases.jsonl; of invented cases where it is None."""
    if folder is None:
        items = film_catalogue()
        return items, [_film_case(items, number) for number in range(200)], "films"
    items = read_catalogue(folder / "items.csv")
    return items, read_file_cases(folder / "cases.jsonl", items), "artists"


def examples(folder: Path | None, tokenizer: PreTrainedTokenizerBase, negatives: int) -> Iterator[PreferenceExample]:
    """Examples with `negatives` rejected responses, in an order that does not follow the file's."""
    items, cases, noun = read_cases(folder)
    params: PromptParams = load_params().prompt.model_copy(update={"form": "candidates"})
    builder = PromptBuilder(tokenizer, items, params, noun, clock=False)
    for case in sorted(cases, key=lambda case: hashed_order("benchmark", case.case)):
        wrong = [item for item in case.candidates if item != case.target]
        wrong.sort(key=lambda item: hashed_order(case.case, item))
        prompt = builder.prompt(case.history, candidates=case.candidates)
        responses = [builder.response(item) for item in (case.target, *wrong[:negatives])]
        yield PreferenceExample(str(case.case), prompt, responses)


def film_catalogue() -> Items:
    """The films of the simulated world."""
    from scoring import catalogue

    return catalogue()


def _film_case(items: Items, number: int) -> FileCase:
    drawn = sorted(items.ids, key=lambda item: hashed_order("benchmark", number, item))
    history, candidates = drawn[:8], drawn[8 : 8 + CANDIDATES]
    target = candidates[number % CANDIDATES]
    return FileCase(number, number, tuple(history), tuple(candidates), target)
