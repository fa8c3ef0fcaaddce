"""Where each stage's output lies, relative to the project's root (dvc.yaml names the same paths; a test compares)."""

from pathlib import Path

PARAMS = Path("params.yaml")
RAW = Path("data/raw")  # /<source>: tracked by DVC, one folder a source
INTERACTIONS = Path("data/interactions")  # ingest: docs/contracts.md names the files of each folder
VALIDATED = Path("data/validated")  # validate: interactions, items, quarantine, summary.json
PREPARED = Path("data/prepared")  # prepare: events, items, examples, candidates, summary.json
BASELINES = Path("data/baselines")  # baselines: one folder a fitted ID recommender
BASE = Path("data/models/base")  # base: Hugging Face folder and base.json (id, revision, sha256)
PROFILES = Path("data/profiles")  # profiles: profiles.parquet
PAIRS = Path("data/pairs")  # pairs: pairs.parquet
SFT = Path("data/models/sft")  # sft: PEFT adapter, curve.csv, training.json
REFERENCE = Path("data/reference")  # reference: reference.parquet, log-probs under the SFT adapter
ALIGN = Path("data/models/align")  # align@<objective>: PEFT adapter, curve.csv, training.json
OTHER = Path("data/models/other")  # /<name>: an adapter of another run, brought by the user and tracked by DVC
RANKS = Path("data/ranks")  # evaluate: ranks.parquet, systems.json
REPORTS = Path("reports")  # report: metrics.json, plots/, report.html; validate: validation.html
CACHE = Path("data/cache")  # content-addressed partial work that survives a kill; safe to delete
