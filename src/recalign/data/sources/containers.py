"""What a raw file is by its first bytes, whatever its name says, and its plain content: unpacked, in UTF-8.

Read: text, JSON and Parquet; packed by gzip, bzip2, xz, zstd or lz4, or alone in a zip; in UTF-8, UTF-16 or UTF-32.
Everything else that people put into such folders is refused by its own name.
"""

import bz2
import codecs
import gzip
import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from recalign.common.errors import RecalignError

HEAD = 65_536  # bytes by which a file is recognised
PIECE = 4 * 2**20  # bytes unpacked at once
LAYERS = 4  # a zip of a gzip of UTF-16 has three; more is no table
PARQUET = b"PAR1"
JUNK = ("__MACOSX/", ".DS_Store", "._")  # what macOS adds to a zip
# how a file begins: what it is, and the fix
REFUSED: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with 'git lfs pull'"),
    (b"outs:\n", "a DVC pointer, not the file itself", "fetch it with 'dvc pull'"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"ARROW1", "an Arrow (Feather) file", "write it as Parquet"),
    (b"FEA1", "a Feather file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "export its table as CSV"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its table as Parquet"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as 'CSV UTF-8'"),
    (b"\x93NUMPY", "a NumPy file", "write it as CSV or Parquet"),
    (b"%PDF", "a PDF document", "get the table as CSV or Parquet"),
    (b"\x80\x02", "a Python pickle", "write it as Parquet (pickles are never opened: they can run code)"),
    (b"\x80\x03", "a Python pickle", "write it as Parquet (pickles are never opened: they can run code)"),
    (b"\x80\x04", "a Python pickle", "write it as Parquet (pickles are never opened: they can run code)"),
    (b"\x80\x05", "a Python pickle", "write it as Parquet (pickles are never opened: they can run code)"),
)
OFFICE = {
    "xl/": "an Excel workbook",
    "word/": "a Word document",
    "content.xml": "an OpenDocument file",
    "data.pkl": "a PyTorch file",
}
MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _arrow(codec: str) -> Callable[[Path], IO[bytes]]:
    def opened(path: Path) -> Any:
        import pyarrow as pa

        return pa.CompressedInputStream(pa.OSFile(str(path)), codec)

    return opened


PACKED: tuple[tuple[bytes, str, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", "gzip", gzip.open),
    (b"BZh", "bzip2", bz2.open),
    (b"\xfd7zXZ\0", "xz", lzma.open),
    (b"\x28\xb5\x2f\xfd", "zstd", _arrow("zstd")),
    (b"\x04\x22\x4d\x18", "lz4", _arrow("lz4")),
)


def plain(path: Path, place: Path, name: str) -> Path:
    """A file named `name` in the folder `place` with the plain content of `path`; a link where `path` is plain.

    The name tells nothing: no pattern, suffix or folder in the path of a raw file means anything to whoever reads it.
    Raises RecalignError for what is no table, is cut short, or holds several files.
    """
    current = path
    for layer in range(LAYERS):
        head = read_head(current)
        unpacked = place / f"{name}-{layer}"
        unpacked.unlink(missing_ok=True)
        if not _unpack(current, head, unpacked, path):
            break
        if current != path:
            current.unlink()
        current = unpacked
    else:
        raise RecalignError(f"{path} is packed more than {LAYERS - 1} times; unpack it")
    _refuse_others(path, head)
    target = place / name
    target.unlink(missing_ok=True)
    if current == path:
        target.symlink_to(path.resolve())
    else:
        current.rename(target)
    return target


def read_head(path: Path) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as handle:
        return handle.read(HEAD)


def _unpack(current: Path, head: bytes, target: Path, path: Path) -> bool:
    """Take off the outer layer, if there is one."""
    if head.startswith(b"PK\x03\x04"):
        _copy(path, "zip", lambda: _member(current, path), target)
        return True
    for start, kind, opener in PACKED:
        if head.startswith(start):
            _copy(path, kind, lambda opener=opener: opener(current), target)  # type: ignore[misc]
            return True
    encoding = _wide_encoding(head)
    if encoding:
        _transcode(path, current, encoding, target)
        return True
    return False


def _copy(path: Path, kind: str, opened: Callable[[], IO[bytes]], target: Path) -> None:
    import pyarrow as pa

    try:
        with opened() as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, PIECE)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, pa.ArrowInvalid) as error:
        raise RecalignError(
            f"{path} cannot be unpacked as {kind} ({' '.join(str(error).split()) or 'it ends too early'}); "
            "it was cut short or damaged: fetch it again"
        ) from None


