"""What a model answers when it is asked for a title, counted: the second view beside ranking.

ValidRatio is the share of answers that name exactly one candidate. Papers divide their hits by all rows or by the valid
ones (S-DPO, Chen et al. 2024, by all; the code of LLaRA, Liao et al. 2024, by valid ones), so both stand side by side.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet, write_parquet
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import Interval, bootstrap_intervals, of_share

FREE, FROM_CANDIDATES, FROM_CATALOGUE = "free", "held to the candidates", "held to the catalogue"
Matching = Literal["title", "substring"]  # the answer is a candidate's title · contains it, as in the papers
VALID = "valid"
ERRORS = NOT_A_CANDIDATE, FROM_HISTORY, SEVERAL, EMPTY = "not a candidate", "from the history", "several", "empty"
MODE, MATCHING, TEXT, OUTCOME, HIT = "mode", "matching", "text", "outcome", "hit"
SCHEMA = pa.schema(
    [
        (c.SYSTEM, pa.string()),
        (MODE, pa.string()),
        (MATCHING, pa.string()),
        (c.EXAMPLE, pa.string()),
        (c.USER, pa.int64()),
        (TEXT, pa.string()),
        (OUTCOME, pa.string()),
        (HIT, pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Answer:
    """One generated text and what it counts as under a matching rule; hit: it is valid and names the target."""

    system: str
    mode: str
    matching: Matching
    example_id: str
    user_id: int
    text: str
    outcome: str
    hit: bool


@dataclass(frozen=True)
class GenerationRow:
    """A system's answers in one mode under one matching rule, by `users` users; hit_valid is None where no answer is
    valid; error_shares are the errors over all answers."""

    system: str
    mode: str
    matching: str
    cases: int
    users: int
    valid_cases: int
    valid_users: int
    valid: Interval
    hit_all: Interval
    hit_valid: Interval | None
    errors: dict[str, int]
    error_shares: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        """What metrics.json holds."""
        return {
            "cases": self.cases,
            "valid_ratio": self.valid.as_dict(),
            "hit_over_all": self.hit_all.as_dict(),
            "hit_over_valid": self.hit_valid.as_dict() if self.hit_valid else None,
            "errors": self.errors,
        }


def judge(text: str, candidates: Sequence[str], history: Sequence[str], matching: Matching) -> tuple[str, int | None]:
    """(outcome, place of the candidate where it is valid) of a text's first line, letter case and blanks aside.

    By substring, "Rebecca Black" names both itself and the candidate "Black", and so is "several".
    """
    line = _plain(text.strip().split("\n")[0])
    if not line:
        return EMPTY, None
    named = [place for place, title in enumerate(candidates) if _names(line, title, matching)]
    if len(named) == 1:
        return VALID, named[0]
    if named:
        return SEVERAL, None
    return (FROM_HISTORY if any(_names(line, title, matching) for title in history) else NOT_A_CANDIDATE), None


def _names(line: str, title: str, matching: Matching) -> bool:
    plain = _plain(title)
    return plain == line if matching == "title" else bool(plain) and plain in line


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def generation_rows(answers: Sequence[Answer], resamples: int, seed: int) -> list[GenerationRow]:
    """One row a system, mode and matching rule, in the order of the answers; 95 % intervals clustered by user."""
    return [_row(*key, group, resamples, seed) for key, group in by_mode(answers).items()]


def by_mode(answers: Sequence[Answer]) -> dict[tuple[str, str, str], list[Answer]]:
    """The answers of each (system, mode, matching rule), in their order."""
    groups: dict[tuple[str, str, str], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.system, answer.mode, answer.matching), []).append(answer)
    return groups


def valid_and_hit(answers: Sequence[Answer]) -> Floats:
    """[B, 2] of 0 and 1: the answer is valid; it hits."""
    return np.array([[answer.outcome == VALID, answer.hit] for answer in answers], dtype=np.float64)


def _row(system: str, mode: str, matching: str, answers: list[Answer], resamples: int, seed: int) -> GenerationRow:
    def shares(values: Floats, rows: list[Answer]) -> list[Interval]:
        users = [row.user_id for row in rows]
        drawn = bootstrap_intervals(values, users, resamples, seed)
        return [of_share(interval, len(rows), len(set(users))) for interval in drawn]

    good = [answer for answer in answers if answer.outcome == VALID]
    kinds = Counter(answer.outcome for answer in answers)
    wrong = np.array([[answer.outcome == kind for kind in ERRORS] for answer in answers], dtype=np.float64)
    valid, hit, *errors = shares(np.hstack([valid_and_hit(answers), wrong]), answers)
    return GenerationRow(
        system,
        mode,
        matching,
        len(answers),
        len({answer.user_id for answer in answers}),
        len(good),
        len({answer.user_id for answer in good}),
        valid,
        hit,
        shares(valid_and_hit(good)[:, 1:], good)[0] if good else None,
        {kind: kinds[kind] for kind in ERRORS},
        dict(zip(ERRORS, errors, strict=True)),
    )


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write generations.parquet, in the given order."""
    write_parquet(path, pa.Table.from_pylist([vars(answer) for answer in answers], schema=SCHEMA))


def read_answers(path: Path) -> list[Answer]:
    """Read generations.parquet as `write_answers` wrote it."""
    return [Answer(**row) for row in read_parquet(path).to_pylist()]
