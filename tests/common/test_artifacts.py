"""Writes are whole or not at all."""

import subprocess
import sys

import pyarrow as pa
import pytest

from recalign.common import artifacts
from recalign.common.errors import RecalignError


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    """When the block raises, readers still see the former artefact and no left-over."""
    place = tmp_path / "out"
    with artifacts.folder(place) as partial:
        (partial / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), artifacts.folder(place) as partial:
        (partial / "a.txt").write_text("new")
        _ = 1 / 0
    assert (place / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_new_folder_takes_the_place_of_the_old(tmp_path):
    """A second write replaces the first whole: files of the former are gone."""
    place = tmp_path / "out"
    for name in ("a.txt", "b.txt"):
        with artifacts.folder(place) as partial:
            (partial / name).write_text(name)
    assert sorted(p.name for p in place.iterdir()) == ["b.txt", "manifest.json"]
    artifacts.verify(place)


def test_left_overs_of_a_killed_run_are_swept(tmp_path):
    """A folder that a kill left half-written goes with the next run."""
    (tmp_path / ".out.partial-1").mkdir()
    with artifacts.folder(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("a")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_verify_names_the_changed_file(tmp_path):
    """One flipped byte is found and its file named."""
    with artifacts.folder(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("a")
    (tmp_path / "out" / "a.txt").write_text("b")
    with pytest.raises(RecalignError, match=r"a\.txt was changed after it was written"):
        artifacts.verify(tmp_path / "out")


def test_equal_values_have_equal_digests():
    """The digest does not depend on the order of keys."""
    assert artifacts.digest_of({"a": 1, "b": [2]}) == artifacts.digest_of({"b": [2], "a": 1})
    assert artifacts.digest_of({"a": 1}) != artifacts.digest_of({"a": 2})


def test_a_missing_file_says_how_to_make_it(tmp_path):
    """Reading what is not there is one line with the fix."""
    with pytest.raises(RecalignError, match=r"x\.json is missing; run 'dvc repro'"):
        artifacts.read_json(tmp_path / "x.json")


# Kills, other writers, full disks, damage


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder(tmp_path):
    """Twenty real processes that rewrite a folder without end are killed: it is there and whole each time."""
    place = tmp_path / "out"
    code = (
        "import sys, pathlib\nfrom recalign.common import artifacts\nn = 0\n"
        "while True:\n    n += 1\n"
        "    with artifacts.folder(pathlib.Path(sys.argv[1])) as p:\n"
        "        for f in ('a', 'b'): (p / f).write_text(str(n))\n"
        "    if n == 1: print('ready', flush=True)\n"
    )
    for turn in range(4):
        writer = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(40 + 7 * turn):
            assert (place / "manifest.json").is_file()  # a reader never finds a moment without it
        writer.kill()
        writer.wait()
        writer.stdout.close()
        artifacts.verify(place)
        assert (place / "a").read_text() == (place / "b").read_text()
    with artifacts.folder(place) as partial:
        (partial / "a").write_text("last")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_where_names_cannot_be_exchanged_a_kill_between_the_two_renames_is_put_right(tmp_path, monkeypatch):
    """As on file systems without renameat2: the next writer finds the old folder, and brings it back."""
    place = tmp_path / "out"
    with artifacts.folder(place) as partial:
        (partial / "a").write_text("old")
    monkeypatch.setattr(artifacts, "_exchange", lambda one, other: False)
    place.rename(tmp_path / ".out.old")  # what a kill leaves
    with pytest.raises(ZeroDivisionError), artifacts.folder(place):
        _ = 1 / 0
    assert (place / "a").read_text() == "old"
    with artifacts.folder(place) as partial:
        (partial / "a").write_text("new")
    assert (place / "a").read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_two_writers_leave_each_other_alone_and_the_later_one_stays(tmp_path):
    place = tmp_path / "out"
    with artifacts.folder(place) as first:
        (first / "a").write_text("first")
        with artifacts.folder(place) as second:
            (second / "a").write_text("second")
        assert (place / "a").read_text() == "second"
        assert (first / "a").read_text() == "first"
    assert (place / "a").read_text() == "first"
    artifacts.verify(place)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["text", "parquet", "safetensors", "folder"])
def test_a_full_disk_is_one_line_and_the_old_state_is_kept(kind, tmp_path):
    """A real limit on the size of files, in a process of its own; each library has an error of its own."""
    place = tmp_path / "out"
    with artifacts.folder(place) as partial:
        (partial / "a").write_text("old")
        artifacts.write_text(partial / "file", "old")
    code = (
        "import sys, pathlib, resource, signal, os\nimport numpy as np, pyarrow as pa\n"
        "from recalign.common import artifacts\n"
        "from safetensors.numpy import save_file\nfrom recalign.common.errors import RecalignError\n"
        "place, kind = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "many = np.random.default_rng(1).random(100_000)\n"
        "def write():\n"
        "    if kind == 'text': artifacts.write_text(place / 'file', 'x' * 100_000)\n"
        "    if kind == 'parquet': artifacts.write_parquet(place / 'file', pa.table({'x': many}))\n"
        "    if kind == 'safetensors':\n"
        "        with artifacts.replacing(place / 'file') as p: save_file({'x': many}, p)\n"
        "    if kind == 'folder':\n"
        "        with artifacts.folder(place) as p: (p / 'a').write_bytes(many.tobytes())\n"
        "try: write()\n"
        "except RecalignError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place), kind], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    target = place if kind == "folder" else place / "file"
    assert done.stdout.startswith(f"{target} could not be written: a file would grow beyond the limit")
    assert "what was there before is kept" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    artifacts.verify(place)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_said_as_such():
    """No space, no quota and no larger file, in the words of Python, Arrow and safetensors."""
    assert artifacts._fullness(OSError(28, "No space left on device")) == "the disk is full"
    assert artifacts._fullness(ValueError("I/O error: No space left on device (os error 28)")) == "the disk is full"
    assert artifacts._fullness(OSError(122, "Disk quota exceeded")) == "the disk quota is used up"
    assert artifacts._fullness(ValueError("rows are full of errors")) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{half", r"manifest\.json is not JSON"),
        (b"\xff\xfe\x00", r"manifest\.json is not JSON"),
        (b"[]", r"manifest\.json lists no digests"),
        (b'{"sha256": ["a.txt"]}', r"manifest\.json lists no digests"),
        (b'{"sha256": {"a.txt": 7}}', r"manifest\.json lists no digests"),
        (b"[" * 100_000, r"manifest\.json is not JSON"),
    ],
)
def test_a_damaged_manifest_is_named(content, said, tmp_path):
    with artifacts.folder(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("a")
    (tmp_path / "out" / "manifest.json").write_bytes(content)
    for check in (artifacts.verify, artifacts.verify_once, artifacts.folder_digest):
        with pytest.raises(RecalignError, match=said):
            check(tmp_path / "out")


def test_a_flipped_bit_of_a_parquet_file_is_never_read_as_another_value(tmp_path):
    """Every bit of a small file, of which most are values: an error each time."""
    place = tmp_path / "out"
    with artifacts.folder(place) as partial:
        artifacts.write_parquet(partial / "t.parquet", pa.table({"x": list(range(200))}))
    file = place / "t.parquet"
    whole = file.read_bytes()
    assert artifacts.read_parquet(file)["x"].to_pylist()[:3] == [0, 1, 2]
    for position in range(0, len(whole) * 8, 97):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(bytes(damaged))
        with pytest.raises(RecalignError, match=r"t\.parquet was changed after it was written"):
            artifacts.read_parquet(file, ["x"])


def test_a_file_is_verified_once_a_process_while_it_stays_as_it_is(tmp_path, monkeypatch):
    with artifacts.folder(tmp_path / "out") as partial:
        artifacts.write_parquet(partial / "t.parquet", pa.table({"x": [1]}))
    read = []
    monkeypatch.setattr(artifacts, "file_digest", lambda p, real=artifacts.file_digest: read.append(p) or real(p))
    for _ in range(3):
        artifacts.read_parquet(tmp_path / "out" / "t.parquet")
        artifacts.verify_once(tmp_path / "out")
    assert len(read) == 1
