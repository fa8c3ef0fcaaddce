"""Command estimate: whether a language model can pay on your log, in seconds and before any long run."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from recalign.common.artifacts import write_text
from recalign.common.console import STDOUT, check_json_file, give_json
from recalign.common.errors import RecalignError
from recalign.common.origin import machine
from recalign.doctor.estimate import BOUNDS, Estimate
from recalign.doctor.findings import quiet
from recalign.evaluation.significance import plain, signed
from recalign.params.load import Params, load_params, params_or_shipped
from recalign.project import BASE, PREPARED, REPORTS, Project

if TYPE_CHECKING:
    from recalign.commands.curve import Curve


def estimate(
    file: Path | None = None,
    *,
    items: Path | None = None,
    json_file: Path | None = None,
    curve: Sequence[int] | None = None,
    epochs: Sequence[int] | None = None,
    csv_file: Path | None = None,
) -> int:
    """Look at the project's prepared data, or at a log of your own with its table of `items`, and print a verdict.

    json_file: where to write it as JSON; STDOUT: print that and nothing else. curve: numbers of histories to train on,
    for a short learning curve of the project's data; epochs: how often, None: sft.epochs; csv_file: where to write that
    for `dvc plots`.
    Raises RecalignError where there are no prepared data, or where the log cannot be prepared.
    """
    from recalign.doctor.estimate import estimate as estimated

    if items is not None and file is None:
        raise RecalignError(f"--items is {items}, and there is no log beside it; give both: estimate LOG --items ITEMS")
    _check_curve(file, curve, epochs, csv_file)
    check_json_file(json_file)
    params = load_params() if file is None else params_or_shipped()
    with quiet(), _prepared(file, items, params) as prepared:
        own = file is not None
        found = estimated(params, prepared, BASE, None if own else REPORTS / "scorecard.json")
    told, said = lines(found), {"machine": machine(), **asdict(found)}
    if curve is not None:
        from recalign.commands.curve import curve_csv, learning_curve

        learned = learning_curve(params, Project(), curve, epochs)
        told, said = [*curve_lines(learned), *told], {**said, "curve": asdict(learned)}
        if csv_file is not None:
            write_text(csv_file, curve_csv(learned))
    if json_file is not None:
        give_json(said, json_file)
    if json_file != STDOUT:
        print("\n".join(told))
    return 0


def curve_lines(curve: "Curve") -> list[str]:
    """A learning curve as it is printed."""
    beside = ", ".join(f"{name} {value:.3f}" for name, value in curve.beside.items())
    best = max(curve.beside.values())
    told = [f"Learning curve of SFT, NDCG@10 on {curve.cases} validation cases of {curve.users} users; {beside}."]
    for trend in curve.trends:
        far = "below" if trend.at_all.high < best else "above" if trend.at_all.low > best else "not told apart from"
        own = [point for point in curve.points if point.epochs == trend.epochs]
        points = ", ".join(f"{point.histories:,} histories {plain(point.ndcg_at_10)}" for point in own)
        told.append(
            f"Epochs {trend.epochs}: {points}. A doubling gives {signed(trend.doubling)}; if it went on so, all "
            f"{curve.every:,} histories would give {plain(trend.at_all)}: {far} the better of the two."
        )
    return told


def _check_curve(
    file: Path | None, curve: Sequence[int] | None, epochs: Sequence[int] | None, csv_file: Path | None
) -> None:
    if curve is not None and file is not None:
        raise RecalignError(
            f"--curve trains on the project's own data, and {file} is none of them; put it into data/raw/table and run "
            "'dvc repro base pairs' with source: table first"
        )
    if epochs is not None and curve is None:
        raise RecalignError(f"--epochs is {' '.join(map(str, epochs))}, and there is no curve to draw; add --curve")
    if csv_file is not None and curve is None:
        raise RecalignError(f"--csv is {csv_file}, and there is no curve to write; add --curve")
    if csv_file is not None and csv_file.is_dir():
        raise RecalignError(f"--csv is {csv_file}, a folder; give the name of a file, such as {csv_file / 'curve.csv'}")


def lines(found: Estimate) -> list[str]:
    """What is printed, the verdict last."""
    cold, text, cost = found.coldness, found.text, found.cost
    shares = ", ".join(f"{cold.under[bound]:.1%} fewer than {bound}" for bound in BOUNDS)
    views = ", ".join(f"{view} {count:,}" for view, count in cold.views.items() if count)
    why = "".join(f"; none of {view}: {reason}" for view, reason in cold.left_out.items())
    told = [
        f"Coldness: of {cold.asked:,} likes in validation and test time, by train events of their item: {shares}.",
        f"Test cases by view: {views or 'none'}{why}.",
        f"Text: {text.attributes:.0%} of the items have attributes that differ, {text.titles:.0%} a title with a word "
        "that another title has and most lack.",
    ]
    if cost is None:
        told.append("Cost: not measured, no base model lies here; 'dvc repro base' fetches it (SmolLM2: 270 MB).")
    else:
        sft = ", ".join(f"{_time(seconds)} for {count:,} histories" for count, seconds in cost.sft.items())
        told.append(
            f"Cost with {cost.model} on {machine()}: {_time(cost.per_thousand)} per 1,000 users (a list each, "
            f"{cost.case_tokens:.0f} tokens, {cost.scoring:.0f} tokens/s); an epoch of SFT {sft}."
        )
    if found.measured:
        told.append(f"A run on this log has measured: {found.measured}")
    return [*told, f"Language model: {found.verdict}. Why: {found.reason}."]


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


@contextmanager
def _prepared(file: Path | None, items: Path | None, params: Params) -> Iterator[Path]:
    """The folder of the prepared data; of a log of your own a temporary one."""
    if file is None:
        if not (PREPARED / "summary.json").is_file():
            raise RecalignError(
                f"{PREPARED} is missing; run 'dvc repro prepare', or name a log: recalign estimate my.csv --items "
                "my_items.csv"
            )
        yield PREPARED
        return
    from recalign.doctor.own_table import examine

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        examined = examine(file, items, params, place)
        if examined.trial is None or examined.trial.prepared is None:
            failed = next(finding for finding in examined.findings if finding.state == "fail")
            fix = f"{failed.fix}; " if failed.fix else ""
            beside = f" --items {items}" if items else ""
            raise RecalignError(
                f"{file} cannot be prepared: {failed.found}; {fix}'recalign doctor {file}{beside}' says more"
            )
        yield place / "prepared"
