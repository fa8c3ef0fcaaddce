"""Variants measured in turn in one process, so that whatever else the machine does falls on all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import scipy.stats

Seconds = dict[str, list[float]]


def alternate(variants: dict[str, Callable[[Any], object]], inputs: Sequence[Any]) -> Seconds:
    """CPU seconds (all threads) of each variant on each input but the first, which warms up."""
    seconds: Seconds = {name: [] for name in variants}
    for number, given in enumerate(inputs):
        for name, step in variants.items():
            start = time.process_time()
            step(given)
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> dict[str, Any]:
    """How many times faster `fast` is: ratio of the medians, and the 95 % interval of the mean paired ratio.

    The interval is Student's, over the logarithms of the ratios on equal inputs.
    """
    logs = [math.log(a / b) for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    half = 0.0
    if len(logs) > 1:
        half = scipy.stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.mean(logs)
    medians = {name: statistics.median(seconds[name]) for name in (slow, fast)}
    return {
        "slow": slow, "fast": fast, "seconds": medians, "ratio": medians[slow] / medians[fast],
        "interval": [math.exp(mean - half), math.exp(mean + half)], "raw": {n: seconds[n] for n in (slow, fast)},
    }  # fmt: skip


def shown(found: dict[str, Any]) -> str:
    """A ratio in words."""
    slow, fast = found["slow"], found["fast"]
    low, high = found["interval"]
    return (
        f"{found['ratio']:.2f}x [{low:.2f}, {high:.2f}]"
        f" ({slow} {found['seconds'][slow]:.2f} s, {fast} {found['seconds'][fast]:.2f} s)"
    )


def peak_above_resident(step: Callable[[], object]) -> float:
    """MiB by which a step's peak exceeds what the process held before (Linux: the kernel's own high-water mark)."""
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present resident size
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key + ":"))
