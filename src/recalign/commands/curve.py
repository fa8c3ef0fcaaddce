"""A short learning curve: what SFT reaches on few histories, and what all of them would give if it went on like that.

NDCG@10 of warm validation cases by the number of training histories, and by how often they are read. For each number of
epochs a straight line in the logarithm of the histories is put through the points (least squares), and read at all
histories: a guess with the interval of the cases alone, which says nothing of whether the line stays straight. Test is
never looked at.
"""

import csv
import io
import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recalign.common import columns as c
from recalign.common.artifacts import digest_of, folder_digest, read_json
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import Items, longest_histories, read_outlines
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import Interval, bootstrap_interval
from recalign.llm.model.files import IDENTITY
from recalign.params.load import Params
from recalign.params.recommenders import RecommenderName
from recalign.preferences.profiles.profiles import profile_texts
from recalign.project import Project
from recalign.ranking.language_model import Setting, open_recommender
from recalign.ranking.recommenders import open_recommender as open_fitted
from recalign.ranking.trial import UNIFORM, read_trial, scores_of
from recalign.stages.baselines import baselines
from recalign.stages.sft import sft

log = logging.getLogger(__name__)
FEWEST = 2  # points that a line goes through
SYSTEM = "llm-sft"
BESIDE: tuple[RecommenderName, ...] = ("popularity", "item_knn")  # on the same cases


@dataclass(frozen=True)
class Point:
    """One SFT run. seconds: of training and ranking, 0 where both were there; best_step: the one that was kept."""

    histories: int
    epochs: int
    ndcg_at_10: Interval
    best_step: int
    seconds: float


@dataclass(frozen=True)
class Trend:
    """Of the points of one number of epochs: a doubling's gain and the guess at all histories, 95 % over users."""

    epochs: int
    doubling: Interval
    at_all: Interval


@dataclass(frozen=True)
class Curve:
    """points and trends, by epochs and histories; every: all training histories there are.

    beside: NDCG@10 of ID recommenders on the same cases.
    """

    cases: int
    users: int
    points: tuple[Point, ...]
    beside: dict[str, float]
    trends: tuple[Trend, ...]
    every: int


def learning_curve(
    params: Params, project: Project, histories: Sequence[int], epochs: Sequence[int] | None = None
) -> Curve:
    """Train on each number of histories, the longest of each user's as stage sft, and rank validation cases.

    epochs: passes over them, one training run a number and each with a schedule of its own; None: sft.epochs. Adapters
    and log-probs stay in data/cache/curve, so that a run that was stopped goes on. Raises RecalignError where there is
    no base model, fewer than two different numbers of histories are left, or a number of epochs is below 1.
    """
    if not (project.base / IDENTITY).is_file():
        raise RecalignError(f"{project.base} holds no base model; run 'dvc repro base' first")
    outlines = longest_histories(read_outlines(project.prepared, c.TRAIN, seed=params.seed), params.seed)
    asked = sorted({min(count, len(outlines)) for count in histories})
    if len(asked) < FEWEST or asked[0] < 1:
        raise RecalignError(
            f"--curve is {' '.join(map(str, histories))}, and the log has {len(outlines)} training histories; give two "
            "or more different numbers from 1 on"
        )
    passes = sorted({*(epochs or [params.sft.epochs])})
    if passes[0] < 1:
        raise RecalignError(f"--epochs is {' '.join(map(str, epochs or []))}; give whole numbers from 1 on")
    catalogue, summary = Items.read(project.prepared), Prepared(project.prepared)
    limit = params.evaluate.validation_cases
    shown = profile_texts(project.profiles, params.profiles.engine, c.VALIDATION) if params.prompt.profile else None
    trial = read_trial(project.prepared, c.VALIDATION, UNIFORM, limit, params.seed, shown)
    points, values = [], []
    for number, count in itertools.product(passes, asked):
        begun = time.monotonic()
        changed = params.sft.model_copy(update={"examples": count, "epochs": number})
        own = params.model_copy(update={"sft": changed})
        adapter = _trained(own, project)
        setting = Setting(params.base, params.prompt, summary.noun, summary.clock, params.seed, params.threads)
        model = open_recommender(
            SYSTEM, project.base, adapter, setting, catalogue, batch=params.evaluate.batch, store=project.logprobs
        )
        values.append(trial.judged.values(scores_of(model, trial.requests, trial.candidates)))
        found = bootstrap_interval(values[-1], trial.users, params.evaluate.resamples, params.seed)
        step = int(read_json(adapter / "training.json")["best_step"])
        points.append(Point(count, number, found, step, round(time.monotonic() - begun, 1)))
        log.info("%d histories, epochs %d: NDCG@10 %.3f", count, number, found.value)
    homes = {name: _fitted(params, project, name) for name in BESIDE}
    opened = {name: open_fitted(name, home, catalogue) for name, home in homes.items()}
    beside = {
        name: float(trial.judged.values(scores_of(own, trial.requests, trial.candidates)).mean())
        for name, own in opened.items()
    }
    trends = []
    for number in passes:
        reached = [value for point, value in zip(points, values, strict=True) if point.epochs == number]
        read = _line(np.stack(reached, axis=1), asked, len(outlines))
        each = (bootstrap_interval(line, trial.users, params.evaluate.resamples, params.seed) for line in read)
        trends.append(Trend(number, *each))
    return Curve(len(trial.cases), len(set(trial.users)), tuple(points), beside, tuple(trends), len(outlines))


