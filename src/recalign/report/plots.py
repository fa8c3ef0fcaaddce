"""Figures as SVG text: the same data gives the same bytes, and ink takes the colour of the page that shows them.

Training curves: what a run wrote to its curve.csv, row by row.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recalign.common.errors import RecalignError
from recalign.common.html import Drawing
from recalign.evaluation.metrics import LABELS, chance
from recalign.evaluation.scorecard import Scorecard
from recalign.evaluation.systems import LANGUAGE_MODELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


INK = "#010203"  # stands for the page's text colour until the SVG is written
ACCENT, OTHER, THIRD = "#d9730d", "#3b82c4", "#4c9f70"  # readable on white and on black
STYLE: Any = {  # matplotlib types the keys of its settings one by one
    "svg.hashsalt": "recalign",  # ids of clip paths would be random otherwise
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(STYLE):  # artists take their colours when they are made, the file its ids when written
        yield


@_style()
def interval_plot(card: Scorecard, candidates: int, metric: str = "ndcg_at_10") -> Drawing:
    """Each system's metric with its 95 % interval, best on top, beside what a random order of `candidates` expects."""
    rows = sorted(card.rows, key=lambda row: (row.metrics[metric].value, row.system))
    figure, (axes,) = _figure(1, height=0.6 + 0.36 * len(rows))
    for place, row in enumerate(rows):
        interval, colour = row.metrics[metric], ACCENT if row.kind in LANGUAGE_MODELS else OTHER
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2)
        axes.plot([interval.value], [place], "o", color=colour)
    axes.set_yticks(range(len(rows)), [row.system for row in rows])
    axes.set_xlabel(f"{LABELS[metric]}, 95 % interval over users (dashed: random order)")
    axes.axvline(chance(metric, candidates), color=INK, linestyle="--", linewidth=1)
    told = "; ".join(f"{row.system} {row.metrics[metric].value:.3f}" for row in reversed(rows))
    return Drawing("metrics", f"{LABELS[metric]} of every system", f"{LABELS[metric]}: {told}.", _svg(figure))


@_style()
def learning_plot(curves: Sequence[Curve]) -> Drawing:
    """Training and validation loss of each stage over the examples it has seen."""
    figure, panels = _figure(len(curves))
    for axes, curve in zip(panels, curves, strict=True):
        _line(axes, curve, "loss", color=OTHER, linewidth=1, label="training")
        axes.plot(*curve.points("validation_loss"), "o-", color=ACCENT, label="validation")
        axes.set_title(curve.stage)
        axes.set_xlabel("examples")
        axes.set_ylabel("loss")
        axes.legend()
    told = "; ".join(f"{curve.stage}: {_first_and_last(curve, 'validation_loss')}" for curve in curves)
    return Drawing("training", "Learning curves", f"Loss over examples. Validation loss, {told}.", _svg(figure))


@_style()
def drift_plot(curve: Curve) -> Drawing:
    """How far an aligned model's log-probs have moved from the reference's, and how often the chosen one leads."""
    figure, (drift, accuracy) = _figure(2)
    _line(drift, curve, "chosen_logp_drift", color=THIRD, label="chosen")
    _line(drift, curve, "rejected_logp_drift", color=ACCENT, label="rejected")
    drift.set_ylabel("log-prob minus the reference's (nats)")
    drift.legend()
    _line(accuracy, curve, "reward_accuracy", color=OTHER)
    accuracy.set_ylim(0, 1)
    accuracy.set_ylabel("reward accuracy")
    for axes in (drift, accuracy):
        axes.set_xlabel("examples")
    alt = (
        f"{curve.stage}: log-prob of chosen titles {_first_and_last(curve, 'chosen_logp_drift')}, "
        f"of rejected ones {_first_and_last(curve, 'rejected_logp_drift')}, "
        f"reward accuracy {_first_and_last(curve, 'reward_accuracy')}."
    )
    return Drawing(f"drift-{curve.stage}", f"Drift of log-probs while training {curve.stage}", alt, _svg(figure))


