"""The stages, once, and what of the source each depends on: `recalign graph` writes it into dvc.yaml.

A stage depends on the modules that its own module imports, directly or through others: whole folders where it computes
with every file of the folder, files where not. Of params/ it depends on the sections that its `params:` list names.
A comment in any other file leaves it fresh.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recalign import project as layout
from recalign.common.errors import RecalignError

DVC_FILE = Path("dvc.yaml")
OPTIONAL_FILE = Path("optional/dvc.yaml")  # stages of no default run
PACKAGE = Path("src/recalign")
WIDTH = 120  # of a line of dvc.yaml
VERSION_FILE = Path("recalign.version")  # of a team's project, whose stages depend on it in place of the source
SOURCE_NOTE = (
    "# What a stage depends on of src/ is written by `recalign graph --write`, from the imports; all else is kept by "
    "hand."
)
VERSION_NOTE = (
    f"# The code is the installed recalign: every stage depends on its version, which `{VERSION_FILE}` names."
)


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml, which is a command too.

    summary: what `recalign --help` says; writes: its folder, below which a stage of many runs has one a run;
    counted: the file whose rows tell how much it did (Parquet, or JSON with "examples"), and their noun;
    option: what chooses one of many runs ("objective" of `recalign align --objective sdpo`).
    """

    name: str
    summary: str
    writes: Path
    counted: tuple[str, str] = ("", "")
    option: str | None = None
    option_help: str = ""


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "ingest",
            "read the raw files of `source` into interactions and items",
            layout.INTERACTIONS,
            ("interactions.parquet", "interactions"),
        ),
        Stage(
            "validate",
            "check every row, quarantine the bad ones with their reasons",
            layout.VALIDATED,
            ("interactions.parquet", "interactions"),
        ),
        Stage(
            "prepare",
            "k-core, sequences, time split, examples and frozen candidate lists",
            layout.PREPARED,
            ("examples.parquet", "examples"),
        ),
        Stage(
            "baselines",
            "fit and tune one ID recommender (see --system)",
            layout.BASELINES,
            option="system",
            option_help="one of recommenders.systems in params.yaml",
        ),
        Stage("base", "fetch the base model and convert it to safetensors", layout.BASE),
        Stage(
            "profiles",
            "infer what each user likes, from the history before the split's cutoff",
            layout.PROFILES,
            ("profiles.parquet", "profiles"),
        ),
        Stage(
            "pairs",
            "build preference pairs: one chosen item, K rejected ones",
            layout.PAIRS,
            ("pairs.parquet", "pairs"),
        ),
        Stage(
            "sft",
            "supervised fine-tuning of a LoRA adapter on histories",
            layout.SFT,
            ("training.json", "histories"),
        ),
        Stage(
            "llara",
            "fine-tuning on prompts that show a recommender's vectors, too (see --teacher)",
            layout.HYBRID,
            ("training.json", "histories"),
            option="teacher",
            option_help="one of hybrid.teachers in params.yaml",
        ),
        Stage(
            "reference",
            "store the pairs' log-probs under the SFT adapter",
            layout.REFERENCE,
            ("reference.parquet", "log-probs"),
        ),
        Stage(
            "align",
            "train one objective's adapter on the pairs (see --objective)",
            layout.ALIGN,
            ("training.json", "pairs"),
            option="objective",
            option_help="one of align.settings in params.yaml",
        ),
        Stage(
            "rank",
            "rank the frozen test cases with one system (see --system)",
            layout.SCORES,
            ("ranks.parquet", "ranks"),
            option="system",
            option_help="a system of the project's table: item_knn, llm-sft, …",
        ),
        Stage(
            "fuse",
            "one table of all systems' ranks, and the fusion of the best of them",
            layout.RANKS,
            ("ranks.parquet", "ranks"),
        ),
        Stage("report", "metrics, plots, the table and report.html", layout.REPORTS),
    )
}

