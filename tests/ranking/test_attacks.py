"""An item whose title copies another one: validation names it, and what the copy gains is measured."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from flat_project import flat_project

from recalign.common.artifacts import read_json, write_json
from recalign.data.preparation.tables import unique_titles
from recalign.data.sources.reading import INTERACTIONS, ITEMS, QUARANTINE, USERS
from recalign.llm.model.base import LanguageModel
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import parse_params
from recalign.params.prompt import PromptParams
from recalign.ranking.language_model import Asked, LanguageModelRecommender
from recalign.stages.validate import validate

COPIED, UNKNOWN, CLEAN = "Heat", 20, "Winter Harvest"
WORDS = ("House", "Last", "Return", "King", "Story", "Fall", "Legend", "Heart", "River", "Fire", "Secret", "Garden",
         "Letter", "Stranger", "Border", "Market", "Bridge")  # fmt: skip
TITLES = ["The Voice", COPIED, *(f"The {word} of Night" for word in WORDS)]
COPIES = {
    "word for word": "Heat",
    "in capitals": "HEAT",
    "with a mark": "Heat!",
    "with a blank": "He at",
    "in wide letters": "\uff28\uff45\uff41\uff54",
    "with a Cyrillic letter": "He\u0430t",
    "in Cyrillic capitals": "\u041d\u0415\u0410\u0422",
    "with a Greek letter": "\u0397eat",
    "with letters that show nothing": "He\u200bat",
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_validation_warns_of_a_copied_title_and_names_its_twin(tree, tmp_path, monkeypatch, copy):
    """In whatever disguise; the report has the column, and the item stays, for twins are mostly honest."""
    monkeypatch.chdir(tmp_path)
    titles = [*TITLES, copy]
    rows = [{"user_id": 1 + n % 5, "item_id": 1 + n % UNKNOWN, "file": "log.csv", "line": n + 2} for n in range(60)]
    items = [
        {"item_id": n, "title": title, "attributes": [], "raw_id": str(n), "file": "items.csv", "line": n + 1}
        for n, title in enumerate(titles, 1)
    ]
    for name, table in (
        ("interactions", pa.Table.from_pylist(rows, INTERACTIONS)), ("items", pa.Table.from_pylist(items, ITEMS)),
        ("users", pa.Table.from_pylist([], USERS)), ("malformed", pa.Table.from_pylist([], QUARANTINE)),
    ):  # fmt: skip
        (tmp_path / "interactions").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "interactions" / f"{name}.parquet")
    write_json(tmp_path / "interactions" / "source.json", {
        "source": "table", "noun": "items", "clock": False, "min_rating": None,
    })  # fmt: skip
    tree["validate"] |= {"max_rejected": 1.0, "min_rows": 1, "max_rows_per_user": 1.0}
    validate(parse_params(tree), flat_project(tmp_path))
    failed = {rule["rule"]: rule["failed"] for rule in read_json(tmp_path / "validated" / "summary.json")["rules"]}
    assert failed["shared title"] + failed["look-alike title"] == 1
    assert "Heat (line 3)" in (tmp_path / "reports" / "validation.html").read_text(encoding="utf-8")
    assert len(pq.read_table(tmp_path / "validated" / "items.parquet")) == UNKNOWN


def mean_rank(title: str, *, fans: bool) -> float:
    """The mean rank among twenty of an item that nobody met, under a title; 24 people who liked Heat, or did not."""
    rows = [{"item_id": n, "title": name, "attributes": None} for n, name in enumerate([*TITLES, title], 1)]
    catalogue = tiny.items(list(unique_titles(rows).values()))
    identity = {"id": "tiny", "revision": "1", "sha256": "0"}
    model = LanguageModel(tiny.model(), tiny.tokenizer(), torch.device("cpu"), "fp32", "none", identity, "digest")
    params = PromptParams(form="history", history=8, training_history=8, profile=False, max_title_tokens=24)
    builder = PromptBuilder(model.tokenizer, catalogue, params, "films")
    recommender = LanguageModelRecommender(model, builder, catalogue, "llm-tiny", batch=8)
    drawn, last = np.random.default_rng(0), 2 if fans else 1
    histories = [[*drawn.choice(np.arange(3, UNKNOWN), 3, replace=False).tolist(), last] for _ in range(24)]
    ranked = recommender.rank_many([Asked(history, list(catalogue.ids), UNKNOWN) for history in histories])
    return float(np.mean([[best.item_id for best in row].index(UNKNOWN) + 1 for row in ranked]))


def test_the_lift_of_a_copied_title_is_measured_against_its_clean_twin_and_people_who_did_not_like_it(record_property):
    """In places of twenty, on random weights, which copy nothing: what is left is what a title is worth by itself."""
    lift = {fans: mean_rank(CLEAN, fans=fans) - mean_rank(COPIED, fans=fans) for fans in (True, False)}
    record_property("lift_of_a_copied_title", {"fans": lift[True], "others": lift[False]})
    print(f"a copied title: {lift[True]:+.1f} places of 20 for who liked it, {lift[False]:+.1f} for others")
    assert lift == {True: pytest.approx(-5.8, abs=1.5), False: pytest.approx(-5.0, abs=1.5)}
    assert abs(lift[True] - lift[False]) < 2
