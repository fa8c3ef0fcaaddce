"""Command profile: what is claimed of a user and why; with --edit, what the user says of it, and what that changes.

With --export the claims of all users go to a file.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from recalign.commands.recommend import user_history
from recalign.common import columns as c
from recalign.common.artifacts import read_parquet, write_json, write_parquet
from recalign.common.console import print_json
from recalign.common.errors import RecalignError
from recalign.common.locks import held
from recalign.data.ids import RawIds
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import (
    COUNTING,
    Claim,
    Profile,
    Statement,
    closed_statements,
    every_statement,
    read_profiles,
    strongest_lifts,
)
from recalign.preferences.tastes.ledger import (
    LEDGER,
    Action,
    Edit,
    Entry,
    Ledger,
    Value,
    Wishes,
    ledger_of,
    parse_edit,
    read_edits,
    with_edit,
    write_edits,
)
from recalign.preferences.tastes.text import one_line
from recalign.project import Project

logger = logging.getLogger(__name__)  # `log` is the log of interactions here
SHOWN = 6  # titles printed a claim
LOCK_SECONDS = 60.0  # an edit is written in milliseconds
RANKERS = ("ease", "item_knn", "popularity")  # the first of them that the project has fitted shows what an edit changes
EXPORTS = (".parquet", ".json")
EXPORTED = pa.schema(
    [("user", pa.string()), ("status", pa.string()), ("claim", pa.string()), ("attribute", pa.string()),
     ("value", pa.string()), ("score", pa.float64()), ("by", pa.string()), ("replaces", pa.string()),
     ("supports", pa.list_(pa.string()))]
)  # fmt: skip


@dataclass(frozen=True)
class _Log:
    """What ledgers are made from. statements: what counting may infer, as `recommend` counts; sayable: what a user may
    say; made: inferred profiles by (split, user's number)."""

    params: Params
    items: Items
    users: RawIds
    raw_items: RawIds
    statements: list[Statement]
    sayable: list[Statement]
    made: Mapping[tuple[str, int], Profile]

    @classmethod
    def read(cls, params: Params, project: Project) -> "_Log":
        """Of a project; another engine's profiles than profiles.engine are not read, and a warning says so."""
        items, noun = Items.read(project.prepared), Prepared(project.prepared).noun
        there, engine = (project.profiles / "profiles.parquet").is_file(), params.profiles.engine
        made = read_profiles(project.profiles, engine) if there else {}
        if there and not made and engine != COUNTING:
            logger.warning(
                "%s holds no profile by profiles.engine %r, so claims are by counting; 'dvc repro profiles' makes some",
                project.profiles, engine,
            )  # fmt: skip
        return cls(
            params, items, RawIds.of_users(project.interactions), RawIds.of_items(project.interactions),
            closed_statements(items.shown, items.popularity, noun), every_statement(items, noun),
            made,
        )  # fmt: skip

    def ledger(self, user: str, history: Sequence[int], edits: Sequence[Edit]) -> Ledger:
        """Claims of the newest split; of a user without a profile those that counting makes."""
        number = self.users.number(user)
        for split in (c.TEST, c.VALIDATION, c.TRAIN):
            if number is not None and (split, number) in self.made:
                own = self.made[split, number]
                return ledger_of(own.claims, own.engine, history, self.sayable, edits)
        lifts = strongest_lifts(self.statements, history, self.params.profiles.claims)
        claims = [Claim(s.phrase, s.attribute, s.value, round(lift, 3)) for s, lift in lifts]
        return ledger_of(claims, COUNTING, history, self.sayable, edits)


def profile(
    params: Params, user: str | None, *, edit: Sequence[str] | None = None, export: Path | None = None, k: int = 10,
    as_json: bool = False, root: Path = Path(),
) -> None:  # fmt: skip
    """Print the ledger of a user, given by the log's own id; `edit` changes it first (`parse_edit`).

    Claims are those of the stage profiles (profiles.engine, the newest split), of a user without one by counting.
    export: a .parquet or .json file of the claims of this user, or of everybody in the log, in place of the print.
    Raises RecalignError for an unknown user, k below 1, an edit that names an unknown attribute or value, or an export
    of another kind; nothing is written then.
    """
    if k < 1:
        raise RecalignError(f"-k is {k}; 1 or more is allowed")
    _check_asked(user, edit, export)
    project = Project(root)
    log = _Log.read(params, project)
    edits = read_edits(root / LEDGER)
    if export is not None:
        _export(log, project, edits, user, export)
        return
    assert user is not None
    history = user_history(project.prepared, user, log.users)
    before = after = edits.get(user, ())
    asked = parse_edit(edit, log.sayable, before) if edit else None
    if asked:
        with_edit(before, *asked)  # refused before anything is ranked
    system, ranked = _ranked(project, log.items, history)
    if asked:
        before, after = _edited(project, user, *asked)
    lists = [Wishes.of(own, log.sayable).reordered(ranked)[:k] for own in (before, after)]
    told = _told(user, log.ledger(user, history, after), log.items, log.raw_items) | {"ranked_by": system}
    named = [
        [{"item_id": log.raw_items.shown(i), "title": one_line(log.items.titles[i])} for i in row] for row in lists
    ]
    told |= {"before": named[0], "after": named[1]} if edit else {"items": named[0]}
    print_json(told) if as_json else _print(told)


def _edited(
    project: Project, user: str, action: Action, values: Sequence[Value]
) -> tuple[tuple[Edit, ...], tuple[Edit, ...]]:
    """The user's edits before and after one more, which is written beside all that was written meanwhile."""
    ledger, lock = project.root / LEDGER, project.cache / "ledger.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with held(
        lock, "recalign profile --edit", LOCK_SECONDS, "run it again when that one has ended", on_wait=logger.info
    ):
        edits = read_edits(ledger)
        before = edits.get(user, ())
        after = with_edit(before, action, values)
        write_edits(ledger, {**edits, user: after})
    return before, after


