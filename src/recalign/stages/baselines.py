"""baselines: fit one ID recommender on train events, tuned there, and show it on validation."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recalign.common import artifacts
from recalign.common import columns as c
from recalign.common.errors import TooLargeError
from recalign.common.progress import ITEMS, WORK, fitting_forecast
from recalign.common.run_log import note_costs
from recalign.data.prepared import Prepared
from recalign.data.records import Items, read_cases
from recalign.evaluation.metrics import LABELS, draw_lots, metric_values, target_ranks
from recalign.params.load import Params
from recalign.params.recommenders import RecommenderName
from recalign.project import Project
from recalign.recommenders.content import hidden_cases
from recalign.recommenders.recommender import Recommender, Request
from recalign.recommenders.roster import fit, known, write_refusal

log = logging.getLogger(__name__)
MANIFEST = "uniform"
SHOWN = ("hr_at_1", "ndcg_at_10")
SEQUENCE_MODELS = ("sasrec", "gru4rec", "caser", "mcrl", "dreamrec")  # the tuned ones say themselves what they will do
SHOWN_CASES = 2000  # validation cases of the line that is logged: more would cost, and change nothing


def baselines(params: Params, system: RecommenderName, project: Project = Project()) -> None:
    """Fit a recommender on train events; write it and its tuning.json into data/baselines/<system>.

    What a sequence model learned from is noted, so that the next run can say beforehand what it will take.
    One that cannot be fitted on a catalogue of this size leaves only the reason there: the others go on.
    Raises RecalignError for a system that is none, or that cannot be fitted on this source.
    """
    known(system, "system")
    catalogue = Items.read(project.prepared)
    clock = Prepared(project.prepared).clock
    train = artifacts.read_parquet(project.prepared / "events.parquet", filters=pc.field(c.SPLIT) == c.TRAIN)
    if system in SEQUENCE_MODELS:
        log.info(_forecast(params, system, len(train), len(catalogue.trained.ids), project.costs))
    try:
        hidden = hidden_cases(project.prepared, train, params.seed) if known(system, "system").reads_new else None
        met = _met_in_training(project.prepared, clock)
        recommender, tuning = fit(system, catalogue, train, clock, params, met, hidden)
    except TooLargeError as error:
        with artifacts.folder(project.baselines / system) as folder:
            write_refusal(folder, str(error))
        log.warning("%s is left out: %s", system, error)
        return
    with artifacts.folder(project.baselines / system) as folder:
        recommender.save(folder)
        artifacts.write_json(folder / "tuning.json", tuning)
    if system in SEQUENCE_MODELS:
        note_costs(project.baselines / system, _work(params, len(train), len(catalogue.trained.ids)), project.costs)
    log.info("%s on validation (%s candidates): %s", system, MANIFEST, _figures(recommender, project.prepared))


def _work(params: Params, events: int, items: int) -> dict[str, float]:
    return {WORK: events * params.recommenders.next_item.epochs, ITEMS: items}


def _forecast(params: Params, system: str, events: int, items: int, notes: Path) -> str:
    """What a sequence model will learn; of its memory the weights with Adam's two means and gradients, and the scores
    of a batch with theirs, which the full loss and MCRL's values compute for the whole catalogue."""
    asked = params.recommenders.next_item
    scored = items if asked.loss == "full" or system == "mcrl" else asked.negatives
    cells = 4 * items * asked.dimension + 2 * asked.batch * asked.max_history * scored
    work = (
        f"{events:,} train events, {items:,} items, at most {asked.epochs} epochs to choose how many, and as many as "
        "were best on all events"
    )
    return fitting_forecast(f"baselines@{system}", work, events * asked.epochs, items, 4 * cells / 1e6, notes)


def _met_in_training(prepared: Path, clock: bool) -> pa.Table:
    """What users met before validation begins; without a clock everything, since users are split and not times."""
    early = None
    if clock:
        ends = Prepared(prepared).cutoff(c.VALIDATION)
        early = pc.field(c.TIMESTAMP) < pa.scalar(ends, pa.timestamp("us"))
    return artifacts.read_parquet(prepared / "met.parquet", [c.USER, c.ITEM], early)


def _figures(recommender: Recommender, prepared: Path) -> str:
    cases = read_cases(prepared, c.VALIDATION, MANIFEST, SHOWN_CASES)
    requests = [Request(case.example.user_id, case.example.history, case.example.cutoff) for case in cases]
    lists = [list(case.candidates) for case in cases]
    lots = draw_lots([case.example.example_id for case in cases], lists)
    ranks = target_ranks(recommender.scores(requests, lists).numpy(), [case.target_index for case in cases], lots)
    return ", ".join(f"{LABELS[metric]} {metric_values(metric, ranks).mean():.3f}" for metric in SHOWN)
