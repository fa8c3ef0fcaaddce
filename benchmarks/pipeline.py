"""How validation and preparation grow with the log: seconds, peak memory and rows/s at 1M, 10M and 25M events.

    python benchmarks/pipeline.py --rows 1000000 10000000 25000000 --json pipeline.json

Then what later stages read of it: the items, the examples that SFT chooses, the test cases with what their users met,
and the train events. Each step runs in a process of its own, on a log as skewed as real ones (154 events a user, as in
MovieLens-25M). At the first size, if that is 2M at most, pandas prepares the same examples beside it; the script stops
if they differ. Needs some 5 GB of disk at 25M.
"""

import argparse
import hashlib
import json
import logging
import math
import platform
import resource
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recalign.common import columns as c
from recalign.params.load import Params, load_params
from recalign.params.prepare import PrepareParams
from recalign.project import CACHE, Project

if TYPE_CHECKING:
    from pandas import DataFrame, Series

FOLDER = CACHE / "benchmark"
EVENTS_A_USER = 154
ITEMS = 60_000
COMPARED = 2_000_000  # rows that pandas is asked to prepare at most: it takes some 650 MB of memory a million

LOG = """
copy (
    select
        1 + floor({users} * pow(md5_number_lower(concat('user-', i)) / 18446744073709551616.0, 1.6))::bigint as user_id,
        1 + floor({items} * pow(md5_number_lower(concat('item-', i)) / 18446744073709551616.0, 2.2))::bigint as item_id,
        null::double as rating,
        timestamp '2015-01-01' + to_seconds(md5_number_lower(concat('time-', i)) % 300000000) as timestamp,
        null::bigint as position,
        'generated' as file,
        i + 1 as line
    from range({rows}) as numbers(i)
) to '{path}' (format parquet, compression zstd)
"""
CATALOGUE = """
copy (
    select
        i + 1 as item_id,
        concat('Item ', i + 1) as title,
        map {{'genre': [concat('genre ', i % 20)]}} as attributes,
        null::timestamp as available_from, (i + 1)::varchar as raw_id,
        'generated' as file,
        i + 1 as line
    from range({items}) as numbers(i)
) to '{path}' (format parquet, compression zstd)
"""
USERS = """
copy (select i + 1 as user_id, (i + 1)::varchar as raw_id from range({users}) as numbers(i))
to '{path}' (format parquet, compression zstd)
"""


