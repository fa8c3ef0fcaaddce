"""Artifacts that a test changes on purpose: as a stage would have written them, with a manifest that fits."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recalign.common.artifacts import MANIFEST, folder


@contextmanager
def resealed(place: Path) -> Iterator[Path]:
    """The files of an artifact folder in a folder to be changed, which then takes its place."""
    with folder(place) as partial:
        for file in place.rglob("*"):
            if file.is_file() and file.name != MANIFEST:
                (partial / file.relative_to(place)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, partial / file.relative_to(place))
        yield partial
