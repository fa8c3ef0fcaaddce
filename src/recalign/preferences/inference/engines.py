"""The engines that infer profiles, opened alike by the stage that makes profiles and by the service that shows them.

`counting` has no model. `statements`: a language model scores closed statements about a user, which even a small model
can; its constants were chosen on training profiles of a simulated world with another seed than the shipped one.
`generate` and `endpoint`: a language model describes a taste in its own words, which are untrusted.
"""

import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.records import Items, hashed_order
from recalign.data.titles import safe_title
from recalign.llm.model.base import LanguageModel
from recalign.llm.scoring.logprobs import SCORER, response_logprobs
from recalign.params.profiles import ProfilesParams
from recalign.preferences.inference.answers import answer_all
from recalign.preferences.profiles.profiles import (
    COUNTING,
    Engine,
    Histories,
    Profile,
    Statement,
    make_profile,
    stated_in,
    strongest_lifts,
    supporting,
)

log = logging.getLogger(__name__)
Inference = Callable[[Histories, Sequence[Statement]], list[Profile]]
SCORED_TITLES = 12  # statements: most recent titles that the model reads
TITLE_CHARACTERS = 80  # of a title; what is longer is cut
MIN_SUPPORT = 2  # items of the history that a statement must hold for to be put to the model
SHORTLIST = 8  # statements put to the model a user: those that the history holds most above chance
NEUTRAL = 6  # random histories that fix what a statement's log-prob is worth in itself
PROMPT = "{noun} that one person liked: {titles}.\nWhat this person loves:"
READ_TITLES = 20  # generate, endpoint: most recent titles that the model reads
MAX_CHARACTERS = 240  # of a text; what is longer is cut at a word
FIRST_WORD = "Likes"
INSTRUCTION = (
    "Say in one short sentence, without naming titles, what kind of {noun} this person likes. "
    f"Begin with “{FIRST_WORD}”."
)


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
            "statements", language_model.digest, digest_of([PROMPT, noun, SCORED_TITLES, SHORTLIST, NEUTRAL])
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
            sorted(ids, key=lambda item: hashed_order("neutral", number, item))[:SCORED_TITLES]
            for number in range(NEUTRAL)
        ]

    def _question(self, history: Sequence[int], statements: Sequence[Statement]) -> Question:
        titles = "; ".join(safe_title(self._items.titles[item])[:TITLE_CHARACTERS] for item in history[-SCORED_TITLES:])
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


class TextWriter:
    """Asks for one sentence a history; `ask` answers a list of plain-text prompts."""

    def __init__(
        self,
        engine: Engine,
        ask: Callable[[list[str]], list[str]],
        items: Items,
        noun: str,
        *,
        clock: bool,
    ) -> None:
        self.engine = engine
        self._ask = ask
        self._items = items
        order = ", in order of time" if clock else ""
        self._header = f"{noun[:1].upper()}{noun[1:]} that one person liked{order}:"
        self._instruction = INSTRUCTION.format(noun=noun)

    def texts(self, histories: Mapping[int, Sequence[int]], *, store: Path | None, batch: int) -> dict[int, str]:
        """Each user's sentence, cleaned. store: answers kept from earlier runs, None to keep none.

        An answer that says nothing (an endpoint that refuses gives such ones) is asked for again by the next run.
        """
        prompts = {user: self._prompt(history) for user, history in histories.items()}
        keys = [digest_of([self.engine.model_digest, self.engine.prompt_digest, text]) for text in prompts.values()]
        answers = answer_all(store, list(prompts.values()), keys, self._answers, batch, "profiles", keep=_says)
        return {user: clean(json.loads(answer)) for user, answer in zip(prompts, answers, strict=True)}

    def _prompt(self, history: Sequence[int]) -> str:
        titles = [f"- {safe_title(self._items.titles[item])}" for item in history[-READ_TITLES:]]
        return "\n".join([self._header, *titles, "", self._instruction])

    def _answers(self, prompts: list[str]) -> list[str]:
        return [json.dumps(text) for text in self._ask(prompts)]


def _says(answer: str) -> bool:
    return bool(clean(json.loads(answer)))


