"""What `recommend`, `rank` and `compare` refuse before anything heavy is loaded, and how typed titles are read."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from registry_project import TITLES, write_interactions, write_prepared

from conftest import ROOT
from recalign.commands.arguments import read_titles
from recalign.common.artifacts import write_parquet
from recalign.common.errors import RecalignError
from recalign.data.case_file import with_new_items
from recalign.data.ids import RawIds
from recalign.data.records import Items
from recalign.project import INTERACTIONS, PREPARED

HEAVY = ("torch", "transformers", "mlflow", "scipy")
REFUSED = {
    "recommend --user nobody": "--user is nobody, whom the prepared log does not hold",
    "recommend --user U3 -k 0": "-k is 0; 1 or more is allowed",
    "recommend --titles Zzzzqq": "--titles has 'Zzzzqq': none is in the catalogue of 12 titles",
    "recommend --titles Zzzzqq qqqq": "at least one must be a title (case, year and a slip aside) or an id of it, such",
    "recommend --titles Night": "did you mean 'The",
    "recommend --user U3 --adapter nowhere": "--adapter is nowhere, where no adapter lies",
    "recommend --user U3": "registry.model 'recalign' has no champion and no challenger",
    "rank --recommender item_knnn --cases c --items i --out o": "(did you mean item_knn?)",
    "rank --recommender item_knn --cases c --items i --out o": "--recommender item_knn needs --train",
    "rank --fusion --cases c --items i --out o": "--fusion needs --train",
    "rank --adapter nowhere --cases c --items i --out o": "--adapter is nowhere, where no adapter lies",
    "rank --recommender ease --train gone.csv --cases c --items i --out o": "--train is gone.csv, which is no file",
    "compare . nowhere": "holds no data/ranks/ranks.parquet",
}
PROGRAM = """
import contextlib, io, json, sys
from recalign.cli import main
said = {}
for line in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as told:
        code = main(line.split())
    said[line] = [code, told.getvalue(), [name for name in HEAVY if name in sys.modules]]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log of twelve films; nothing was trained or registered."""
    root = tmp_path_factory.mktemp("asked") / "project"
    write_prepared(root)
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    events = [{"user_id": 3, "item_id": item, "position": place} for place, item in enumerate((1, 4, 7))]
    write_parquet(root / PREPARED / "events.parquet", pa.Table.from_pylist(events))
    return root


def test_a_wrong_argument_is_refused_before_anything_heavy_is_loaded(project, monkeypatch):
    """Each in one line with exit code 2, in one process without torch, MLflow, transformers and scipy."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{PROGRAM}"], cwd=project, input=json.dumps(list(REFUSED)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    for line, told in REFUSED.items():
        code, message, heavy = said[line]
        assert code == 2, (line, message)
        assert told in message, line
        assert message.count("\n") == 1, line
        assert heavy == [], line


def test_typed_titles_and_ids_become_items_and_what_was_guessed_is_said(project):
    """In their order; a title that nothing matches stays text beside one that is found."""
    catalogue, raw = Items.read(project / PREPARED), RawIds.of_items(project / INTERACTIONS)
    read, said = read_titles(["the house of night", "The Secrt of Night", "4", "A Film Nobody Made"], catalogue, raw)
    assert read == [1, 2, 4, "A Film Nobody Made"]
    assert said[0] == "'The Secrt of Night' is read as 'The Secret of Night'"
    assert said[1].startswith("'A Film Nobody Made'")
    assert said[1].endswith("is not in the catalogue")


def test_a_text_that_is_one_items_id_and_anothers_title_is_refused(project, tmp_path):
    """As serving refuses it."""
    catalogue = Items.read(project / PREPARED)
    write_interactions(tmp_path, {1: TITLES[3], 4: "A4"})
    with pytest.raises(RecalignError, match=r"is the id of 'The House of Night' and the title of item 'A4'"):
        read_titles([TITLES[3]], catalogue, RawIds.of_items(tmp_path / INTERACTIONS))


def test_new_items_are_read_by_the_rules_of_the_items_file(project, tmp_path):
    """Ids, titles and attributes as ingest and validate would write them."""
    catalogue, raw = Items.read(project / PREPARED), RawIds.of_items(project / INTERACTIONS)
    path = tmp_path / "new.csv"
    title = f"{'A' * 199} B"
    path.write_text(f'item_id,title,genre\n101.0,"{title}",NaN\n\ufeff102,None,\u3000drama| |war\n', encoding="utf-8")
    more, ids, new = with_new_items(path, catalogue, raw)
    assert [str(ids.shown(item)) for item in new] == ["101", "102"]
    assert [more.titles[item] for item in new] == ["A" * 199, "None"]
    assert [more.attributes[item] for item in new] == [{}, {"genre": ["drama", "war"]}]
    for row, why in (
        ("3.0,Ran", "item_id 3 is that of"),
        ("\u200b3,Ran", "item_id 3 is that of"),
        ("NULL,Ran", "item_id is empty"),
        ("1.5e+20,Ran", r"item_id 1\.5e\+20 is a number whose last digits are lost"),
        ("101,NaN", "title is empty"),
        ("101,\ufeff#N/A", "title is empty"),
    ):
        path.write_text(f"item_id,title\n{row}\n", encoding="utf-8")
        with pytest.raises(RecalignError, match=rf"new\.csv:2: {why}"):
            with_new_items(path, catalogue, raw)
