"""`recalign export --trl`: the pairs that recalign trains on, as TRL's preference format has them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from training_world import World, make_params, make_world
from transformers import AutoTokenizer

from recalign.cli import main
from recalign.commands.export import export
from recalign.common.errors import RecalignError
from recalign.training.examples import read_preference_examples, text_prompts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def exported(world: World, out: Path, split: str = "train") -> list[dict[str, str]]:
    export(make_params(), out, split, world.project)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def titles(world: World) -> dict[int, str]:
    table = pq.read_table(world.root / "prepared" / "items.parquet")
    return dict(zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True))


@pytest.mark.parametrize(("split", "pairs", "lines"), [("train", 96, 240), ("validation", 24, 60)])
def test_each_rejected_item_is_a_line_with_its_prompt_and_the_chosen_one(world, tmp_path, split, pairs, lines):
    """Half of the pairs have three rejected items, half have two."""
    named, rows = titles(world), pq.read_table(world.root / "pairs" / "pairs.parquet").to_pylist()
    rows = [row for row in rows if row["split"] == split]
    assert len(rows) == pairs
    expected = [
        {
            "prompt": "Films that one person liked:\n" + "".join(f"{named[item]}\n" for item in row["history"]),
            "chosen": f"{named[row['chosen']]}\n",
            "rejected": f"{named[other]}\n",
        }
        for row in rows
        for other in row["rejected"]
    ]
    assert len(expected) == lines
    assert exported(world, tmp_path / "pairs.jsonl", split) == expected


def test_the_texts_are_those_of_the_ids_that_are_trained_on(world, tmp_path):
    """Read by the base's own tokenizer, prompt and responses come back as the very ids."""
    tokenizer = AutoTokenizer.from_pretrained(world.root / "base", local_files_only=True)
    own = read_preference_examples(
        make_params(),
        world.root / "prepared",
        world.root / "pairs",
        text_prompts(make_params(), world.root / "prepared", tokenizer),
    )["train"]
    wanted = [(e.prompt, e.responses[0], other) for e in own for other in e.responses[1:]]

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    first = [tokenizer.bos_token_id] if wanted[0][0][0] == tokenizer.bos_token_id else []
    rows = exported(world, tmp_path / "pairs.jsonl")
    assert [(first + ids(row["prompt"]), ids(row["chosen"]), ids(row["rejected"])) for row in rows] == wanted


def test_what_is_missing_and_where_nothing_can_be_written_is_one_line(world, tmp_path, monkeypatch, capsys):
    """The file that was there before stays."""
    with pytest.raises(RecalignError, match=r"--trl is .*, a folder; give the name of a file"):
        exported(world, tmp_path)
    (tmp_path / "pairs.jsonl").write_text("before\n")
    with pytest.raises(RecalignError, match=r"base\.json is missing; run 'dvc repro base'"):
        export(make_params(), tmp_path / "pairs.jsonl", project=world.project.moved(base=tmp_path))
    with pytest.raises(RecalignError, match=r"pairs\.parquet is missing; run 'dvc repro'"):
        export(make_params(), tmp_path / "pairs.jsonl", project=world.project.moved(pairs=tmp_path))
    assert (tmp_path / "pairs.jsonl").read_text() == "before\n"
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--trl", "pairs.jsonl"]) == 2
    assert capsys.readouterr().err == (
        "recalign export: params.yaml is missing; run recalign in the project's root, where params.yaml lies\n"
    )
    with pytest.raises(SystemExit):
        main(["export", "--trl", "pairs.jsonl", "--split", "test"])
