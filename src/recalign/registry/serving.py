"""From a package to a recommender that answers: the base is found by its sha256, the adapter goes on top."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from recalign.artifacts import read_json
from recalign.data.records import Items
from recalign.errors import RecalignError
from recalign.layout import BASE
from recalign.llm.base import IDENTITY, fetch_base, load_language_model
from recalign.preferences.counting import strongest_lifts
from recalign.preferences.profiles import COUNTING
from recalign.preferences.statements import Statement, closed_statements, supporting, taste_sentence
from recalign.prompts import PromptBuilder, safe_title
from recalign.recommenders.fitted import load_fitted
from recalign.recommenders.fused import FusedRecommender
from recalign.recommenders.language_model import Asked, LanguageModelRecommender
from recalign.recommenders.seam import Scored
from recalign.recommenders.transplanted import on_catalogue
from recalign.registry.package import ADAPTER, RECOMMENDERS, REFERENCE, Identity, Settings, read_settings
from recalign.registry.raw_ids import RawIds

log = logging.getLogger(__name__)
BASE_VARIABLE = "RECALIGN_BASE"
NUMERIC = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")  # no title is guessed behind such a text: it was meant as an id
CLAIMS = 3  # statements of the inferred preference

Registered = LanguageModelRecommender | FusedRecommender


class Query(BaseModel):
    """One request: what a person liked, oldest first, as titles or the log's own item ids; what to rank; how many."""

    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[int | str] = Field(min_length=1)
    candidates: list[int | str] | None = None
    k: int = Field(default=10, ge=1)


def find_base(settings: Settings, root: Path = Path()) -> Path:
    """The folder of the base with the wanted sha256: RECALIGN_BASE, the project's own, a cache, else fetched into it.

    Raises RecalignError where the named folder holds another base, or where what was fetched is another one.
    """
    identity = settings.identity
    if named := os.environ.get(BASE_VARIABLE):
        return _checked(Path(named), identity, f"{BASE_VARIABLE} is {named}")
    if _sha256(root / BASE) == identity.sha256:
        return root / BASE
    cached = _cache() / identity.sha256[:16]
    if _sha256(cached) is None:
        log.info("base %s is not in %s; it is fetched once into %s", identity.id, root / BASE, cached)
        fetch_base(settings.base.model_copy(update={"model": identity.id, "revision": identity.revision}), cached)
    return _checked(cached, identity, f"base.model {identity.id!r}, revision {identity.revision!r}, gave {cached}")


def load_recommender(
    package: Path, base: Path, catalogue: Items, *, batch: int = 4, store: Path | None = None
) -> Registered:
    """The registered system on a catalogue (its own or a newer one), ranking as it did when it was measured."""
    settings = read_settings(package)
    model = load_language_model(base, settings.base, adapter=package / ADAPTER)
    reference = None
    if settings.ranked_by == "reward":
        reference = load_language_model(base, settings.base, adapter=package / REFERENCE)
    builder = PromptBuilder(model.tokenizer, catalogue, settings.prompt, settings.noun, clock=settings.clock)
    language_model = LanguageModelRecommender(
        model, builder, catalogue, settings.language_model, settings.rule, over_catalogue=settings.catalogue_rule,
        reference=reference, batch=batch, store=store,
    )  # fmt: skip
    if settings.fusion is None:
        return language_model
    own = Items.read(package)
    ids = {
        name: on_catalogue(load_fitted(name, package / RECOMMENDERS / name, own), own, catalogue)
        for name in settings.fusion.recommenders
    }
    return FusedRecommender(settings.fusion.fusion, ids, catalogue, language_model)


