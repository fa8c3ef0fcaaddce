"""`recalign simulate`: write the simulated world into data/raw/simulated, which DVC tracks by data/raw/films.dvc."""

import logging
from pathlib import Path

from recalign import artifacts
from recalign.data import simulator
from recalign.layout import RAW
from recalign.params import Params

log = logging.getLogger(__name__)


def simulate(params: Params, raw: Path = RAW / "simulated") -> None:
    """Write films.csv, events.csv (user_id, item_id, timestamp in ISO, UTC) and tastes.json into `raw`.

    The same seed with more days only appends to events.csv and tastes.json's list.
    """
    world = params.simulator
    tastes, events = simulator.simulate(world.users, world.days, world.seed)
    rows = simulator.with_planted_faults(events)
    with artifacts.folder(raw) as folder:
        artifacts.write_text(folder / "films.csv", simulator.films_csv())
        lines = [f"{user},{item},{time.isoformat()}\n" for user, item, time in rows]
        artifacts.write_text(folder / "events.csv", "user_id,item_id,timestamp\n" + "".join(lines))
        artifacts.write_text(folder / "tastes.json", simulator.tastes_json(tastes))
    log.info(
        "%s: %d events of %d people over %d days, %d of them planted faults (doubled rows and an unknown film)",
        raw, len(rows), len(tastes), world.days, len(rows) - len(events),
    )
