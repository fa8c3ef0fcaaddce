"""Which modules of recalign a stage imports, directly or through others, found by walking the source."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"


def _file(module: str) -> Path | None:
    path = SOURCE / Path(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return None


def imports(file: Path) -> set[Path]:
    """The project's modules that a file imports anywhere, inside functions too."""
    found: set[Path | None] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {_file(alias.name) for alias in node.names if alias.name.startswith("recalign.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recalign"):
            found.add(_file(str(node.module)))
            found |= {_file(f"{node.module}.{alias.name}") for alias in node.names}
    return {path for path in found if path}


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
    """Paths from the root, as dvc.yaml lists them, of everything that stage runs."""
    root = SOURCE.parent
    return sorted(str(path.relative_to(root)) for path in closure(SOURCE / "recalign" / "stages" / f"{stage}.py"))
