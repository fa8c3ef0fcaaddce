"""Answers of a language model kept by the content of the question, so that a rerun asks only what is missing.

An answer is a JSON text. Each batch becomes a Parquet part of its own, written whole, so a kill loses one batch.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_parquet, write_parquet
from recalign.common.progress import track

log = logging.getLogger(__name__)
Question = TypeVar("Question")


def answer_all(
    store: Path | None,
    questions: Sequence[Question],
    keys: Sequence[str],
    ask: Callable[[list[Question]], list[str]],
    batch: int,
    what: str,
    keep: Callable[[str], bool] = bool,
) -> list[str]:
    """The answer to each question, read from `store` where its key is there, else asked for `batch` at a time.

    Without a store (a service, which answers who knows whom) nothing is kept, and nothing is said in the log.

    keys: one a question, equal only for questions with equal answers; ask: from questions to as many answers; keep:
    whether an answer may be read by later runs (one that failed is asked for again).
    """
    if store is None:
        answers = (ask([*questions[start : start + batch]]) for start in range(0, len(questions), batch))
        return [answer for part in answers for answer in part]
    known = _read(store)
    missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
    log.info("%s: %d read, %d inferred", what, len(set(keys)) - len(missing), len(missing))
    pending = list(missing.items())
    batches = [pending[start : start + batch] for start in range(0, len(pending), batch)]
    for part in track(batches, len(batches), what, "batches"):
        own = dict(zip((key for key, _ in part), ask([question for _, question in part]), strict=True))
        if kept := {key: answer for key, answer in own.items() if keep(answer)}:
            write_parquet(store / f"part-{digest_of(sorted(kept))[:32]}.parquet", _table(kept))
        known |= own
    return [known[key] for key in keys]


def _read(store: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    for part in sorted(store.glob("part-*.parquet")):
        table = read_parquet(part)
        known |= dict(zip(table[c.KEY].to_pylist(), table[c.VALUE].to_pylist(), strict=True))
    return known


def _table(answers: dict[str, str]) -> pa.Table:
    return pa.table({c.KEY: pa.array(answers.keys(), pa.string()), c.VALUE: pa.array(answers.values(), pa.string())})
