"""The one way to write a file or folder: beside its place, synced, renamed; a folder's manifest of digests last.

A reader therefore sees the old artefact or the new one, never half of either.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recalign.errors import RecalignError

MANIFEST = "manifest.json"


def digest_of(value: Any) -> str:
    """sha256 (hex, 64 characters) of a JSON-able value in canonical form: equal values, equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(path: Path) -> str:
    """Digest of a folder as its manifest lists it: one value that changes when any file in it does."""
    return digest_of(read_json(path / MANIFEST)["sha256"])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends well it gets its manifest and takes the place of `path`.

    Left-overs of killed runs beside it are swept first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{path.name}.partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        for file in files:
            _sync(file)
        write_json(partial / MANIFEST, {"sha256": {str(f.relative_to(partial)): file_digest(f) for f in files}})
        old = path.with_name(f".{path.name}.partial-old-{os.getpid()}")
        if path.exists():
            path.replace(old)
        partial.replace(path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def verify(path: Path) -> None:
    """Check every file of an artefact folder against its manifest.

    Raises RecalignError naming the first file that is missing or changed.
    """
    for name, expected in read_json(path / MANIFEST)["sha256"].items():
        file = path / name
        if not file.is_file():
            raise RecalignError(
                f"{file} is missing though {path / MANIFEST} lists it; run 'dvc repro' to make it again"
            )
        if file_digest(file) != expected:
            raise RecalignError(f"{file} was changed after it was written (sha256 differs); 'dvc checkout' restores it")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON (indented, keys sorted) atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises RecalignError naming the file when it is absent or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; run 'dvc repro' to make it") from None
    except json.JSONDecodeError as error:
        raise RecalignError(f"{path} is not JSON ({error}); 'dvc checkout' restores it") from None


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet atomically; equal tables give equal bytes."""
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns. Raises RecalignError naming the file when absent or unreadable."""
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; run 'dvc repro' to make it") from None
    except pa.ArrowInvalid as error:
        raise RecalignError(f"{path} is not a Parquet file ({error}); 'dvc checkout' restores it") from None
