"""What ranking takes, as systems.json keeps it: seconds a thousand cases and megabytes of weights."""

from collections.abc import Iterable
from pathlib import Path


def per_thousand(seconds: float, cases: int) -> float:
    """Seconds a thousand cases from those of so many."""
    return round(1000 * seconds / cases, 3)


def weights_mb(*folders: Path) -> float:
    """Megabytes (10^6 bytes) of the weights in some folders."""
    return round(sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")) / 1e6, 3)


def total(costs: Iterable[float | None]) -> float | None:
    """What several parts cost together; None where one is not known."""
    listed = list(costs)
    return None if None in listed else round(sum(cost for cost in listed if cost is not None), 3)
