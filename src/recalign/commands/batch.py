"""Command batch: the best k items for everyone in one file, by an ID recommender or the fusion's ID part."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import numpy as np

from recalign.common import columns as c
from recalign.common.artifacts import MANIFEST, file_digest, folder_digest, read_parquet
from recalign.common.errors import RecalignError, did_you_mean
from recalign.common.progress import memory_mb, reranking_forecast, track
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.evaluation.metrics import LABELS
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.systems import FUSION, ID, SYSTEMS, best_by_validation, read_systems
from recalign.llm.model.adapters import adapter_digest
from recalign.params.load import Params
from recalign.params.recommenders import RecommenderName
from recalign.project import REGISTRY_SCHEME, Project
from recalign.ranking.batch import (
    FirstStage,
    Rows,
    SecondStage,
    TopItems,
    check_out,
    shard,
    top_for_everyone,
    write_lists,
)
from recalign.ranking.fused import fused_recommender
from recalign.ranking.fusion import FITTED, Fusion
from recalign.ranking.item_filters import ItemFilters, read_ids
from recalign.ranking.measured import check_made_by, recommender_artifacts
from recalign.ranking.package import evaluated_fusion
from recalign.ranking.reasons import RERANKED, explainer
from recalign.ranking.trial import Ranker
from recalign.recommenders.roster import ROSTER, fitted_on, load_fitted, refusal

OUT = Path("data/batch")  # not reports/, a stage's output: every run of that stage clears it
SHARD = re.compile(r"([0-9]+)/([0-9]+)")
DIGITS = 12  # of a digest in a version
DEPTH = 50  # items of the first stage that a language model reranks


@dataclass(frozen=True)
class Rerank:
    """Who gets a list of the language model (a file of ids), over how many items, and by which adapter."""

    users: Path
    depth: int = DEPTH
    adapter: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Which lists: the k best items of every user of the log, or of those in the file `users`.

    system: an ID recommender or "fusion", its ID part; None: the best ID recommender on validation. `filters` leave
    items out. The language model ranks for `rerank` alone.
    """

    k: int = 20
    users: Path | None = None
    system: str | None = None
    filters: ItemFilters = ItemFilters()
    rerank: Rerank | None = None


@dataclass
class Counts:
    """What is told in the end."""

    users: int = 0
    rows: int = 0
    cold: int = 0
    short: int = 0

    def add(self, own: TopItems, k: int) -> None:
        """One more list."""
        self.users += 1
        self.rows += len(own.items)
        self.cold += own.cold
        self.short += len(own.items) < k


def batch(
    params: Params, wanted: Wanted, *, out: Path | None = None, part: str = "1/1", project: Project = Project()
) -> None:
    """Write the lists that are wanted to `out` (Parquet or CSV).

    Columns: user, rank, item, title, score, reason, version, made_at; ids are the log's own. part: "2/7" ranks the
    second of seven shards by a hash of the user. Left out is what a user has met, what the filters leave out, and what
    is not available yet. A user without likes that the system knows gets the popular items.

    Raises RecalignError for what cannot be asked for, before anything is ranked, and for unknown ids.
    """
    k, rerank = wanted.k, wanted.rerank
    made_at = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    number, count = _shard(part)
    out = out or project.root / OUT / ("top.parquet" if count == 1 else f"top-{number}-of-{count}.parquet")
    if k < 1:
        raise RecalignError(f"--k is {k}; 1 or more is allowed")
    if rerank and rerank.depth < k:
        raise RecalignError(f"--rerank-depth is {rerank.depth}; --k ({k}) or more is allowed")
    catalogue = Items.read(project.prepared)
    if k > len(catalogue.ids):
        raise RecalignError(f"--k is {k}; the catalogue has {len(catalogue.ids)} items, which is the most allowed")
    raw_users, raw_items = RawIds.of_users(project.interactions), RawIds.of_items(project.interactions)
    every = sorted(read_parquet(project.interactions / "users.parquet", [c.USER])[c.USER].drop_null().to_pylist())
    asked = _numbers(wanted.users, "--users", every, "users of the log", raw_users) if wanted.users else every
    second_users = _numbers(rerank.users, "--rerank-users", asked, "users asked for", raw_users) if rerank else []
    allowed = wanted.filters.open_items(catalogue, raw_items, made_at)
    stage, why = _first_stage(wanted.system, project, catalogue)
    check_out(out)
    own = shard(asked, raw_users, number, count)
    print(f"Ranked by {why}: {_users(len(own))}, {int(allowed.sum()):,} of {len(catalogue.ids):,} items")
    reranked = frozenset(second_users).intersection(own)
    second = _second_stage(params, rerank, reranked, catalogue, raw_items) if rerank and reranked else None
    counts = Counts()
    lists = top_for_everyone(stage, project.prepared, catalogue, own, allowed, k, second)
    rows = Rows.of(every, raw_users, catalogue, raw_items, made_at)
    write_lists(out, rows, _counted(lists, counts, k, len(own)))
    _tell(counts, k, out)


