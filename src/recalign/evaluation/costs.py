"""What ranking takes, as systems.json keeps it: seconds per thousand cases and megabytes of weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """One system: seconds of fitting, seconds of ranking 1,000 cases, and MB of weights that ranking loads.

    None where it was not timed here, or where what an earlier run stored made it faster than it is.
    """

    system: str
    fitting: float | None
    per_thousand: float | None
    megabytes: float | None


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
