"""The command line is quick, complete and kind."""

import subprocess
import sys
from pathlib import Path

import pytest

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
        main(["evalute"])
    assert stop.value.code == 2
    assert "evaluate" in capsys.readouterr().err


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
