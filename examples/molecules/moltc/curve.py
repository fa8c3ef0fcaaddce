"""A learning curve: stage 2 and every baseline on more and more training pairs, all on the same test pairs."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moltc import project, report, training
from moltc.baselines import BASELINES, Fitting, fitted
from moltc.params import Params
from moltc.predictions import predict
from moltc.prepared import PairSet
from recalign.common import columns as c
from recalign.common.artifacts import digest_of, folder_digest, write_text
from recalign.common.errors import RecalignError
from recalign.evaluation.significance import Interval, plain

CURVE = Path("curve.csv")
COLUMNS = ("pairs", "system", "view", "metric", "value", "low", "high")


def write_curve(params: Params, sizes: Sequence[int], root: Path = Path()) -> list[dict[str, Any]]:
    """Train on each number of pairs, from what stage 1 left; reports/curve.csv has a row a size, system, view, metric.

    What was trained stays in data/cache/curve. Raises RecalignError for a size below 2 or above the training pairs.
    """
    pairs = PairSet.read(root / project.PREPARED)
    most = len(pairs.of(c.TRAIN))
    for size in sizes:
        if not 2 <= size <= most:
            raise RecalignError(f"curve: {size} pairs were asked for; training has 2 to {most}")
    views = report.test_views(params, pairs)
    rows: list[dict[str, Any]] = []
    for size in sorted(set(sizes)):
        own = params.model_copy(update={"subset": params.subset.model_copy(update={"train": size})})
        systems = _systems(own, pairs, views, root)
        for view, metrics in report.Figures(own, views, systems).metrics().items():
            rows += [
                {"pairs": size, "system": system, "view": view, "metric": metric,
                 **{key: figure[key] for key in COLUMNS[4:]}}
                for system, figures in metrics["systems"].items() for metric, figure in figures.items()
            ]  # fmt: skip
            for system, figures in metrics["systems"].items():
                told = ", ".join(f"{name} {plain(Interval(**figure))}" for name, figure in figures.items())
                print(f"{size:>7} {view:9} {system:20} {told}")
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(root / project.REPORTS / CURVE, text.getvalue())  # anew after each size: a kill keeps what is there
    return rows


def _systems(params: Params, pairs: PairSet, views: Mapping[str, PairSet], root: Path) -> report.Systems:
    """The language model and every baseline, on params.subset.train pairs."""
    train = training.subset(params, pairs, c.TRAIN)
    described = root / project.DESCRIBED
    told = [params.model_dump(mode="json"), pairs.digest, folder_digest(described)]
    out = root / project.CACHE / "curve" / digest_of(told)[:16]
    if not (out / "training.json").is_file():
        training.interact(params, pairs, root, out, described)
    opened = training.open_model(params, pairs, root / project.BASE, out)
    mean = float(train.labels.mean())
    systems = {report.GRAPHS: {view: predict(params, opened, own, mean).values for view, own in views.items()}}
    fit = Fitting(train, views[c.VALIDATION], params.graph.width, params.graph.layers, params.seed)
    for name in BASELINES:
        guess = fitted(name, fit)
        systems[name] = {view: guess(own) for view, own in views.items()}
    return systems
