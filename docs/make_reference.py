"""Write docs/reference.md from the code: commands, parameters, metrics, objectives.

Run `python docs/make_reference.py` after changing one of them; tests/pipeline/test_docs.py fails
while the page is stale.
"""

import argparse
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recalign.cli import subcommands
from recalign.evaluation.metrics import LABELS, METRICS, metric_values
from recalign.objectives.objective import PRESETS, SOURCES
from recalign.params.load import Params
from recalign.recommenders.roster import ROSTER

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"
HEAD = """# Reference

Made from the code by `python docs/make_reference.py`; do not edit: commands, parameters, metrics, recommenders,
objectives. What a figure is about is explained in [protocol.md](protocol.md), each file and its columns in
[contracts.md](contracts.md).
"""
RANKS = (1, 2, 5, 10, 20)  # shown of each metric
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w-]*):(?:\s+(?P<value>[^#]*?))?\s*(?:#\s?(?P<comment>.*))?$")
WORDS = {int: "whole number", float: "number", str: "text", bool: "true, false", type(None): "null"}
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


@dataclass(frozen=True)
class Parameter:
    """A key of params.yaml ("sft.epochs") with its value there and its comment."""

    key: str
    value: str
    comment: str


def reference() -> str:
    """The page."""
    return "\n".join([HEAD, *commands(), *parameters(), *metrics(), *recommenders(), *objectives()])


def commands() -> Iterator[str]:
    """A heading, a sentence and the options a command."""
    yield "## Commands\n"
    yield "Exit codes: 0 well; 1 a finding of a command that judges, or an unforeseen fault; 2 something to fix,"
    yield "told in one line; 130 interrupted.\n"
    for name, parser in subcommands().items():
        yield f"### `recalign {name}`\n"
        yield f"{_summary(name)}\n"
        options = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        if options:
            yield "| option | meaning |\n|---|---|"
            yield from (f"| `{_option(action)}` | {_cell(_meaning(action))} |" for action in options)
            yield ""


def _summary(name: str) -> str:
    from recalign.cli import _parser

    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    text = next(choice.help for choice in action._choices_actions if choice.dest == name)
    return f"{text[0].upper()}{text[1:]}."


def _option(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings)
    if action.nargs == 0:
        return name
    value = action.metavar or (action.dest.upper() if name else action.dest)
    if action.choices:
        value = " or ".join(map(str, action.choices))
    return f"{name} {value}{' …' if action.nargs == '+' else ''}".strip()


def _meaning(action: argparse.Action) -> str:
    needed = action.required and bool(action.option_strings)
    return f"{action.help or ''}{' (needed)' if needed else ''}"


def parameters() -> Iterator[str]:
    """A table a section of params.yaml."""
    found = read_parameters()
    yield "## Parameters\n"
    yield "`params.yaml` holds them all. A null that the budget sets is filled from `budgets`; a value beside it wins."
    yield "Change one for a run with `dvc exp run -S key=value`.\n"
    top = [parameter for parameter in found if "." not in parameter.key and parameter.value]
    yield from _table("The project", top)
    for section in dict.fromkeys(p.key.split(".")[0] for p in found if "." in p.key):
        if section == "budgets":
            yield from _budgets([p for p in found if p.key.startswith("budgets.")])
        else:
            about = next(p.comment for p in found if p.key == section)
            yield from _table(f"`{section}`", [p for p in found if p.key.startswith(f"{section}.")], about)


def read_parameters(path: Path = ROOT / "params.yaml") -> list[Parameter]:
    """The keys of params.yaml in their order; a comment may go on in lines of its own."""
    found: list[Parameter] = []
    sections: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            if found and line.startswith("  "):
                last = found.pop()
                found.append(Parameter(last.key, last.value, f"{last.comment} {stripped.lstrip('# ')}".strip()))
            continue
        match = KEY.match(line)
        if match is None:
            continue
        sections = [*sections[: len(match["indent"]) // 2], match["key"]]
        found.append(Parameter(".".join(sections), match["value"] or "", match["comment"] or ""))
    return found


def _table(title: str, rows: list[Parameter], about: str = "") -> Iterator[str]:
    yield f"### {title}\n"
    if about:
        yield f"{about}\n"
    yield "| key | value | allowed | meaning |\n|---|---|---|---|"
    for row in rows:
        if row.value or row.comment:
            yield f"| `{row.key}` | `{row.value or '…'}` | {_cell(allowed(row.key))} | {_cell(row.comment)} |"
    yield ""


def _budgets(rows: list[Parameter]) -> Iterator[str]:
    values: dict[str, dict[str, Parameter]] = {}
    for row in rows:
        _, budget, *key = row.key.split(".")
        if key:
            values.setdefault(budget, {})[key[0]] = row
    first = next(iter(values))
    yield "### `budgets`\n"
    yield f"| key | {' | '.join(f'`{budget}`' for budget in values)} | meaning |"
    yield f"|---{'|---' * len(values)}|---|"
    for key, row in values[first].items():
        cells = " | ".join(f"`{values[budget][key].value}`" for budget in values)
        yield f"| `{key}` | {cells} | {_cell(row.comment)} |"
    yield ""


def allowed(key: str) -> str:
    """What the parameter may be, in words, from the pydantic tree; "" for a key below the tree."""
    if key == "recommenders.systems":
        return f"list of {', '.join(f'`{name}`' for name in ROSTER)}"
    model: Any = Params
    field: FieldInfo | None = None
    for part in key.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return ""
        fields = {inner.alias or name: inner for name, inner in model.model_fields.items()}
        field = fields[part]
        model = field.annotation
    assert field is not None
    nullable = read_null(key)
    bounds = " ".join(
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in BOUNDS.items()
        if hasattr(rule, name)
    )
    words = _words(field.annotation)
    return ", ".join(part for part in (f"{words} {bounds}".strip(), "null: by the budget" if nullable else "") if part)


def read_null(key: str) -> bool:
    """Whether a null here means "as the budget says"."""
    from recalign.params.budgets import FROM_BUDGET

    return any(key == f"{section}.{name}" for section, name, _ in FROM_BUDGET)


def _words(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, inside))
    if origin is tuple:
        return f"list of {_words(inside[0])}"
    if origin is dict:
        return f"{_words(inside[0])}, each with {_words(inside[1])}"
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def metrics() -> Iterator[str]:
    """Each metric with its value at some ranks."""
    yield "## Metrics\n"
    yield "A case's metric is a function of its target's rank, a figure the mean over cases. `registry.metric`"
    yield "takes a key.\n"
    yield f"| metric | key | {' | '.join(f'rank {rank}' for rank in RANKS)} |\n|---|---|{'---:|' * len(RANKS)}"
    for key in METRICS:
        values = metric_values(key, list(RANKS))
        yield f"| {LABELS[key]} | `{key}` | {' | '.join(f'{value:.3f}' for value in values)} |"
    yield ""


def recommenders() -> Iterator[str]:
    """Each ID recommender of the roster, and what orders items."""
    yield "## Recommenders\n"
    yield "`recommenders.systems` takes the names; [recommenders.md](recommenders.md) says what each is.\n"
    yield "| name | ranks by | needs |\n|---|---|---|"
    yield from (f"| `{name}` | {own.ranked_by} | {'a clock' if own.clock else ''} |" for name, own in ROSTER.items())
    yield ""


def objectives() -> Iterator[str]:
    """Each objective, the choices that make it, and where it was published."""
    yield "## Objectives\n"
    yield "`align.objectives` takes the names; `align.settings` changes what they choose.\n"
    yield "| name | choices | source |\n|---|---|---|"
    for name, row in PRESETS.items():
        choices = "; ".join(f"{key}: {value}" for key, value in row.items())
        yield f"| `{name}` | {choices} | {_cell(SOURCES[name])} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if sys.argv[1:]:
        raise SystemExit("usage: python docs/make_reference.py")
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} written")
