"""The scorecard, the verdict and the page, from ranks made by hand and through the stage as `dvc repro` runs it."""

import json
import re
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from browser import measure
from flat_project import flat_project

from conftest import ROOT
from recalign.common.artifacts import folder, read_json, read_parquet, write_json, write_parquet, write_text
from recalign.common.columns import VIEWS
from recalign.common.errors import RecalignError
from recalign.common.html import HeatRow, document, heat_table, table
from recalign.common.run_log import note_costs
from recalign.data.ids import RawIds
from recalign.data.records import read_examples, read_met
from recalign.data.simulator import Taste
from recalign.evaluation.metrics import chance
from recalign.evaluation.ranks import CaseList, SystemRanks, in_case_order, write_system_ranks
from recalign.evaluation.scorecard import Comparison, Scorecard, build_scorecard
from recalign.evaluation.significance import Interval
from recalign.evaluation.systems import System, write_systems
from recalign.params.load import Params, load_params, parse_params
from recalign.preferences.profiles.profiles import Claim, Profile, profiles_table
from recalign.report.plots import ACCENT, OTHER, THIRD, Curve, drift_plot, read_curve
from recalign.report.provenance import next_commands
from recalign.report.sections import Claimed, ledger_section
from recalign.report.table import cells, difference, print_scorecard
from recalign.report.verdict import answer, outcome, verdict
from recalign.stages.report import report

DIGESTS = {"uniform": "ab" * 32, "popularity": "cd" * 32, "catalogue": "ef" * 32}
EVIL = '<script>alert("title")</script>'
VALIDATION = {"popularity": 0.4, "item_knn": 0.6, "oracle": 0.9, "llm-base": 0.2, "llm-sft": 0.3, "llm-sdpo": 0.5}


def about(name: str) -> System:
    entry: dict[str, Any] = {"kind": "id", "ranked_by": "counts", "prior_weight": None}
    if name.startswith("llm"):
        tried = [{"kind": "logprob", "prior_weight": 0.0, "ndcg_at_10": 0.2}]
        entry = {"kind": "llm", "ranked_by": "logprob_less_prior", "prior_weight": 0.5, "tried": tried}
        entry["catalogue_ranked_by"] = "logprob"
    if name == "oracle":
        entry["kind"] = "oracle"
    return System(**entry, validation={"ndcg_at_10": VALIDATION[name]}, cases=40)


def ranked(name: str, ranks: list[int], manifest: str = "uniform") -> SystemRanks:
    cases = [(f"{user}-{user}", user) for user in range(len(ranks))]
    protocol = "full" if manifest == "catalogue" else "sampled-20"
    zeros, top = np.zeros(len(ranks)), [(1,) if name == "popularity" else (1, 2)] * len(ranks)
    return in_case_order(name, CaseList(protocol, manifest, DIGESTS[manifest], cases), np.array(ranks), zeros, top)


RANKS = {
    "popularity": [5] * 40,
    "item_knn": [2] * 40,
    "oracle": [1] * 40,
    "llm-base": [10] * 40,
    "llm-sft": [8] * 40,
    "llm-sdpo": [4] * 40,
}
SYSTEMS = {name: about(name) for name in RANKS}


def card(sdpo: list[int] | None = None) -> Scorecard:
    """The card of RANKS, with other ranks of llm-sdpo where given."""
    ranks = RANKS | ({"llm-sdpo": sdpo} if sdpo else {})
    return build_scorecard([ranked(*system) for system in ranks.items()], SYSTEMS, 200, 1)


def test_the_best_of_each_kind_is_chosen_by_validation_and_the_oracle_is_no_baseline() -> None:
    made = card()
    assert (made.baseline, made.llm) == ("item_knn", "llm-sdpo")


def test_the_comparisons_are_each_training_step_and_the_best_llm_against_the_baselines() -> None:
    assert [(pair.first, pair.second, pair.words) for pair in card().comparisons] == [
        ("llm-sdpo", "llm-sft", "above"),
        ("llm-sft", "llm-base", "above"),
        ("llm-sdpo", "item_knn", "below"),
        ("llm-sdpo", "popularity", "above"),
    ]


