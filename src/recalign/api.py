"""recalign from Python: a registered system that answers, and what a project measured, as DataFrames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recalign import project as layout
from recalign.commands.recommend import user_history
from recalign.common import columns as c
from recalign.common.artifacts import read_json, read_parquet
from recalign.common.errors import RecalignError
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.recommenders.recommender import Asked
from recalign.registry.promotion import download_package
from recalign.registry.serving import MOST_QUERIES, Answer, Query, Service, find_base, load_recommender, registered_as

COLUMNS = ("user", "rank", "item", "title", "score", "reason", "version")


class Project:
    """What a project measured, with the ids of its own log. Each method reads the files afresh.

    Raises RecalignError where a stage has not run yet, and for a folder that is no project.
    """

    def __init__(self, path: str | Path = ".") -> None:
        self.path = Path(path)
        if not (self.path / layout.PARAMS).is_file():
            raise RecalignError(f"{self.path} is no project: it has no {layout.PARAMS}; give a project's root")
        self._paths = layout.Project(self.path)

    def __repr__(self) -> str:
        """Its folder."""
        return f"Project({str(self.path)!r})"

    def ranks(self) -> pd.DataFrame:
        """A row a ranked case and system, as docs/contracts.md has data/ranks/ranks.parquet; rank 1 is best.

        user_id, and the ids in `top` (the ten best items, or None), are the log's own.
        """
        frame = read_parquet(self._paths.ranks / "ranks.parquet").to_pandas()
        items = self._items()
        frame[c.USER] = self._shown_users(frame[c.USER])
        frame[c.TOP] = [None if top is None else [items.shown(int(item)) for item in top] for top in frame[c.TOP]]
        return frame

    def scorecard(self) -> pd.DataFrame:
        """A row a figure of the report, with all that it was measured on (reports/scorecard.json)."""
        return pd.DataFrame(read_json(self._paths.reports / "scorecard.json")["figures"])

    def profiles(self) -> pd.DataFrame:
        """A row a user, split and engine: what is inferred that the user likes, its claims, and the items behind it.

        user_id, and the ids in `evidence`, are the log's own.
        """
        frame = read_parquet(self._paths.profiles / "profiles.parquet").to_pandas()
        items = self._items()
        frame[c.USER] = self._shown_users(frame[c.USER])
        frame[c.EVIDENCE] = [[items.shown(int(item)) for item in evidence] for evidence in frame[c.EVIDENCE]]
        frame[c.CLAIMS] = [[dict(claim) for claim in claims] for claims in frame[c.CLAIMS]]
        return frame

    def _items(self) -> RawIds:
        return RawIds.of_items(self._paths.interactions)

    def _shown_users(self, numbers: "pd.Series[int]") -> "pd.Series[Any]":
        users = RawIds.of_users(self._paths.interactions)
        return pd.Series([users.shown(int(number)) for number in numbers], index=numbers.index)


@dataclass(frozen=True)
class Loaded:
    """A registered system, ready to answer; `load` makes it.

    root: the project whose users it knows; None where there is none, and titles or item ids are all it takes.
    """

    name: str
    service: Service
    root: Path | None

    def __repr__(self) -> str:
        """Its address, and what ranks."""
        return f"<{self.name}: {self.service.settings.catalogue_sentence}>"

    def recommend(
        self,
        users: Sequence[int | str] | None = None,
        titles: Sequence[int | str] | None = None,
        k: int = 10,
    ) -> pd.DataFrame:
        """The k best items for each of `users`, by their whole history, or for one person who liked `titles`.

        users: ids as the log writes them; titles: liked titles or item ids, oldest first. Give one of the two.
        Returns columns user (None for titles), rank (1 = best), item (the log's id), title, score (comparable within
        one user's rows only), reason (the preference that the history shows), version (of the registry); best first.
        Raises RecalignError for an unknown user, for k outside of 1 to 1000, and where both or none are given.
        """
        if (users is None) == (titles is None):
            raise RecalignError("give recommend(users=[…]) or recommend(titles=[…]), one of the two")
        (field, given) = ("users", users) if users is not None else ("titles", titles)
        if isinstance(given, str | int) or not given:
            raise RecalignError(f"{field} is {given!r}; a list with one entry or more is allowed")
        if titles is not None:
            return _frame([None], [self.service.answer(Query.of({"history": list(titles), "k": k}))])
        Query.of({"history": [0], "k": k})  # which names a k that is not allowed
        histories = [self._history(user) for user in given]
        answers: list[Answer] = []
        for start in range(0, len(histories), MOST_QUERIES):
            asked = [Asked(list(history), None, k) for history in histories[start : start + MOST_QUERIES]]
            answers += self.service.answers_known(asked)
        return _frame(list(given), answers)

    def _history(self, user: int | str) -> list[int]:
        if self.root is None:
            raise RecalignError(
                "users is given, and there is no log to find their histories in; give load(…, project=PATH) a folder "
                f"with {layout.PREPARED}, or titles"
            )
        raw = RawIds.of_users(self.root / layout.INTERACTIONS)
        return user_history(self.root / layout.PREPARED, str(user), raw)


def load(model: str, project: str | Path = ".") -> Loaded:
    """The system under "models:/NAME@ALIAS" or "models:/NAME/VERSION", such as "models:/recalign@champion".

    project: whose registry is asked (unless MLFLOW_TRACKING_URI names one), whose users it knows and over whose
    catalogue it ranks; without a log there, over the catalogue that was registered with it. The base model is found by
    its sha256: RECALIGN_BASE, the project's, the cache, or the network.
    Raises RecalignError for another form of address, for what is not registered, and for a package that was changed.
    """
    if not model.startswith(layout.REGISTRY_SCHEME):
        raise RecalignError(
            f"model is {model!r}; allowed are models:/NAME@ALIAS and models:/NAME/VERSION, which 'recalign register' "
            "makes"
        )
    root = Path(project)
    package = download_package(model, root)
    if not (root / layout.PREPARED / "items.parquet").is_file():
        return Loaded(model, Service.load(package), None)
    from recalign.ranking.package import read_settings

    settings = read_settings(package)
    store = layout.Project(root).logprobs
    recommender = load_recommender(package, find_base(settings, root), Items.read(root / layout.PREPARED), store=store)
    raw = RawIds.of_items(root / layout.INTERACTIONS)
    return Loaded(model, Service.of(settings, recommender, raw, registered_as(package)), root)


def _frame(users: Sequence[int | str | None], answers: Sequence[Answer]) -> pd.DataFrame:
    return pd.DataFrame(_rows(users, answers), columns=list(COLUMNS))


def _rows(users: Sequence[int | str | None], answers: Sequence[Answer]) -> Iterator[tuple[Any, ...]]:
    for user, answer in zip(users, answers, strict=True):
        for place, item in enumerate(answer["items"], start=1):
            shown = (item["item_id"], item["title"], item["score"])
            yield user, place, *shown, answer["preference"], answer["version"]
