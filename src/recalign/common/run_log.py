"""What each stage took and left: noted when it ends, shown as the closing screen of a run.

The notes lie in data/cache, outside of what DVC hashes: equal data must have equal bytes, and seconds never are.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recalign import project as layout
from recalign.common.artifacts import MANIFEST, folder_digest, write_json
from recalign.pipeline import STAGES

NOTES = layout.CACHE / "stages"
COSTS = layout.CACHE / "costs"
LEFT = {name: stage for name, stage in STAGES.items() if stage.writes != layout.REPORTS}  # what the screen shows


@dataclass(frozen=True)
class StageLine:
    """One stage as the closing screen shows it.

    seconds, peak_mb: of the run that wrote these very bytes, None where they came from DVC's cache or elsewhere;
    rows: with their noun, "" where a stage has none; digest: of its folder, 64 hex digits.
    """

    stage: str
    seconds: float | None
    peak_mb: float | None
    rows: str
    digest: str


@contextmanager
def noted(stage: str) -> Iterator[None]:
    """Note seconds and peak memory of the block, which runs `stage` ("align@sdpo"), once it ended well."""
    started = time.monotonic()
    yield
    place = _place(stage)
    if place is not None and (place / MANIFEST).is_file():
        seconds = round(time.monotonic() - started, 2)
        note = {"digest": folder_digest(place), "seconds": seconds, "peak_mb": round(_peak_mb())}
        write_json(NOTES / f"{stage}.json", note)


def note_costs(place: Path, costs: Mapping[str, float | None], notes: Path = COSTS) -> None:
    """Note what making or asking the folder `place` took, by name, under the digest of its bytes.

    What is None now stays as an earlier making of the same bytes had it.
    """
    known = {name: cost for name, cost in costs.items() if cost is not None}
    write_json(notes / f"{folder_digest(place)}.json", noted_costs(place, notes) | known)


def noted_costs(place: Path, notes: Path = COSTS) -> dict[str, float]:
    """What `note_costs` noted of these very bytes; nothing where they were made elsewhere."""
    try:
        return _note(notes / f"{folder_digest(place)}.json")
    except (OSError, ValueError):
        return {}


def last_run(stage: str, notes: Path = COSTS) -> dict[str, float]:
    """What the last run of a stage ("align@sdpo") on this machine took, whatever it left and whether it is still there.

    seconds and peak_mb of the stage, and what `note_costs` noted of its output; nothing where it never ran here.
    """
    own = _note(notes.parent / NOTES.name / f"{stage}.json")
    digest = own.pop("digest", None)
    told = own | (_note(notes / f"{digest}.json") if digest else {})
    return {name: value for name, value in told.items() if isinstance(value, int | float)}


def _note(file: Path) -> dict[str, Any]:
    """Nothing where it is gone or spoilt: these are only notes, without them a figure is missing."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def stage_lines(parts: Mapping[str, Sequence[str]]) -> list[StageLine]:
    """The stages whose folders exist, in their order; `parts` names what a stage of many runs has now
    ({"align": ["sdpo"]}), so that what an earlier run left is not shown."""
    lines = []
    for stage, about in LEFT.items():
        place = about.writes
        if (place / MANIFEST).is_file():
            lines.append(_line(stage, place))
            continue
        found = sorted(manifest.parent.name for manifest in place.glob(f"*/{MANIFEST}"))
        lines += [_line(f"{stage}@{part}", place / part) for part in found if part in parts.get(stage, found)]
    return lines


def print_stages(parts: Mapping[str, Sequence[str]]) -> None:
    """Print what each stage took and left, a line each, to standard output; nothing where no stage has run."""
    import rich.box
    from rich.console import Console
    from rich.table import Table

    lines = stage_lines(parts)
    if not lines:
        return
    table = Table(box=rich.box.SIMPLE_HEAD, show_footer=True)
    total = sum(line.seconds or 0.0 for line in lines)
    peak = max(line.peak_mb or 0.0 for line in lines)
    table.add_column("stage", "all", no_wrap=True)
    table.add_column("seconds", f"{total:,.1f}", justify="right")
    table.add_column("peak MB", f"{peak:,.0f}", justify="right")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    for line in lines:
        seconds = "—" if line.seconds is None else f"{line.seconds:,.1f}"
        memory = "—" if line.peak_mb is None else f"{line.peak_mb:,.0f}"
        table.add_row(line.stage, seconds, memory, line.rows or "—", line.digest[:12])
    console = Console(highlight=False)
    console.print(table)
    if any(line.seconds is None for line in lines):
        console.print("—: not run here; taken from DVC's cache as it is\n")


def _place(stage: str) -> Path | None:
    name, _, part = stage.partition("@")
    if name not in LEFT:
        return None
    place = LEFT[name].writes
    return place / part if part else place


def _line(stage: str, place: Path) -> StageLine:
    digest = folder_digest(place)
    try:
        note = json.loads((NOTES / f"{stage}.json").read_text(encoding="utf-8"))
        own = note if note["digest"] == digest else {}
    except (OSError, ValueError, KeyError, TypeError):  # the notes are only notes: without them the line is shorter
        own = {}
    file, noun = LEFT[stage.partition("@")[0]].counted
    return StageLine(stage, own.get("seconds"), own.get("peak_mb"), _rows(place / file, noun), digest)


def _rows(file: Path, noun: str) -> str:
    if not noun or not file.is_file():
        return ""
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        return f"{pq.read_metadata(file).num_rows:,} {noun}"
    examples = json.loads(file.read_text(encoding="utf-8")).get("examples")
    return "" if examples is None else f"{examples:,} {noun}"


def _peak_mb() -> float:
    """Peak memory of this process in MB; the kernel counts KiB on Linux and bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
