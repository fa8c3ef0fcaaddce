"""`recalign promote` and `rollback`: a person moves the alias, after being told what speaks against it.

A version answers in a fresh process before the alias moves to it, as at a registration.
"""

import logging
from pathlib import Path

from recalign.common.errors import RecalignError
from recalign.params.load import Params
from recalign.registry import promotion
from recalign.registry.first_answer import first_answers
from recalign.registry.records import Records, records_of
from recalign.registry.tracking import connect, reached

log = logging.getLogger(__name__)
FORCE = "--force moves the alias all the same, and keeps with the version what it overruled"


def promote(params: Params, version: str, reason: str, *, force: bool = False, home: Path = Path()) -> None:
    """Make `version` the champion; the reason is kept with it. force: whatever speaks against it.

    Raises RecalignError for one that is not registered or is champion already, and without `force` for one that broke a
    guard when it was registered, or does not answer. A guard that was not judged refuses nothing.
    """
    client, name = connect(home), params.registry.model
    with reached(home):
        wanted = promotion.promotable(client, name, version, reason)
        champion = promotion.aliased(client, name, promotion.CHAMPION)
        records = records_of(client, name, wanted)
    _show(records, champion)
    if records.broken and not force:
        raise RecalignError(
            f"version {wanted} of {name} broke a guard against {records.against}: {records.broken}; no alias was "
            f"moved; {FORCE}"
        )
    silent = _silent(params, wanted, home, force=force)
    promotion.promote(params, wanted, reason, home, "; ".join(filter(None, (records.broken, silent))))


def rollback(params: Params, reason: str, *, force: bool = False, home: Path = Path()) -> None:
    """Make the previous champion the champion again. force: even if it does not answer.

    It shows what the guards said of that version and refuses none: it served before, and who rolls back leaves
    something worse. Raises RecalignError where there is none, and without `force` where it does not answer.
    """
    client, name = connect(home), params.registry.model
    with reached(home):
        *_, back, present = promotion.before_last(client, name, reason)
        records = records_of(client, name, back)
    _show(records, present)
    silent = _silent(params, back, home, force=force)
    promotion.rollback(params, reason, home, silent, back)


def _show(records: Records, champion: str | None) -> None:
    for line in records.lines(champion):
        log.info(line)


def _silent(params: Params, version: str, home: Path, *, force: bool) -> str:
    """Why a version does not answer in a fresh process, "" where it does. Raises RecalignError without `force`."""
    why = first_answers(params.registry.model, [version], [], home, home).silent
    if not why:
        return ""
    said = f"its logged package did not answer a request in a fresh process ({why})"
    if not force:
        raise RecalignError(f"version {version} of {params.registry.model}: {said}; no alias was moved; {FORCE}")
    log.warning("version %s: %s", version, said)
    return said
