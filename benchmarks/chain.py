"""What the whole chain takes on a large log: seconds, CPU seconds and peak memory of every stage.

    python benchmarks/chain.py --rows 1000000 --items 58000 --systems popularity item_knn sasrec

Makes a project of its own (source `table`, a CSV as skewed as real logs, budget smoke) in --folder and runs the stages
of dvc.yaml one after the other, each in a process of its own. `--until prepare` stops early: what 10M events cost.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from recalign.project import PARAMS

EVENTS_A_USER = 154
LOG = """
copy (
    select
        1 + floor({users} * pow(md5_number_lower(concat('user-', i)) / 18446744073709551616.0, 1.6))::bigint as user_id,
        1 + floor({items} * pow(md5_number_lower(concat('item-', i)) / 18446744073709551616.0, 2.2))::bigint as item_id,
        1420070400 + md5_number_lower(concat('time-', i)) % 300000000 as timestamp
    from range({rows}) as numbers(i)
) to '{path}' (header)
"""
CATALOGUE = """
copy (
    select i + 1 as item_id, concat('Item ', i + 1) as title, concat('genre ', i % 20) as genre
    from range({items}) as numbers(i)
) to '{path}' (header)
"""


def make_project(folder: Path, rows: int, items: int, systems: list[str]) -> None:
    """params.yaml and data/raw/table of a project whose log has so many rows and items."""
    import duckdb

    shutil.rmtree(folder, ignore_errors=True)
    raw = folder / "data" / "raw" / "table"
    raw.mkdir(parents=True)
    users = max(100, rows // EVENTS_A_USER)
    with duckdb.connect() as connection:
        connection.execute(LOG.format(users=users, items=items, rows=rows, path=raw / "interactions.csv"))
        connection.execute(CATALOGUE.format(items=items, path=raw / "items.csv"))
    yaml = YAML()
    tree = yaml.load(PARAMS.read_text("utf-8"))
    tree["source"], tree["budget"] = "table", "smoke"
    tree["table"]["attributes"] = ["genre"]
    tree["recommenders"]["systems"] = systems
    tree["recommenders"]["next_item"]["epochs"] = 1  # what it costs, not what it learns
    with (folder / PARAMS).open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)


def stages(systems: list[str]) -> list[list[str]]:
    """The stages in order, each as the arguments of `recalign`."""
    fitted = [["baselines", "--system", system] for system in systems]
    learned = [["base"], ["profiles"], ["pairs"], ["sft"], ["reference"], ["align", "--objective", "sdpo"]]
    ranked = [["rank", "--system", system] for system in [*systems, "llm-base", "llm-sft", "llm-sdpo"]]
    return [["ingest"], ["validate"], ["prepare"], *fitted, *learned, *ranked, ["fuse"], ["report"]]


def run_stage(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run one stage; its seconds, CPU seconds and peak resident memory (MiB), as the kernel counts them."""
    started = time.monotonic()
    with (folder / "stages.log").open("a", encoding="utf-8") as told:
        command = [sys.executable, "-c", "import sys; from recalign.cli import main; sys.exit(main())", *arguments]
        child = subprocess.Popen(command, cwd=folder, stdout=told, stderr=told)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"recalign {' '.join(arguments)} failed; see {folder / 'stages.log'}")
    return {
        "stage": arguments[0] if len(arguments) == 1 else f"{arguments[0]}@{arguments[2]}",
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    """Make the project, run every stage, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=58_000)
    parser.add_argument("--systems", nargs="+", default=["popularity", "item_knn", "ease", "sasrec"])
    parser.add_argument("--until", default="report", help="the last stage to run")
    parser.add_argument("--folder", type=Path, default=Path("data/cache/chain"))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # a child's peak would begin with ours
        apart.submit(make_project, options.folder, options.rows, options.items, options.systems).result()
    results = []
    order = stages(options.systems)
    last = max(place for place, arguments in enumerate(order) if arguments[0] == options.until)
    for arguments in order[: last + 1]:
        found = run_stage(arguments, options.folder)
        results.append(found)
        print(
            f"{found['stage']:24} {found['seconds']:8.1f} s {found['cpu_seconds']:8.1f} s of CPU "
            f"{found['peak_mib']:6,} MiB peak",
            flush=True,
        )
    if options.json:
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {datetime.now(UTC):%Y-%m-%d}"
        about = {"machine": machine, "rows": options.rows, "items": options.items, "results": results}
        options.json.write_text(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
