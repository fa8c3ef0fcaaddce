"""How libraries of thousands of modules are imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, Python looks for no cycles of garbage.

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
