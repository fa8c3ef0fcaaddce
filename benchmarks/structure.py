"""The shape of the source at two commits: files, rooms, circles, parameters, untyped dicts, dvc.yaml.

    python benchmarks/structure.py --before c64c241

Reads the commit's tree and the working tree. Prints a Markdown table. Circles and imports that run up are counted as
tests/pipeline/test_layout.py counts them, by today's floors; a room that today's floors lack counts as one.
"""

import argparse
import ast
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "pipeline"), str(ROOT / "tests" / "worlds")]
MANY = 8  # parameters of a function, `self` among them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="COMMIT")
    commit = parser.parse_args().before
    with tempfile.TemporaryDirectory() as place:
        tree = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "x", "-C", place], input=tree, check=True)
        before, now = dict(shape(Path(place))), dict(shape(ROOT))
    print(f"| | {commit} | now |\n|---|---:|---:|")
    for name in now:
        print(f"| {name} | {before[name]} | {now[name]} |")


def shape(root: Path) -> Iterator[tuple[str, object]]:
    """The figures of one tree by name."""
    from test_layout import circles, upward

    package = root / "src" / "recalign"
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py")}
    rooms = Counter[str]()
    for path, count in lines.items():
        rooms[str(path.parent.relative_to(package))] += count
    room, most = rooms.most_common(1)[0]
    texts = [path.read_text(encoding="utf-8") for path in lines]
    yield "source files", len(lines)
    yield "lines of source", f"{sum(lines.values()):,}"
    yield (
        "lines of the median file, of those that are not empty",
        f"{statistics.median(n for n in lines.values() if n):.0f}",
    )
    yield "largest room, share of the lines", f"{room}, {most / sum(lines.values()):.1%}"
    yield "groups of modules that import one another in a circle", len(circles(root))
    yield "imports that run up", len(upward(root))
    yield "lines of dvc.yaml", len((root / "dvc.yaml").read_text(encoding="utf-8").splitlines())
    yield f"functions of {MANY} and more parameters", sum(map(crowded, texts))
    yield "`dict[str, Any]`", sum(text.count("dict[str, Any]") for text in texts)


def crowded(text: str) -> int:
    """How many functions of a module take MANY parameters."""
    functions = [node.args for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return sum(len([*own.posonlyargs, *own.args, *own.kwonlyargs]) >= MANY for own in functions)


if __name__ == "__main__":
    main()