# Modules that a stage imports and that change no byte of what it writes, each with the reason. What they import does
# not count either.
LEFT_OUT = {
    "__init__.py": "switches telemetry off, lets idle threads sleep, and saves seconds of imports",
    "project.py": "names the folders, as dvc.yaml does: a stage that wrote elsewhere would fail in DVC",
    "pipeline.py": "names the stages",
    "common/errors.py": "words of messages",
    "common/run_log.py": "notes of seconds, outside of what DVC hashes",
    "common/progress.py": "lines on the terminal, of what a stage will cost too",
    "llm/downloads.py": "fetches files; base.json has the sha256 of what came, and the stages after `base` hash it",
    "params/section.py": "refuses unknown keys and freezes values; changes none",
    "params/load.py": "reads and checks params.yaml, whose values each stage lists; which nulls the budget fills is in "
    "params/budgets.py",
}

# Stages that train nothing and read stored log-probs: they depend on a whole folder once they use PART of its files. A
# change beside them ranks again, which takes seconds, and dvc.yaml stays readable.
# `llara` is in no default run: whoever asks for it trains it again after a change of its whole rooms.
COARSE, PART = ("rank", "fuse", "report", "llara"), 0.45

# What a module reads from the package and no import shows.
RESOURCES = {"data/preparation/tables.py": "data/preparation/sql"}


def module_of(stage: str, root: Path = Path()) -> Path:
    """The module that runs a stage of dvc.yaml: stages/rank_llm.py or else stages/rank.py for "rank-llm".

    Raises RecalignError where there is none.
    """
    stages = root / PACKAGE / "stages"
    name = stage.partition("@")[0]
    for found in (stages / f"{name.replace('-', '_')}.py", stages / f"{name.partition('-')[0]}.py"):
        if found.is_file():
            return found
    raise RecalignError(f"{DVC_FILE} has a stage '{stage}', but {stages} has no module of that name; add one")


class Source:
    """The package's modules under `root` and what they import; each file is read once."""

    def __init__(self, root: Path = Path()) -> None:
        self.root = root
        self.package = root / PACKAGE
        self._imports: dict[Path, frozenset[Path]] = {}
        self._coded: dict[Path, bool] = {}

    def dependencies(self, stage: str, params: Sequence[str]) -> list[str]:
        """What of the source a stage depends on, as dvc.yaml lists it: sorted files and folders, relative to `root`.

        params: the keys that its `params:` list names. Raises RecalignError for a stage without a module.
        """
        imported = {self._name(file) for file in self.closure(module_of(stage, self.root))}
        sections = {name for name in imported if name.startswith("params/")}
        read = {RESOURCES[name] for name in imported & RESOURCES.keys()}
        wanted = imported - sections | self._sections(sections, params) | read
        share = PART if module_of(stage, self.root).stem in COARSE else 1.0
        return [str(PACKAGE / name) for name in self._folded(self.package, wanted, share)]

    def closure(self, file: Path) -> set[Path]:
        """`file` and all it imports, transitively, but for what is left out."""
        seen: set[Path] = set()
        queue = [file]
        while queue:
            current = queue.pop()
            if current not in seen and self._name(current) not in LEFT_OUT:
                seen.add(current)
                queue.extend(self.imports(current))
        return seen

    def imports(self, file: Path) -> frozenset[Path]:
        """The package's modules that a file imports anywhere, inside functions too."""
        if file not in self._imports:
            self._imports[file] = frozenset(found for name in imported_names(file) for found in self._files(name))
        return self._imports[file]

    def _sections(self, imported: set[str], params: Sequence[str]) -> set[str]:
        """The modules of the sections that `params` names: read whole, or with a class that the stage's code imports.

        Of a section of which it names a key or two, and no more, the values count and not the module.
        """
        found: set[Path] = set()
        for key in params:
            section, _, below = key.partition(".")
            file = self.package / "params" / f"{section}.py"
            whole = not below or below.startswith("${")
            if file.is_file() and (whole or self._name(file) in imported):
                found |= self.closure(file)
        return {self._name(file) for file in found}

    def _files(self, module: str) -> set[Path]:
        """The module's file, and each `__init__.py` that Python runs on the way to it, where there is code in it."""
        parts = module.split(".")
        path = self.package.parent.joinpath(*parts).with_suffix(".py")
        packages = (self.package.parent.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1))
        found = {package for package in packages if self._does_something(package)}
        return found | ({path} if path.is_file() else set())

    def _does_something(self, module: Path) -> bool:
        """False where there is no such file, or it is empty or says only what a package is for."""
        if module not in self._coded:
            body = ast.parse(module.read_text(encoding="utf-8")).body if module.is_file() else []
            self._coded[module] = not all(
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body
            )
        return self._coded[module]

    def _folded(self, folder: Path, wanted: set[str], share: float) -> Iterator[str]:
        """Files as they are, but a folder in place of such a share of its files; sorted."""
        for entry in sorted(folder.iterdir()):
            coded = [self._name(file) for file in entry.rglob("*.py") if self._does_something(file)]
            used = sum(name in wanted for name in coded)
            if self._name(entry) in wanted or (len(coded) > 1 and used >= share * len(coded)):
                yield self._name(entry)
            elif entry.is_dir():
                yield from self._folded(entry, wanted, share)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.package))


