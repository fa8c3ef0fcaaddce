"""What each stage of training reads: descriptions, answers, and the right sentence against wrong ones."""

from dataclasses import dataclass

import numpy as np

from moltc.prepared import PairSet
from moltc.prompts import PairPrompts
from recalign.common.errors import RecalignError
from recalign.data.records import hashed_order
from recalign.training.examples import PreferenceExample, TextExample


@dataclass(frozen=True)
class NumberExample:
    """A prompt and the number that the head has to give after it."""

    example_id: str
    prompt: list[int]
    value: float

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.prompt)


def swapped(pairs: PairSet, place: int, seed: int) -> bool:
    """Whether training shows a pair in the other order: half of them, by a hash; numbers go by their order."""
    return pairs.kind != "number" and hashed_order(seed, "order", pairs.pair_id(place)) < "8"


def describe_examples(pairs: PairSet, prompts: PairPrompts, count: int, seed: int) -> list[TextExample]:
    """`count` random pairs of the molecules of `pairs`, each to be described; labels are not read."""
    known = sorted(np.union1d(pairs.first, pairs.second).tolist(), key=lambda m: hashed_order(seed, pairs.molecules[m]))
    found = []
    for number in range(count):
        one = known[number % len(known)]
        other = known[int(hashed_order(seed, "partner", number)[:12], 16) % len(known)]
        prompt, continuation = prompts.to_describe(one, other)
        found.append(TextExample(f"describe-{number}", prompt, continuation))
    return found


def answer_examples(pairs: PairSet, prompts: PairPrompts, seed: int) -> list[TextExample]:
    """Each pair's answer in words, behind its thought where prompt.thought says so."""
    found = []
    for place in range(len(pairs)):
        turn = swapped(pairs, place, seed)
        ends = int(pairs.first[place]), int(pairs.second[place])
        if pairs.kind == "number":
            answer = prompts.number(float(pairs.labels[place]))
        else:
            answer = prompts.responses(swapped=turn)[int(pairs.labels[place])]
        continuation = prompts.thought(*ends, swapped=turn) + answer
        found.append(TextExample(pairs.pair_id(place), prompts.prompt(*ends, swapped=turn), continuation))
    return found


def number_examples(pairs: PairSet, prompts: PairPrompts) -> list[NumberExample]:
    """Each pair's number, for the head."""
    ends = [(int(one), int(other)) for one, other in zip(pairs.first, pairs.second, strict=True)]
    asked = [prompts.prompt(*pair) + prompts.thought(*pair) for pair in ends]
    return [
        NumberExample(pairs.pair_id(place), prompt, float(pairs.labels[place])) for place, prompt in enumerate(asked)
    ]


def preference_examples(
    pairs: PairSet, prompts: PairPrompts, negatives: int, among: np.ndarray, seed: int
) -> list[PreferenceExample]:
    """Each pair's right sentence against `negatives` wrong ones, drawn by a hash from those of the types that occur in
    `among`, the labels of training; a directed type the other way round is wrong, too.

    Raises RecalignError where only one type occurs.
    """
    types = pairs.answers.type_of
    there = {int(types[int(label)]) for label in among}
    if len(there) < 2:
        raise RecalignError(f"only {len(there)} type occurs in training, so none is wrong; give more pairs")
    occurring = [answer for answer, own in enumerate(types) if own in there]
    found = []
    for place in range(len(pairs)):
        turn, name = swapped(pairs, place, seed), pairs.pair_id(place)
        ends, right = (int(pairs.first[place]), int(pairs.second[place])), int(pairs.labels[place])
        wrong = [answer for answer in occurring if answer != right]
        drawn = sorted(wrong, key=lambda answer: hashed_order(seed, "wrong", name, answer))[:negatives]
        said = prompts.responses(swapped=turn)
        prompt = prompts.prompt(*ends, swapped=turn) + prompts.thought(*ends, swapped=turn)
        found.append(PreferenceExample(name, prompt, [said[answer] for answer in (right, *drawn)]))
    return found