def _check_asked(user: str | None, edit: Sequence[str] | None, export: Path | None) -> None:
    if user is None and export is None:
        raise RecalignError("name a USER, or give --export FILE for the claims of everybody")
    if export is None:
        return
    if edit:
        raise RecalignError("--edit and --export are two commands: edit first, then export")
    if export.suffix not in EXPORTS:
        raise RecalignError(f"--export is {export}, which ends in {export.suffix!r}; allowed are {', '.join(EXPORTS)}")


def _export(log: _Log, project: Project, edits: Mapping[str, Sequence[Edit]], user: str | None, out: Path) -> None:
    """Write a row a claim, the users in the order of their numbers."""
    if user is not None:
        histories = {user: user_history(project.prepared, user, log.users)}
    else:
        events = read_parquet(project.prepared / "events.parquet", [c.USER, c.ITEM, c.POSITION])
        ordered = events.sort_by([(c.USER, "ascending"), (c.POSITION, "ascending")])
        histories = {}
        for number, item in zip(ordered[c.USER].to_pylist(), ordered[c.ITEM].to_pylist(), strict=True):
            histories.setdefault(str(log.users.shown(number)), []).append(item)
    rows = [
        row
        for own, history in histories.items()
        for row in _rows(own, log.ledger(own, history, edits.get(own, ())), log.raw_items)
    ]
    if out.suffix == ".json":
        write_json(out, rows)
    else:
        write_parquet(out, pa.Table.from_pylist(rows, EXPORTED))
    print(f"{len(rows):,} claims of {len(histories):,} user{'' if len(histories) == 1 else 's'} -> {out}")


def _rows(user: str, ledger: Ledger, raw: RawIds) -> Iterator[dict[str, Any]]:
    for forbidden, entries in ((False, ledger.entries), (True, ledger.forbidden)):
        for entry in entries:
            yield {
                "user": user, "status": "forbidden" if forbidden else "edited" if entry.by == "edit" else "inferred",
                "claim": entry.statement, "attribute": entry.about.attribute, "value": entry.about.value,
                "score": entry.score, "by": entry.by, "replaces": entry.replaces,
                "supports": [str(raw.shown(item)) for item in entry.supports],
            }  # fmt: skip


def _ranked(project: Project, items: Items, history: Sequence[int]) -> tuple[str | None, list[int]]:
    """The catalogue without the history, best first, by the first of RANKERS that is fitted; empty without any."""
    from recalign.recommenders.recommender import Request, top
    from recalign.recommenders.roster import load_fitted, refusal

    for name in RANKERS:
        folder = project.baselines / name
        if folder.is_dir() and refusal(folder) is None:
            request = Request(None, tuple(history))
            best = top(load_fitted(name, folder, items), items, [request], len(items.ids))[0]
            return name, [scored.item_id for scored in best if scored.item_id not in items.hidden]
    return None, []


def _told(user: str, ledger: Ledger, items: Items, raw: RawIds) -> dict[str, Any]:
    def line(entry: Entry) -> dict[str, Any]:
        supports = [{"item_id": raw.shown(item), "title": one_line(items.titles[item])} for item in entry.supports]
        return {
            "claim": entry.statement, "attribute": entry.about.attribute, "value": entry.about.value,
            "score": entry.score, "by": entry.by, "replaces": entry.replaces, "supports": supports,
        }  # fmt: skip

    return {
        "user": user,
        "claims": [line(entry) for entry in ledger.entries],
        "forbidden": [line(entry) for entry in ledger.forbidden],
        "edits": [str(edit) for edit in ledger.edits],
    }


def _shortened(titles: Sequence[str]) -> str:
    """The latest titles; --json has all of them."""
    rest = len(titles) - SHOWN
    return f"{', '.join(titles[-SHOWN:]) or 'nothing in the history'}{f' and {rest} more' if rest > 0 else ''}"


def _print(told: dict[str, Any]) -> None:
    print(f"What is claimed of user {told['user']}:")
    for claim in told["claims"]:
        score = "" if claim["score"] is None else f", {claim['score']:+.2f}"
        place = f", in place of {claim['replaces']}" if claim["replaces"] else ""
        print(f"  {claim['claim']} ({claim['attribute']}={claim['value']}; by {claim['by']}{score}{place})")
        print(f"    from: {_shortened([item['title'] for item in claim['supports']])}")
    if not told["claims"]:
        print("  nothing")
    for claim in told["forbidden"]:
        print(f"  forbidden: {claim['claim']} ({claim['attribute']}={claim['value']})")
    if told["edits"]:
        print(f"Edits, which 'undo' takes back: {'; '.join(told['edits'])}")
    if told["ranked_by"] is None:
        print("No recommender is fitted yet, so no list is shown; 'dvc repro baselines@item_knn' fits one.")
        return
    for key, title in (("items", "Recommended"), ("before", "Before the edit"), ("after", "After it")):
        if key in told:
            print(f"{title}, by {told['ranked_by']}: {', '.join(item['title'] for item in told[key])}")
