"""Command estimate: whether a language model can pay on your log, in seconds, before any long run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from recalign.common.console import STDOUT, check_json_file, give_json
from recalign.common.errors import RecalignError
from recalign.common.machine import machine
from recalign.doctor.estimate import BOUNDS, Estimate
from recalign.doctor.findings import quiet
from recalign.params.load import Params, load_params, params_or_shipped
from recalign.project import BASE, PREPARED, REPORTS


def estimate(file: Path | None = None, *, items: Path | None = None, json_file: Path | None = None) -> int:
    """Look at the project's prepared data, or at a log of your own with its table of `items`, and print a verdict.

    json_file: where to write it as JSON; STDOUT: print that and nothing else.
    Raises RecalignError where there are no prepared data, or where the log cannot be prepared.
    """
    from recalign.doctor.estimate import estimate as estimated

    if items is not None and file is None:
        raise RecalignError(f"--items is {items}, and there is no log beside it; give both: estimate LOG --items ITEMS")
    check_json_file(json_file)
    params = load_params() if file is None else params_or_shipped()
    with quiet(), _prepared(file, items, params) as prepared:
        own = file is not None
        found = estimated(params, prepared, BASE, None if own else REPORTS / "scorecard.json")
    if json_file is not None:
        give_json({"machine": machine(), **asdict(found)}, json_file)
    if json_file != STDOUT:
        print("\n".join(lines(found)))
    return 0


def lines(found: Estimate) -> list[str]:
    """What is printed, the verdict last."""
    cold, text, cost = found.coldness, found.text, found.cost
    shares = ", ".join(f"{cold.under[bound]:.1%} fewer than {bound}" for bound in BOUNDS)
    views = ", ".join(f"{view} {count:,}" for view, count in cold.views.items())
    told = [
        f"Coldness: of {cold.asked:,} likes in validation and test time, by train events of their item: {shares}.",
        f"Test cases by view: {views}.",
        f"Text: {text.attributes:.0%} of the items have attributes, {text.titles:.0%} a title that shares a word.",
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
            fix = failed.fix or f"recalign doctor {file} says more"
            raise RecalignError(f"{file} cannot be prepared: {failed.found}; {fix}")
        yield place / "prepared"