@_style()
def cost_plot(card: Scorecard, seconds: Mapping[str, float], metric: str = "ndcg_at_10") -> Drawing:
    """Each system's metric with its 95 % interval over its `seconds` of fitting, on a logarithmic axis."""
    figure, (axes,) = _figure(1, height=3.4)
    rows = sorted((row for row in card.rows if row.system in seconds), key=lambda row: seconds[row.system])
    for place, row in enumerate(rows):
        interval, colour = row.metrics[metric], ACCENT if row.kind in LANGUAGE_MODELS else OTHER
        at = max(seconds[row.system], 0.1)
        axes.plot([at, at], [interval.low, interval.high], color=colour, linewidth=2)
        axes.plot([at], [interval.value], "o", color=colour)
        beside = (6, (4, -11)[place % 2])  # neighbours of one height stay legible
        axes.annotate(row.system, (at, interval.value), xytext=beside, textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("seconds of fitting (0.1 and below stand at 0.1)")
    axes.set_ylabel(LABELS[metric])
    told = "; ".join(f"{row.system} {row.metrics[metric].value:.3f} for {seconds[row.system]:,.1f} s" for row in rows)
    return Drawing("cost", f"Cost against {LABELS[metric]}", f"{told}.", _svg(figure))


@_style()
def planted_plot(people: Sequence[tuple[str, Set[str], Set[str]]], attribute: str) -> Drawing:
    """Planted (rings) against learned (dots) values of an attribute, a row a person: (label, planted, learned).

    A dot in a ring was learned rightly, an empty ring was missed, a dot alone is wrong.
    """
    values = sorted({value for _, planted, learned in people for value in planted | learned})
    figure, (axes,) = _figure(1, height=1.4 + 0.26 * len(people))
    for row, (_, planted, learned) in enumerate(people):
        rings, dots = ([values.index(value) for value in sorted(own)] for own in (planted, learned))
        axes.scatter(rings, [row] * len(rings), s=110, facecolors="none", edgecolors=OTHER, linewidths=2)
        axes.scatter(dots, [row] * len(dots), s=26, color=ACCENT)
    axes.set_xticks(range(len(values)), values, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(people)), [label for label, _, _ in people])
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.invert_yaxis()
    right = sum(len(planted & learned) for _, planted, learned in people)
    total, claimed = (sum(len(own[place]) for own in people) for place in (1, 2))
    alt = (
        f"Rings: planted, dots: learned. Of {total} planted values of {len(people)} users {right} were learned; "
        f"{claimed - right} of {claimed} claims are wrong."
    )
    return Drawing("planted", f"Learned against planted {attribute}", alt, _svg(figure))


@_style()
def strength_plot(curves: Mapping[str, Sequence[tuple[float, float, bool]]], by: str) -> Drawing:
    """NDCG@10 over MGU, a line a system; a curve is (MGU, NDCG@10, whether it was chosen) a strength, from none on."""
    figure, (axes,) = _figure(1, height=3.4)
    for place, (name, points) in enumerate(curves.items()):
        colour, dashes = (OTHER, ACCENT, THIRD)[place % 3], ("-", "--", ":")[place // 3 % 3]
        axes.plot([p[0] for p in points], [p[1] for p in points], dashes, color=colour, linewidth=1, label=name)
        for mgu, ndcg, chosen in points:
            axes.plot([mgu], [ndcg], "o", color=colour, markersize=7 if chosen else 3)
    axes.set_xlabel(f"MGU by {by} (0: fair), validation cases")
    axes.set_ylabel("NDCG@10, whole catalogue")
    axes.legend(fontsize=8)
    told = "; ".join(
        f"{name} MGU {points[0][0]:.3f} → {chosen[0]:.3f}, NDCG@10 {points[0][1]:.3f} → {chosen[1]:.3f}"
        for name, points in curves.items()
        for chosen in points
        if chosen[2]
    )
    return Drawing("fairness", "NDCG@10 against unfairness, by strength of reranking", f"{told}.", _svg(figure))


def _line(axes: "Axes", curve: Curve, column: str, **style: Any) -> None:
    """A column over the examples; a run of one step has one point, which a line alone would not show."""
    examples, values = curve.points(column)
    axes.plot(examples, values, marker="o" if len(values) == 1 else None, **style)


def _first_and_last(curve: Curve, column: str) -> str:
    values = curve.points(column)[1]
    return f"from {values[0]:.3f} to {values[-1]:.3f}".replace("-", "−") if values else "not measured"


def _figure(panels: int, height: float = 3.0) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2 if panels > 1 else 5.4, height), layout="constrained")
    return figure, [figure.add_subplot(1, panels, place + 1) for place in range(panels)]


def _svg(figure: "Figure") -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").strip() + "\n"
