"""Any text in any console: no encoding and no closed pipe ends a command, and tables stay readable."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recalign.cli import main, subcommands
from recalign.commands.recommend import _print as print_recommendation
from recalign.common import console
from recalign.doctor.findings import Finding, print_findings

SOURCE = Path(console.__file__).parent
CASE = '{"history": [1, 2], "candidates": [3, 4, 5], "target": 4, "case": %d, "user_id": %d}\n'
COMMAND = [sys.executable, "-m", "recalign"]


ENCODINGS = ["ascii", "cp1252", "latin-1"]  # they lack minus signs, Greek letters and frames


def printed(encoding: str, run: Callable[[], object]) -> str:
    """What `run` writes to a standard output of that encoding, prepared as every command prepares its own."""
    written, before = io.BytesIO(), sys.stdout
    sys.stdout = io.TextIOWrapper(written, encoding=encoding, errors="strict", write_through=True)
    try:
        console.prepare()
        run()
        return written.getvalue().decode(encoding)
    finally:
        sys.stdout = before


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(CASE % (number, number) for number in range(6)), encoding="utf-8")
    return path


def test_whatever_the_source_prints_is_spelled_in_ascii() -> None:
    """Every character of every module: none becomes a question mark, so this holds for every table of every command."""
    console.prepare()
    used = {character for file in SOURCE.rglob("*.py") for character in file.read_text(encoding="utf-8")}
    lost = [c for c in used if not c.isascii() and "?" in c.encode("ascii", console.READABLE).decode()]
    assert lost == []


@pytest.mark.parametrize(
    ("text", "ascii_text"),
    [
        ("−0.012 [−0.1, 0.3]", "-0.012 [-0.1, 0.3]"),
        ("χ² test, β ≤ 0.5 … ≥", "chi2 test, beta <= 0.5 ... >="),
        ("Amélie, Łódź, “Straße”", 'Amelie, Lodz, "Strasse"'),
        ("東京 \udc80 \U0001f3ac", "?? ? ?"),
        ("ᾱ — ½", "alpha - 1/2"),
    ],
)
def test_what_ascii_lacks_is_spelled_as_a_person_reads_it(text: str, ascii_text: str) -> None:
    console.prepare()
    assert text.encode("ascii", console.READABLE).decode() == ascii_text


def test_what_an_encoding_has_is_left_as_it_is() -> None:
    assert printed("ascii", lambda: print("Amélie − χ")) == "Amelie - chi\n"
    assert printed("cp1252", lambda: print("Amélie − χ")) == "Amélie - chi\n"
    assert printed("utf-8", lambda: print("Amélie − χ \udc80")) == "Amélie − χ ?\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_help_of_every_command_can_be_read(encoding: str) -> None:
    assert subcommands()
    for command in subcommands():
        assert f"usage: recalign {command}" in printed(encoding, lambda command=command: helped(command))


def helped(command: str) -> None:
    """Ask a command for its help, which ends with exit code 0."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_audit_prints_its_table(encoding: str, cases: Path) -> None:
    """Its exit code says what it found, not what the console lacks."""
    codes: list[int] = []
    told = printed(encoding, lambda: codes.append(main(["audit", "--cases", str(cases)])))
    assert codes == [1]
    assert "chi2" in told.replace("²", "2")  # the table folds, so its words may be on two lines
    assert "leak: 6 of 6 targets" in told


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_doctor_and_recommend_print_their_tables(encoding: str) -> None:
    found = Finding("data", "fail", "an item “東京”, rated −1 → not ≥ 0", "rate it anew")
    answer = {"items": [{"item_id": 1, "title": "A − 東京", "score": -1.5}], "preference": "likes “drama”",
              "inferred_by": "counting", "evidence": ["Łódź"], "unknown": ["χ"]}  # fmt: skip
    assert "rated -1 -> not >= 0" in printed(encoding, lambda: print_findings([found]))
    told = printed(encoding, lambda: print_recommendation(answer, ["Heat"], "log π(title | prompt) − prior"))
    assert "A - ??" in told
    assert "Ranked by log pi(title | prompt) - prior:" in told


def test_ascii_in_the_environment_and_a_real_process(cases: Path) -> None:
    """As `PYTHONIOENCODING=ascii recalign audit …` in a terminal without Unicode; an error message, too."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, "audit", "--cases", cases], capture_output=True, env=environment, check=False)
    assert (done.returncode in (0, 1), b"Traceback" in done.stderr, b"chi2" in done.stdout) == (True, False, True)


def test_a_reader_who_has_enough_ends_a_command_quietly(cases: Path) -> None:
    """As `| head -0`: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "audit", "--cases", cases], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_onto_a_full_disk_is_one_line(cases: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "audit", "--cases", cases], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line