def imported_names(file: Path) -> Iterator[str]:
    """The dotted names of recalign that a file imports or names in a string; "a" and "a.b" of `from a import b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "recalign")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "recalign":
            yield str(node.module)
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names
            )  # a module of a package, or a name in one
        elif isinstance(node, ast.Constant) and re.fullmatch(r"recalign(\.\w+)+", str(node.value)):
            yield str(node.value)  # as recommenders/roster.py names the modules that it imports


@dataclass(frozen=True)
class Change:
    """What dvc.yaml lacks of a stage's dependencies on the source, and what it lists beyond them."""

    stage: str
    missing: tuple[str, ...]
    beyond: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"+ {path}" for path in self.missing] + [f"- {path}" for path in self.beyond]
        return "\n".join([f"{self.stage}:", *(f"  {line}" for line in lines)])


def written_dependencies(text: str, root: Path = Path()) -> tuple[str, list[Change]]:
    """dvc.yaml's text with every stage's dependencies on the source as they are, and what that changes.

    Only lines under `deps:` that name a path in src/ are touched: comments and all else stay.
    Raises RecalignError where the text is no dvc.yaml, or names a stage that has no module.
    """
    source, changes, lines = Source(root), [], text.splitlines()
    for stage, about in read_stages(text).items():
        wanted = source.dependencies(stage, about.params)
        present = [path for path in about.deps if path.startswith(f"{PACKAGE.parts[0]}/")]
        written = _with_dependencies(lines, stage, wanted)
        if written != lines or present != wanted:
            gone, new = set(present) - set(wanted), set(wanted) - set(present)
            changes.append(Change(stage, tuple(sorted(new)), tuple(sorted(gone))))
            lines = written
    return "\n".join(lines) + "\n", changes


@dataclass(frozen=True)
class Listed:
    """What dvc.yaml says of a stage: its dependencies, the keys of its params, and what it writes, each as a path."""

    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


def read_stages(text: str) -> dict[str, Listed]:
    """The stages of a dvc.yaml by name, in its order. Raises RecalignError where it is none."""
    from ruamel.yaml import YAML, YAMLError

    try:
        stages = YAML(typ="safe").load(text)["stages"]
        return {
            name: Listed(
                tuple(about.get("deps", ())),
                tuple(about.get("params", ())),
                tuple(
                    str(next(iter(out)) if isinstance(out, dict) else out)
                    for kind in ("outs", "metrics", "plots")
                    for out in about.get(kind, ())
                ),
            )
            for name, about in stages.items()
        }
    except (YAMLError, KeyError, TypeError, AttributeError) as error:
        raise RecalignError(f"{DVC_FILE} cannot be read: {' '.join(str(error).split())}") from None


