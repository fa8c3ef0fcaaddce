"""Log-probs that were computed before: a killed or repeated evaluation scores only what is new.

A file is named by the scorer's version and the digest of the model and of every token id that was scored, so an entry
can not be stale; the folder is a cache and may be deleted at any time.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from recalign.common.artifacts import read_parquet, write_parquet
from recalign.evaluation.metrics import Floats
from recalign.llm.scoring import SCORER

log = logging.getLogger(__name__)


def store_key(model_digest: str, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> str:
    """sha256 (hex) over scorer, model and all token ids: equal keys, equal log-probs on one machine."""
    running = hashlib.sha256(f"{SCORER} {model_digest}".encode())
    for prompt, group in zip(prompts, responses, strict=True):
        running.update(repr((list(prompt), [list(response) for response in group])).encode())
    return running.hexdigest()


def read_stored(folder: Path | None, key: str) -> Floats | None:
    """The stored matrix [B, C] under a key; None where there is no store or no such entry."""
    path = folder / f"{key}.parquet" if folder else None
    if path is None or not path.is_file():
        return None
    log.info("log-probs read from %s", folder)
    return np.array(read_parquet(path)["logprobs"].to_pylist(), dtype=np.float64)


def write_stored(folder: Path | None, key: str, logprobs: ArrayLike) -> None:
    """Store a matrix [B, C] under a key; does nothing where there is no store."""
    if folder:
        rows = pa.array(np.asarray(logprobs, dtype=np.float64).tolist(), pa.list_(pa.float64()))
        write_parquet(folder / f"{key}.parquet", pa.table({"logprobs": rows}))
