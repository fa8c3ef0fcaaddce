"""`recalign simulate`: write the simulated world into data/raw/simulated, which DVC tracks by data/raw/films.dvc."""

import logging
from pathlib import Path

from recalign.common import artifacts
from recalign.common.errors import RecalignError
from recalign.data import simulator
from recalign.params.load import Params
from recalign.project import RAW

log = logging.getLogger(__name__)


def simulate(params: Params, raw: Path = RAW / "simulated", days: int | None = None) -> None:
    """Write films.csv, events.csv (user_id, item_id, timestamp in ISO, UTC) and tastes.json into `raw`.

    `days` of log, or simulator.days. The same seed with more days only appends to the events and the tastes.
    """
    world = params.simulator
    days = world.days if days is None else days
    if days < 1:
        raise RecalignError(f"--days is {days}; a log needs at least one day")
    tastes, events = simulator.simulate(world.users, days, world.seed)
    rows = simulator.with_planted_faults(events)
    with artifacts.folder(raw) as folder:
        artifacts.write_text(folder / "films.csv", simulator.films_csv())
        lines = [f"{user},{item},{time.isoformat()}\n" for user, item, time in rows]
        artifacts.write_text(folder / "events.csv", "user_id,item_id,timestamp\n" + "".join(lines))
        artifacts.write_text(folder / "tastes.json", simulator.tastes_json(tastes))
    log.info(
        "%s: %d events of %d people over %d days, %d of them planted faults (doubled rows and an unknown film)",
        raw,
        len(rows),
        len(tastes),
        days,
        len(rows) - len(events),
    )