def _shard(part: str) -> tuple[int, int]:
    """Number and count of "2/7"."""
    found = SHARD.fullmatch(part)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise RecalignError(f"--shard is {part!r}; I/N is needed, with I from 1 to N: 1/7, 2/7, … 7/7 are all of seven")
    return number, count


def _numbers(file: Path, option: str, among: Sequence[int], whose: str, raw: RawIds) -> list[int]:
    """The users that a file names by the log's own ids, ascending; each must be `among` those who are asked for."""
    ids, here = read_ids(file, option), set(among)
    numbers = [raw.number(text) for text in ids]
    unknown = [text for text, number in zip(ids, numbers, strict=True) if number not in here]
    if unknown:
        example = f", such as {raw.shown(among[0])!r}" if among else ""
        raise RecalignError(
            f"{option} is {file}, which names {len(unknown)} users of {len(ids)} who are not among the {len(among)} "
            f"{whose}, the first {unknown[0]!r}; an id is written as in the log, one a line{example}"
        )
    return sorted(number for number in numbers if number is not None)


def _first_stage(name: str | None, project: Project, catalogue: Items) -> tuple[FirstStage, str]:
    """What ranks everyone, and what it is in words."""
    if name == FUSION:
        ranker, version, why = _fusion(project, catalogue)
    else:
        chosen, why = (name, f"{name}, as --system asks") if name else _best(project)
        ranker, version = _recommender(chosen, project, catalogue)
    parts = list(getattr(ranker, "ids", {ranker.name: ranker}))
    knows = frozenset(chain.from_iterable(fitted_on(part, project.baselines / part, catalogue).ids for part in parts))
    popularity = np.array([catalogue.popularity.get(item, 0) for item in catalogue.ids], dtype=np.float64)
    return FirstStage(ranker, version, knows, explainer(ranker, catalogue), popularity), why


def _best(project: Project) -> tuple[str, str]:
    """The best ID recommender on validation, unchanged since, and what it reached."""
    table = project.ranks / SYSTEMS
    if not table.is_file():
        raise RecalignError(
            f"{table} is missing, so the best ID recommender is not known; name one with --system, or run 'dvc repro'"
        )
    systems = read_systems(table)
    best = best_by_validation(systems, [name for name, own in systems.items() if own.kind == ID])
    if best is None:
        raise RecalignError(f"{table} holds no ID recommender; add one to recommenders.systems and run 'dvc repro'")
    folder = project.baselines / best
    check_made_by(best, systems[best].artifacts or {}, recommender_artifacts(folder), str(folder))
    reached = f"{LABELS[CHOSEN_BY]} {systems[best].validation[CHOSEN_BY]:.3f}"
    return best, f"{best}, the best ID recommender on validation ({reached})"


def _recommender(name: str, project: Project, catalogue: Items) -> tuple[Ranker, str]:
    if name not in ROSTER:
        allowed = [*ROSTER, FUSION]
        raise RecalignError(
            f"--system is {name!r}; an ID recommender ({', '.join(ROSTER)}) or {FUSION} is allowed"
            f"{did_you_mean(name, allowed)}; a language model ranks for --rerank-users alone"
        )
    folder = project.baselines / name
    if why := refusal(folder):
        raise RecalignError(f"--system is {name}, which was not fitted: {why}; name another one")
    if not (folder / MANIFEST).is_file():
        raise RecalignError(
            f"--system is {name}, which is not fitted in this project; add it to recommenders.systems and run "
            f"'dvc repro baselines@{name}'"
        )
    return load_fitted(name, folder, catalogue), f"{name}@{folder_digest(folder)[:DIGITS]}"


