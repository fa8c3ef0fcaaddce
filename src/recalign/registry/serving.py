"""From a package to a recommender that answers: the base is found by its sha256, the adapter goes on top."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.data.titles import safe_title
from recalign.llm.model.base import LanguageModel, fetch_base
from recalign.llm.model.files import IDENTITY
from recalign.params.profiles import ProfilesParams
from recalign.preferences.inference.engines import Inference, open_engine
from recalign.preferences.profiles.profiles import (
    COUNTING,
    Engine,
    Histories,
    Profile,
    Statement,
    closed_statements,
    every_statement,
    make_profile,
)
from recalign.preferences.tastes.ledger import DEPTH, Edit, Wishes, edited_profile
from recalign.project import BASE
from recalign.ranking.fused import FusedRecommender
from recalign.ranking.language_model import LanguageModelRecommender, open_recommender
from recalign.ranking.measured import ADAPTER, REFERENCE
from recalign.ranking.package import RECOMMENDERS, Identity, Settings, check_package, read_settings
from recalign.recommenders.recommender import Asked, Scored
from recalign.recommenders.roster import load_fitted
from recalign.recommenders.store import on_catalogue

log = logging.getLogger(__name__)
BASE_VARIABLE = "RECALIGN_BASE"
NUMERIC = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")  # no title is guessed behind such a text: it was meant as an id
MOST_ITEMS = 1000  # of a history, of candidates, and that are answered
LONGEST_TITLE = 1000  # characters of a title or id in a query; validated titles have 200 at most
MOST_QUERIES = 1000  # in one call
SHOWN = 80  # characters of a query's entry in an error
REGISTERED_AS = "registered_model_meta"  # MLflow leaves it beside the model that it loads by models:/
CLAIMS = 3  # statements of the preference that is counted
SERVED = "served"  # stands for the split of a profile that is inferred for a query

AnyRecommender = LanguageModelRecommender | FusedRecommender


class AnswerItem(TypedDict):
    """One item of an answer; read_by: the parts of a fusion that ranked it, of an item that is new to the fusion."""

    item_id: int | str
    title: str
    score: float
    read_by: NotRequired[str]


class Answer(TypedDict):
    """What a query is answered with, as `Service.answers` says; edits: only where a person's edits were obeyed."""

    model: str | None
    version: str | None
    system: str
    ranked_by: str
    items: list[AnswerItem]
    preference: str
    inferred_by: str
    evidence: list[str]
    unknown: list[str]
    edits: NotRequired[list[str]]


Entry = int | Annotated[str, Field(max_length=LONGEST_TITLE)]