def test_the_verdict_says_plainly_that_the_llm_loses() -> None:
    first = verdict(card())[0]
    assert first.startswith(
        "The LLM loses: S-DPO is below item-kNN, the best baseline on the validation cases (NDCG@10 0.431 "
    )
    assert first.endswith("difference −0.200 [−0.200, −0.200] on 40 cases of 40 users).")


BEST = "the best baseline on the validation cases"


@pytest.mark.parametrize(
    ("sdpo", "found", "words"),
    [([1] * 40, "above", f"Yes, on cases like these: it ranks better than item-kNN, {BEST}."),
     ([4] * 40, "below", f"No, not on cases like these: item-kNN, {BEST}, ranks better and"),
     ([1, 4] * 20, "level with", f"Not yet: on 40 cases it cannot be told from item-kNN, {BEST}")],
)  # fmt: skip
def test_the_question_that_a_run_is_for_is_answered_in_plain_words(sdpo: list[int], found: str, words: str) -> None:
    assert outcome(card(sdpo)) == found
    assert answer(card(sdpo)).startswith(f"Should you use the language model? {words}")


def test_a_random_model_is_named_in_table_verdict_and_answer(capsys) -> None:
    made = replace(card(sdpo=[1] * 40), random_model=True)
    print_scorecard(made, "simulated")
    assert "over users; random model: the figures mean nothing\n" in capsys.readouterr().out
    assert verdict(made)[0] == "Random model: the figures mean nothing."
    assert outcome(made) is None
    assert answer(made).startswith("Should you use the language model? This run cannot say (random model: the figures")


@pytest.mark.parametrize(
    ("source", "random_model", "expected"),
    [("simulated", True, ["dvc exp run -S budget=demo", "recalign recommend --user 'A4 WSJ'",
                          "dvc exp run -S source=lastfm -S budget=few-shot"]),
     ("table", True, ["dvc exp run -S budget=demo", "recalign recommend --user 'A4 WSJ'"]),
     ("table", False, ["recalign register", "recalign recommend --user 'A4 WSJ'", "dvc exp run -S budget=few-shot"])],
)  # fmt: skip
def test_next_comes_a_trained_model_on_the_same_data(source: str, random_model: bool, expected: list[str]) -> None:
    told = next_commands({"source": source, "random_model": random_model, "example_user": 7}, RawIds({7: "A4 WSJ"}))
    assert [line.split("  ")[0] for line in told] == expected


def test_the_verdict_says_that_the_llm_wins_only_when_the_interval_is_above_zero() -> None:
    assert verdict(card(sdpo=[1] * 40))[0].startswith("The LLM wins: S-DPO is above item-kNN")
    mixed = verdict(card(sdpo=[1, 4] * 20))[0]
    assert mixed.startswith("No clear winner: S-DPO is within the error of item-kNN")


@pytest.mark.parametrize(
    ("view", "users", "speaks"),
    [("item-cold-natural", 199, False), ("item-cold-natural", 200, True), ("item-cold-hidden", 40, True),
     ("user-cold", 40, True)],
)  # fmt: skip
def test_naturally_new_items_give_no_verdict_below_200_users(view: str, users: int, speaks: bool) -> None:
    systems = [replace(ranked(name, (ranks * 5)[:users]), view=view) for name, ranks in RANKS.items()]
    said = verdict(build_scorecard(systems, SYSTEMS, 200, 1))
    if speaks:
        assert said[0].startswith("The LLM loses")
    else:
        assert said == [
            "On the view item-cold-natural there is no verdict: 199 cases of 199 users, fewer than 200 users."
        ]


def test_a_card_of_two_views_is_refused() -> None:
    systems = [ranked(*own) for own in RANKS.items()]
    with pytest.raises(RecalignError, match="cannot be compared: view is '"):
        build_scorecard([replace(systems[0], view="user-cold"), *systems[1:]], SYSTEMS, 200, 1)


