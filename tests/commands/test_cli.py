"""The command line is quick, complete and kind."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from recalign import uncollected
from recalign.cli import main, subcommands

HEAVY = ("torch", "transformers", "mlflow", "prefect", "great_expectations", "duckdb", "pandas")


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_imports_none_of_the_heavy_libraries():
    """`recalign --help` answers at once because nothing heavy is imported by it."""
    loaded = run_python(
        "import sys\n"
        "from recalign.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded.startswith("usage: recalign")
    assert loaded.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("command", subcommands())
def test_every_command_explains_itself(command, capsys):
    """`recalign COMMAND --help` exits 0 and shows its usage."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: recalign {command}" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_allowed_ones(capsys):
    """A typo exits 2 and lists the commands."""
    with pytest.raises(SystemExit) as stop:
        main(["prepair"])
    assert stop.value.code == 2
    assert "prepare" in capsys.readouterr().err


def test_a_missing_params_file_is_one_line_and_exit_code_2(tmp_path: Path, monkeypatch, capsys):
    """Outside a project the message says where to run."""
    monkeypatch.chdir(tmp_path)
    assert main(["prepare"]) == 2
    assert capsys.readouterr().err == (
        "recalign prepare: params.yaml is missing; run recalign in the project's root, where params.yaml lies\n"
    )


def test_what_a_command_says_is_no_exit_code(tmp_path: Path, monkeypatch):
    """`register` and its like return their outcome as a sentence; that is success."""
    monkeypatch.setattr("recalign.cli._params", lambda: None)
    monkeypatch.setattr("recalign.cli._call", lambda name: lambda *a, **k: "version 1 is champion")
    assert main(["register"]) == 0


def faulty(*_: object, **__: object) -> None:
    raise KeyError("nobody foresaw this\nnor this")


def test_an_unforeseen_fault_is_one_line_and_its_trace_is_kept(tmp_path: Path, monkeypatch, capsys):
    """Never exit code 1, which audit, doctor and their like use for what they found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("")
    monkeypatch.setattr("recalign.cli._call", lambda name: faulty)
    for command in (["audit", "--cases", "c.jsonl"], ["doctor"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"recalign {command[0]}: unforeseen fault (KeyError: ")
    kept = sorted((tmp_path / "data" / "cache" / "faults").iterdir())
    assert len(kept) == 2
    assert "in faulty" in kept[0].read_text(encoding="utf-8")
    assert str(kept[1].relative_to(tmp_path)) in line


def test_outside_a_project_the_trace_is_kept_in_the_temporary_folder(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("recalign.cli._call", lambda name: faulty)
    assert main(["audit", "--cases", "c.jsonl"]) == 2
    assert str(tmp_path / "temporary" / "recalign-audit-") in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["temporary"]


@pytest.mark.parametrize("way", ["option", "variable"])
def test_whoever_debugs_sees_the_trace_itself(way, monkeypatch):
    monkeypatch.setattr("recalign.cli._call", lambda name: faulty)
    if way == "variable":
        monkeypatch.setenv("RECALIGN_DEBUG", "1")
    with pytest.raises(KeyError):
        main([*(["--debug"] if way == "option" else []), "audit", "--cases", "c.jsonl"])


def test_a_path_that_the_system_refuses_is_named(tmp_path: Path, monkeypatch, capsys):
    """As an output folder that is a file: no fault of recalign, so no trace."""
    cases = tmp_path / "cases.jsonl"
    rows = [{"history": [1], "candidates": [3, 4], "target": 4, "case": n, "user_id": n} for n in range(3)]
    cases.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["audit", "--cases", str(cases), "--json", str(cases / "out.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"recalign audit: {cases}")
    assert "unforeseen" not in line


def test_garbage_is_collected_again_afterwards_and_after_a_fault():
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="broken"), uncollected():
        raise ValueError("broken")
    assert gc.isenabled()


def test_who_collects_no_garbage_still_collects_none_afterwards():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
