"""Command doctor: what is wrong with the machine, the project or your own table, and the fix."""

import os
import shlex
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recalign.common.console import STDOUT, check_json_file, give_json
from recalign.common.errors import RecalignError
from recalign.doctor.findings import Finding, print_findings, quiet, worst
from recalign.doctor.own_table import examine, params_block
from recalign.doctor.project import check_project
from recalign.params.base import BaseParams
from recalign.params.load import Params, load_params, params_or_shipped
from recalign.project import BASE, PARAMS, RAW

if TYPE_CHECKING:
    from recalign.doctor.speed import Speed


def doctor(
    file: Path | None = None, *, items: Path | None = None, speed: bool = False, json_file: Path | None = None
) -> int:
    """Check the project; or look at the log `file` (with its table of `items`); or measure the machine's speed.

    json_file: where to write what was found as JSON; STDOUT: print that and nothing else.
    Returns 1 where something has to be fixed, else 0. Raises RecalignError where `file` is no table at all.
    """
    if items is not None and file is None:
        raise RecalignError(f"--items is {items}, and there is no log beside it; give both: doctor LOG --items ITEMS")
    check_json_file(json_file)
    with quiet():
        if speed:
            return _speed(load_params(), json_file)
        if file is not None:
            return _own_table(file, items, params_or_shipped(), json_file)
        return _conclude(check_all(), json_file)


def check_all() -> list[Finding]:
    """Every check of the project, its registry among them."""
    from recalign.registry.tracking import registry_state

    return check_project({"registry": registry_state})


def _conclude(findings: list[Finding], json_file: Path | None, **more: Any) -> int:
    if json_file != STDOUT:
        print_findings(findings)
    if json_file is not None:
        give_json({"verdict": worst(findings), "findings": [asdict(f) for f in findings], **more}, json_file)
    return int(worst(findings) == "fail")


def _own_table(file: Path, items: Path | None, params: Params, json_file: Path | None) -> int:
    examined = examine(file, items, params)
    table, trial = examined.table, examined.trial
    code = _conclude(
        examined.findings,
        json_file,
        table=table.model_dump(mode="json") if table else None,
        validation=trial and trial.validation,
        prepared=trial and trial.prepared,
    )
    if table is None or json_file == STDOUT:
        return code
    place = RAW / "table"
    sources = " ".join(shlex.quote(str(path)) for path in dict.fromkeys(filter(None, (file, items))))
    if not PARAMS.is_file():
        print("\nThere is no params.yaml here, so the defaults were used. In a clone of recalign:")
    print("\nIn params.yaml, in place of the keys of the same name:\n")
    print("".join(f"  {line}\n" for line in params_block(table).splitlines()))
    print("Then:")
    for command in (f"mkdir -p {place} && cp {sources} {place}/", f"dvc add {place}", "dvc repro"):
        print(f"  {command}")
    return code


def _speed(params: Params, json_file: Path | None) -> int:
    from recalign.common.origin import machine
    from recalign.doctor.speed import fastest, measure
    from recalign.llm.model.base import TINY, fetch_base
    from recalign.llm.model.files import IDENTITY

    if (BASE / IDENTITY).is_file():
        model, speeds = BASE, measure(BASE, params)
        name = _name(model)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            model = Path(temporary) / "base"
            fetch_base(BaseParams(model=TINY, revision=None, quantisation="none", compute="auto"), model)
            speeds, name = (
                measure(model, params),
                f"{TINY}, which tells little ('dvc repro base' fetches {params.base.model})",
            )
    if json_file is not None:
        told = {"model": name, "machine": machine(), "speeds": [asdict(speed) for speed in speeds]}
        give_json(told, json_file)
    if json_file == STDOUT:
        return 0
    best = fastest(speeds)
    print(f"{name}; {machine()}; {params.threads} threads\n")
    _print_speeds(speeds, best)
    if (load := os.getloadavg()[0]) > params.threads + 1:
        print(f"\nOther work kept {load:.1f} processes busy meanwhile; repeat it on a quiet machine.")
    print(f"\nFastest in training: {best.name}. {_advice(params, best)}")
    return 0


def _name(base: Path) -> str:
    from recalign.common.artifacts import read_json
    from recalign.llm.model.files import IDENTITY

    return str(read_json(base / IDENTITY)["id"])


def _print_speeds(speeds: "list[Speed]", best: "Speed") -> None:
    import rich.box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("precision", no_wrap=True)
    for heading in ("scoring, tokens/s", "LoRA training, tokens/s"):
        table.add_column(heading, justify="right")
    for speed in speeds:
        figures = [speed.reason, ""] if speed.reason else [f"{speed.scoring:,.0f}", f"{speed.training:,.0f}"]
        table.add_row(speed.name, *figures, style="bold" if speed is best else None)
    Console(highlight=False).print(table)


def _advice(params: Params, best: "Speed") -> str:
    from recalign.doctor.speed import chosen

    compute, quantisation = chosen(params), params.base.quantisation
    if (compute, quantisation) == (best.compute, best.quantisation):
        return "The params take it as they are."
    now = f"The params take {compute}" + ("" if quantisation == "none" else f" with {quantisation}")
    if best.quantisation != quantisation:
        return f"{now}; base.quantisation: {best.quantisation} would be faster, its precision is another question."
    return f"{now}; base.compute: {best.compute} is faster here."
