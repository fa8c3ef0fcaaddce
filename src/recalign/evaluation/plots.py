"""Figures as SVG text: the same data gives the same bytes, and ink takes the colour of the page that shows them."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recalign.evaluation.curves import Curve
from recalign.evaluation.ranking import LABELS, chance
from recalign.evaluation.scorecard import LLM, Scorecard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


@dataclass(frozen=True)
class Drawing:
    """A figure: name (of its file), title, alt (what it shows, in words) and svg (the element, without XML heading)."""

    name: str
    title: str
    alt: str
    svg: str


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
        interval, colour = row.metrics[metric], ACCENT if row.kind == LLM else OTHER
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
        axes.plot(*curve.points("loss"), color=OTHER, linewidth=1, label="training")
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
    drift.plot(*curve.points("chosen_logp_drift"), color=THIRD, label="chosen")
    drift.plot(*curve.points("rejected_logp_drift"), color=ACCENT, label="rejected")
    drift.set_ylabel("log-prob less the reference's (nats)")
    drift.legend()
    accuracy.plot(*curve.points("reward_accuracy"), color=OTHER)
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


def _first_and_last(curve: Curve, column: str) -> str:
    values = curve.points(column)[1]
    return f"from {values[0]:.3f} to {values[-1]:.3f}" if values else "not measured"


def _figure(panels: int, height: float = 3.0) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, [figure.add_subplot(1, panels, place + 1) for place in range(panels)]


def _svg(figure: "Figure") -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").strip() + "\n"
