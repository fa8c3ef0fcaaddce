"""Kill training at random moments, run it again, and compare what it leaves with an undisturbed run.

    python benchmarks/kills.py --kills 10 10 5 --folder /tmp/kills

Makes a copy of this project at budget smoke, with more epochs (training takes some seconds) and a short
`checkpoint_seconds`. For each of `recalign sft`, `recalign align --objective sdpo` and `dvc repro` (from sft to the
ranks) it measures an undisturbed run, then starts the same from the same state, sends SIGKILL to its process group at a
moment drawn evenly from that run's CPU seconds (other work on the machine stretches its time), and runs the same
command again to its end. Equal: every file that the manifests of the adapters and ranks list has the same sha256.
Mid-training: the second run said that it went on from a checkpoint.
"""

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from ruamel.yaml import YAML

from recalign.project import ALIGN, CACHE, PARAMS, RANKS, REFERENCE, SFT

ROOT = Path(__file__).parent.parent
RESUMED = "going on after step"
ADAPTER = ALIGN / "sdpo"
# What is killed: its command, what must be there before it, and whose files are compared
COMMANDS = {
    "recalign sft": (["recalign", "sft"], ["baselines", "profiles", "pairs"], [SFT]),
    "recalign align": (["recalign", "align", "--objective", "sdpo"], ["reference"], [ADAPTER]),
    # the run cache would bring back what the undisturbed run made
    "dvc repro": (["dvc", "repro", "--no-run-cache", "evaluate"], ["baselines", "profiles", "pairs"],
                  [SFT, REFERENCE, ADAPTER, RANKS]),
}  # fmt: skip


def make_project(folder: Path, epochs: int, checkpoint_seconds: float) -> Path:
    """A clone of this checkout as it is now, committed, at budget smoke."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    yaml = YAML()
    tree = yaml.load((folder / PARAMS).read_text("utf-8"))
    tree["budget"], tree["checkpoint_seconds"] = "smoke", checkpoint_seconds
    tree["recommenders"]["systems"] = ["popularity", "item_knn"]
    tree["sft"]["epochs"] = tree["align"]["epochs"] = epochs
    tree["align"]["batch"] = 4  # eight steps an epoch
    with (folder / PARAMS).open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "A project to be killed"]):
        subprocess.run(["git", "-c", "user.name=k", "-c", "user.email=k@localhost", *command], cwd=folder, check=True)
    run(["dvc", "pull", "data/raw/films.dvc"], folder)
    return folder


def run(command: list[str], folder: Path, kill_after: float = math.inf) -> str | None:
    """Run to the end, or kill the whole process group after so many CPU seconds; what it printed, None where killed."""
    with (folder / "screen.log").open("w+", encoding="utf-8") as screen:
        process = subprocess.Popen(command, cwd=folder, stdout=screen, stderr=screen, start_new_session=True)
        while process.poll() is None:
            if cpu_seconds(process.pid) >= kill_after:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.2)
        screen.seek(0)
        told = screen.read()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command)} gave {process.returncode} in {folder}:\n{told[-2000:]}")
    return told if process.returncode == 0 else None


def cpu_seconds(group: int) -> float:
    """What the processes of a group have used so far, with the children that they waited for."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended just now
            fields = stat.read_text("utf-8").rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def digests(folder: Path, places: list[Path]) -> dict[str, str]:
    """sha256 of every file that the manifests of some folders list."""
    listed = {place: json.loads((folder / place / "manifest.json").read_text("utf-8"))["sha256"] for place in places}
    return {f"{place}/{name}": digest for place, files in listed.items() for name, digest in files.items()}


def copied(before: Path, place: Path) -> Path:
    """The state before the command, in a folder of its own."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place, symlinks=True)
    return place


def undisturbed(name: str, project: Path) -> float:
    """Make `before`, the state before a command, and `whole`, that after it, beside the project; its CPU seconds."""
    command, needed, _ = COMMANDS[name]
    before = copied(project, project.with_name("before"))
    run(["dvc", "repro", *needed], before)
    shutil.rmtree(before / CACHE / "checkpoints", ignore_errors=True)
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(command, copied(before, project.with_name("whole")))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime


def kill_often(name: str, folder: Path, seconds: float, kills: int, draws: random.Random) -> Counter[str]:
    """Counts of one command: kills, those that met its training, equal and different ends."""
    command, _, places = COMMANDS[name]
    wanted = digests(folder / "whole", places)
    counts = Counter({"kills": 0, "mid-training": 0, "equal": 0, "different": 0})
    while counts["kills"] < kills:
        moment = draws.uniform(0, seconds)
        trial = copied(folder / "before", folder / "trial")
        if run(command, trial, kill_after=moment) is not None:
            continue  # it needed less than the undisturbed run
        resumed = RESUMED in (run(command, trial) or "")
        found = digests(trial, places)
        end = "equal" if found == wanted else "different"
        counts.update(["kills", end, *(["mid-training"] if resumed else [])])
        said = f"{name}: kill {counts['kills']} after {moment:.1f} of {seconds:.1f} CPU s, {end}"
        changed = [file for file in wanted if found.get(file) != wanted[file]]
        print(said + ", resumed" * resumed + f" ({', '.join(changed)})" * bool(changed), flush=True)
    return counts


def main() -> None:
    """Kill, run again, compare; print a table. Exit code 1 where an end differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, nargs=len(COMMANDS), default=[10, 10, 5], help=f"of {', '.join(COMMANDS)}")
    parser.add_argument("--epochs", type=int, default=40, help="of sft and align")
    parser.add_argument("--checkpoint-seconds", type=float, default=0.5, help="between two checkpoints")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--folder", type=Path, required=True, help="an empty place; some 100 MB")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    project = make_project(options.folder / "project", options.epochs, options.checkpoint_seconds)
    draws, every = random.Random(options.seed), {}
    for name, kills in zip(COMMANDS, options.kills, strict=True):
        if kills:
            every[name] = kill_often(name, options.folder, undisturbed(name, project), kills, draws)
    print("\n| command | kills | while it trained | equal | different |\n|---|---:|---:|---:|---:|")
    for name, counts in every.items():
        print(f"| `{name}` | {' | '.join(map(str, counts.values()))} |")
    sys.exit(any(counts["different"] for counts in every.values()))


if __name__ == "__main__":
    main()