def local_writer(
    language_model: LanguageModel, params: ProfilesParams, items: Items, noun: str, *, clock: bool
) -> TextWriter:
    """Engine `generate`: greedy generation in batches by the base model.

    Through its chat template where it has one; else the model completes a text that ends in FIRST_WORD.
    """
    from recalign.llm.generation import generate_texts

    tokenizer = language_model.tokenizer
    begun = "" if tokenizer.chat_template else f"{FIRST_WORD} "

    def ask(prompts: list[str]) -> list[str]:
        ids = [token_ids(prompt) for prompt in prompts]
        return [begun + text for text in generate_texts(language_model, ids, params.max_new_tokens, "\n")]

    def token_ids(prompt: str) -> list[int]:
        if not tokenizer.chat_template:
            return list(tokenizer.encode(f"{prompt}\n{FIRST_WORD}"))
        messages = [{"role": "user", "content": prompt}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return list(tokenizer.encode(text, add_special_tokens=False))

    engine = Engine("generate", language_model.digest, digest_of([INSTRUCTION, READ_TITLES, params.max_new_tokens]))
    return TextWriter(engine, ask, items, noun, clock=clock)


def remote_writer(params: ProfilesParams, items: Items, noun: str, *, clock: bool) -> TextWriter:
    """Engine `endpoint`: an OpenAI-compatible server; warns that histories leave this machine.

    Raises RecalignError when profiles.endpoint_model is null.
    """
    from recalign.preferences.inference.answers import chat, endpoint_model

    model = endpoint_model(params.endpoint_model, params.url, "profiles")

    def ask(prompts: list[str]) -> list[str]:
        return chat(params.url, model, prompts, params.max_new_tokens, params.batch)

    digests = digest_of([params.url, model]), digest_of([INSTRUCTION, READ_TITLES, params.max_new_tokens])
    return TextWriter(Engine("endpoint", *digests), ask, items, noun, clock=clock)


def clean(text: str) -> str:
    """A model's answer as one line without control characters and chat tokens, cut at a word to MAX_CHARACTERS."""
    safe = safe_title(text).strip("“”\"'* ")
    if len(safe) <= MAX_CHARACTERS:
        return safe
    return safe[: MAX_CHARACTERS + 1].rsplit(" ", 1)[0][:MAX_CHARACTERS]


def open_engine(
    params: ProfilesParams,
    items: Items,
    noun: str,
    load_model: Callable[[], LanguageModel],
    store: Path | None,
    *,
    clock: bool,
) -> Inference:
    """How the engine in params makes a profile of each history.

    load_model: the base without an adapter, loaded where the engine asks it; store: folder of answers from before, None
    to keep none.
    Raises RecalignError where the endpoint has no model's name.
    """
    match params.engine:
        case "counting":
            return lambda histories, statements: count(histories, statements, params.claims)
        case "statements":
            return _by_statements(params, items, noun, load_model, store and store / params.engine)
        case "generate":
            writer = local_writer(load_model(), params, items, noun, clock=clock)
            return _by_texts(writer, params.batch, store and store / params.engine)
        case "endpoint":
            writer = remote_writer(params, items, noun, clock=clock)
            return _by_texts(writer, params.batch, store and store / params.engine)


def can_tell(engine: str, statements: Sequence[Statement], history: Sequence[int]) -> bool:
    """Whether an engine will have something to say of a history, known without asking a model."""
    if engine == COUNTING:
        return bool(strongest_lifts(statements, history, 1))
    if engine == "statements":
        return bool(shortlist(statements, history))
    return bool(history)


def count(histories: Histories, statements: Sequence[Statement], limit: int) -> list[Profile]:
    """Each user's profile by counting."""
    return [
        make_profile(Engine(COUNTING), histories.split, user, history, strongest_lifts(statements, history, limit))
        for user, history in histories.of.items()
    ]


def _by_statements(
    params: ProfilesParams, items: Items, noun: str, load_model: Callable[[], LanguageModel], store: Path | None
) -> Inference:
    if not any(items.attributes.values()):
        log.warning(
            "the catalogue has no attributes, so profiles.engine 'statements' has nothing to state and every profile "
            "is empty; set profiles.engine to generate or endpoint for free text"
        )
        return lambda histories, statements: [
            make_profile(Engine("statements"), histories.split, user, history, [])
            for user, history in histories.of.items()
        ]
    scorer = StatementScorer(load_model(), items, noun)

    def infer(histories: Histories, statements: Sequence[Statement]) -> list[Profile]:
        claims = scorer.claims(statements, histories.of, params.claims, store=store, batch=params.batch)
        return [
            make_profile(scorer.engine, histories.split, user, history, claims[user])
            for user, history in histories.of.items()
        ]

    return infer


def _by_texts(writer: TextWriter, batch: int, store: Path | None) -> Inference:
    def infer(histories: Histories, statements: Sequence[Statement]) -> list[Profile]:
        texts = writer.texts(histories.of, store=store, batch=batch)
        return [
            make_profile(
                writer.engine,
                histories.split,
                user,
                history,
                [(statement, None) for statement in stated_in(texts[user], statements)],
                texts[user],
            )
            for user, history in histories.of.items()
        ]

    return infer