class Query(BaseModel):
    """One request: what a person liked, oldest first, as titles or the log's own item ids; what to rank; how many.

    Each field has a limit, for what is asked is tokenised and scored: a body of megabytes would keep a server busy.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[Entry] = Field(min_length=1, max_length=MOST_ITEMS)
    candidates: list[Entry] | None = Field(default=None, max_length=MOST_ITEMS)
    k: int = Field(default=10, ge=1, le=MOST_ITEMS)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Query":
        """A query of what came in. Raises RecalignError naming the first field that is wrong, and its limit."""
        try:
            return cls(**fields)
        except ValidationError as error:
            every = error.errors(include_input=False, include_url=False)
            told = next((each for each in every if each["type"] == "string_too_long"), every[0])
            place = ".".join(map(str, told["loc"][:2]))  # what follows says which type of several
            raise RecalignError(f"{place}: {told['msg']}") from None


class Registered(BaseModel):
    """The name and version that a model is registered under; None for a package that no registry gave."""

    name: str | None = None
    version: str | None = None


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
) -> AnyRecommender:
    """The registered system on a catalogue (its own or a newer one), ranking as it did when it was measured.

    A fusion whose language model weighs nothing does not load it. Raises RecalignError naming what was changed since it
    was registered.
    """
    check_package(package, base)
    settings = read_settings(package)

    def opened() -> LanguageModelRecommender:
        reference = package / REFERENCE if settings.ranked_by == "reward" else None
        return open_recommender(
            settings.language_model, base, package / ADAPTER, settings.setting, catalogue, reference=reference,
            batch=batch, store=store,
        )  # fmt: skip

    if settings.fusion is None:
        return opened()
    language_model = opened() if settings.fusion.active_language_model else None
    own = Items.read(package)
    ids = {
        name: on_catalogue(load_fitted(name, package / RECOMMENDERS / name, own), own, catalogue)
        for name in settings.fusion.recommenders
    }
    new = settings.fusion.new_items(catalogue, own)
    return FusedRecommender(settings.fusion.fusion, ids, catalogue, language_model, new)


@dataclass(frozen=True)
class Service:
    """A registered system that answers queries."""

    settings: Settings
    recommender: AnyRecommender
    statements: Sequence[Statement]
    titled: Mapping[str, int]  # case-folded title -> item
    raw: RawIds
    engine: str  # what infers preferences: what was measured where prompts show profiles, else counting
    infer: Inference
    registered: Registered

    @classmethod
    def of(
        cls, settings: Settings, recommender: AnyRecommender, raw: RawIds, registered: Registered | None = None
    ) -> "Service":
        """Answer with a loaded recommender, from its catalogue, whose items the log knows by `raw`."""
        catalogue = recommender.catalogue
        asked = recommender if isinstance(recommender, LanguageModelRecommender) else recommender.language_model
        model = asked.language_model if asked else None
        measured = _measured(settings, model)
        return cls(
            settings,
            recommender,
            closed_statements(catalogue, catalogue.popularity, settings.noun),
            {safe_title(catalogue.titles[item]).casefold(): item for item in reversed(catalogue.ids)},
            raw,
            measured.engine,
            _open(measured, settings, catalogue, model),
            registered or Registered(),
        )

    @classmethod
    def load(cls, package: Path) -> "Service":
        """Load a package with its own catalogue and the base it belongs to."""
        settings = read_settings(package)
        recommender = load_recommender(package, find_base(settings), Items.read(package))
        return cls.of(settings, recommender, RawIds.of_package(package), registered_as(package))

    def answer(self, query: Query) -> Answer:
        """What `answers` gives to one query."""
        return self.answers([query])[0]

    def answers(self, queries: Sequence[Query]) -> list[Answer]:
        """For each query the ranked items with their scores, and the preference that the history shows.

        `model` and `version` say what the registry calls it, `system` and `ranked_by` what ranked; an item that is new
        to a fusion has `read_by` too: the parts that ranked it.

        Items are given by the ids of the person's own log. Titles are matched case aside; unknown ones in the history
        (and codes that are no id) are read as they are and listed under `unknown`. Scores are comparable within one
        answer only. Where the system was measured with profiles in its prompts, the preference is inferred by the very
        engine (`inferred_by` names it) and enters the prompt; elsewhere it is counted (the smoothed lift of each
        attribute), explains, and is not read by what ranks. The queries share forward passes. Raises RecalignError for
        an unknown number or candidate, for a text that is the id of one item and the title of another, for a title
        without visible text, and for an endpoint that fails.
        """
        return self._answered([self._read(query) for query in queries])

    def answer_known(
        self,
        history: Sequence[int | str],
        k: int,
        candidates: Sequence[int] | None = None,
        edits: Sequence[Edit] = (),
    ) -> Answer:
        """The answer to a history of the catalogue's own numbers, and of texts as they are.

        edits: what the person said of claims; `edits` of the answer then tells what each of them did to the list.
        """
        asked = Asked(list(history), candidates, k)
        return self._edited(asked, edits) if edits else self.answers_known([asked])[0]

    def answers_known(self, asked: Sequence[Asked]) -> list[Answer]:
        """The answers to histories and candidates of the catalogue's own numbers; they share forward passes."""
        return self._answered(asked)

    def _answered(self, read: Sequence[Asked]) -> list[Answer]:
        profiles = self._profiles([_known(asked.history) for asked in read])
        if self.settings.prompt.profile:
            read = [replace(asked, profile=own.text) for asked, own in zip(read, profiles, strict=True)]
        ranked = self.recommender.rank_many(list(read))
        return [self._shown(*answer) for answer in zip(read, profiles, ranked, strict=True)]

    def _edited(self, asked: Asked, edits: Sequence[Edit]) -> Answer:
        """The answer that a user's edits leave: preference, prompt and list are without what they forbid."""
        known, statements = _known(asked.history), every_statement(self.recommender.catalogue, self.settings.noun)
        wishes = Wishes.of(edits, statements)
        [inferred] = self._profiles([known])
        profile = edited_profile(inferred, known, statements, edits)
        depth = max(asked.k, min(DEPTH, len(self.recommender.catalogue.ids))) if asked.candidates is None else None
        wide = replace(asked, k=depth or len(asked.candidates or ()), excluded=wishes.excluded.union(known))
        shown = self.settings.prompt.profile
        plain, wide = (
            replace(each, profile=own.text if shown else None) for each, own in ((asked, inferred), (wide, profile))
        )
        before, ranked = self.recommender.rank_many([plain, wide])
        scored = {own.item_id: own for own in ranked}
        after = wishes.reordered([own.item_id for own in ranked])[: asked.k]
        spoken = wishes.spoken([own.item_id for own in before], after)
        titles = self.recommender.catalogue.titles
        told = self._shown(asked, profile, [scored[item] for item in after])
        told["edits"] = [own.sentence(titles) for own in spoken]
        return told

    def _read(self, query: Query) -> Asked:
        history = [self._item(entry, "history") for entry in query.history]
        wanted = None if query.candidates is None else [self._candidate(entry) for entry in query.candidates]
        return Asked(history, wanted, query.k)

    def _profiles(self, histories: Sequence[Sequence[int]]) -> list[Profile]:
        """What each history shows of a taste; a history without an item of the catalogue shows nothing."""
        known = {place: tuple(history) for place, history in enumerate(histories) if history}
        popularity = self.recommender.catalogue.popularity
        made = self.infer(Histories(SERVED, None, known, popularity), self.statements) if known else []
        by_place = {profile.user_id: profile for profile in made}
        nothing = Engine(self.engine)
        return [by_place.get(place) or make_profile(nothing, SERVED, place, (), []) for place in range(len(histories))]

    def _shown(self, asked: Asked, profile: Profile, ranked: Sequence[Scored]) -> Answer:
        titles = self.recommender.catalogue.titles
        by = self.settings.sentence if asked.candidates is not None else self.settings.catalogue_sentence
        return {
            "model": self.registered.name,
            "version": self.registered.version,
            "system": self.settings.system,
            "ranked_by": by,
            "items": [self._item_shown(scored) for scored in ranked],
            "preference": profile.text,
            "inferred_by": profile.engine,
            "evidence": [titles[item] for item in profile.evidence],
            "unknown": [entry for entry in asked.history if isinstance(entry, str)],
        }

    def _item_shown(self, scored: Scored) -> AnswerItem:
        item = scored.item_id
        title = self.recommender.catalogue.titles[item]
        shown: AnswerItem = {"item_id": self.raw.shown(item), "title": title, "score": scored.score}
        fused = self.recommender if isinstance(self.recommender, FusedRecommender) else None
        if fused and (told := fused.read_by(item)):
            shown["read_by"] = told
        return shown

    def _item(self, entry: int | str, field: str) -> int | str:
        """The item of an id or a title; a text that is neither stands for itself, unless it is a number."""
        titles = self.recommender.catalogue.titles
        number = self.raw.number(entry)
        by_id = number if number in titles else None
        by_title = self.titled.get(safe_title(entry).casefold()) if isinstance(entry, str) else None
        if by_id is not None and by_title is not None and by_id != by_title:
            raise RecalignError(
                f"{field} has {_brief(entry)}, which is the id of {titles[by_id]!r} and the title of item "
                f"{self.raw.shown(by_title)!r}; give the id of the one you mean, as a number where it is one"
            )
        found = by_id if by_id is not None else by_title
        if found is not None:
            return found
        if isinstance(entry, str) and not NUMERIC.fullmatch(entry.strip()):
            return entry
        raise RecalignError(
            f"{field} has item {_brief(entry)}, which is not in {self._catalogue}, as an id or as a title; give an id "
            f"such as {self.raw.shown(self.recommender.catalogue.ids[0])!r}, or a title"
        )

    def _candidate(self, entry: int | str) -> int:
        item = self._item(entry, "candidates")
        if isinstance(item, str):
            raise RecalignError(
                f"candidates has {_brief(item)}, which is not in {self._catalogue}; only items of the catalogue can be "
                "ranked"
            )
        return item

    @property
    def _catalogue(self) -> str:
        return f"the catalogue of {len(self.recommender.catalogue.ids)} {self.settings.noun}"


