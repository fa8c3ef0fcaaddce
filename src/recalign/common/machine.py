"""The machine that figures were made on, in words."""

import importlib.metadata
import os
import platform


def machine() -> str:
    """Processor, device and the versions that move log-probs in their last digits."""
    import torch

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{platform.machine()}, {device}, Python {platform.python_version()}, {versions}"
