"""recalign explain: the state of a sequence recommender in words, by an adapter that is trained once."""

import json
import shutil

import pyarrow as pa
import pytest
import training_world
from training_world import ITEMS, make_params, make_world

from recalign.commands.explain import explain
from recalign.common.artifacts import folder, write_parquet
from recalign.common.errors import RecalignError
from recalign.project import Project
from recalign.stages.baselines import baselines

FAST = {"sft__epochs": 1, "sft__examples": 24}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A small log with GRU4Rec and DreamRec fitted, for an epoch each."""
    root = tmp_path_factory.mktemp("explain")
    world, project = make_world(root / "made"), Project(root)
    for own, place in (("prepared", project.prepared), ("base", project.base)):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(world.root / own, place)
    prepared = project.prepared
    kept = {name: (prepared / name).read_bytes() for name in ("examples.parquet", "met.parquet", "summary.json")}
    rows = [(e["user_id"], i) for e in training_world.all_examples() for i in e["history"]]
    rows = sorted(set(rows))
    events = pa.table({
        "user_id": [user for user, _ in rows], "item_id": [item for _, item in rows], "split": ["train"] * len(rows),
        "timestamp": pa.nulls(len(rows), pa.timestamp("us")), "position": list(range(len(rows))),
    })  # fmt: skip
    lists = [
        {"manifest": "uniform", "example_id": e["example_id"], "user_id": e["user_id"],
         "candidates": [e["target"], *[i for i in ITEMS if i not in {*e["history"], e["target"]}][:9]],
         "target_index": 0}
        for e in training_world.all_examples() if e["split"] == "validation"
    ]  # fmt: skip
    items = [training_world._item(item) | {"train_events": item} for item in ITEMS]
    schema = training_world._items_schema().append(pa.field("train_events", pa.int64()))
    with folder(prepared) as out:
        for name, data in kept.items():
            (out / name).write_bytes(data)
        write_parquet(out / "events.parquet", events)
        write_parquet(out / "items.parquet", pa.Table.from_pylist(items, schema=schema))
        write_parquet(out / "candidates.parquet", pa.Table.from_pylist(lists))
    users = sorted({user for user, _ in rows})
    write_parquet(project.interactions / "users.parquet", pa.table({"user_id": users, "raw_id": list(map(str, users))}))
    for system in ("gru4rec", "dreamrec"):
        baselines(quick(), system, project)
    return project


def quick():
    """One epoch of everything."""
    params = make_params(**FAST)
    next_item = params.recommenders.next_item.model_copy(update={"epochs": 1})
    recommenders = params.recommenders.model_copy(update={"next_item": next_item})
    return params.model_copy(update={"recommenders": recommenders})


def test_a_users_state_is_read_in_words_and_the_adapter_is_kept(project, capsys, caplog):
    caplog.set_level("INFO", "recalign")
    explain(quick(), "7", as_json=True, project=project)
    first = json.loads(capsys.readouterr().out)
    assert first["teacher"] == "gru4rec"
    assert len(first["history"]) == 7
    assert 0 <= first["recovered"] <= 7
    assert len(first["read"]) <= 10
    assert first["oracle"] is None or isinstance(first["oracle"], str)
    assert sum("learns to read" in line for line in caplog.messages) == 2  # the state, and DreamRec's vectors
    caplog.clear()
    explain(quick(), "7", as_json=True, project=project)
    assert json.loads(capsys.readouterr().out) == first
    assert not any("learns to read" in line for line in caplog.messages)
    explain(quick(), "7", "gru4rec", project=project)
    said = capsys.readouterr().out
    assert "of 7 titles are recovered" in said
    assert "It recommends nothing." in " ".join(said.split())


def test_bad_input_is_one_line(project):
    with pytest.raises(RecalignError, match="--user is 999, whom the prepared log does not hold"):
        explain(quick(), "999", project=project)
    with pytest.raises(
        RecalignError, match=r"--teacher is 'gru'; allowed are sasrec, gru4rec, caser \(did you mean gru4rec"
    ):
        explain(quick(), "7", "gru", project=project)
    with pytest.raises(RecalignError, match=r"'caser' is not fitted; put it into recommenders\.systems"):
        explain(quick(), "7", "caser", project=project)
