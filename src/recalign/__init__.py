"""recalign: from an interaction log to a preference-aligned LLM recommender.

Importing the package is cheap and sets what must be set before any heavy library is imported. `recalign.load` and
`recalign.Project` are what Python programs use (docs/python.md); they are imported when they are first asked for.
"""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Project", "__version__", "load"]
__version__ = "0.1.0"

_ENVIRONMENT = {
    # Two threads that spin while another process uses a core make CPU kernels up to 15 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    # Telemetry of every tool is off; whoever wants it sets the variable themselves.
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, Python looks for no cycles of garbage: for imports of libraries of thousands of modules.

    torch and transformers make 400,000 objects while they are imported, and all of them stay: looking through them a
    thousand times took a sixth of that time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def __getattr__(name: str) -> Any:
    """`load` and `Project`, of the module that imports pandas and the rest."""
    if name in ("load", "Project"):
        return getattr(importlib.import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