def curve_csv(curve: Curve) -> str:
    """A row a point, for `dvc plots show FILE -x histories -y ndcg_at_10`."""
    text = io.StringIO()
    rows = [
        {"histories": own.histories, "epochs": own.epochs, **own.ndcg_at_10.as_dict(), "best_step": own.best_step}
        for own in curve.points
    ]
    named = [{"ndcg_at_10" if key == "value" else key: value for key, value in row.items()} for row in rows]
    table = csv.DictWriter(text, [*named[0], *curve.beside], lineterminator="\n")
    table.writeheader()
    table.writerows(row | curve.beside for row in named)
    return text.getvalue()


def _line(values: Floats, histories: Sequence[int], every: int) -> tuple[Floats, Floats]:
    """[B] Each case's share of the line's slope per doubling, and of its height at `every`; values [B, M].

    Both are linear in the values, so their means over cases are those of the line through the means.
    """
    x = np.log2(np.array(histories, dtype=np.float64))
    centred = x - x.mean()
    slope = values @ (centred / (centred**2).sum())
    return slope, values.mean(axis=1) + slope * (math.log2(every) - x.mean())


def _trained(params: Params, project: Project) -> Path:
    """The adapter, trained where it is missing."""
    read = [params.sft.told(), params.lora.model_dump(), params.prompt.model_dump(), params.base.model_dump()]
    data = [read_json(project.base / IDENTITY), folder_digest(project.prepared)]
    if params.prompt.profile:
        data += [params.profiles.engine, folder_digest(project.profiles)]
    key = digest_of([*read, params.seed, params.evaluate.validation_cases, *data])
    out = project.cache / "curve" / f"{params.sft.examples}-{key[:16]}"
    if not (out / "manifest.json").is_file():
        sft(params, project.moved(sft=out))
    return out


def _fitted(params: Params, project: Project, name: RecommenderName) -> Project:
    """Where a fitted ID recommender lies: in the project, else in a folder of the curve's own, where it is fitted."""
    if (project.baselines / name).is_dir():
        return project
    own = Project(project.cache / "curve" / f"fitted-{folder_digest(project.prepared)[:16]}")
    if not (own.baselines / name).is_dir():
        baselines(params, name, project.moved(baselines=own.baselines))
    return own
