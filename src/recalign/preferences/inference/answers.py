"""Answers of language models: asked of an OpenAI-compatible endpoint (vLLM, Ollama, a hosted service), and kept.

They are kept by the content of the question, so that a rerun asks only what is missing: an answer is a JSON text, and
each batch becomes a Parquet part of its own, written whole, so a kill loses one batch.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypedDict, TypeVar

import httpx
import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_parquet, write_parquet
from recalign.common.errors import RecalignError
from recalign.common.progress import track

log = logging.getLogger(__name__)
Question = TypeVar("Question")
KEY_VARIABLE = "RECALIGN_API_KEY"
ATTEMPTS = 4
FIRST_WAIT = 0.5  # seconds before the second attempt; doubles each time
TIMEOUT = httpx.Timeout(120.0, connect=10.0)
WORTH_RETRYING = {408, 409, 425, 429, 500, 502, 503, 504}


class ChatRequest(TypedDict):
    """The body of a request to /chat/completions."""

    model: str
    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float
    seed: int


def answer_all(
    store: Path | None,
    questions: Sequence[Question],
    keys: Sequence[str],
    ask: Callable[[list[Question]], list[str]],
    batch: int,
    what: str,
    keep: Callable[[str], bool] = bool,
) -> list[str]:
    """The answer to each question, read from `store` where its key is there, else asked for `batch` at a time.

    Without a store (a service, which answers who knows whom) nothing is kept, and nothing is said in the log.

    keys: one a question, equal only for questions with equal answers; ask: from questions to as many answers; keep:
    whether an answer may be read by later runs (one that failed is asked for again).
    """
    if store is None:
        answers = (ask([*questions[start : start + batch]]) for start in range(0, len(questions), batch))
        return [answer for part in answers for answer in part]
    known = _read(store, keep)
    missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
    log.info("%s: %d read, %d inferred", what, len(set(keys)) - len(missing), len(missing))
    pending = list(missing.items())
    batches = [pending[start : start + batch] for start in range(0, len(pending), batch)]
    for part in track(batches, len(batches), what, "batches"):
        own = dict(zip((key for key, _ in part), ask([question for _, question in part]), strict=True))
        if kept := {key: answer for key, answer in own.items() if keep(answer)}:
            write_parquet(store / f"part-{digest_of(sorted(kept))[:32]}.parquet", _table(kept))
        known |= own
    return [known[key] for key in keys]


def _read(store: Path, keep: Callable[[str], bool]) -> dict[str, str]:
    known: dict[str, str] = {}
    for part in sorted(store.glob("part-*.parquet")):
        table = read_parquet(part)
        answers = zip(table[c.KEY].to_pylist(), table[c.VALUE].to_pylist(), strict=True)
        known |= {key: answer for key, answer in answers if keep(answer)}
    return known


def _table(answers: dict[str, str]) -> pa.Table:
    return pa.table({c.KEY: pa.array(answers.keys(), pa.string()), c.VALUE: pa.array(answers.values(), pa.string())})


def endpoint_model(model: str | None, url: str, section: str) -> str:
    """The name that an endpoint knows its model by; warns that histories leave this machine.

    section: whose engine is 'endpoint'. Raises RecalignError when profiles.endpoint_model is null.
    """
    if not model:
        raise RecalignError(
            f"profiles.endpoint_model is {model!r}; {section}.engine 'endpoint' needs the name that the model has at "
            f"{url}"
        )
    log.warning("%s.engine is 'endpoint': the titles of users' histories are sent to %s", section, url)
    return model


def chat(url: str, model: str, prompts: Sequence[str], max_tokens: int, at_once: int) -> list[str]:
    """The model's answer to each prompt, `at_once` requests at a time, at temperature 0.

    url: up to and without /chat/completions. The key is read from RECALIGN_API_KEY; without it none is sent.
    Raises RecalignError naming profiles.url when nobody answers there, the key is refused, or the answer is no chat.
    """
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(headers=headers, timeout=TIMEOUT) as client, ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(lambda prompt: _answer(client, url, _request(model, prompt, max_tokens)), prompts))
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise RecalignError(f"profiles.url is {url!r}: {error}; give an address like http://host:8000/v1") from None


@dataclass(frozen=True)
class Answer:
    """What came of one request: a text, or why there is none; tokens written, and read, as the endpoint counted."""

    text: str | None
    failure: str = ""
    tokens: int = 0
    read: int = 0
    again: bool = False  # whether another attempt may end otherwise


def sample(
    url: str, model: str, asked: Sequence[tuple[str, int]], max_tokens: int, at_once: int, temperature: float
) -> list[Answer]:
    """An answer to each (prompt, seed), sampled; what fails after ATTEMPTS is an answer too, with its reason.

    Tried again, after waits that double: time-outs, connections that end half way, answers that are no chat or cannot
    be decompressed, and the codes of a busy server. Raises RecalignError where the address, the key or the model's name
    is wrong, or all of several requests failed so to the end: every further one would meet it again.
    """
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    bodies = [_request(model, prompt, max_tokens, temperature, seed) for prompt, seed in asked]
    try:
        with httpx.Client(headers=headers, timeout=TIMEOUT) as client, ThreadPoolExecutor(at_once) as threads:
            answers = list(threads.map(lambda body: _sampled(client, url, body), bodies))
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise RecalignError(f"profiles.url is {url!r}: {error}; give an address like http://host:8000/v1") from None
    if len(answers) > 1 and all(answer.again for answer in answers):
        reasons = ", ".join(dict.fromkeys(answer.failure for answer in answers))
        raise RecalignError(
            f"profiles.url {url}: none of {len(answers)} requests was answered, {ATTEMPTS} attempts each ({reasons}); "
            "start the endpoint and run this again: what was answered before is kept"
        )
    return answers


def _sampled(client: httpx.Client, url: str, request: ChatRequest) -> Answer:
    answer = _tried(client, url, request)
    for attempt in range(1, ATTEMPTS):
        if not answer.again:
            break
        wait = FIRST_WAIT * 2 ** (attempt - 1)
        log.info("%s: %s; attempt %d of %d in %.1f s", url, answer.failure, attempt + 1, ATTEMPTS, wait)
        time.sleep(wait)
        answer = _tried(client, url, request)
    return answer


def _tried(client: httpx.Client, url: str, request: ChatRequest) -> Answer:
    try:
        response = client.post(f"{url.rstrip('/')}/chat/completions", json=request)
    except httpx.UnsupportedProtocol:
        raise
    except httpx.TimeoutException:
        return Answer(None, "timed out", again=True)
    except httpx.TransportError:
        return Answer(None, "the connection failed or ended half way", again=True)
    except httpx.DecodingError:
        return Answer(None, "the answer is not compressed as it says", again=True)
    if response.status_code in (401, 403, 404):
        _raise_refused(url, request, response)
    if response.is_error:
        return Answer(None, f"HTTP {response.status_code}", again=response.status_code in WORTH_RETRYING)
    try:
        told = response.json()
        choice = told["choices"][0]
        text, used = choice["message"]["content"], told.get("usage") or {}
        tokens, read = (int(used.get(name) or 0) for name in ("completion_tokens", "prompt_tokens"))
        refused = choice.get("finish_reason") == "content_filter" or choice["message"].get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Answer(None, "the answer is no chat completion", again=True)
    if refused or not isinstance(text, str) or not text.strip():
        return Answer(None, "the model refused", tokens=tokens, read=read)
    return Answer(text, tokens=tokens, read=read)


def _raise_refused(url: str, request: ChatRequest, response: httpx.Response) -> NoReturn:
    if response.status_code in (401, 403):
        raise RecalignError(
            f"profiles.url {url} refused the key (HTTP {response.status_code}); "
            f"set the environment variable {KEY_VARIABLE}"
        )
    raise RecalignError(
        f"profiles.url {url} answered HTTP {response.status_code} for "
        f"profiles.endpoint_model {request['model']!r}: {' '.join(response.text.split())[:200]}"
    )


def _request(model: str, prompt: str, max_tokens: int, temperature: float = 0, seed: int = 0) -> ChatRequest:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}


def _answer(client: httpx.Client, url: str, request: ChatRequest) -> str:
    response = _post(client, url, request)
    if response.is_error:
        _raise_refused(url, request, response)
    try:
        return str(response.json()["choices"][0]["message"]["content"] or "")
    except (ValueError, KeyError, IndexError, TypeError):
        raise RecalignError(f"profiles.url {url} did not answer as /chat/completions does; check the address") from None


def _post(client: httpx.Client, url: str, request: ChatRequest) -> httpx.Response:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            response = client.post(f"{url.rstrip('/')}/chat/completions", json=request)
        except httpx.UnsupportedProtocol:
            raise
        except (httpx.TransportError, httpx.DecodingError) as error:
            if attempt == ATTEMPTS:
                raise RecalignError(
                    f"profiles.url {url}: no answer after {ATTEMPTS} attempts ({error}); start the endpoint, or set "
                    "profiles.engine to statements"
                ) from None
            reason = str(error)
        else:
            if response.status_code not in WORTH_RETRYING or attempt == ATTEMPTS:
                return response
            reason = f"HTTP {response.status_code}"
        wait = FIRST_WAIT * 2 ** (attempt - 1)
        log.info("%s: %s; attempt %d of %d in %.1f s", url, reason, attempt + 1, ATTEMPTS, wait)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
