"""`recalign graph`: the dependencies of dvc.yaml's stages on the source, as the imports have them."""

from pathlib import Path

from recalign.common.artifacts import write_text
from recalign.common.errors import RecalignError
from recalign.pipeline import DVC_FILE, PACKAGE, written_dependencies


def graph(*, write: bool = False, root: Path = Path()) -> int:
    """Print what dvc.yaml lacks and lists beyond need; with `write`, write it there. Returns 1 while it is out of date.

    Raises RecalignError outside of a checkout of recalign, or where a stage has no module.
    """
    file = root / DVC_FILE
    if not file.is_file() or not (root / PACKAGE).is_dir():
        raise RecalignError(f"{file} and {root / PACKAGE} are needed; run recalign graph in a checkout of the source")
    text, changes = written_dependencies(file.read_text(encoding="utf-8"), root)
    for change in changes:
        print(change)
    if not changes:
        print(f"{DVC_FILE} is up to date")
        return 0
    if not write:
        print(f"{DVC_FILE} is out of date in {len(changes)} stages; recalign graph --write writes them")
        return 1
    write_text(file, text)
    print(f"{DVC_FILE}: {len(changes)} stages written")
    return 0
