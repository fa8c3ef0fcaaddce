"""Stage reference: the log-probs of the pairs' responses under align.start, computed where none are stored."""

import logging
import time
from pathlib import Path

from recalign.common import artifacts
from recalign.common.progress import WEIGHTS_MB, memory_mb, reading_forecast
from recalign.common.run_log import note_costs
from recalign.hybrid.prompts import open_start
from recalign.params.load import Params
from recalign.project import Project
from recalign.training.examples import read_preference_examples
from recalign.training.reference import Store, compute, keys_of, missing_examples, read_store, store_table

log = logging.getLogger(__name__)


def reference(params: Params, project: Project = Project()) -> None:
    """Write reference.parquet with exactly the log-probs that the pairs need; those of the earlier file are kept.

    A killed run keeps what it had computed up to `checkpoint_seconds` before. Raises RecalignError where there are no
    pairs or the adapter belongs to another base.
    """
    lm, builder = open_start(params, project)
    splits = read_preference_examples(params, project.prepared, project.pairs, builder)
    examples = [example for split in splits.values() for example in split]
    needed = {key for example in examples for key in keys_of(lm.digest, example)}
    store = {key: value for key, value in read_store(project.reference).items() if key in needed}
    log.info("reference log-probs: %d read, %d to compute", len(store), len(needed) - len(store))
    missing = missing_examples(store, lm.digest, examples)
    tokens, weights = sum(example.tokens for example in missing), memory_mb(lm.model)
    if missing:
        work = f"the titles of {len(missing):,} pairs"
        log.info(reading_forecast("reference", work, tokens, weights, project.costs))
    read, begun = len(store), time.monotonic()
    saved = begun
    for part in compute(lm.model, lm.digest, missing, params.align.micro_tokens):
        store |= part
        if time.monotonic() - saved >= params.checkpoint_seconds:
            _write(store, project.reference)
            saved = time.monotonic()
    spent = time.monotonic() - begun
    _write(store, project.reference)
    if missing:
        note_costs(
            project.reference, {"tokens_per_second": round(tokens / spent, 1), WEIGHTS_MB: weights}, project.costs
        )
    log.info("reference log-probs: %d read, %d computed", read, len(store) - read)


def _write(store: Store, out: Path) -> None:
    with artifacts.folder(out) as partial:
        artifacts.write_parquet(partial / "reference.parquet", store_table(store))
