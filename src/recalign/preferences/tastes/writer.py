"""Several texts about each user, sampled from a language model or an endpoint, in the structure of `taste_text`.

Each text is kept by what determines it (model, prompt, settings, seed), so a rerun asks only for what is missing; a
seed comes from user, place and attempt. A text without the structure is refused with its reason, asked for again with
another seed, and counted; so is a request that failed.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.llm.model.base import LanguageModel
from recalign.params.dpo4rec import Dpo4recParams
from recalign.params.profiles import ProfilesParams
from recalign.preferences.inference.answers import answer_all
from recalign.preferences.profiles.profiles import Engine
from recalign.preferences.tastes.text import LIKES, Refused, TasteText, labels, one_line, parse
from recalign.recommenders.recommender import own_seed

log = logging.getLogger(__name__)
VERSION = 1  # of the prompt below: raised when it changes, so that older texts are not read
TITLE_CHARACTERS = 80  # of a title in a prompt; what is longer is cut
EXAMPLE_TITLES = ("The Silent Harbour", "Night over Marseille", "The Last Informer")
EXAMPLE_FACTORS = {"genre": "crime, mystery", "period": "1940s and 1950s", "creator": "Jean Roche"}
EXAMPLE = TasteText(
    "slow crime stories with an honest hero", "loud comedies", (), (EXAMPLE_TITLES[0], EXAMPLE_TITLES[2]),
    "Likes dark and patient crime stories of the past.",
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A prompt that ends where the text begins, and the seed of its draws."""

    prompt: str
    seed: int
    titles: tuple[str, ...] = ()  # that the prompt shows


@dataclass
class Written:
    """Texts by user, in the order of their places; a user without any is there with an empty list.

    asked: first requests; formed: those of them that came back in the structure; refused, failed: texts and requests by
    reason, further attempts included. tokens, read_tokens: written, and read in prompts; seconds: of writing, also of
    what an earlier run wrote.
    """

    texts: dict[int, list[TasteText]] = field(default_factory=dict)
    asked: int = 0
    formed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    read_tokens: int = 0
    seconds: float = 0.0

    @property
    def well_formed(self) -> float:
        """Share of the first requests that came back in the structure."""
        return self.formed / self.asked if self.asked else 0.0

    def read(self) -> dict[int, list[str]]:
        """What a text encoder reads, by user."""
        return {user: [text.read() for text in own] for user, own in self.texts.items()}


def taste_prompt(history: Sequence[int], params: Dpo4recParams, items: Items, noun: str) -> str:
    """A worked example, the user's latest titles, and the first word of the text, which is to be continued."""
    factors = tuple((factor, EXAMPLE_FACTORS.get(factor, "varied")) for factor in params.factors)
    example = replace(EXAMPLE, factors=factors).written()
    shown, own = (_listing(titles, noun) for titles in (EXAMPLE_TITLES, shown_titles(history, params, items)))
    return f"{shown}\n\n{example}\n\n{own}\n\n{LIKES}:"


def shown_titles(history: Sequence[int], params: Dpo4recParams, items: Items) -> tuple[str, ...]:
    """The latest titles of a history as prompts show them."""
    return tuple(one_line(items.titles[item])[:TITLE_CHARACTERS].strip() for item in history[-params.history :])


def _listing(titles: Sequence[str], noun: str) -> str:
    lines = "\n".join(f"- {title}" for title in titles)
    return f"{noun[:1].upper()}{noun[1:]} that one person liked:\n{lines}"


