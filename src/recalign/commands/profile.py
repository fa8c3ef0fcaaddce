"""Command profile: what is claimed of a user and why; with --edit, what the user says of it, and what that changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recalign.commands.recommend import user_history
from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.common.console import print_json
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.raw_ids import RawIds
from recalign.data.records import Items
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import COUNTING, Claim, read_profiles
from recalign.preferences.profiles.statements import Statement, closed_statements, strongest_lifts
from recalign.preferences.tastes.ledger import (
    Edit,
    Entry,
    Ledger,
    ledger_of,
    parse_edit,
    read_edits,
    reordered,
    with_edit,
    write_edits,
)
from recalign.preferences.tastes.text import one_line
from recalign.project import Project

DEPTH = 50  # best items among which those of an edited claim come first
SHOWN = 6  # titles printed a claim
LEDGER = Path("data/ledger")  # edits.json: written by this command alone
RANKERS = ("ease", "item_knn", "popularity")  # the first of them that the project has fitted shows what an edit changes


def profile(
    params: Params, user: str, *, edit: Sequence[str] | None = None, k: int = 10, as_json: bool = False,
    root: Path = Path(),
) -> None:  # fmt: skip
    """Print the ledger of a user, given by the log's own id; `edit` changes it first (`parse_edit`).

    Claims are those of the stage profiles (profiles.engine, the newest split), of a user without one by counting.
    Raises RecalignError for an unknown user, k below 1, or an edit that names an unknown attribute or value; nothing is
    written then.
    """
    if k < 1:
        raise RecalignError(f"-k is {k}; 1 or more is allowed")
    project = Project(root)
    items = Items.read(project.prepared)
    users, raw_items = RawIds.of_users(project.interactions), RawIds.of_items(project.interactions)
    history = user_history(project.prepared, user, users)
    statements = _statements(project, items)
    edits = read_edits(root / LEDGER)
    own = edits.get(user, ())
    claims, by = _claims(params, project, users.number(user), history, statements)
    before = ledger_of(claims, by, history, statements, own)
    after = before
    if edit:
        action, values = parse_edit(edit, statements)
        own = with_edit(own, action, values)
        after = ledger_of(claims, by, history, statements, own)
    system, ranked = _ranked(project, items, history)
    lists = [reordered(ranked, told, statements, DEPTH)[:k] for told in (before, after)]
    if edit:
        write_edits(root / LEDGER, {**edits, user: own})
    told = _told(user, after, items, raw_items) | {"ranked_by": system}
    named = [[{"item_id": raw_items.shown(i), "title": one_line(items.titles[i])} for i in row] for row in lists]
    told |= {"before": named[0], "after": named[1]} if edit else {"items": named[0]}
    print_json(told) if as_json else _print(told)


def _statements(project: Project, items: Items) -> list[Statement]:
    met = read_parquet(project.prepared / "events.parquet", [c.ITEM])[c.ITEM].value_counts()
    counts = dict(zip(met.field("values").to_pylist(), met.field("counts").to_pylist(), strict=True))
    return closed_statements(items.shown, counts, Prepared(project.prepared).noun)


def _claims(
    params: Params, project: Project, number: int | None, history: Sequence[int], statements: Sequence[Statement]
) -> tuple[list[Claim], str]:
    """The inferred claims and the engine; what another engine than profiles.engine inferred is not read."""
    engine = params.profiles.engine
    if number is not None and (project.profiles / "profiles.parquet").is_file():
        made = read_profiles(project.profiles, engine)
        for split in (c.TEST, c.VALIDATION, c.TRAIN):
            if (split, number) in made:
                return list(made[split, number].claims), engine
    lifts = strongest_lifts(statements, history, params.profiles.claims)
    return [Claim(s.phrase, s.attribute, s.value, round(lift, 3)) for s, lift in lifts], COUNTING


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

    def said(edit: Edit) -> str:
        return f"{edit.of} forbidden" if edit.to is None else f"{edit.of} changed to {edit.to}"

    return {
        "user": user,
        "claims": [line(entry) for entry in ledger.entries],
        "forbidden": [line(entry) for entry in ledger.forbidden],
        "edits": [said(edit) for edit in ledger.edits],
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
    if told["ranked_by"] is None:
        print("No recommender is fitted yet, so no list is shown; 'dvc repro baselines@item_knn' fits one.")
        return
    for key, title in (("items", "Recommended"), ("before", "Before the edit"), ("after", "After it")):
        if key in told:
            print(f"{title}, by {told['ranked_by']}: {', '.join(item['title'] for item in told[key])}")