def test_a_model_that_ranks_as_its_start_is_said_to() -> None:
    assert "S-DPO ranks the targets exactly as the SFT model does." in verdict(card(sdpo=[8] * 40))


def test_the_table_of_the_whole_catalogue_names_what_ranks_there() -> None:
    whole = build_scorecard([ranked(name, ranks, "catalogue") for name, ranks in RANKS.items()], SYSTEMS, 200, 1)
    assert (card().row("llm-sft").ranked_by, whole.row("llm-sft").ranked_by) == ("log-prob − 0.5 × prior", "log-prob")
    assert whole.row("item_knn").ranked_by == "counts"


def test_the_table_holds_each_system_with_intervals_and_what_it_is_ranked_by_best_last() -> None:
    rows = cells(card())
    assert [row[0] for row in rows] == ["llm-base", "llm-sft", "popularity", "llm-sdpo", "item_knn", "oracle"]
    assert rows[3][1:] == [
        "0.000 [0.000, 0.088]",
        "1.000 [0.912, 1.000]",
        "0.431 [0.431, 0.431]",
        "0.250 [0.250, 0.250]",
        "−0.200 [−0.200, −0.200]",
        "log-prob − 0.5 × prior",
    ]
    assert rows[4][5] == "—"


@pytest.mark.parametrize(
    ("columns", "shown", "left_out"),
    [(80, "system HR@1 NDCG@10 − item_knn", True), (120, "system HR@1 HR@5 NDCG@10 MRR − item_knn", False),
     (200, "system HR@1 HR@5 NDCG@10 MRR NDCG@10 − item_knn", False)],
)  # fmt: skip
def test_the_table_fits_the_terminal(columns: int, shown: str, left_out: bool, capsys, monkeypatch) -> None:
    """No line of it is wider, no cell is cut, and what was left out is named."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    print_scorecard(replace(card(), unbeaten=frozenset(["llm-base"])), "simulated")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    table = [line for line in lines[1:] if line.startswith(" ")]
    assert max(map(len, table)) <= columns
    (heads,) = [line.split() for line in table if line.split()[:1] == ["system"]]
    assert heads == shown.split()
    text = "\n".join(table)
    assert "…" not in text
    assert all(f" {name} " in text for name in RANKS)
    assert "llm-base †" in text
    assert text.count("[0.431, 0.431]") == 1
    assert any(line.startswith("HR@5 and MRR: shown where") for line in lines) == left_out
    assert "Ranked by log-prob − 0.5 × prior: llm-base, llm-sft, llm-sdpo." in lines


def test_in_a_pipe_the_table_has_120_columns_at_most_and_no_colour(capsys) -> None:
    print_scorecard(card(), "simulated")
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines[1:]) <= 120
    assert "\x1b" not in "".join(lines)
    (sdpo,) = [line.split() for line in lines if line.split()[:1] == ["llm-sdpo"]]
    assert sdpo == ["llm-sdpo", "0.000", "1.000", "0.431", "0.250", "−0.200"]


def test_a_difference_that_only_a_correction_takes_away_is_level_and_marked() -> None:
    pair = Comparison("llm-sdpo", "item_knn", Interval(0.04, 0.001, 0.08), p=0.2)
    assert (pair.words, difference(pair)) == ("level with", "+0.040 [+0.001, +0.080] ?")
    assert difference(Comparison("a", "b", Interval(0.04, 0.001, 0.08), p=0.04)) == "+0.040 [+0.001, +0.080]"


def test_a_card_without_a_baseline_is_refused() -> None:
    with pytest.raises(RecalignError, match="no ID recommender is among the systems"):
        build_scorecard([ranked("llm-sft", [1, 2])], SYSTEMS, 200, 1)


def test_chance_of_ndcg_at_10_among_20() -> None:
    assert chance("ndcg_at_10", 20) == pytest.approx(sum(1 / np.log2(1 + r) for r in range(1, 11)) / 20)
    assert chance("hr_at_1", 20) == 1 / 20


def test_a_broken_curve_names_file_and_line(tmp_path: Path) -> None:
    write_text(tmp_path / "curve.csv", "step,examples,loss\n0,0,\n1,8,high\n")
    with pytest.raises(RecalignError, match=r"curve\.csv:3 holds a value that is no number"):
        read_curve("sft", tmp_path / "curve.csv")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folders that the stage reads, as the earlier stages write them."""
    return write_project(tmp_path)


