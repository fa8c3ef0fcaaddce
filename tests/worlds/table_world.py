"""A log of a user's own, as two CSV files, for what reads tables."""

import csv
import random
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT

WORDS = ("river", "fire", "night", "stone", "glass", "road", "song", "dream")


def write_log(folder: Path, *, fresh: int, worded: bool = True) -> tuple[Path, Path]:
    """80 users who like 12 of 60 items in random order; `fresh` others appear in the last days alone, once a user."""
    draw = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (user, item, f"2026-01-{1 + place * 2:02d}T{draw.randrange(24):02d}:00:00")
        for user in range(80)
        for place, item in enumerate(draw.sample(range(60), 12))
    ]
    rows += [(user, 1000 + user % fresh, "2026-02-20T10:00:00") for user in range(80) if fresh]
    with (folder / "log.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("user_id", "item_id", "timestamp"), *rows])
    ids = sorted({item for _, item, _ in rows})
    titles = [f"{WORDS[i % 8]} of {WORDS[i // 8 % 8]} {i}" if worded else f"{i:04d}" for i in ids]
    with (folder / "items.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("item_id", "title"), *zip(ids, titles, strict=True)])
    return folder / "log.csv", folder / "items.csv"


def smoke_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml at budget smoke and nothing else, worked in."""
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree |= {"budget": "smoke", "threads": 1}
    monkeypatch.chdir(tmp_path)
    with Path("params.yaml").open("w", encoding="utf-8") as handle:
        YAML().dump(tree, handle)
    return tmp_path
