"""Where each stage's output lies, relative to the folder of params.yaml (dvc.yaml names the same paths)."""

from pathlib import Path

SIMULATED = Path("data/simulated")  # bundled: pairs.csv, types.csv
PREPARED = Path("data/prepared")  # molecules, pairs, answers, quarantine, summary.json, audit.json
BASE = Path("data/base")  # the language model
TRAINED = Path("data/trained")  # describe, interact: weights, curves, training.json
PREFERRED = Path("data/preferred")  # prefer: the same after preference training
BASELINES = Path("data/baselines")  # outputs of every baseline
REPORTS = Path("reports")  # metrics.json, report.md
SPILL = Path("data/cache/spill")