def registered_as(package: Path) -> Registered:
    """What the registry calls a package, where MLflow loaded it from there."""
    told = package.parent.parent / REGISTERED_AS
    if not told.is_file():
        return Registered()
    meta = YAML(typ="safe").load(told.read_text(encoding="utf-8"))
    return Registered(name=str(meta["model_name"]), version=str(meta["model_version"]))


def _brief(entry: int | str) -> str:
    """An entry of a query as an error shows it: never a page of it."""
    shown = repr(entry)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"


def _known(history: Sequence[int | str]) -> list[int]:
    return [item for item in history if isinstance(item, int)]


def _measured(settings: Settings, model: LanguageModel | None) -> ProfilesParams:
    """The engine that the system was measured with where its prompts show profiles; counting where they show none.

    Nor does anything read one where a fusion gives its language model no weight, so that there is no `model`.
    """
    read = settings.prompt.profile and model is not None
    if read and settings.profiles:
        return settings.profiles
    engine = settings.profile_engine if read else COUNTING
    others = {"users": 1, "claims": CLAIMS, "max_new_tokens": 48, "url": "", "endpoint_model": None, "batch": 8}
    return ProfilesParams.model_validate({"engine": engine} | others)


def _open(measured: ProfilesParams, settings: Settings, catalogue: Items, model: LanguageModel | None) -> Inference:
    """What infers the preference of a query: the base under the model that ranks, with its adapter switched off."""

    def the_model() -> LanguageModel:
        assert model is not None, f"{measured.engine} asks a model where there is none"
        return model

    infer = open_engine(measured, catalogue, settings.noun, the_model, None, clock=settings.clock)
    if model is None or not hasattr(model.model, "disable_adapter"):
        return infer

    def without_adapter(histories: Histories, statements: Sequence[Statement]) -> list[Profile]:
        with model.model.disable_adapter():
            return infer(histories, statements)

    return without_adapter


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
