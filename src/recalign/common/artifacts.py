"""The one way to write a file or folder: beside its place, synced, renamed; a folder's manifest of digests last.

A reader therefore sees the old artefact or the new one, never half of either.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recalign.common.errors import RecalignError

MANIFEST = "manifest.json"
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "a file would grow "
        "beyond the limit set for this process (ulimit -f)"}  # fmt: skip
_AT_CWD, _EXCHANGE = -100, 2  # of Linux's renameat2
_verified: set[tuple[str, int, int, str]] = set()  # files whose digest was found right: path, size, time, digest


def digest_of(value: Any) -> str:
    """sha256 (hex, 64 characters) of a JSON-able value in canonical form: equal values, equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(path: Path) -> str:
    """Digest of a folder as its manifest lists it: one value that changes when any file in it does."""
    return digest_of(_manifest(path))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, else it is removed.

    Raises RecalignError where the disk is full; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_ident()}")
    try:
        with _room_for(path):
            yield partial
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends well it gets its manifest and takes the place of `path`.

    Left-overs of killed runs beside it are swept first, those of living writers never: each locks its own, and a kill
    unlocks it. Of two writers, the later one's folder stays, whole. Raises RecalignError where the disk is full; `path`
    is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _restore(path)
    _sweep(path)
    partial, lock = _locked_folder(path)
    try:
        with _room_for(path):
            yield partial
            files = sorted(file for file in partial.rglob("*") if file.is_file())
            for file in files:
                _sync(file)
            write_json(partial / MANIFEST, {"sha256": {str(f.relative_to(partial)): file_digest(f) for f in files}})
            _take_place(partial, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Name a full disk, whichever library met it: Parquet and safetensors have errors of their own for it."""
    try:
        yield
    except RecalignError:
        raise
    except Exception as error:
        what = _fullness(error)
        if what is None:
            raise
        free = shutil.disk_usage(path.parent).free
        raise RecalignError(
            f"{path} could not be written: {what} ({free / 1e9:.1f} GB free); what was there before is kept. Make room "
            "('dvc gc -w' drops the cache of earlier runs) and run it again"
        ) from None


def _fullness(error: Exception) -> str | None:
    """What an error says of a full disk; None where it is of another kind."""
    said = str(error)
    for number, what in FULL.items():
        if getattr(error, "errno", None) == number or os.strerror(number) in said or f"os error {number})" in said:
            return what
    return None


def _locked_folder(path: Path) -> tuple[Path, int]:
    """A new folder beside `path` and the descriptor that holds its lock for as long as this process lives."""
    while True:
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
        partial.mkdir()
        lock = os.open(partial, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if partial.is_dir():
            return partial, lock
        os.close(lock)  # swept by another writer between the two lines above


def _partials(path: Path) -> list[Path]:
    """Temporary folders beside `path`, of living and of killed writers."""
    start = f".{path.name}.partial-"
    return [each for each in path.parent.iterdir() if each.name.startswith(start) and each.is_dir()]


def _sweep(path: Path) -> None:
    for each in _partials(path):
        if (lock := _lock_of_none(each)) is not None:
            shutil.rmtree(each, ignore_errors=True)
            os.close(lock)


def _lock_of_none(partial: Path) -> int | None:
    """The lock of a folder that no living writer holds; None where one does, or the folder is gone."""
    try:
        lock = os.open(partial, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _take_place(partial: Path, path: Path) -> None:
    """Put `partial` where `path` is: at once where the system can exchange two names, so that no kill leaves none."""
    if not path.exists():
        partial.replace(path)
    elif not _exchange(partial, path):
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)  # a kill from here on is put right by `_restore`, at the next write
        partial.replace(path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (renameat2 of Linux); False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0)


def _restore(path: Path) -> None:
    """Where a kill came between the two renames of a system that cannot exchange names, the old folder comes back."""
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():
        old.replace(path)


def verify(path: Path) -> None:
    """Check every file of an artefact folder against its manifest.

    Raises RecalignError naming the first file that is missing or changed, or the manifest where it is damaged.
    """
    for name, expected in _manifest(path).items():
        _verify_file(path / name, expected, path / MANIFEST)


def verify_once(path: Path) -> None:
    """As `verify`, once a process for files that stay as they are; a folder without a manifest passes."""
    if (path / MANIFEST).is_file():
        for name, expected in _manifest(path).items():
            _verify_once(path / name, expected, path / MANIFEST)


def _manifest(path: Path) -> dict[str, str]:
    """The digests that a folder's manifest lists. Raises RecalignError where it is damaged."""
    content = read_json(path / MANIFEST)
    digests = content.get("sha256") if isinstance(content, dict) else None
    if not isinstance(digests, dict) or not all(isinstance(each, str) for each in digests.values()):
        raise RecalignError(f"{path / MANIFEST} lists no digests (key sha256); 'dvc checkout' restores it")
    return digests


def _verify_once(file: Path, expected: str, manifest: Path) -> None:
    known = (str(file.resolve()), *_stamp(file), expected)
    if known not in _verified:
        _verify_file(file, expected, manifest)
        _verified.add(known)


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file; zeros where there is none."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _verify_file(file: Path, expected: str, manifest: Path) -> None:
    if not file.is_file():
        raise RecalignError(f"{file} is missing though {manifest} lists it; run 'dvc repro' to make it again")
    if file_digest(file) != expected:
        raise RecalignError(f"{file} was changed after it was written (sha256 differs); 'dvc checkout' restores it")


def _verify_as_listed(file: Path) -> None:
    """Check a file that the manifest beside it lists, once a process."""
    manifest = file.parent / MANIFEST
    if manifest.is_file() and (expected := _manifest(file.parent).get(file.name)) is not None:
        _verify_once(file, expected, manifest)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON (indented, keys sorted) atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises RecalignError naming the file when it is absent, not UTF-8 or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; run 'dvc repro' to make it") from None
    except (ValueError, RecursionError) as error:  # what is no UTF-8 and no JSON are both a ValueError
        raise RecalignError(f"{path} is not JSON ({error}); 'dvc checkout' restores it") from None


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet atomically; equal tables give equal bytes."""
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_parquet(
    path: Path,
    columns: Sequence[str] | Mapping[str, pc.Expression] | None = None,
    filters: pc.Expression | None = None,
) -> pa.Table:
    """Read a Parquet file, some of its columns (a mapping: what to compute of them), or the rows that pass `filters`.

    What is left out is read and dropped piece by piece; the rows keep their order.
    Raises RecalignError naming the file when it is absent, unreadable, or another than the manifest beside it lists:
    a flipped bit is a wrong value in most places of the format, not an error.
    """
    _verify_as_listed(path)
    try:
        if isinstance(columns, Mapping) or filters is not None:
            from pyarrow.dataset import dataset  # it imports pandas: a fifth of a second

            named = columns if columns is None or isinstance(columns, Mapping) else list(columns)
            return dataset(path, format="parquet").to_table(columns=named, filter=filters)
        with pq.ParquetFile(path) as file:
            own = file.read(None if columns is None else list(columns))
        return own if columns is None else own.select(list(columns))  # in the order asked for; names what is missing
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; run 'dvc repro' to make it") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise RecalignError(f"{path} is not a Parquet file ({said}); 'dvc checkout' restores it") from None
