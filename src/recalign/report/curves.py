"""Training curves: what a run wrote to its curve.csv, row by row."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recalign.common.errors import RecalignError


@dataclass(frozen=True)
class Curve:
    """The curve of one stage ("sft", "sdpo", …): numbers by column, None where a column was not measured."""

    stage: str
    rows: tuple[dict[str, float | None], ...]

    def points(self, column: str) -> tuple[list[float], list[float]]:
        """(examples seen, value) where the column was measured; empty where the stage has no such column."""
        measured = [(row["examples"], row.get(column)) for row in self.rows]
        pairs = [(float(x), float(y)) for x, y in measured if x is not None and y is not None]
        return [x for x, _ in pairs], [y for _, y in pairs]


def displacement(curve: Curve, kept: int | None = None) -> str | None:
    """A warning where likelihood was displaced: the chosen titles ended less likely than under the reference although
    they gained on the rejected ones, so that some other title took what both lost (Razin et al. 2024). None where not,
    or where the stage measures no drift. Both start at 0, since training starts from the reference; kept is the step
    whose weights were kept.
    """
    chosen, rejected = (curve.points(f"{which}_logp_drift")[1] for which in ("chosen", "rejected"))
    if not chosen or not rejected or chosen[-1] >= 0.0 or chosen[-1] <= rejected[-1]:
        return None
    of = "" if kept is None else f" Kept was step {kept} of {curve.rows[-1]['step']:.0f}."
    return (
        f"Likelihood displacement while training {curve.stage}: chosen titles lost {-chosen[-1]:.2f} nats of log-prob "
        f"although their margin over rejected ones grew by {chosen[-1] - rejected[-1]:.2f}; whatever took it is in no "
        f"pair. A smaller learning rate, a larger align.beta or fewer epochs hold it.{of}"
    )


def read_curve(stage: str, path: Path) -> Curve:
    """Read a curve.csv. Raises RecalignError naming the file and line where a value is no number."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; run 'dvc repro' to make it") from None
    rows = []
    for number, line in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            rows.append({name: float(value) if value else None for name, value in line.items()})
        except ValueError:
            raise RecalignError(f"{path}:{number} holds a value that is no number; 'dvc checkout' fixes it") from None
    if rows and "examples" not in rows[0]:
        raise RecalignError(f"{path} has no column 'examples'; 'dvc checkout' restores it")
    return Curve(stage, tuple(rows))


def to_csv(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Rows as CSV text with a heading; None is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
