"""Engine `statements`: a language model scores closed statements about a user; even a small model can.

The constants were chosen on training profiles of a simulated world with another seed than the shipped one.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.records import Items, hashed_order
from recalign.data.titles import safe_title
from recalign.llm.base import LanguageModel
from recalign.llm.scoring import SCORER, response_logprobs
from recalign.preferences.profiles.answers import answer_all
from recalign.preferences.profiles.profiles import Engine
from recalign.preferences.profiles.statements import Statement, strongest_lifts, supporting

HISTORY = 12  # most recent titles that the model reads
TITLE_CHARACTERS = 80  # of a title; what is longer is cut
MIN_SUPPORT = 2  # items of the history that a statement must hold for to be put to the model
SHORTLIST = 8  # statements put to the model a user: those that the history holds most above chance
NEUTRAL = 6  # random histories that fix what a statement's log-prob is worth in itself
PROMPT = "{noun} that one person liked: {titles}.\nWhat this person loves:"


@dataclass(frozen=True)
class Question:
    """A prompt and the statements' continuations, as token ids; the answer is their log-probs."""

    prompt: list[int]
    responses: list[list[int]]


class StatementScorer:
    """Scores statements by how much a user's history raises their log-prob over random histories.

    score(s | h) = log π(s | h) − mean_r log π(s | h_r), over NEUTRAL random histories h_r: contextual calibration
    (Zhao et al. 2021, arXiv 2102.09690) with random histories as the content-free input. Scores compare statements of
    one user; their zero means little, since a history shifts all of them.
    """

    def __init__(self, language_model: LanguageModel, items: Items, noun: str) -> None:
        self._language_model = language_model
        self._items = items
        self._noun = f"{noun[:1].upper()}{noun[1:]}"
        self._worth: dict[str, dict[Statement, float]] = {}
        self.engine = Engine(
            "statements", language_model.digest, digest_of([PROMPT, noun, HISTORY, SHORTLIST, NEUTRAL])
        )

    def claims(
        self,
        statements: Sequence[Statement],
        histories: Mapping[int, Sequence[int]],
        limit: int,
        *,
        store: Path | None,
        batch: int,
    ) -> dict[int, list[tuple[Statement, float]]]:
        """Each user's `limit` best statements of the shortlist with their scores in nats, best first.

        store: folder of log-probs computed before, None to keep none but those of the random histories in memory;
        batch: prompts in one forward pass.
        """
        asked = {user: chosen for user, history in histories.items() if (chosen := shortlist(statements, history))}
        claims: dict[int, list[tuple[Statement, float]]] = {user: [] for user in histories}
        if not asked:
            return claims
        own = [self._question(histories[user], chosen) for user, chosen in asked.items()]
        if store is None:
            worth = self._kept_worth(statements, batch)
            answers = self._answers(own, store, batch)
        else:
            neutral = self._neutral(statements)
            answers = self._answers(neutral + own, store, batch)
            worth, answers = _means(statements, answers[: len(neutral)]), answers[len(neutral) :]
        for (user, chosen), logprobs in zip(asked.items(), answers, strict=True):
            scored = [(s, logprob - worth[s]) for s, logprob in zip(chosen, logprobs, strict=True)]
            scored.sort(key=lambda pair: (-pair[1], pair[0].attribute, pair[0].value))
            claims[user] = scored[:limit]
        return claims

    def _kept_worth(self, statements: Sequence[Statement], batch: int) -> dict[Statement, float]:
        """What statements are worth in themselves, asked once: a service puts the same ones to every history."""
        key = digest_of([[s.attribute, s.value, s.phrase] for s in statements])
        if key not in self._worth:
            self._worth = {key: _means(statements, self._answers(self._neutral(statements), None, batch))}
        return self._worth[key]

    def _neutral(self, statements: Sequence[Statement]) -> list[Question]:
        return [self._question(history, statements) for history in self._random_histories()]

    def _random_histories(self) -> list[list[int]]:
        ids = self._items.trained.ids  # what histories are made of, and none that is hidden
        return [
            sorted(ids, key=lambda item: hashed_order("neutral", number, item))[:HISTORY] for number in range(NEUTRAL)
        ]

    def _question(self, history: Sequence[int], statements: Sequence[Statement]) -> Question:
        titles = "; ".join(safe_title(self._items.titles[item])[:TITLE_CHARACTERS] for item in history[-HISTORY:])
        encode = self._language_model.tokenizer.encode
        prompt = encode(PROMPT.format(noun=self._noun, titles=titles), split_special_tokens=True)
        responses = [encode(f" {s.phrase}.", add_special_tokens=False, split_special_tokens=True) for s in statements]
        empty = [s.phrase for s, ids in zip(statements, responses, strict=True) if not ids]
        if empty or not prompt:
            raise RecalignError(
                f"the tokenizer of base.model has no tokens for the statement {empty[0] if empty else self._noun!r}; "
                "choose a base.model that reads this script, or profiles.engine: counting"
            )
        return Question(prompt, responses)

    def _answers(self, questions: Sequence[Question], store: Path | None, batch: int) -> list[list[float]]:
        keys = [digest_of([self._language_model.digest, SCORER, q.prompt, q.responses]) for q in questions]
        return [json.loads(text) for text in answer_all(store, questions, keys, self._ask, batch, "profiles")]

    def _ask(self, questions: list[Question]) -> list[str]:
        with torch.inference_mode():
            scored = response_logprobs(
                self._language_model.model, [q.prompt for q in questions], [q.responses for q in questions]
            )
        sums = scored.sums.double().cpu().tolist()
        return [json.dumps(row[: len(q.responses)]) for q, row in zip(questions, sums, strict=True)]


def _means(statements: Sequence[Statement], answers: Sequence[Sequence[float]]) -> dict[Statement, float]:
    columns = zip(*answers, strict=True)
    return {statement: statistics.fmean(column) for statement, column in zip(statements, columns, strict=True)}


def shortlist(statements: Sequence[Statement], history: Sequence[int]) -> list[Statement]:
    """The SHORTLIST statements that a history holds most above chance, each for MIN_SUPPORT of its items or more."""
    held = [statement for statement in statements if len(supporting(statement, history)) >= MIN_SUPPORT]
    return [statement for statement, _ in strongest_lifts(held, history, SHORTLIST)]
