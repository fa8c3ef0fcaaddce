"""Where figures come from: the machine that they were made on, in words, and what git says of the project."""

import importlib.metadata
import os
import platform
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


def machine() -> str:
    """Processor, device and the versions that move log-probs in their last digits, of what is installed."""
    import torch

    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in ("torch", "transformers", "peft") if name in installed)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{platform.machine()}, {device}, Python {platform.python_version()}, {versions}"
