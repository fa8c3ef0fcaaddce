"""Which modules of recalign a stage imports, directly or through others, found by walking the source."""

import ast
import functools
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


def _files(module: str) -> set[Path]:
    """The module's file, and each `__init__.py` that Python runs on the way to it, where there is code in it."""
    parts = module.split(".")
    path = SOURCE / Path(*parts)
    found = {path.with_suffix(".py")} if path.with_suffix(".py").is_file() else set[Path]()
    packages = (SOURCE / Path(*parts[:depth]) / "__init__.py" for depth in range(1, len(parts) + 1))
    return found | {package for package in packages if package.is_file() and _does_something(package)}


@functools.cache
def _does_something(package: Path) -> bool:
    """False where a package's file is empty or says only what the package is for."""
    body = ast.parse(package.read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


@functools.cache
def imports(file: Path) -> set[Path]:
    """The project's modules that a file imports anywhere, inside functions too."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "recalign"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "recalign":
            names = [f"{node.module}.{alias.name}" for alias in node.names]  # a module of a package, or a name in one
            names.append(str(node.module))
        else:
            continue
        found |= set[Path]().union(*map(_files, names))
    return found


def closure(file: Path) -> set[Path]:
    """`file` and all it imports, transitively."""
    seen, queue = set(), [file]
    while queue:
        current = queue.pop()
        if current not in seen:
            seen.add(current)
            queue.extend(imports(current))
    return seen


def stage_modules(stage: str) -> list[str]:
    """Paths from the root, as dvc.yaml lists them, of everything that stage runs ("rank-sft" runs stages/rank.py)."""
    stage = stage.partition("-")[0]
    root = SOURCE.parent
    return sorted(str(path.relative_to(root)) for path in closure(SOURCE / "recalign" / "stages" / f"{stage}.py"))
