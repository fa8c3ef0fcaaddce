"""What git says of a project."""

import subprocess
from pathlib import Path


def git(root: Path, *arguments: str) -> str:
    """What a git command prints in `root`; "" where it fails, where there is no repository, or no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def git_revision(root: Path = Path()) -> str:
    """The commit of `root`, 40 hex digits; "" where it is in no repository."""
    return git(root, "rev-parse", "HEAD")
