"""A project whose folders lie right under its root, as tests that make a few of them by hand like it."""

from pathlib import Path

from recalign.project import Project

FOLDERS = (
    "interactions", "validated", "prepared", "baselines", "base", "profiles", "pairs", "sft", "reference", "align",
    "ranks", "reports", "cache",
)  # fmt: skip


def flat_project(root: Path) -> Project:
    """`root`/prepared in place of `root`/data/prepared, and so on."""
    return Project(root).moved(**{name: root / name for name in FOLDERS})
