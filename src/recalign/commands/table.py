"""Command table: the main table of the last run, as reports/scorecard.json keeps it."""

from pathlib import Path
from typing import Any

from recalign.common.artifacts import read_json
from recalign.common.console import print_json
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import LABELS, METRICS
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.scorecard import ALL
from recalign.evaluation.significance import Interval, plain
from recalign.project import REPORTS
from recalign.report.table import print_table

BOUNDS = ("value", "low", "high")
ABOUT = ("source", "split", "view", "protocol", "manifest", "candidate_digest", "data_digest", "n", "users")


def table(*, markdown: bool = False, as_json: bool = False, reports: Path = REPORTS) -> None:
    """Print each system's metrics with their 95 % intervals over users, best NDCG@10 last.

    markdown: as a table of Markdown; as_json: one JSON document. Raises RecalignError where nothing was evaluated yet.
    """
    about, rows = read_table(reports)
    if as_json:
        print_json({"about": about, "systems": rows})
        return
    headings = ["system", *(LABELS[metric] for metric in METRICS)]
    cells = [[row["system"], *(_cell(row[metric]) for metric in METRICS)] for row in rows]
    caption = (
        f"{about['source']}, {about['split']} split, {about['view']}, {about['protocol']}, "
        f"manifest {about['manifest']} {about['candidate_digest'][:12]}, {about['n']} cases of {about['users']} users, "
        "95 % intervals over users"
    )
    if markdown:
        print("\n".join([caption, "", *_markdown(headings, cells)]))
    else:
        print(caption)
        print_table(headings, cells)


def read_table(reports: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the main table is about, and a row a system: value, low and high by metric.

    Raises RecalignError where scorecard.json is missing or holds no figures.
    """
    file = reports / "scorecard.json"
    figures = read_json(file)["figures"]
    if not figures:
        raise RecalignError(f"{file} holds no figures; run 'dvc repro' to measure")
    about = {field: figures[0][field] for field in ABOUT}
    main = {field: about[field] for field in ("view", "protocol", "manifest")}
    rows: dict[str, dict[str, Any]] = {}
    for figure in figures:
        same = figure["slice"] == ALL and all(figure[field] == value for field, value in main.items())
        if same and figure["p"] is None and figure["metric"] in METRICS:  # a paired difference has a p
            bounds = {bound: figure[bound] for bound in BOUNDS}
            rows.setdefault(figure["system"], {"system": figure["system"]})[figure["metric"]] = bounds
    return about, sorted(rows.values(), key=lambda row: (row[CHOSEN_BY]["value"], row["system"]))


def _cell(bounds: dict[str, float]) -> str:
    return plain(Interval(bounds["value"], bounds["low"], bounds["high"]))


def _markdown(headings: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
