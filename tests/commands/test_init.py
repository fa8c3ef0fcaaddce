"""`recalign init` writes a project of a team's own, which the installed recalign runs from first stage to answer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import FEW, ROOT, set_params
from ruamel.yaml import YAML

from recalign import __version__
from recalign.cli import main
from recalign.common.errors import RecalignError
from recalign.params.load import load_params
from recalign.pipeline import check_version, project_pipeline
from recalign.project import shipped

TEXT = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
COPIED = ["params.yaml", "prefect.yaml", *(f"flows/{path.name}" for path in sorted((ROOT / "flows").glob("*.py")))]
OWN = [".dvc/.gitignore", ".dvc/config", ".dvcignore", ".github/workflows/smoke.yml", ".gitignore", "README.md",
       "dvc.yaml", "optional/dvc.yaml", "recalign.version"]  # fmt: skip


def new(place: Path) -> Path:
    """A project that `recalign init` wrote."""
    assert main(["init", str(place)]) == 0
    return place


def workflow(project: Path) -> dict[str, str]:
    """The commands of its workflow's steps by name."""
    read = YAML(typ="safe").load((project / ".github/workflows/smoke.yml").read_text(encoding="utf-8"))
    return {step["name"]: step["run"] for step in read["jobs"]["smoke"]["steps"] if "run" in step}


def test_init_writes_these_files_and_no_others(tmp_path, capsys):
    """And says what comes next."""
    project = new(tmp_path / "my-project")
    files = sorted(str(path.relative_to(project)) for path in project.rglob("*") if path.is_file())
    assert [name for name in files if not name.startswith(".git/")] == sorted([*COPIED, *OWN])
    for name in COPIED:
        assert (project / name).read_bytes() == (ROOT / name).read_bytes()
    assert (project / "recalign.version").read_text(encoding="utf-8") == f"recalign=={__version__}\n"
    assert (project / "README.md").read_text(encoding="utf-8").startswith("# my-project\n")
    assert load_params(project / "params.yaml").source == "simulated"
    assert "recalign simulate && dvc add data/raw/simulated" in capsys.readouterr().out


def test_a_projects_dvc_yaml_is_the_repositorys_but_for_what_stands_for_the_code():
    """Where a stage of the repository depends on the source, a stage of a project depends on the version."""
    theirs, ours = (YAML(typ="safe").load(text) for text in (project_pipeline(TEXT), TEXT))
    assert list(theirs["stages"]) == list(ours["stages"])
    for name, stage in ours["stages"].items():
        data = [path for path in stage["deps"] if not path.startswith("src/")]
        assert len(data) < len(stage["deps"])
        assert theirs["stages"][name] == stage | {"deps": [*data, "recalign.version"]}
    assert {key: value for key, value in theirs.items() if key != "stages"} == {
        key: value for key, value in ours.items() if key != "stages"
    }


def test_every_line_of_dvc_yaml_that_names_no_dependency_is_kept():
    """Comments too, but for the one that says where dependencies on the source come from."""
    kept = [line for line in TEXT.splitlines() if "src/" not in line and not line.startswith("      [")]
    written = project_pipeline(TEXT).splitlines()
    assert [line for line in kept if line not in written] == []
    assert "src/" not in project_pipeline(TEXT)
    assert "recalign graph" not in project_pipeline(TEXT)


def test_dvc_takes_the_project_as_it_is(tmp_path):
    """Its stages are those of the repository."""
    project = new(tmp_path / "project")
    listed = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    names = [
        subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
        for root in (project, ROOT)
    ]
    assert names[0] == names[1]
    assert "ingest" in names[0]


