"""The rooms of src/recalign: imports run down the floors, heavy libraries stay in their rooms, no room is too large."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT

from recalign.pipeline import PACKAGE, imported_names

FLOORS = (  # from the top: a room imports from the floors below its own
    ("cli", "__main__", "api"),
    ("commands", "operations"),
    ("stages", "registry"),
    ("report", "ranking", "doctor"),
    ("hybrid",),
    ("preferences", "training"),
    ("recommenders", "llm", "audit"),
    ("data", "objectives"),
    ("evaluation",),
    ("params", "project", "pipeline", "common", "__init__"),
)
# Within one floor: these, one way, and whatever stands on the ground floor.
NEIGHBOURS = {
    ("__main__", "cli"),
    ("commands", "operations"),
    ("stages", "registry"),
    ("report", "ranking"),
    ("preferences", "training"),
    ("recommenders", "llm"),  # content reads items by a text encoder
}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LARGEST_SHARE = 0.1  # of the lines of src/recalign, in one folder without the folders in it
ROOMS_OF = {"prefect": None, "mlflow": "registry", "great_expectations": "data/validation"}  # None: flows/ only


def modules(root: Path) -> dict[str, Path]:
    """Every module below src/recalign by its dotted name without "recalign."."""
    package = root / PACKAGE
    named = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


def arrows(root: Path) -> dict[str, set[str]]:
    """Which module imports which, inside functions too, by dotted names without "recalign."."""
    known = modules(root)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        wanted = {imported.removeprefix("recalign").lstrip(".") or "__init__" for imported in imported_names(path)}
        found[name] = {own for own in wanted if own in known and own != name}
    return found


def upward(root: Path) -> list[str]:
    """The imports that do not run down the floors; a room that no floor has is one, too."""
    found = []
    for name, imported in arrows(root).items():
        above = name.split(".")[0]
        for own in imported:
            below = own.split(".")[0]
            ground = FLOOR.get(above) == FLOOR.get(below) == len(FLOORS) - 1
            allowed = above == below or ground or (above, below) in NEIGHBOURS
            if not allowed and FLOOR.get(above, len(FLOORS)) >= FLOOR.get(below, -1):
                found.append(f"{name} -> {own}")
    return sorted(found)


def circles(root: Path) -> list[set[str]]:
    """The groups of modules that import one another round in a circle."""
    import networkx as nx

    graph = nx.DiGraph([(name, own) for name, imported in arrows(root).items() for own in imported])
    return [group for group in nx.strongly_connected_components(graph) if len(group) > 1]


def libraries(path: Path) -> Iterator[str]:
    """The top-level names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).split(".")[0]


def strays(root: Path) -> list[str]:
    """Modules that import a heavy library outside of its one room."""
    found = []
    for path in modules(root).values():
        place = path.relative_to(root / PACKAGE).as_posix()
        for library in set(libraries(path)) & ROOMS_OF.keys():
            room = ROOMS_OF[library]
            if room is None or not place.startswith(f"{room}/"):
                found.append(f"{place} imports {library}")
    return sorted(found)


def shares(root: Path) -> dict[str, float]:
    """The share of all lines of src/recalign that lies in each folder, without the folders in it."""
    lines: dict[str, int] = {}
    for path in modules(root).values():
        folder = path.parent.relative_to(root / PACKAGE).as_posix()
        lines[folder] = lines.get(folder, 0) + len(path.read_text(encoding="utf-8").splitlines())
    return {folder: own / sum(lines.values()) for folder, own in lines.items()}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source in a folder of its own, to be spoiled."""
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def plant(root: Path, module: str, line: str) -> None:
    """Add a function with one import to a module."""
    with (root / PACKAGE / module).open("a", encoding="utf-8") as handle:
        handle.write(f"\n\ndef planted():\n    {line}\n")


def test_no_import_runs_up():
    """cli, commands, stages, report, training, recommenders, data, evaluation, common: each knows those below it."""
    assert upward(ROOT) == []


def test_no_modules_import_one_another():
    """Nor through others."""
    assert circles(ROOT) == []


def test_every_room_stands_on_a_floor():
    """A new room needs its place in FLOORS, and in design and docs."""
    assert {name.split(".")[0] for name in modules(ROOT)} <= FLOOR.keys()


@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("data/records.py", "from recalign.training import loop", "data.records -> training.loop"),
        ("common/html.py", "import recalign.report.table", "common.html -> report.table"),
        ("objectives/losses.py", "from recalign.data.records import Items", "objectives.losses -> data.records"),
        ("ranking/trial.py", "from recalign.report.table import by_value", "ranking.trial -> report.table"),
        ("params/section.py", "x = 'recalign.recommenders.ease'", "params.section -> recommenders.ease"),
    ],
)
def test_an_import_that_runs_up_is_found(copy, module, line, told):
    """Hidden in a function, between rooms of one floor, or as a name to be imported."""
    plant(copy, module, line)
    found = upward(copy)
    assert told in found
    assert {arrow.split(" -> ")[0] for arrow in found} == {told.split(" -> ")[0]}


def test_a_circle_is_found(copy):
    """Of two modules of one room."""
    plant(copy, "common/errors.py", "from recalign.common import artifacts")
    assert any({"common.errors", "common.artifacts"} <= group for group in circles(copy))


def test_heavy_libraries_stay_in_their_rooms(copy):
    """Prefect in flows/, MLflow in registry/, Great Expectations in data/validation/."""
    assert strays(ROOT) == []
    plant(copy, "stages/align.py", "from mlflow import MlflowClient")
    plant(copy, "registry/gate.py", "import prefect.states")
    assert strays(copy) == ["registry/gate.py imports prefect", "stages/align.py imports mlflow"]


def test_help_imports_no_heavy_library():
    """`recalign --help` answers at once."""
    heavy = ("torch", "transformers", "mlflow", "prefect", "great_expectations", "pydantic", "pyarrow", "duckdb")
    script = (
        "import sys; from recalign.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('imported:', sorted(set({heavy}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "usage: recalign" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_ranking_and_fusing_id_systems_imports_no_language_model_library():
    """transformers takes three CPU seconds, and a run has a stage for each ID system."""
    modules = ("recalign.stages.rank", "recalign.stages.fuse", "recalign.ranking.fused")
    program = f"import sys, {', '.join(modules)}; print([n for n in ('transformers', 'peft') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_the_roster_imports_no_model():
    """Its names are checked before every stage."""
    script = "import sys, recalign.recommenders.roster as r; print(len(r.ROSTER), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, torch = done.stdout.split()
    assert int(count) >= 10
    assert torch == "False"


def test_no_room_holds_more_than_a_tenth_of_the_lines(copy):
    """A room that grows beyond is two rooms."""
    assert {folder: share for folder, share in shares(ROOT).items() if share > LARGEST_SHARE} == {}
    (copy / PACKAGE / "common" / "more.py").write_text("x = 1\n" * 4000, encoding="utf-8")
    assert [folder for folder, share in shares(copy).items() if share > LARGEST_SHARE] == ["common"]