def write_project(tmp_path: Path) -> Path:
    """The same in a folder of the caller's, which is returned."""
    with folder(tmp_path / "ranks") as out:
        full = [ranked(name, [30] * 40, "catalogue") for name in ("popularity", "item_knn")]
        write_system_ranks(out / "ranks.parquet", [ranked(*own) for own in RANKS.items()] + full)
        write_systems(out / "systems.json", SYSTEMS)
        write_json(out / "cases.json", {
            "source": "simulated", "split": "test", "data_digest": "12" * 32, "manifests": DIGESTS, "candidates": 20,
            "validation_cases": 60, "noun": "movies", "example_user": 7, "machine": "x86_64, 2 CPU cores",
        })  # fmt: skip
        write_json(out / "examples.json", [{
            "example_id": "7-1", "user_id": 7, "history": ["Heat", EVIL], "profile": "Likes crime films.",
            "target": "Alien", "ranked": {name: ["Up", "Alien"] for name in RANKS},
        }])  # fmt: skip
    write_prepared(tmp_path / "prepared")
    with folder(tmp_path / "pairs") as out:
        write_text(out / "pairs.parquet", "read by its digest alone")
    rule = {"rule": "duplicate event", "table": "interactions", "level": "row", "sentence": "…", "failed": 9}
    rows = {"interactions": {"read": 100, "kept": 91, "quarantined": 9}}
    write_json(tmp_path / "validated" / "summary.json", {"rows": rows, "rules": [rule]})
    users = pa.table({"user_id": [7], "raw_id": ["A4 WSJ"]})
    write_parquet(tmp_path / "validated" / "users.parquet", users)
    row = {"users": 40, "claims": 9, "right": 6, "planted": 20, "precision": 2 / 3, "recall": None}
    write_json(tmp_path / "profiles" / "truth.json", {"statements": {"test": row}})
    write_json(tmp_path / "base" / "base.json", {"id": "tiny", "revision": "1", "sha256": "34" * 32})
    curve = "step,examples,loss,chosen_logp_drift,rejected_logp_drift,reward_accuracy,validation_loss\n"
    for name in ("sft", "align/sdpo"):
        with folder(tmp_path / name) as out:
            write_text(out / "curve.csv", curve + "0,0,,,,,2\n1,8,1.5,0.1,-0.2,0.6,\n2,16,1.2,0.2,-0.4,0.7,1.4\n")
            write_json(out / "training.json", {"best_step": 2})
        note_costs(tmp_path / name, {"seconds": 12.4}, flat_project(tmp_path).costs)
    write_truth(tmp_path)
    return tmp_path


def write_prepared(out: Path) -> None:
    """Forty users of one case each, half of them without a train event; item 1 is a war film, 2 a drama."""
    users = range(40)
    items = [
        {"item_id": 1, "title": "Heat", "attributes": [("genre", ["War"])], "popularity": 30},
        {"item_id": 2, "title": "Alien", "attributes": [("genre", ["Drama", "War"])], "popularity": 10},
    ]
    genres = pa.map_(pa.string(), pa.list_(pa.string()))
    columns = {"item_id": pa.int64(), "title": pa.string(), "attributes": genres, "popularity": pa.int64()}
    write_parquet(out / "items.parquet", pa.Table.from_pylist(items, pa.schema(list(columns.items()))))
    events = {"user_id": [*range(20)] * 5, "item_id": [1] * 100, "split": ["train"] * 100}
    write_parquet(out / "events.parquet", pa.table(events))
    case = {"split": "test", "view": "warm", "cutoff": None, "history": [1, 2, 1], "target": 2}
    rows = [{"example_id": f"{user}-{user}", "user_id": user, **case} for user in users]
    write_parquet(out / "examples.parquet", pa.Table.from_pylist(rows))
    lists = [
        {"manifest": "uniform", "example_id": row["example_id"], "user_id": row["user_id"], "candidates": [1, 2],
         "target_index": 1}
        for row in rows
    ]  # fmt: skip
    write_parquet(out / "candidates.parquet", pa.Table.from_pylist(lists))
    write_json(out / "summary.json", {"cutoffs": {"test": "2023-10-14T16:19:43"}, "clock": True})


