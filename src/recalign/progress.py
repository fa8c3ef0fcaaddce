"""Progress of long work: what, how many, rate, time left; a bar on a terminal, a line every ten seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LOG_EVERY_SECONDS = 10.0


def track(items: Iterable[T], total: int, what: str, unit: str = "items") -> Iterator[T]:
    """Yield `items` while reporting on standard error; `total` is their number, `unit` its plural noun."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, unit=f" {unit}", dynamic_ncols=True)
        return
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS:
            rate = done / (now - start)
            left = (total - done) / rate if rate else 0.0
            print(f"{what}: {done} of {total} {unit}, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True)
            last = now
    seconds = time.monotonic() - start
    if seconds >= LOG_EVERY_SECONDS:
        print(f"{what}: {done} {unit} in {seconds:.0f} s", file=sys.stderr, flush=True)
