"""Command recommend: the best items for a user of the log or for some titles, and the preference that explains them."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from recalign import uncollected
from recalign.commands.arguments import check_adapter_named, check_file, read_titles
from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.common.console import print_json
from recalign.common.errors import RecalignError
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.evaluation.systems import MEANINGLESS, SYSTEMS, read_systems, system_of
from recalign.params.load import Params
from recalign.preferences.tastes.ledger import LEDGER, read_edits
from recalign.preferences.tastes.text import one_line
from recalign.project import RANKS, REGISTRY, Project

if TYPE_CHECKING:
    from recalign.ranking.package import Settings
    from recalign.registry.serving import Answer, AnyRecommender

log = logging.getLogger(__name__)
SHOWN_HISTORY, SHOWN_EVIDENCE = 8, 5  # titles printed
SCORE = "A score orders this list and nothing else: it is no probability, and is not comparable with another list's."


def recommend(
    params: Params,
    whom: str | Sequence[str],
    *,
    adapter: str | None = None,
    k: int = 10,
    items: Path | None = None,
    as_json: bool = False,
    project: Project = Project(),
) -> None:
    """Print the k best items of the catalogue for a user's whole history, or for liked titles.

    whom: the user's id, or a list of titles, oldest first. The ids are those of the log, not the numbers that stages
    count with. adapter: a folder or models:/
    URI; else the champion, else the challenger, else the project's own best adapter. items: a CSV of new items, which
    are ranked in the catalogue's place (`with_new_items`). as_json: one JSON document. What the user said of
    claims is heard (`recalign profile USER --edit`): nothing is shown that it forbids, and each edit's effect is told.
    All of these are checked before a model or MLflow is loaded. Raises RecalignError for an unknown user, titles of
    which none is found, no history, k below 1, no adapter to ask, or new items that nothing reads.
    """
    if k < 1:
        raise RecalignError(f"-k is {k}; 1 or more is allowed")
    if adapter:
        check_adapter_named(adapter)
    if items is not None:
        check_file("--items", items)
    catalogue, raw = Items.read(project.prepared), RawIds.of_items(project.interactions)
    history: list[int | str] = []
    said: list[str] = []
    if isinstance(whom, str):
        history += user_history(project.prepared, whom, RawIds.of_users(project.interactions))
    else:
        history, said = read_titles(whom, catalogue, raw)
    if not history:
        raise RecalignError("there is no history to start from; give --user ID or --titles TITLE …")
    if not adapter:
        _check_something_made(params)
    for sentence in said:
        log.info(sentence)
    with uncollected():
        from recalign.commands.opened import open_adapter
        from recalign.registry.serving import Service

    new = None
    if items is not None:
        from recalign.data.case_file import with_new_items

        catalogue, raw, new = with_new_items(items, catalogue, raw)
    chosen = adapter or default_adapter(params)
    settings, recommender = open_adapter(params, chosen, catalogue) if adapter else _opened(params, chosen, catalogue)
    if new is not None:
        _check_reads_text(chosen, recommender)
    edits = read_edits(project.root / LEDGER).get(whom, ()) if isinstance(whom, str) else ()
    answer = Service.of(settings, recommender, raw).answer_known(history, k, new, edits)
    warned = f"; {MEANINGLESS}" if settings.random_model else ""
    by = settings.catalogue_sentence if new is None else settings.sentence
    shown = [item if isinstance(item, str) else catalogue.titles[item] for item in history]
    if as_json:
        print_json({**answer, "asked": chosen, "history": shown, "warning": warned.removeprefix("; ")})
    else:
        _print(answer, shown, f"{chosen}, {by}{warned}")


def user_history(prepared: Path, user: str, raw: RawIds) -> list[int]:
    """All liked items of a user, given by the log's own id, oldest first (position; without a clock a hashed order).

    Raises RecalignError for a user that the prepared log does not hold.
    """
    file, number = prepared / "events.parquet", raw.number(user)
    number = number if number is not None and -(2**63) <= number < 2**63 else None  # a null is nobody's number
    own = pc.field(c.USER) == pa.scalar(number, pa.int64())
    rows = [] if number is None else read_parquet(file, [c.ITEM, c.POSITION], own).to_pylist()
    events = sorted(rows, key=lambda row: row[c.POSITION])
    if not events:
        known = sorted(pc.unique(read_parquet(file, [c.USER])[c.USER]).to_pylist())
        raise RecalignError(
            f"--user is {user}, whom the prepared log does not hold; it has {len(known)} users, such as "
            f"{raw.shown(known[0])} (shorter logs than prepare.core are left out)"
        )
    return [row[c.ITEM] for row in events]


def _opened(params: Params, chosen: str, catalogue: Items) -> "tuple[Settings, AnyRecommender]":
    """What nobody named, opened. Raises RecalignError that names it and what to ask in its place."""
    from recalign.commands.opened import open_adapter

    try:
        return open_adapter(params, chosen, catalogue)
    except RecalignError as error:
        raise RecalignError(
            f"{chosen}, which answers where --adapter names nothing, cannot: {error}; 'recalign rollback' or 'recalign "
            "promote' chooses another champion, and --adapter asks another one"
        ) from None


def _check_reads_text(chosen: str, recommender: "AnyRecommender") -> None:
    """Refuse new items for a fusion whose parts know train events alone: all would tie, in the order of the file."""
    from recalign.ranking.fused import FusedRecommender

    if isinstance(recommender, FusedRecommender) and not recommender.reads_text:
        raise RecalignError(
            f"--items holds new items, and nothing of {chosen} that weighs among them reads text "
            f"({recommender.fusion.sentence}); add content to recommenders.systems, run 'dvc repro' and register the "
            "fusion again, or name a language model with --adapter"
        )


def _check_something_made(params: Params) -> None:
    """Refuse at once where nothing was registered or evaluated: a look at files, before MLflow is loaded."""
    if not _registry_named() and not (RANKS / SYSTEMS).is_file():
        raise RecalignError(
            f"registry.model {params.registry.model!r} has no champion and no challenger, and this project has "
            "evaluated no adapter; run 'dvc repro', then 'recalign register'"
        )


def default_adapter(params: Params) -> str:
    """The registry's champion or challenger; where nothing is registered, the best adapter of this project."""
    if not _registry_named():
        return _best_of_project(params)
    from recalign.registry.promotion import NothingRegisteredError, current

    try:
        live = current(params)
    except NothingRegisteredError:
        if not (RANKS / SYSTEMS).is_file():
            raise
        return _best_of_project(params)
    return f"models:/{params.registry.model}/{live.version}"