@pytest.mark.parametrize("held", ["params.yaml", ".hidden", "data/"])
def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys, held):
    """A file, a hidden one or a folder in it."""
    place = tmp_path / "project"
    place.mkdir()
    (place / held).mkdir() if held.endswith("/") else (place / held).write_text("mine")
    assert main(["init", str(place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"recalign init: {place} is not empty (it holds {held.strip('/')})")
    assert [entry.name for entry in place.iterdir()] == [held.strip("/")]


def test_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / "project").write_text("mine")
    assert main(["init", str(tmp_path / "project")]) == 2
    assert capsys.readouterr().err == (
        f"recalign init: {tmp_path / 'project'} is a file; give the name of a new folder, or of an empty one\n"
    )


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    """Below a file there is no room for a folder."""
    (tmp_path / "file").write_text("mine")
    assert main(["init", str(tmp_path / "file" / "project")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"recalign init: {tmp_path / 'file'}")
    assert "unforeseen" not in line


def test_a_fresh_clone_and_the_folder_one_stands_in_are_empty_enough(tmp_path, monkeypatch):
    """`git init` or an empty clone came first; its repository is kept."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".git" / "mine").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["init", "."]) == 0
    assert (tmp_path / ".git" / "mine").is_file()
    assert (tmp_path / "README.md").read_text(encoding="utf-8").startswith(f"# {tmp_path.name}\n")


def test_inside_of_another_repository_none_is_made(tmp_path, capsys):
    """And it is said that its workflows do not run there."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    project = new(tmp_path / "project")
    assert not (project / ".git").exists()
    assert "move .github to that one's root" in capsys.readouterr().out


def test_without_git_the_project_does_without(tmp_path, monkeypatch):
    """DVC refuses to work outside of a repository unless it is told that there is none."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    project = new(tmp_path / "project")
    monkeypatch.undo()
    assert "no_scm = true" in (project / ".dvc" / "config").read_text(encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=project, capture_output=True, check=True)


def test_a_write_that_fails_leaves_no_half_project(tmp_path, monkeypatch):
    """The folder is empty as before, so that init may be repeated."""
    from recalign.commands import init

    whole = init.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "prefect.yaml":
            raise RecalignError("the disk is full")
        whole(path, text)

    monkeypatch.setattr(init, "write_text", full)
    assert main(["init", str(tmp_path / "project")]) == 2
    monkeypatch.undo()
    assert [entry.name for entry in (tmp_path / "project").iterdir()] == [".git"]
    new(tmp_path / "project")


def test_stages_refuse_another_version_than_the_projects(tmp_path, monkeypatch, capsys):
    """Else its table would mix two; DVC runs every stage again once the file names the new one."""
    monkeypatch.chdir(new(tmp_path / "project"))
    Path("recalign.version").write_text("recalign==0.0.9\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["ingest"]) == 2
    assert capsys.readouterr().err == (
        f"recalign ingest: recalign.version names 'recalign==0.0.9', and recalign {__version__} is installed; install "
        f"the one that it names, or write recalign=={__version__} into it: then 'dvc repro' runs every stage again\n"
    )
    Path("recalign.version").write_text(f"recalign=={__version__}\n", encoding="utf-8")
    check_version(__version__)
    check_version(__version__, tmp_path)  # no such file: a checkout of the source


def test_what_recalign_is_not_shipped_with_is_named():
    """As an installation whose data files were removed."""
    with pytest.raises(RecalignError, match=r"installed without its nothing\.yaml; install it again"):
        shipped("nothing.yaml")


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_walks_from_init_to_a_recommendation(tmp_path):
    """Nothing of the checkout is at hand: the workflow's own commands run the project, then it answers."""
    python = installed(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = f"{python.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment |= {"PATH": path, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}

    def run(*command: str, cwd: Path) -> str:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    where = run(str(python), "-c", "import recalign; print(recalign.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path))
    run("recalign", "init", "project", cwd=tmp_path)
    project = tmp_path / "project"
    set_params(project, recommenders__systems=FEW)
    steps = workflow(project)
    for name in ("Raw data", "All stages", "Table"):
        run("bash", "-eo", "pipefail", "-c", steps[name], cwd=project)
    posted = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert posted.startswith("Budget smoke: a random model, so the figures mean nothing.")
    assert "| item_knn | " in posted
    assert "| llm-sdpo | " in posted
    told = json.loads(run("recalign", "recommend", "--titles", "Heat", "-k", "3", "--json", cwd=project))
    assert len(told["items"]) == 3
    again = run("dvc", "repro", cwd=project)
    assert "Running stage" not in again
    (project / "recalign.version").write_text("recalign==0.0.9\n", encoding="utf-8")
    assert "recalign.version" in run("dvc", "status", "ingest", cwd=project)


def installed(place: Path) -> Path:
    """The Python of an environment that holds the wheel of this checkout; its libraries are those of the tests."""
    source = place / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", "data", "tests", "*.egg-info", "build", ".dvc"))
    shutil.copytree(ROOT / "src/recalign/data", source / "src/recalign/data", dirs_exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(source)]
    subprocess.run([*pip, *wheel], check=True)
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "env")], check=True)
    python = place / "env" / "bin" / "python"
    (made,) = place.glob("recalign-*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(made)], check=True)
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    lent = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "lent.pth").write_text("".join(f"{path}\n" for path in lent), encoding="utf-8")
    return python
