"""Engines `generate` and `endpoint`: a language model describes a taste in its own words, which are untrusted."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.data.titles import safe_title
from recalign.llm.base import LanguageModel
from recalign.params.profiles import ProfilesParams
from recalign.preferences.profiles.answers import answer_all
from recalign.preferences.profiles.profiles import Engine

log = logging.getLogger(__name__)
HISTORY = 20  # most recent titles that the model reads
MAX_CHARACTERS = 240  # of a text; what is longer is cut at a word
FIRST_WORD = "Likes"
INSTRUCTION = (
    "Say in one short sentence, without naming titles, what kind of {noun} this person likes. "
    f"Begin with “{FIRST_WORD}”."
)


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
        """Each user's sentence, cleaned. store: answers kept from earlier runs, None to keep none."""
        prompts = {user: self._prompt(history) for user, history in histories.items()}
        keys = [digest_of([self.engine.model_digest, self.engine.prompt_digest, text]) for text in prompts.values()]
        answers = answer_all(store, list(prompts.values()), keys, self._answers, batch, "profiles")
        return {user: clean(json.loads(answer)) for user, answer in zip(prompts, answers, strict=True)}

    def _prompt(self, history: Sequence[int]) -> str:
        titles = [f"- {safe_title(self._items.titles[item])}" for item in history[-HISTORY:]]
        return "\n".join([self._header, *titles, "", self._instruction])

    def _answers(self, prompts: list[str]) -> list[str]:
        return [json.dumps(text) for text in self._ask(prompts)]


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

    engine = Engine("generate", language_model.digest, digest_of([INSTRUCTION, HISTORY, params.max_new_tokens]))
    return TextWriter(engine, ask, items, noun, clock=clock)


def remote_writer(params: ProfilesParams, items: Items, noun: str, *, clock: bool) -> TextWriter:
    """Engine `endpoint`: an OpenAI-compatible server; warns that histories leave this machine.

    Raises RecalignError when profiles.endpoint_model is null.
    """
    from recalign.preferences.profiles.endpoint import chat

    model = params.endpoint_model
    if not model:
        raise RecalignError(
            f"profiles.endpoint_model is {model!r}; profiles.engine 'endpoint' needs the name that the model "
            f"has at {params.url}"
        )
    log.warning("profiles.engine is 'endpoint': the titles of users' histories are sent to %s", params.url)

    def ask(prompts: list[str]) -> list[str]:
        return chat(params.url, model, prompts, params.max_new_tokens, params.batch)

    digests = digest_of([params.url, model]), digest_of([INSTRUCTION, HISTORY, params.max_new_tokens])
    return TextWriter(Engine("endpoint", *digests), ask, items, noun, clock=clock)


def clean(text: str) -> str:
    """A model's answer as one line without control characters and chat tokens, cut at a word to MAX_CHARACTERS."""
    safe = safe_title(text).strip("“”\"'* ")
    if len(safe) <= MAX_CHARACTERS:
        return safe
    return safe[: MAX_CHARACTERS + 1].rsplit(" ", 1)[0][:MAX_CHARACTERS]
