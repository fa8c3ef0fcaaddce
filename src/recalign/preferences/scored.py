"""Engine `statements`: a language model scores closed statements about a user; even a small model can."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from recalign.artifacts import digest_of
from recalign.data.records import Items, hashed_order
from recalign.llm.base import LanguageModel
from recalign.llm.scoring import response_logprobs
from recalign.params import PromptParams
from recalign.preferences.answers import answer_all
from recalign.preferences.profiles import Engine
from recalign.preferences.statements import Statement, supporting
from recalign.prompts import PromptBuilder

HISTORY = 12  # most recent titles that the model reads
MIN_SUPPORT = 2  # items of the history that a statement must hold for to be put to the model
SHORTLIST = 16  # statements put to the model a user: those that hold for the most items of the history
NEUTRAL = 6  # random histories that fix what a statement's log-prob is worth in itself
OPENING = "This person likes"


@dataclass(frozen=True)
class Question:
    """A prompt and the statements' continuations, as token ids; the answer is their log-probs."""

    prompt: list[int]
    responses: list[list[int]]


class StatementScorer:
    """Scores statements by how much a user's history raises their log-prob over random histories.

    score(s | h) = (log π(s | h) − mean_r log π(s | h_r)) / std_r log π(s | h_r), over NEUTRAL random histories h_r:
    contextual calibration (Zhao et al. 2021, arXiv 2102.09690) with random histories as the content-free input.
    """

    def __init__(
        self, language_model: LanguageModel, items: Items, prompt: PromptParams, noun: str, *, clock: bool
    ) -> None:
        self._language_model = language_model
        self._items = items
        form = prompt.model_copy(update={"form": "history", "history": HISTORY, "profile": False})
        self._builder = PromptBuilder(language_model.tokenizer, items, form, noun, clock=clock)
        self._opening = self._builder.encode(OPENING)
        self.engine = Engine("statements", language_model.digest, digest_of([self._builder.digest, OPENING, NEUTRAL]))

    def claims(
        self,
        statements: Sequence[Statement],
        histories: Mapping[int, Sequence[int]],
        limit: int,
        *,
        store: Path,
        batch: int,
    ) -> dict[int, list[tuple[Statement, float]]]:
        """Each user's `limit` best statements of the shortlist with scores above 0, best first.

        store: folder of log-probs computed before; batch: prompts in one forward pass.
        """
        shortlists = {user: shortlist(statements, history) for user, history in histories.items()}
        asked = {user: chosen for user, chosen in shortlists.items() if chosen}
        neutral = [self._question(history, statements) for history in self._random_histories()]
        own = [self._question(histories[user], chosen) for user, chosen in asked.items()]
        answers = self._answers(neutral + own if own else [], store, batch)
        worth = {
            statement: (statistics.fmean(values), statistics.stdev(values))
            for statement, values in zip(statements, zip(*answers[:NEUTRAL], strict=True), strict=False)
        }
        claims: dict[int, list[tuple[Statement, float]]] = {user: [] for user in histories}
        for (user, chosen), logprobs in zip(asked.items(), answers[NEUTRAL:], strict=True):
            scored = [
                (statement, (logprob - worth[statement][0]) / (worth[statement][1] + 1e-6))
                for statement, logprob in zip(chosen, logprobs, strict=True)
            ]
            scored.sort(key=lambda pair: (-pair[1], pair[0].attribute, pair[0].value))
            claims[user] = [(statement, score) for statement, score in scored if score > 0][:limit]
        return claims

    def _random_histories(self) -> list[list[int]]:
        return [
            sorted(self._items.ids, key=lambda item: hashed_order("neutral", number, item))[:HISTORY]
            for number in range(NEUTRAL)
        ]

    def _question(self, history: Sequence[int], statements: Sequence[Statement]) -> Question:
        responses = [self._builder.encode(f" {statement.phrase}.") for statement in statements]
        return Question(self._builder.prompt(history) + self._opening, responses)

    def _answers(self, questions: Sequence[Question], store: Path, batch: int) -> list[list[float]]:
        keys = [digest_of([self._language_model.digest, q.prompt, q.responses]) for q in questions]
        return [json.loads(text) for text in answer_all(store, questions, keys, self._ask, batch, "profiles")]

    def _ask(self, questions: list[Question]) -> list[str]:
        with torch.inference_mode():
            scored = response_logprobs(
                self._language_model.model, [q.prompt for q in questions], [q.responses for q in questions]
            )
        sums = scored.sums.double().cpu().tolist()
        return [json.dumps(row[: len(q.responses)]) for q, row in zip(questions, sums, strict=True)]


def shortlist(statements: Sequence[Statement], history: Sequence[int]) -> list[Statement]:
    """The SHORTLIST statements that hold for most items of a history, at least MIN_SUPPORT; equals: the rarer first."""
    support = {statement: len(supporting(statement, history)) for statement in statements}
    held = [statement for statement in statements if support[statement] >= MIN_SUPPORT]
    return sorted(held, key=lambda s: (-support[s], s.base, s.attribute, s.value))[:SHORTLIST]
