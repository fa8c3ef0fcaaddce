"""Where each stage's output lies, relative to the folder of params.yaml (dvc.yaml names the same paths)."""

from pathlib import Path

SIMULATED = Path("data/simulated")  # bundled: pairs.csv, types.csv
PREPARED = Path("data/prepared")  # prepare: molecules, pairs, answers, quarantine, summary.json, audit.json
BASE = Path("data/base")  # base: the language model
DESCRIBED = Path("data/described")  # describe: the graph side after stage 1, curve.csv, training.json
INTERACTING = Path("data/interacting")  # interact: LoRA and graph side after stage 2
TEXT = Path("data/text")  # text: the twin that reads no graphs
PREFERRED = Path("data/preferred")  # prefer: LoRA and graph side after preference training
JOINT = Path("data/joint")  # joint: LoRA and graph side that learned the pairs of two projects
BASELINES = Path("data/baselines")  # baselines: outputs on validation and the test views
REPORTS = Path("reports")  # evaluate: metrics.json, report.md
CACHE = Path("data/cache")  # safe to delete
SPILL = CACHE / "spill"