def _member(current: Path, path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(current)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    for part, what in OFFICE.items():
        if any(name.startswith(part) or name.endswith("/" + part) for name in names):
            fix = "save the sheet as 'CSV UTF-8'" if "Excel" in what or "Open" in what else "give a CSV or Parquet file"
            raise RecalignError(f"{path} is {what}; {fix}")
    real = [name for name in names if not name.startswith(JUNK) and not Path(name).name.startswith(JUNK)]
    if len(real) != 1:
        shown = ", ".join(sorted(real)[:5]) or "nothing"
        raise RecalignError(f"{path} is a zip of {len(real)} files ({shown}); unpack it and name the one that is meant")
    return archive.open(real[0])


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by their mark, or by the zero in every second byte of plain text."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    even, odd = head[: len(head) // 2 * 2 : 2], head[1::2]
    if len(odd) < 4:
        return None
    if odd.count(0) > 0.7 * len(odd) and not even.count(0):
        return "utf-16-le"
    if even.count(0) > 0.7 * len(even) and not odd.count(0):
        return "utf-16-be"
    return None


def _transcode(path: Path, current: Path, encoding: str, target: Path) -> None:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with current.open("rb") as source, target.open("wb") as sink:
            while piece := source.read(PIECE):
                sink.write(decoder.decode(piece).encode("utf-8"))
            sink.write(decoder.decode(b"", True).encode("utf-8"))
    except UnicodeError:
        raise RecalignError(f"{path} begins as {encoding.upper()} and goes on otherwise; export it again") from None


def _refuse_others(path: Path, head: bytes) -> None:
    for start, what, fix in REFUSED:
        if head.startswith(start):
            raise RecalignError(f"{path} is {what}; {fix}")
    if head[257:262] == b"ustar":
        raise RecalignError(f"{path} is a tar archive; unpack it and name the file that is meant")
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if re.match(rb"(?i)<(!doctype|html|\?xml)", text):
        raise RecalignError(f"{path} is a web page or XML, not a table; was a login page downloaded in its place?")
    if not head.startswith(PARQUET) and b"\0" in head:
        raise RecalignError(f"{path} is no text (byte {head.index(0)} is zero) and no Parquet; give CSV or Parquet")


def not_utf8(path: Path, line: int, byte: int, sample: bytes, *, rest_is_utf8: bool) -> NoReturn:
    """Raise the error for a byte that is not UTF-8, with a conversion only where it is sure to give readable text.

    sample: bytes around it. rest_is_utf8: letters beyond ASCII came before it, in good UTF-8.
    """
    found = f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8"
    if rest_is_utf8:
        raise RecalignError(f"{found}, but the text before it is; correct that line (converting would spoil the rest)")
    latin = _latin(sample)
    if latin is None:
        raise RecalignError(f"{found}; convert the file from the encoding it was written in ('iconv -l' lists them)")
    command = f"iconv -f {latin} -t utf-8 {path.name} > fixed.csv"
    raise RecalignError(f"{found}; convert the file, for example with '{command}'")


def _latin(sample: bytes) -> str | None:
    """The Western encoding in which the bytes are readable: single letters beyond ASCII between others, or None."""
    high = [byte for byte in sample if byte >= 0x80]
    runs = re.findall(rb"[\x80-\xff]+", sample)
    if not high or len(high) > 1.5 * len(runs) or len(high) > 0.3 * len(sample):
        return None  # other alphabets write whole words of such bytes
    if any(byte < 0xA0 for byte in high):
        return None if any(byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) for byte in high) else "cp1252"
    return "latin1"


def lines_of(path: Path) -> Iterator[str]:
    """The first lines of a UTF-8 file, without the mark at its beginning; bytes that are not UTF-8 are replaced."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        yield from handle