def _fusion(project: Project, catalogue: Items) -> tuple[Ranker, str, str]:
    """The ID part of the fitted fusion, its recommenders still those that it was fitted on."""
    fitted = evaluated_fusion(project.root)
    said = _shares(fitted.fusion, fitted.recommenders)
    if not said:
        raise RecalignError(
            f"--system is {FUSION}, whose ID recommenders have no weight among known items ({fitted.fusion.sentence}); "
            "name one of them"
        )
    if fitted.fusion.new:
        said += f"; new items: {_shares(fitted.fusion.new, fitted.recommenders) or 'read by none of it'}"
    version = f"{FUSION}@{file_digest(project.ranks / FITTED)[:DIGITS]}"
    return fused_recommender(fitted, project.baselines, catalogue), version, f"the fusion's ID part ({said})"


def _shares(fusion: Fusion, names: Sequence[RecommenderName]) -> str:
    """'0.75 item_knn + 0.25 ease', of some parts those that weigh anything; empty where none does."""
    weights = {name: weight for name, weight in fusion.used.items() if name in names and weight > 0}
    return " + ".join(f"{weight / sum(weights.values()):.2f} {name}" for name, weight in weights.items())


def _second_stage(
    params: Params, asked: Rerank, users: frozenset[int], catalogue: Items, raw_items: RawIds
) -> SecondStage:
    """The language model, opened; what it will take is printed."""
    from recalign.commands.opened import open_adapter
    from recalign.commands.recommend import default_adapter
    from recalign.ranking.fused import FusedRecommender
    from recalign.recommenders.recommender import Asked
    from recalign.registry.serving import AnswerItem, Service

    chosen = asked.adapter or default_adapter(params)
    if chosen.startswith(REGISTRY_SCHEME):
        from recalign.registry.promotion import pinned

        chosen = pinned(chosen)  # the rows name a version: an alias moves
    settings, recommender = open_adapter(params, chosen, catalogue)
    model = recommender.language_model if isinstance(recommender, FusedRecommender) else recommender
    if model is None:
        raise RecalignError(
            f"{chosen} gives its language model no weight, so nothing would be reranked by it; name --adapter, or "
            "leave out --rerank-users"
        )
    megabytes = memory_mb(model.language_model.model)
    print(f"Estimate of {reranking_forecast(model.name, len(users), asked.depth, megabytes)}")
    service = Service.of(settings, recommender, raw_items)
    version = chosen if chosen.startswith(REGISTRY_SCHEME) else f"{chosen}@{adapter_digest(Path(chosen))[:DIGITS]}"

    def rerank(lists: list[TopItems], k: int) -> list[TopItems]:
        wanted = [Asked(own.history, own.items, k) for own in lists]
        return [_again(own, answer["items"]) for own, answer in zip(lists, service.answers_known(wanted), strict=True)]

    def _again(own: TopItems, answered: Sequence[AnswerItem]) -> TopItems:
        numbers = [(raw_items.number(str(each["item_id"])), float(each["score"])) for each in answered]
        kept = [(item, score) for item, score in numbers if item is not None]
        items, scores = [item for item, _ in kept], [score for _, score in kept]
        return replace(own, items=items, scores=scores, reasons=[RERANKED] * len(kept), version=version)

    return SecondStage(users, asked.depth, rerank)


def _counted(lists: Iterator[TopItems], counts: Counts, k: int, total: int) -> Iterator[TopItems]:
    for own in track(lists, total, "recommending", "users"):
        counts.add(own, k)
        yield own


def _tell(counts: Counts, k: int, out: Path) -> None:
    if counts.cold:
        print(f"Without a like that the system knows, so with the popular items: {_users(counts.cold)}")
    if counts.short:
        print(f"With fewer than {k} items, since they have met all others: {_users(counts.short)}")
    print(f"{counts.rows:,} rows for {_users(counts.users)} -> {out}")


def _users(number: int) -> str:
    return f"{number:,} user{'' if number == 1 else 's'}"