def generate(folder: Path, rows: int) -> None:
    """Write a log of so many rows as `ingest` writes one."""
    import duckdb
    import pyarrow.parquet as pq

    from recalign.data.sources.reading import QUARANTINE

    folder.mkdir(parents=True)
    sizes = {"users": rows // EVENTS_A_USER, "items": ITEMS, "rows": rows}
    for name, query in (("interactions", LOG), ("items", CATALOGUE), ("users", USERS)):
        duckdb.connect().execute(query.format(path=folder / f"{name}.parquet", **sizes))
    pq.write_table(QUARANTINE.empty_table(), folder / "malformed.parquet")
    source: dict[str, Any] = {"source": "table", "noun": "items", "clock": True, "min_rating": None}
    source |= {"terms": "generated", "files": {"generated": str(rows)}}
    (folder / "source.json").write_text(json.dumps(source), encoding="utf-8")


def _project(folder: Path) -> Project:
    names = ("interactions", "validated", "prepared", "reports")
    return Project(folder).moved(**{name: folder / name for name in names})


def validate_log(params: Params, folder: Path) -> None:
    """The stage as it is."""
    from recalign.stages.validate import validate

    validate(params, _project(folder))


def prepare_log(params: Params, folder: Path) -> None:
    """The stage as it is."""
    from recalign.stages.prepare import prepare

    prepare(params, _project(folder).moved(validated=_validated(folder)))


def read_items(params: Params, folder: Path) -> None:
    """The catalogue, as every stage reads it."""
    from recalign.data.records import Items

    Items.read(folder / "prepared")


def read_learned(params: Params, folder: Path) -> None:
    """The examples that SFT learns from: the longest history of each of a few users, out of all."""
    from recalign.preferences.profiles.selection import nobody, sft_examples

    sft_examples(params, folder / "prepared", c.TRAIN, nobody)


def read_tested(params: Params, folder: Path) -> None:
    """The warm test cases with their candidates, and what their users met."""
    from recalign.data.records import read_cases, read_met

    cases = read_cases(folder / "prepared", c.TEST, "uniform", params.evaluate.test_cases, seed=params.seed)
    read_met(folder / "prepared", {case.example.user_id for case in cases})


def read_events(params: Params, folder: Path) -> None:
    """The train events, as a recommender is fitted on them."""
    import pyarrow.compute as pc

    from recalign.common.artifacts import read_parquet

    read_parquet(folder / "prepared" / "events.parquet", filters=pc.field(c.SPLIT) == c.TRAIN)


def prepare_examples(params: Params, folder: Path) -> None:
    """The part of the stage that pandas does too: from the log to events and examples, no candidates."""
    from recalign.data.database import database
    from recalign.data.preparation import tables as room

    options, validated = params.prepare, _validated(folder)
    out = folder / "duckdb"
    out.mkdir()
    with database(folder / "spill", options.memory_limit, params.threads) as connection:
        log, items = validated / "interactions.parquet", validated / "items.parquet"
        room.select_likes(connection, log, items, options, None, params.seed)
        cutoffs = room.split_events(connection, options, clock=True)
        room.select_training(connection, options.core, options.hidden_items)
        room.read_catalogue(connection, items, options)
        room.choose_targets(connection, options, cutoffs)
        room.write_events(connection, out / "events.parquet")
        room.write_examples(connection, out / "examples.parquet", clock=True)


def prepare_with_pandas(params: Params, folder: Path) -> None:
    """The same events and examples, written the plain way in pandas."""
    import pandas as pd

    options = params.prepare
    log = pd.read_parquet(_validated(folder) / "interactions.parquet", columns=["user_id", "item_id", "timestamp"])
    likes = log.groupby(["user_id", "item_id"], as_index=False)["timestamp"].min()
    likes["tie"] = [_md5("", user, item) for user, item in zip(likes["user_id"], likes["item_id"], strict=True)]
    likes = likes.sort_values(["user_id", "timestamp", "tie"]).reset_index(drop=True)
    likes["position"] = likes.groupby("user_id").cumcount()
    times = likes["timestamp"]
    shares = [options.profile_share, 1 - options.test_share - options.validation_share, 1 - options.test_share]
    ascending = times.sort_values().to_numpy()
    profile, validation, test = (ascending[math.ceil(len(times) * share) - 1] for share in shares)
    likes["split"] = ((times >= validation).astype(int) + (times >= test)).map({0: "train", 1: "validation", 2: "test"})
    train = likes[likes["split"] == "train"]
    counts = train.groupby("item_id").size()
    before = -1
    while before != len(train):
        before = len(train)
        train = train[train.groupby("user_id")["item_id"].transform("size") >= options.core]
        train = train[train.groupby("item_id")["user_id"].transform("size") >= options.core]
    likes.loc[(likes["split"] == "train") & ~likes.index.isin(train.index), "split"] = "outside"
    asked = pd.concat([_train_targets(train, profile, options), _tested_targets(likes, counts, options)])
    asked["example_id"] = asked["user_id"].astype(str) + "-" + asked["item_id"].astype(str)
    asked = asked.sort_values(["user_id", "position"])
    targets = asked.rename(columns={"timestamp": "cutoff", "item_id": "target"})
    out = folder / "pandas"
    out.mkdir()
    likes[["user_id", "item_id", "timestamp", "position", "split"]].to_parquet(out / "events.parquet", index=False)
    columns = ["example_id", "user_id", "split", "view", "cutoff", "history", "target"]
    targets[columns].to_parquet(out / "examples.parquet", index=False)


def _train_targets(train: "DataFrame", profile: Any, options: PrepareParams) -> "DataFrame":
    """Of each user's likes in the k-core those after the profiles' cutoff, with what of the core came before."""
    train = train.reset_index(drop=True)
    likes = train.groupby("user_id").cumcount()
    asked = train[(likes >= options.min_history) & (train["timestamp"] >= profile)].copy()
    asked["view"] = None
    return _few(_with_history(asked, train, likes, options), ["user_id"], options.train_examples_per_user)


def _tested_targets(likes: "DataFrame", counts: "Series", options: PrepareParams) -> "DataFrame":
    """Later likes with their view, which nobody has whose history and target are cold."""
    asked = likes[likes["split"].isin(["validation", "test"])].copy()
    known = asked["item_id"].map(counts).fillna(0) >= options.cold_events
    long = asked["position"] >= options.min_history
    asked["view"] = np.select([known & long, known, long], ["warm", "user-cold", "item-cold-natural"], "")
    asked = _with_history(asked[asked["view"] != ""], likes, likes["position"], options)
    return _few(asked, ["user_id", "split", "view"], options.cases_per_user)


def _with_history(asked: "DataFrame", rows: "DataFrame", before: "Series", options: PrepareParams) -> "DataFrame":
    """The rows of `asked` with the last items before each; rows: the log that it is a part of, user by user."""
    items, lengths = rows["item_id"].to_numpy(), before.loc[asked.index].clip(upper=options.max_history)
    starts = asked.index - lengths
    return asked.assign(history=[items[start:row] for start, row in zip(starts, asked.index, strict=True)])


def _few(asked: "DataFrame", groups: list[str], most: int) -> "DataFrame":
    """At most so many rows of each group, by the hash that preparation takes."""
    users, items = asked["user_id"], asked["item_id"]
    asked["draw"] = [_md5("target-", user, item) for user, item in zip(users, items, strict=True)]
    asked = asked.sort_values("draw")
    return asked[asked.groupby(groups).cumcount() < most]


def _md5(prefix: str, user: int, item: int) -> int:
    """DuckDB's md5_number_lower of '<prefix><user>-<item>'."""
    digest = hashlib.md5(f"{prefix}{user}-{item}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little")


def _validated(folder: Path) -> Path:
    """What validation kept, or the generated log where it was skipped."""
    return folder / "validated" if (folder / "validated").exists() else folder / "interactions"


STEPS = {
    "validate": validate_log,
    "prepare": prepare_log,
    "read items": read_items,
    "read what SFT learns": read_learned,
    "read test cases": read_tested,
    "read train events": read_events,
    "prepare, examples only": prepare_examples,
    "pandas, examples only": prepare_with_pandas,
}


def measure(step: str, rows: int) -> dict[str, Any]:
    """Run a step in a process of its own; a failure stops the benchmark with the step's own message."""
    command = [sys.executable, __file__, "--step", step]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{step} at {rows:,} rows failed:\n{result.stderr}")
    figures = json.loads(result.stdout.splitlines()[-1])
    figures |= {"step": step, "rows": rows, "rows_per_second": round(rows / figures["seconds"])}
    print(
        f"{step:24} {rows:>11,} rows  {figures['seconds']:7.1f} s  {figures['cpu_seconds']:7.1f} s of CPU  "
        f"{figures['peak_mib']:5} MiB peak  {figures['rows_per_second']:>9,} rows/s",
        flush=True,
    )
    return figures


def run_step(step: str) -> None:
    """In the child: run, then print seconds, CPU seconds and peak resident memory (MiB) of the process as JSON."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    started = time.monotonic()
    STEPS[step](load_params(), FOLDER)
    seconds = time.monotonic() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    figures = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mib": round(peak_kib() / 1024)}
    print(json.dumps(figures))


def peak_kib() -> int:
    """Peak resident memory of this process (Linux). ru_maxrss would not do: it begins with the parent's peak."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def assert_equal_examples() -> None:
    """Both ways must have made the same events and examples."""
    import pyarrow.parquet as pq

    for name in ("events", "examples"):
        ours, theirs = (pq.read_table(FOLDER / way / f"{name}.parquet").to_pylist() for way in ("duckdb", "pandas"))
        assert ours == theirs, f"pandas made other {name} than DuckDB"


def growth(results: list[dict[str, Any]], step: str) -> float | None:
    """The exponent e in CPU seconds ∝ rows^e between the smallest and the largest size."""
    of_step = sorted((r for r in results if r["step"] == step), key=lambda r: r["rows"])
    if len(of_step) < 2:
        return None
    first, last = of_step[0], of_step[-1]
    return math.log(last["cpu_seconds"] / first["cpu_seconds"]) / math.log(last["rows"] / first["rows"])


def main() -> None:
    """Measure every size, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 25_000_000])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--skip-validation", action="store_true", help="prepare the generated log as it is")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step)
        return
    results = []
    for number, rows in enumerate(sorted(options.rows)):
        shutil.rmtree(FOLDER, ignore_errors=True)
        generate(FOLDER / "interactions", rows)
        steps = [] if options.skip_validation else ["validate"]
        steps += ["prepare", *(step for step in STEPS if step.startswith("read"))]
        compared = number == 0 and rows <= COMPARED
        steps += ["prepare, examples only", "pandas, examples only"] if compared else []
        results += [measure(step, rows) for step in steps]
        if compared:
            assert_equal_examples()
    shutil.rmtree(FOLDER)
    exponents = {step: exponent for step in STEPS if (exponent := growth(results, step)) is not None}
    for step, exponent in exponents.items():
        print(f"{step}: CPU seconds grow as rows^{exponent:.2f}")
    if options.json:
        machine = f"{platform.machine()}, {load_params().threads} threads, {datetime.now(UTC):%Y-%m-%d}"
        options.json.write_text(json.dumps({"machine": machine, "results": results, "growth": exponents}, indent=2))


if __name__ == "__main__":
    main()
