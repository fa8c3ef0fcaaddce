"""dvc.yaml's dependencies on the source are those that the imports have, and a comment reruns what reads the file."""

import re
import shutil
from pathlib import Path

import pytest
from project import ROOT, run

from recalign.commands.graph import graph
from recalign.common.errors import RecalignError
from recalign.pipeline import LEFT_OUT, PACKAGE, STAGES, Source, module_of, read_stages, stale_stages

TEXT = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
LISTED = read_stages(TEXT)
MODELS = {"sft", "reference", "align"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The source and dvc.yaml in a folder of their own."""
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    return tmp_path


def dependencies(root: Path, stage: str) -> tuple[str, ...]:
    return read_stages((root / "dvc.yaml").read_text(encoding="utf-8"))[stage].deps


def stale(file: str) -> set[str]:
    """The stages that a change of one file of the package makes stale, and all that read what they write."""
    assert (ROOT / PACKAGE / file).is_file()
    return set(stale_stages([str(PACKAGE / file)], LISTED))


def test_dvc_yaml_is_what_the_imports_say(capsys):
    """After a change of imports: recalign graph --write."""
    assert graph(root=ROOT) == 0, capsys.readouterr().out


def test_dvc_yaml_is_short_enough_to_read():
    """It was 656 lines long. Two stages of hybrid prompts have 34 of these lines."""
    assert len(TEXT.splitlines()) <= 300


def test_an_import_that_dvc_yaml_lacks_is_named_and_written(checkout, capsys):
    """Exit code 1 until it is written, and the file is left as it was without --write."""
    stage = checkout / PACKAGE / "stages" / "prepare.py"
    stage.write_text(stage.read_text(encoding="utf-8") + "\nimport recalign.common.html\n", encoding="utf-8")
    assert graph(root=checkout) == 1
    said = capsys.readouterr().out
    assert "prepare:\n  + src/recalign/common/html.py\n" in said
    assert "recalign graph --write" in said
    assert (checkout / "dvc.yaml").read_text(encoding="utf-8") == TEXT
    assert graph(write=True, root=checkout) == 0
    assert "src/recalign/common/html.py" in dependencies(checkout, "prepare")
    assert graph(root=checkout) == 0


def test_an_import_inside_a_function_counts(checkout):
    """Heavy imports sit there."""
    stage = checkout / PACKAGE / "stages" / "ingest.py"
    text = stage.read_text(encoding="utf-8") + "\ndef later():\n    from recalign.common import html\n"
    stage.write_text(text, encoding="utf-8")
    graph(write=True, root=checkout)
    assert "src/recalign/common/html.py" in dependencies(checkout, "ingest")


def test_a_folder_stands_for_its_files_only_while_all_of_them_are_imported(checkout):
    """A file that nobody imports yet, beside ten that a stage needs, does not make the stage depend on it."""
    assert "src/recalign/data/sources" in dependencies(checkout, "ingest")
    (checkout / PACKAGE / "data" / "sources" / "unused.py").write_text("x = 1\n", encoding="utf-8")
    graph(write=True, root=checkout)
    listed = dependencies(checkout, "ingest")
    assert "src/recalign/data/sources" not in listed
    assert "src/recalign/data/sources/table.py" in listed
    assert "src/recalign/data/sources/unused.py" not in listed


def test_comments_and_all_else_of_dvc_yaml_stay(checkout):
    """Only the lines that name a path in src/ are written."""
    file = checkout / "dvc.yaml"
    plain = TEXT.replace("      [data/validated,\n", "      [data/validated,  # of the stage before\n")
    blocks = "".join(f"      - {name}\n" for name in ("data/new  # made by hand", "src/recalign/common/origin.py"))
    plain = plain.replace("  prepare:\n", f"  # a note\n  pairs-twice:\n    cmd: x\n    deps:\n{blocks}  prepare:\n")
    file.write_text(plain, encoding="utf-8")
    graph(write=True, root=checkout)
    text = file.read_text(encoding="utf-8")
    assert "  # a note\n  pairs-twice:\n" in text
    assert "      [data/new,  # made by hand\n       src/recalign/common/artifacts.py," in text
    assert "      [data/validated,  # of the stage before\n       src/recalign/common/artifacts.py," in text
    assert "src/recalign/stages/pairs.py" in dependencies(checkout, "pairs-twice")
    assert "src/recalign/common/origin.py" not in dependencies(checkout, "pairs-twice")
    assert re.sub(r"(?s)  # a note.*?(?=  prepare:\n)", "", text).replace("  # of the stage before", "") == TEXT


def test_a_stage_without_a_module_is_named(checkout):
    """A typo in dvc.yaml."""
    file = checkout / "dvc.yaml"
    file.write_text(TEXT.replace("  prepare:\n", "  prepair:\n"), encoding="utf-8")
    with pytest.raises(RecalignError, match=r"a stage 'prepair', but .*stages has no module of that name"):
        graph(root=checkout)


def test_stages_that_share_a_module_find_it_by_the_first_word(checkout):
    """rank-llm@sdpo is run by stages/rank_llm.py or else by stages/rank.py."""
    stages = checkout / PACKAGE / "stages"
    (stages / "rank.py").touch()
    assert module_of("rank-llm@sdpo", checkout) == stages / "rank.py"
    (stages / "rank_llm.py").touch()
    assert module_of("rank-llm", checkout) == stages / "rank_llm.py"


def test_outside_of_a_checkout_there_is_nothing_to_write(tmp_path):
    """One line, as everywhere."""
    with pytest.raises(RecalignError, match="run recalign graph in a checkout of the source"):
        graph(root=tmp_path)


def test_every_module_that_is_left_out_exists():
    """So that the list does not outlive what it speaks of."""
    assert [name for name in LEFT_OUT if not (ROOT / PACKAGE / name).is_file()] == []


OTHER_SECTIONS = ["evaluate", "prepare", "profiles", "recommenders", "registry", "schedule", "simulator", "table"]
FILES = [f"{room}/{file.name}" for room in ("report", "evaluation") for file in (ROOT / PACKAGE / room).glob("*.py")]


@pytest.mark.parametrize("file", [file for file in FILES if file != "evaluation/metrics.py"])
def test_a_comment_in_reports_and_figures_never_retrains_a_model(file):
    """Metrics choose a recommender's settings, and so the hard negatives: they alone may."""
    assert stale(file).isdisjoint(MODELS)


@pytest.mark.parametrize("file", ["llm/downloads.py", "llm/trie.py", "params/load.py", "params/section.py"])
def test_a_comment_in_code_that_computes_no_weight_never_retrains_a_model(file):
    """The trie is for generating titles, and what is fetched has its sha256."""
    assert stale(file).isdisjoint(MODELS)


@pytest.mark.parametrize("section", OTHER_SECTIONS)
def test_a_comment_in_another_section_of_params_leaves_training_as_it_is(section):
    """Of these no stage that trains imports the class: it reads a value at most, which dvc.yaml lists."""
    for stage in MODELS:
        assert f"src/recalign/params/{section}.py" not in LISTED[stage].deps
    if section in ("evaluate", "registry", "schedule", "simulator"):
        assert stale(f"params/{section}.py").isdisjoint(MODELS)


def test_a_change_that_matters_makes_the_models_stale():
    """The checks above can fail."""
    assert stale("params/lora.py") >= {"sft", "reference", "align", "rank-sft", "fuse"}
    assert stale("objectives/losses.py") == {"align", "rank-adapter", "fuse", "report"}
    assert stale("llm/scoring/logprobs.py") >= MODELS
    assert stale("evaluation/metrics.py") >= {"baselines", "pairs", "reference", "align"}


def test_dvc_sees_what_the_list_says(smoke):
    """The real `dvc status` after a comment in each of four files, and what Python compiled beside a fifth."""
    compiled = smoke / PACKAGE / "data" / "sources" / "__pycache__"
    compiled.mkdir(exist_ok=True)
    (compiled / "table.cpython-311.pyc").write_bytes(b"compiled")
    for file in ("params/schedule.py", "evaluation/slices.py", "llm/downloads.py", "llm/trie.py"):
        with (smoke / PACKAGE / file).open("a", encoding="utf-8") as handle:
            handle.write("# a comment\n")
    try:
        said = run(smoke, "dvc", "status").stdout
    finally:
        run(smoke, "git", "checkout", "-q", "--", "src")
    named = {name.partition("-")[0].partition("@")[0] for name in re.findall(r"^([\w@-]+):$", said, re.MULTILINE)}
    assert named == {"rank", "fuse", "report"}


def test_every_stage_is_a_subcommand_in_the_order_of_the_arrows():
    """dvc.yaml and pipeline.py name the same stages."""
    assert list(dict.fromkeys(name.partition("-")[0] for name in LISTED)) == list(STAGES)
    assert Source(ROOT).dependencies("report", ()) != []