def write_truth(root: Path) -> None:
    """One planted taste, and the profile that found half of it."""
    taste = Taste(7, 0.0, ("War", "Drama"), "Horror", 9999.0, 1980, ("A", "B"), 0.5)
    planted = pa.table({"user_id": [7], "taste": [json.dumps(asdict(taste))]})
    write_parquet(root / "validated" / "truth.parquet", planted)
    claims = (Claim("war movies", "genre", "War", 1.0), Claim("comedies", "genre", "Comedy", 0.5))
    profile = Profile(7, "test", "statements", "Likes war movies.", claims, (1,), None, None)
    write_parquet(root / "profiles" / "profiles.parquet", profiles_table([profile]))


def make_report(params: Params, project: Path, out: str = "reports") -> Path:
    report(params, flat_project(project).moved(reports=project / out))
    return project / out


@pytest.fixture
def params(tree: dict[str, Any]) -> Params:
    return parse_params(tree | {"evaluate": tree["evaluate"] | {"resamples": 200}})


@dataclass(frozen=True)
class Made:
    """A report's folder, and what the terminal showed while it was made."""

    out: Path
    printed: str

    @property
    def page(self) -> str:
        return (self.out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The report on the project above: one for all tests that only read it."""
    own = load_params(ROOT / "params.yaml")
    own = own.model_copy(update={"evaluate": own.evaluate.model_copy(update={"resamples": 200})})
    with redirect_stdout(StringIO()) as printed:
        out = make_report(own, write_project(tmp_path_factory.mktemp("report")))
    return Made(out, printed.getvalue())


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and the headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]


def test_the_page_is_self_contained_and_runs_nothing_from_a_title(made: Made) -> None:
    text = made.page
    page = Page(text)
    assert "script" not in page.tags
    assert page.fetched
    assert all(place.startswith("#") for place in page.fetched)
    assert "url(http" not in text
    assert "&lt;script&gt;alert" in text
    assert "@media (prefers-color-scheme: dark)" in text


def test_the_page_leads_with_the_verdict_and_carries_what_a_figure_needs(made: Made) -> None:
    text = made.page
    assert text.index("The LLM loses") < text.index("<table")
    for told in (
        "simulated, test split, warm, sampled-20, manifest uniform abababababab, 40 cases of 40 users",
        "The full catalogue", "Likes crime films.", "Alien ← came next", "duplicate event", "0.67",
        "x86_64, 2 CPU cores", "sha256 3434343434343434", "lora.rank: 16",
    ):  # fmt: skip
        assert told in text, told
    assert text.count('role="img" aria-label="') == 5


def test_every_section_has_a_heading_that_the_contents_link_to(made: Made) -> None:
    text = made.page
    linked = re.findall(r'<a href="#(s\w+)">(.*?)</a>', text)
    assert linked == re.findall(r'<h2 id="(s\w+)">(.*?)</h2>', text)
    headings = {heading for _, heading in linked}
    told = {"Slices of the warm cases", "Against the truth", "Cost against gain", "Training", "Data quality"}
    assert headings >= told
    ids = re.findall(r' id="([^"]+)"', re.sub(r"<svg.*?</svg>", "", text, flags=re.S))
    assert len(ids) == len(set(ids))


def test_the_sections_tell_slices_fairness_truth_and_cost(made: Made) -> None:
    text = made.page
    for told in (
        'user: user without train events <span class="interval">[20 cases, 20 users]', '<tr class="grey">',
        "MGU by popularity", "DGU by genre", "share of the oracle", "of 2 planted values of 1 users 1 were learned",
        "1 of 2 claims are wrong", "24.8", "pairs", "recalign compare . ",
    ):  # fmt: skip
        assert told.lower() in text.lower(), told


def test_the_page_lists_what_is_claimed_of_users_and_because_of_what(made: Made) -> None:
    """By the log's own id; a claim without anything that supports it says so."""
    section = made.page.split("What is claimed of users</h2>")[1].split("</section>")[0]
    assert "A4 WSJ" in section
    assert "genre=War" in section
    assert "+1.00" in section
    assert ledger_section([]) == ""
    many = Claimed("u", "war films", "genre=War", None, "edit", tuple("abcdefg"))
    assert many.told == "g, f, e, d, c and 2 more"


def test_what_training_and_ranking_took_is_on_the_page_and_in_no_file_that_must_repeat(
    params: Params, project: Path
) -> None:
    """The same ranks after a run that took longer: the page says so, scorecard.json and metrics.json stay."""
    first = make_report(params, project)
    note_costs(project / "sft", {"seconds": 987.6}, flat_project(project).costs)
    note_costs(project / "ranks", {"llm-sft": 543.2}, flat_project(project).costs)
    again = make_report(params, project, "again")
    for name in ("scorecard.json", "metrics.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    page = (again / "report.html").read_text(encoding="utf-8")
    assert "987.6" in page
    assert "543.2" in page


def test_likelihood_displacement_is_warned_of_beside_the_verdict(params: Params, project: Path) -> None:
    curve = "step,examples,loss,chosen_logp_drift,rejected_logp_drift,reward_accuracy,validation_loss\n0,0,,,,,2\n"
    write_text(project / "align" / "sdpo" / "curve.csv", curve + "1,8,1.5,-0.4,-1.0,0.6,1.4\n")
    text = (make_report(params, project) / "report.html").read_text(encoding="utf-8")
    warned = text.index("Likelihood displacement while training sdpo: chosen titles lost 0.40 nats")
    assert warned < text.index("<nav")
    write_text(project / "align" / "sdpo" / "curve.csv", curve + "1,8,1.5,0.1,-1.0,0.6,1.4\n")
    assert "displacement" not in (make_report(params, project) / "report.html").read_text(encoding="utf-8")


def test_each_figure_of_the_scorecard_carries_all_that_a_comparison_needs(made: Made) -> None:
    card = json.loads((made.out / "scorecard.json").read_text())
    by_key = {(f["system"], f["metric"], f["slice"], f["manifest"]): f for f in card["figures"]}
    assert len(by_key) == len(card["figures"])
    own = by_key["item_knn", "hr_at_5", "all", "uniform"]
    assert own | {"git_revision": ""} == {
        "system": "item_knn", "metric": "hr_at_5", "value": 1.0, "low": 0.912378, "high": 1.0, "interval": "Wilson",
        "p": None, "n": 40, "users": 40, "slice": "all", "denominator": "all cases",
        "matching_rule": "item id; equals by lot", "protocol": "sampled-20", "view": "warm", "manifest": "uniform",
        "candidate_digest": DIGESTS["uniform"], "source": "simulated", "split": "test", "data_digest": "12" * 32,
        "git_revision": "",
    }  # fmt: skip
    assert by_key["llm-sdpo minus item_knn", "ndcg_at_10", "all", "uniform"]["p"] == 0.0
    assert by_key["llm-sft", "ndcg_at_10", "user: known user", "uniform"]["n"] == 20
    assert by_key["item_knn", "coverage at 10", "all", "catalogue"]["low"] is None
    assert by_key["popularity", "dgu by genre at 5", "all", "uniform"]["value"] == pytest.approx(0.25)
    share = by_key["item_knn", "share of the oracle's gain", "all", "uniform"]
    assert share["value"] == pytest.approx((1 / np.log2(3) - 0.227178) / (1 - 0.227178), abs=1e-5)


def test_the_metrics_hold_each_system_with_its_bounds_and_the_paired_differences(made: Made) -> None:
    metrics = json.loads((made.out / "metrics.json").read_text())
    assert metrics["systems"]["item_knn"]["mrr"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert metrics["paired"]["llm-sdpo_less_item_knn"]["value"] == pytest.approx(-0.200253, abs=1e-6)
    assert metrics["exposure"]["popularity"]["coverage"] == 0.5
    assert metrics["exposure"]["popularity"]["dgu_genre"]["value"] == pytest.approx(0.25)
    assert metrics["oracle_share"]["item_knn"]["value"] == pytest.approx(0.522436, abs=1e-5)
    assert metrics["best"] == {"baseline": "item_knn", "llm": "llm-sdpo"}
    assert metrics["full_catalogue"]["popularity"]["hr_at_5"]["value"] == 0.0
    assert metrics["about"]["manifest_digest"] == DIGESTS["uniform"]


def test_plots_are_csv_and_valid_svg(made: Made) -> None:
    plots = made.out / "plots"
    names = {path.name for path in plots.iterdir()}
    assert names == {"metrics.csv", "training.csv", "drift.csv", "metrics.svg", "training.svg", "drift-sdpo.svg"}
    assert (plots / "drift.csv").read_text().splitlines()[2] == "sdpo,1,8,0.1,-0.2,0.6"
    for path in plots.glob("*.svg"):
        assert ET.fromstring(path.read_text(encoding="utf-8")).tag.endswith("svg")  # noqa: S314  # our own file


def test_the_same_ranks_give_the_same_bytes(params: Params, project: Path) -> None:
    first, second = make_report(params, project, "one"), make_report(params, project, "two")
    assert {"metrics.json", "report.html"} <= {path.name for path in first.iterdir()}
    for path in sorted(first.rglob("*.*")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path


def test_the_terminal_shows_table_verdict_path_and_what_to_type_next(made: Made) -> None:
    for told in (
        "− item_knn", "[0.431, 0.431]", "Should you use the language model? No", "The LLM loses",
        f"Report: {made.out / 'report.html'}",
        "recalign register", "recalign recommend --user 'A4 WSJ'", "dvc exp run -S source=lastfm -S budget=few-shot",
    ):  # fmt: skip
        assert told in made.printed, told


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_reads_in_a_browser(made: Made, tmp_path: Path, width: int, dark: bool) -> None:
    """Nothing is cut or sticks out, letters of drawings keep their size, and names serve a screen reader."""
    page = made.page
    told = measure(page, tmp_path, width, dark=dark)
    assert (told["overflow"], told["cut"], told["unnamed"], told["unreachable"], told["unscoped"]) == (0, [], [], 0, 0)
    assert told["letters"] >= 9
    assert told["headings"][0] == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(told["headings"]))
    assert told["background"] == ("rgb(22, 22, 22)" if dark else "rgb(253, 253, 252)")


@pytest.mark.slow
def test_a_long_text_in_a_wide_table_does_not_make_its_row_tall_on_a_phone(tmp_path: Path) -> None:
    """The table scrolls there in any case, so its last column has room to be read in."""
    row = ("fusion", *["0.908 [0.631, 1.000]"] * 5, "0.67 item_knn + 0.33 ease + 0 (llm-sdpo, popularity)")
    page = document("wide", [table(["system", *"abcde", "ranked by"], [row])])
    assert measure(page, tmp_path, 390)["tallest"] < 80


@pytest.mark.slow
def test_the_slices_of_eight_systems_fit_a_page_of_1280_pixels(tmp_path: Path) -> None:
    """And one of 390 scrolls."""
    names = ["llm-sdpo", "llm-sft", "llm-base", "popularity", "ease", "fusion", "item_knn", "oracle"]
    head = "target's popularity: most popular fifth [2 cases, 2 users]"
    rows = [HeatRow(head, [("0.815 [0.631, 1.000]", 0.8)] * 8, 0, False)]
    page = document("slices", [heat_table(["slice", *names], rows, "Slices")])
    assert [measure(page, tmp_path, width)["scrolled"] for width in (1280, 390)] == [0, 1]


def test_only_what_is_long_in_a_table_of_many_columns_keeps_a_width() -> None:
    """A narrow table fits a phone, where its text may take several lines."""
    said = "true probability of the next film"
    assert table(list("abcdef"), [("x", 1, 2, 3, 4, said)]).count('<td class="long">') == 1
    assert "long" not in table(list("abcde"), [("x", 1, 2, 3, said)])
    assert "long" not in table(list("abcdef"), [("x", 1, 2, 3, 4, "0.908 [0.631000000, 1.000000000]")])


def test_a_curve_of_one_step_is_drawn_as_a_point() -> None:
    """A line of one point is no line."""
    step: dict[str, float | None] = {
        "step": 1.0,
        "examples": 16.0,
        "chosen_logp_drift": 0.1,
        "rejected_logp_drift": -0.1,
        "reward_accuracy": 0.5,
    }
    curves = (step,), (step, step | {"examples": 32.0})
    one, two = (drift_plot(Curve("sdpo", rows)).svg for rows in curves)
    for colour in (OTHER, THIRD, ACCENT):
        assert f"fill: {colour}" in one
        assert f"fill: {colour}" not in two


@pytest.mark.slow
def test_the_measure_finds_what_is_cut_or_has_no_name(tmp_path: Path) -> None:
    told = measure('<main><p style="width: 900px">wide</p><svg role="img"></svg></main>', tmp_path, 390)
    assert told["overflow"] > 0
    assert told["cut"] == ["wide"]
    assert len(told["unnamed"]) == 1


def test_what_the_lists_give_away_stands_in_metrics_table_and_page(made: Made) -> None:
    """Every target of this small world stands at the same place: who only equals a ranker of places is marked."""
    audit = json.loads((made.out / "metrics.json").read_text(encoding="utf-8"))["audit"]
    assert audit["verdict"] == "leak"
    assert audit["probes"]["place"] | {"chance": 0.5, "value": 1.0} == audit["probes"]["place"]
    assert audit["best_probe"]["ndcg_at_10"]["value"] == 1.0
    assert set(audit["unbeaten"]) == set(RANKS)
    assert "llm-sdpo †" in made.printed
    assert "† does not beat that probe by its interval and cannot become champion." in made.printed
    assert "What the candidate lists give away" in made.page
    assert "Leak: " in made.page


def check_views(project: Path) -> None:
    """Of a run: each view has the same cases for all systems, a table, records and an audit, or a reason why not."""
    metrics, about = (read_json(project / name) for name in ("reports/metrics.json", "data/ranks/cases.json"))
    rows = read_parquet(project / "data/ranks/ranks.parquet").to_pylist()
    asked: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        asked.setdefault((row["view"], row["manifest"], row["system"]), set()).add(row["example_id"])
    shown = set(about["views"])
    assert shown | set(about["views_left_out"]) == set(VIEWS)
    assert set(metrics["views"]) == shown - {"warm"} == set(metrics["other_audits"]) - {"warm"}
    for view in shown:
        cases = [own for (of, manifest, _), own in asked.items() if (of, manifest) == (view, "uniform")]
        assert all(own == cases[0] for own in cases), view
        assert len(cases[0]) == about["views"][view]["cases"]
    systems = {system for _, _, system in asked}
    assert all(set(own["systems"]) == systems for own in metrics["views"].values())
    figures = read_json(project / "reports/scorecard.json")["figures"]
    assert {figure["view"] for figure in figures} == shown
    met = read_met(project / "data/prepared", {row["user_id"] for row in rows})
    examples = [own for view in shown for own in read_examples(project / "data/prepared", "test", view=view)]
    gone = {own.example_id: met[own.user_id].before(own) for own in examples if own.user_id in met}
    assert not any(gone[row["example_id"]] & set(row["top"]) for row in rows if row["protocol"] == "full")


def test_a_run_shows_each_view_or_says_why_not(smoke: Path) -> None:
    check_views(smoke)
    screen = (smoke / "repro.log").read_text(encoding="utf-8")
    assert re.search(r"test split, user-cold, sampled-20, manifest uniform \w+, 20 cases of \d+ users", screen)
    assert "item-cold-hidden: left out, since prepare.hidden_items is 0" in screen
