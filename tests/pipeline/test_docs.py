"""Commands, params, metrics and objectives are documented, and what the documents say exists."""

import importlib.util
import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from pages import PAGES, ROOT, blocks, command_lines
from pydantic import BaseModel

from recalign.cli import _parser, subcommands
from recalign.evaluation.metrics import LABELS, METRICS
from recalign.objectives.objective import PRESETS
from recalign.params.load import Params, load_params

COMMANDS = [
    pytest.param(page, line, id=f"{page.name}: {line}")
    for page in PAGES
    for block in blocks(page)
    for line in command_lines(block)
]


@pytest.fixture(scope="module")
def make_reference() -> ModuleType:
    """docs/make_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> str:
    return (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of the params tree, those of `budgets` once."""
    found = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys(inner, f"{key}.")
        else:
            found.append(key)
    return found


def test_the_reference_is_what_the_code_says(make_reference, reference):
    """After a change: python docs/make_reference.py."""
    assert reference == make_reference.reference(), "docs/reference.md is stale; run: python docs/make_reference.py"


def test_the_counts_of_the_figures_are_those_of_the_budgets_that_its_columns_name():
    """ "120 of 100" under "default": 120 test cases, as the budget of a plain `dvc repro` has them."""
    params = load_params(ROOT / "params.yaml")
    text = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    (headings,) = re.findall(r"^\| NDCG@10 with interval; HR@1 \|(.*)\|$", text, re.MULTILINE)
    (counts,) = re.findall(r"^\| cases of users; digests of data, manifest \|(.*)\|$", text, re.MULTILINE)
    named = [re.findall(r"`(smoke|demo|few-shot|full)`", cell) for cell in headings.split("|")]
    budgets = [params.budgets[own[0] if own else params.budget] for own in named]
    assert [int(cell.split()[0]) for cell in counts.split("|")] == [budget.test_cases for budget in budgets]
    shown = [int(count) for count in re.findall(r", (\d+) cases of \d+ users, 95 % intervals", text)]
    assert shown[:1] == [params.evaluate.test_cases]
    commands = re.findall(r"`dvc exp run ([^`]*)`", text.split("## What it measured")[1].split("\n\n")[1])
    assert commands
    for command in commands:
        assert re.findall(r"budget=(\S+)", command) == ["few-shot"]


@pytest.mark.parametrize("command", subcommands())
def test_every_command_has_a_heading_and_every_option_a_meaning(reference, command):
    """A command without a sentence, or an option without one, is found here."""
    section = reference.partition(f"### `recalign {command}`\n")[2].partition("\n#")[0]
    assert section.strip()
    rows = re.findall(r"^\| `(.+?)` \| (.*) \|$", section, re.MULTILINE)
    assert len(rows) == sum(option.dest != "help" for option in subcommands()[command]._actions)
    for row in rows:
        assert row[1].strip(), f"recalign {command}: {row[0]} has no help"


@pytest.mark.parametrize("key", keys(Params))
def test_every_parameter_has_a_line_with_its_meaning(make_reference, reference, key):
    """Its comment in params.yaml is its documentation."""
    if key == "budgets":
        assert "### `budgets`" in reference
        return
    (row,) = [line for line in reference.splitlines() if line.startswith(f"| `{key}` |")]
    assert row.split(" | ")[-1].strip(" |"), f"{key} has no comment in params.yaml"


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_line_and_an_explanation(reference, metric):
    """Its values at some ranks stand in the reference, what it means in protocol.md."""
    assert f"| {LABELS[metric]} | `{metric}` |" in reference
    assert LABELS[metric] in (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("objective", PRESETS)
def test_every_objective_has_a_line(reference, objective):
    """With the choices that it stands for."""
    assert f"| `{objective}` | " in reference


def settings(line: str) -> list[str]:
    """The parameters that a command sets by -S."""
    return re.findall(r"-S '?([\w.]+)=", line)


def links(text: str) -> list[str]:
    """The files that a page links to."""
    return re.findall(r"\]\((?!https?:)([^)#]+)", text)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_in_the_documents_can_be_typed(page, line):
    """recalign takes the options; what -S sets is a parameter."""
    words = shlex.split(line)
    if words[0] == "recalign":
        _parser().parse_args(words[1:])
    for key in settings(line):
        assert key in keys(Params), f"{page.name} sets {key}, which params.yaml does not have"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_in_the_documents_leads_somewhere(page):
    """Links to files of the repository."""
    text = page.read_text(encoding="utf-8")
    for target in links(text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_parameter_that_a_document_names_exists(page):
    """`section.key` in backticks."""
    sections = {key.split(".")[0] for key in keys(Params) if "." in key}
    known = {*keys(Params), *(key.rpartition(".")[0] for key in keys(Params))}
    named = re.findall(r"`([a-z_]+\.[a-z_]+)(?::[^`]*)?`", page.read_text(encoding="utf-8"))
    named = [key for key in named if Path(key).suffix not in (".parquet", ".json", ".csv", ".md", ".py", ".yaml")]
    assert [key for key in named if key.split(".")[0] in sections and key not in known] == []


def test_a_typo_in_a_document_is_found():
    """The checks above see what they should."""
    assert settings("dvc exp run -S source=lastfm -S 'align.objectives=[sdpo]'") == ["source", "align.objectives"]
    assert links("[a](docs/a.md#part), [b](https://example.org), [c](data/c.csv)") == ["docs/a.md", "data/c.csv"]
    assert any(settings(command.values[1]) for command in COMMANDS)
    assert any(links(page.read_text(encoding="utf-8")) for page in PAGES)
    with pytest.raises(SystemExit):
        _parser().parse_args(shlex.split("recalign recommend --usr 17"))
    assert "align.beat" not in keys(Params)
    assert {"align.beta", "seed", "validate.min_rows"} <= set(keys(Params))


def test_the_readme_is_short_and_its_table_is_that_of_the_figures():
    """At most 170 lines; each of its five rows says what docs/measured.md says of that system."""
    readme, measured = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/measured.md"))
    assert len(readme.splitlines()) <= 170
    rows = re.findall(r"^\| [a-zA-Z-][^|]* \| (\d\.\d{3}) (\[.*?\]) \| (\d\.\d{3}) (\[.*?\]) \|$", readme, re.MULTILINE)
    assert len(rows) == 5
    screen = {  # where an interval is below its value
        pair
        for values, intervals in pairwise(measured.splitlines())
        for pair in zip(re.findall(r"\b\d\.\d{3}", values), re.findall(r"\[.*?\]", intervals), strict=False)
    }
    for ndcg, its_interval, hit, own in rows:
        assert f"{ndcg} {its_interval}" in measured
        assert (hit, own) in screen
