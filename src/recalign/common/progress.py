"""Progress of long work: what, how many, rate, time left; a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LOG_EVERY_SECONDS = 10.0
LOG_EVERY_SHARE = 0.05  # of the time so far: a night's work has some hundred lines, not thousands


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
        if now - last >= max(LOG_EVERY_SECONDS, LOG_EVERY_SHARE * (now - start)):
            seconds = now - start
            left = duration((total - done) * seconds / done)
            print(f"{what}: {done} of {total} {unit}, {pace(done, seconds)}, {left} left", file=sys.stderr, flush=True)
            last = now
    seconds = time.monotonic() - start
    if seconds >= LOG_EVERY_SECONDS:
        said = f"{what}: {done} {unit} in {duration(seconds)}, {pace(done, seconds)}"
        print(said, file=sys.stderr, flush=True)


def pace(done: int, seconds: float) -> str:
    """'12.5/s', or '8.0 s each' where one takes longer than a second."""
    if not done or not seconds:
        return "—"
    return f"{done / seconds:.1f}/s" if done >= seconds else f"{seconds / done:.1f} s each"


def duration(seconds: float) -> str:
    """'42 s', '3 min 05 s' or '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