def _registry_named() -> bool:
    """Whether there is a registry to ask: MLflow takes two seconds to load, and would make an empty one."""
    return "MLFLOW_TRACKING_URI" in os.environ or REGISTRY.is_file()


def _best_of_project(params: Params) -> str:
    from recalign.ranking.package import adapter_folder, best_objective

    best = adapter_folder(system_of(best_objective(params, read_systems(RANKS / SYSTEMS))), Path())
    log.info("nothing is registered yet; the best adapter of this project, %s, answers", best)
    return str(best)


def _print(answer: "Answer", history: Sequence[str], system: str) -> None:
    import rich.box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    recent = ", ".join(history[-SHOWN_HISTORY:])
    console.print(f"Liked{' lately' if len(history) > SHOWN_HISTORY else ''}: {escape(recent)}")
    if answer["unknown"]:
        console.print(f"Not in the catalogue, read as text: {escape(', '.join(answer['unknown']))}")
    if answer["preference"]:
        shown, rest = answer["evidence"][-SHOWN_EVIDENCE:], len(answer["evidence"]) - SHOWN_EVIDENCE
        evidence = f" (from {', '.join(shown)}{f' and {rest} more' if rest > 0 else ''})" if shown else ""
        console.print(f"Inferred preference, by {answer['inferred_by']}: {escape(answer['preference'] + evidence)}")
    for spoken in answer.get("edits", ()):
        console.print(f"Your edit {escape(one_line(spoken))}")
    console.print(f"Ranked by {escape(system)}:")
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("title")
    table.add_column("id", justify="right")
    table.add_column("score", justify="right")
    some_new = any("read_by" in item for item in answer["items"])
    if some_new:
        table.add_column("")
    for place, item in enumerate(answer["items"], start=1):
        told = [f"new item: read by {item['read_by']}" if "read_by" in item else ""] if some_new else []
        table.add_row(str(place), escape(item["title"]), str(item["item_id"]), f"{item['score']:.2f}", *told)
    console.print(table)
    console.print(SCORE)