def project_pipeline(text: str) -> str:
    """The repository's dvc.yaml for a team's project: each stage depends on VERSION_FILE in place of the source."""
    lines = text.replace(SOURCE_NOTE, VERSION_NOTE).splitlines()
    for stage in read_stages(text):
        lines = _with_dependencies(lines, stage, [str(VERSION_FILE)])
    return "\n".join(lines) + "\n"


def pinned(version: str) -> str:
    """What VERSION_FILE holds: a line that pip takes, too."""
    return f"recalign=={version}\n"


def check_version(version: str, root: Path = Path()) -> None:
    """Raises RecalignError where the project at `root` names another version than the installed one.

    A checkout of the source names none: there the stages depend on the modules themselves.
    """
    file = root / VERSION_FILE
    told = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else pinned(version).strip()
    if told != pinned(version).strip():
        raise RecalignError(
            f"{VERSION_FILE} names {told[:80]!r}, and recalign {version} is installed; install the one that it names, "
            f"or write {pinned(version).strip()} into it: then 'dvc repro' runs every stage again"
        )


def _with_dependencies(lines: Sequence[str], stage: str, wanted: Sequence[str]) -> list[str]:
    """The lines of dvc.yaml with the source's part of one stage's `deps:` replaced, after the data."""
    start = next(n for n, line in enumerate(lines) if re.fullmatch(rf"  {re.escape(stage)}:\s*(#.*)?", line))
    after = next((n for n in range(start + 1, len(lines)) if re.match(r" {0,2}\S", lines[n])), len(lines))
    head = next((n for n in range(start, after) if re.fullmatch(r"    deps:\s*(#.*)?", lines[n])), None)
    if head is None:
        raise RecalignError(f"stage {stage} of {DVC_FILE} has no line 'deps:' with its dependencies below; add it")
    end = next((n for n in range(head + 1, after) if not re.match(r" {6}", lines[n])), after)
    others = [_in_flow(line) for line in lines[head + 1 : end] if f"{PACKAGE}/" not in line]
    filled = [" ".join(line) for line in _filled(wanted)]
    written = [*others, *(f"       {line}" for line in filled)]
    written[0] = f"      [{written[0].lstrip(' [')}"
    written[-1] = f"{written[-1].rstrip(',')}]"
    return [*lines[: head + 1], *written, *lines[end:]]


def _in_flow(line: str) -> str:
    """A line of `deps:` as one of a list in brackets; "- data/pairs  # why" becomes "data/pairs,  # why"."""
    item = re.fullmatch(r" *- (\S+)(\s+#.*)?", line)
    if item is None:
        return re.sub(r"\](\s*(#.*)?)$", r",\1", line)
    path = f'"{item[1]}"' if "{" in item[1] else item[1]
    return f"       {path},{item[2] or ''}"


def _filled(paths: Iterable[str]) -> Iterator[list[str]]:
    """Paths with their commas, in lines of at most WIDTH characters."""
    line: list[str] = []
    for path in paths:
        if line and len(" ".join([*line, path])) + 9 > WIDTH:
            yield line
            line = []
        line.append(f"{path},")
    yield line


STARTS_AT = ("${align.start}", "sft")  # in a path of dvc.yaml, and what params.yaml is shipped with


def stale_stages(changed: Sequence[str], stages: dict[str, Listed]) -> list[str]:
    """The stages of dvc.yaml that run again when these files change: those that depend on one, and all that read their
    outputs (DVC leaves the latter alone where they come out equal). Paths with a param in them are as shipped."""
    stale: list[str] = []
    touched = list(changed)
    for name, about in stages.items():  # dvc.yaml's order is the order of the arrows
        deps = [dep.replace(*STARTS_AT) for dep in about.deps]
        if any(_within(path, dep) or _within(dep, path) for path in touched for dep in deps):
            stale.append(name)
            touched += [re.sub(r"/\$\{.*", "", out) for out in about.outs]
    return stale


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