class TasteWriter:
    """Writes texts about users. ask: from questions to answers as JSON, {"text", "tokens", "read"} or {"failed"}."""

    def __init__(
        self,
        engine: Engine,
        ask: Callable[[list[Ask]], list[str]],
        params: Dpo4recParams,
        items: Items,
        noun: str,
    ) -> None:
        self.engine = engine
        self._ask = ask
        self._params = params
        self._items = items
        self._noun = noun

    def write(
        self, histories: Mapping[int, Sequence[int]], count: int, seed: int, *, store: Path | None, batch: int
    ) -> Written:
        """`count` texts of each user with a history, fewer where the model has not the structure in `attempts` tries.

        histories: oldest first; an empty one gets no text. store: folder of answers from before, None to keep none.
        Raises RecalignError where every request of the first round fails.
        """
        written = Written({user: [] for user in histories})
        places = [(user, place) for user, history in histories.items() if history for place in range(count)]
        found: dict[tuple[int, int], TasteText] = {}
        for attempt in range(self._params.attempts):
            open_places = [place for place in places if place not in found]
            if not open_places:
                break
            answers = self._answers(histories, open_places, (seed, attempt), store, batch)
            for asked, answer in zip(open_places, answers, strict=True):
                parsed = self._parsed(answer, histories[asked[0]], written)
                if isinstance(parsed, TasteText):
                    found[asked] = parsed
            if attempt == 0:
                written.asked, written.formed = len(open_places), len(found)
                self._check_answered(written, open_places)
        for user, place in places:
            if (user, place) in found:
                written.texts[user].append(found[user, place])
        log.info(
            "texts: %d of %d came in the structure at once (%.0f %%), %d after all attempts; refused: %s; failed: %s; "
            "%s tokens read and %s written in %.0f s",
            written.formed, written.asked, 100 * written.well_formed, len(found),
            _counted(written.refused), _counted(written.failed),
            f"{written.read_tokens:,}", f"{written.tokens:,}", written.seconds,
        )  # fmt: skip
        return written

    def _answers(
        self, histories: Mapping[int, Sequence[int]], places: Sequence[tuple[int, int]], stream: tuple[int, int],
        store: Path | None, batch: int,
    ) -> list[str]:  # fmt: skip
        seeds = [own_seed(stream[0], f"text-{user}-{place}-{stream[1]}") for user, place in places]
        asks = [
            Ask(
                taste_prompt(histories[user], self._params, self._items, self._noun),
                seed,
                shown_titles(histories[user], self._params, self._items),
            )
            for seed, (user, _) in zip(seeds, places, strict=True)
        ]
        engine = self.engine
        keys = [digest_of([engine.model_digest, engine.prompt_digest, ask.prompt, ask.seed]) for ask in asks]
        return answer_all(store, asks, keys, self._timed, batch, "texts", keep=_came)

    def _timed(self, asks: list[Ask]) -> list[str]:
        """The answers, each with its share of the seconds that all of them took."""
        started = time.monotonic()
        answers = [json.loads(answer) for answer in self._ask(asks)]
        share = round((time.monotonic() - started) / len(asks), 4)
        return [json.dumps(answer | {"seconds": share}) for answer in answers]

    def _parsed(self, answer: str, history: Sequence[int], written: Written) -> TasteText | Refused:
        told = json.loads(answer)
        written.seconds += told.get("seconds", 0.0)  # older answers say neither seconds nor tokens read
        written.read_tokens += told.get("read", 0)
        if "text" not in told:
            written.failed[told["failed"]] += 1
            return Refused(told["failed"])
        written.tokens += told["tokens"]
        parsed = parse(told["text"], self._params.factors, shown_titles(history, self._params, self._items))
        if isinstance(parsed, Refused):
            written.refused[parsed.reason] += 1
        return parsed

    def _check_answered(self, written: Written, places: Sequence[tuple[int, int]]) -> None:
        if places and written.failed.total() == len(places):
            raise RecalignError(
                f"the writer of texts ({self.engine.name}) answered none of {len(places)} requests "
                f"({_counted(written.failed)}); see profiles.url, or set dpo4rec.engine to local"
            )


def _came(answer: str) -> bool:
    return "text" in json.loads(answer)


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "none"


def _form(params: Dpo4recParams, *about: object) -> str:
    """Digest of what determines a text beside model, prompt and seed."""
    return digest_of([VERSION, params.factors, params.max_new_tokens, params.temperature, *about])


def local_taste_writer(language_model: LanguageModel, params: Dpo4recParams, items: Items, noun: str) -> TasteWriter:
    """Samples from a local model, which continues the prompt; with params.constrained it is held to the points."""
    from recalign.llm.generation import GumbelNoise, HeldToPoints, Points, generate_texts

    tokenizer = language_model.tokenizer
    names = labels(params.factors)
    points = Points(
        tuple(f"{name}:" for name in names[1:]), len(names) - 2, max(2, params.max_new_tokens // len(names) - 2)
    )

    def ask(asks: list[Ask]) -> list[str]:
        ids = [tokenizer.encode(each.prompt) for each in asks]
        noise = GumbelNoise([each.seed for each in asks], params.temperature)
        held = HeldToPoints(noise, points, [each.titles for each in asks], tokenizer) if params.constrained else None
        tokens = held.most if held else params.max_new_tokens
        told = generate_texts(language_model, ids, tokens, "\n\n", held or noise)
        return [
            json.dumps({"text": f"{LIKES}: {text}", "tokens": len(tokenizer.encode(text)), "read": len(prompt)})
            for prompt, text in zip(ids, told, strict=True)
        ]

    engine = Engine("local", language_model.digest, _form(params, params.constrained))
    return TasteWriter(engine, ask, params, items, noun)


def remote_taste_writer(params: Dpo4recParams, profiles: ProfilesParams, items: Items, noun: str) -> TasteWriter:
    """Samples from an OpenAI-compatible endpoint; warns that histories leave this machine.

    Raises RecalignError when profiles.endpoint_model is null.
    """
    from recalign.preferences.inference.answers import endpoint_model, sample

    model = endpoint_model(profiles.endpoint_model, profiles.url, "dpo4rec")
    said = (
        f"Go on in the very same structure, each point on a line of its own, beginning with “{LIKES}:”. No other words."
    )

    def ask(asks: list[Ask]) -> list[str]:
        asked = [(f"{each.prompt.removesuffix(f'{LIKES}:')}{said}", each.seed % 2**31) for each in asks]
        answers = sample(profiles.url, model, asked, params.max_new_tokens, profiles.batch, params.temperature)
        return [
            json.dumps(
                {"failed": a.failure} if a.text is None else {"text": a.text, "tokens": a.tokens, "read": a.read}
            )
            for a in answers
        ]

    engine = Engine("endpoint", digest_of([profiles.url, model]), _form(params, said))
    return TasteWriter(engine, ask, params, items, noun)