@dataclass(frozen=True)
class Service:
    """A registered system that answers queries."""

    settings: Settings
    recommender: Registered
    statements: Sequence[Statement]
    titled: Mapping[str, int]  # case-folded title -> item
    raw: RawIds

    @classmethod
    def of(cls, settings: Settings, recommender: Registered, raw: RawIds) -> "Service":
        """Answer with a loaded recommender, from its catalogue, whose items the log knows by `raw`."""
        catalogue = recommender.catalogue
        return cls(
            settings,
            recommender,
            closed_statements(catalogue, catalogue.popularity, settings.noun),
            {safe_title(catalogue.titles[item]).casefold(): item for item in reversed(catalogue.ids)},
            raw,
        )

    @classmethod
    def load(cls, package: Path) -> "Service":
        """Load a package with its own catalogue and the base it belongs to."""
        base = find_base(read_settings(package))
        recommender = load_recommender(package, base, Items.read(package))
        return cls.of(read_settings(package), recommender, RawIds.of_package(package))

    def answer(self, query: Query) -> dict[str, Any]:
        """What `answers` gives to one query."""
        return self.answers([query])[0]

    def answers(self, queries: Sequence[Query]) -> list[dict[str, Any]]:
        """For each query the ranked items with their scores, and the preference that the history shows.

        Items are given by the ids of the person's own log. Titles are matched case aside; unknown ones in the history
        (and codes that are no id) are read as they are and listed under `unknown`.
        Scores are comparable within one answer only. The preference is inferred by counting (the smoothed lift of each
        attribute): it explains, and enters the prompt only where the system was trained with profiles. The queries
        share forward passes. Raises RecalignError for an unknown number or candidate, for a text that is the id of one
        item and the title of another, and for a title without visible text.
        """
        return self._answered([self._read(query) for query in queries])

    def answer_known(self, history: Sequence[int | str], k: int) -> dict[str, Any]:
        """The answer to a history of the catalogue's own numbers, and of texts as they are."""
        return self._answered([self._asked(list(history), None, k)])[0]

    def _answered(self, read: Sequence[tuple[Asked, list[Statement]]]) -> list[dict[str, Any]]:
        ranked = self.recommender.rank_many([asked for asked, _ in read])
        return [self._shown(asked, claims, best) for (asked, claims), best in zip(read, ranked, strict=True)]

    def _read(self, query: Query) -> tuple[Asked, list[Statement]]:
        history = [self._item(entry, "history") for entry in query.history]
        wanted = None if query.candidates is None else [self._candidate(entry) for entry in query.candidates]
        return self._asked(history, wanted, query.k)

    def _asked(self, history: list[int | str], wanted: list[int] | None, k: int) -> tuple[Asked, list[Statement]]:
        claims = [statement for statement, _ in strongest_lifts(self.statements, _known(history), CLAIMS)]
        profile = _preference(claims) if self.settings.prompt.profile else None
        return Asked(history, wanted, k, profile), claims

    def _shown(self, asked: Asked, claims: Sequence[Statement], ranked: Sequence[Scored]) -> dict[str, Any]:
        titles, known = self.recommender.catalogue.titles, _known(asked.history)
        support = {item for claim in claims for item in supporting(claim, known)}
        return {
            "items": [
                {"item_id": self.raw.shown(s.item_id), "title": titles[s.item_id], "score": s.score} for s in ranked
            ],
            "preference": _preference(claims),
            "inferred_by": COUNTING,
            "evidence": [titles[item] for item in known if item in support],
            "unknown": [entry for entry in asked.history if isinstance(entry, str)],
        }

    def _item(self, entry: int | str, field: str) -> int | str:
        """The item of an id or a title; a text that is neither stands for itself, unless it is a number."""
        titles = self.recommender.catalogue.titles
        number = self.raw.number(entry)
        by_id = number if number in titles else None
        by_title = self.titled.get(safe_title(entry).casefold()) if isinstance(entry, str) else None
        if by_id is not None and by_title is not None and by_id != by_title:
            raise RecalignError(
                f"{field} has {entry!r}, which is the id of {titles[by_id]!r} and the title of item "
                f"{self.raw.shown(by_title)!r}; give the id of the one you mean, as a number where it is one"
            )
        found = by_id if by_id is not None else by_title
        if found is not None:
            return found
        if isinstance(entry, str) and not NUMERIC.fullmatch(entry.strip()):
            return entry
        raise RecalignError(
            f"{field} has item {entry!r}, which is not in {self._catalogue}, as an id or as a title; give an id "
            f"such as {self.raw.shown(self.recommender.catalogue.ids[0])!r}, or a title"
        )

    def _candidate(self, entry: int | str) -> int:
        item = self._item(entry, "candidates")
        if isinstance(item, str):
            raise RecalignError(
                f"candidates has {item!r}, which is not in {self._catalogue}; only items of the catalogue can be ranked"
            )
        return item

    @property
    def _catalogue(self) -> str:
        return f"the catalogue of {len(self.recommender.catalogue.ids)} {self.settings.noun}"


def _known(history: Sequence[int | str]) -> list[int]:
    return [item for item in history if isinstance(item, int)]


def _preference(claims: Sequence[Statement]) -> str:
    return taste_sentence([claim.phrase for claim in claims])


def _sha256(folder: Path) -> str | None:
    file = folder / IDENTITY
    return read_json(file)["sha256"] if file.is_file() else None


def _checked(folder: Path, identity: Identity, origin: str) -> Path:
    found = _sha256(folder)
    if found != identity.sha256:
        holds = "no base.json" if found is None else f"a base with sha256 {found[:12]}"
        raise RecalignError(
            f"{origin}, which holds {holds}; the adapter belongs to {identity.id} (sha256 {identity.sha256[:12]}): "
            "name the folder that 'recalign base' wrote for it"
        )
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recalign" / "bases"
